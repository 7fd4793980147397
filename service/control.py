"""The control plane as one object: what the gateway holds, and what a worker builds on."""

from __future__ import annotations

from dataclasses import dataclass

from redis.asyncio import Redis
from redis.exceptions import RedisError

from service import keys
from service.branches import Branches
from service.errors import ConfigurationError, ControlPlaneDown
from service.exports import Exports
from service.feed import Feed
from service.frames import FrameBus
from service.heads import Heads
from service.imports import Imports
from service.lineage import Lineage
from service.requests import RequestLog
from service.segments import SegmentStore
from service.sessions import Sessions
from service.settings import Settings
from service.sweeper import Sweeper
from service.workers import Workers


@dataclass(frozen=True)
class ControlPlane:
    redis: Redis
    segments: SegmentStore
    sessions: Sessions
    requests: RequestLog
    frames: FrameBus
    feed: Feed
    heads: Heads
    lineage: Lineage
    branches: Branches
    exports: Exports
    imports: Imports
    workers: Workers
    sweeper: Sweeper

    @classmethod
    async def open(cls, settings: Settings) -> ControlPlane:
        """Connect; raises ConfigurationError, ControlPlaneDown, StoreDown."""
        if not settings.redis_url:
            raise ConfigurationError(
                "MIRAGE_REDIS_URL is empty: only `mirage up` starts a Redis of its own"
            )
        try:
            redis = Redis.from_url(
                settings.redis_url,
                socket_timeout=keys.SOCKET_TIMEOUT_S,
                max_connections=keys.MAX_CONNECTIONS,
            )
        except ValueError as error:
            raise ConfigurationError(f"MIRAGE_REDIS_URL can't be used: {error}") from error
        store = SegmentStore(settings.segments_url)
        requests, heads = RequestLog(redis, settings), Heads(redis, store.objects)
        sessions = Sessions(redis, settings, store, requests, heads)
        frames = FrameBus(redis, store)
        control = cls(
            redis=redis,
            segments=store,
            sessions=sessions,
            requests=requests,
            frames=frames,
            feed=Feed(redis, frames),
            heads=heads,
            lineage=Lineage(redis, sessions, heads),
            branches=Branches(redis, sessions, requests),
            exports=Exports(store, heads),
            imports=Imports(store, sessions, heads, settings),
            workers=Workers(redis, settings.lease_s),
            sweeper=Sweeper(redis, store, requests, settings.lease_s),
        )
        await control.ping()
        return control

    async def ping(self) -> None:
        """Raises ControlPlaneDown if Redis does not answer."""
        try:
            await self.redis.ping()
        except (RedisError, OSError) as error:
            raise ControlPlaneDown(f"Redis does not answer: {error}", retry_after_s=1.0) from error

    async def sweep_forever(self) -> None:
        await self.sweeper.forever()

    async def close(self) -> None:
        await self.feed.close()
        await self.redis.aclose()
