"""The control plane as one object: what the gateway holds, and what a worker builds on."""

from __future__ import annotations

from dataclasses import dataclass

import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError

from service.control.branches import Branches
from service.control.connect import connect
from service.control.feed import Feed
from service.control.frames import FrameBus
from service.control.heads import Heads
from service.control.lineage import Lineage
from service.control.requests import RequestLog
from service.control.sessions import Sessions
from service.control.sweeper import Sweeper
from service.control.workers import Workers
from service.errors import ConfigurationError, ControlPlaneDown
from service.points.cloud import Clouds
from service.settings import Settings
from service.store.collection import Collection
from service.store.exports import Exports
from service.store.imports import Imports
from service.store.kept import Kept
from service.store.objects import ObjectStore
from service.store.rebuild import Rebuild
from service.store.segments import SegmentStore

LOG = structlog.get_logger()


@dataclass(frozen=True)
class ControlPlane:
    redis: Redis
    segments: SegmentStore
    sessions: Sessions
    requests: RequestLog
    frames: FrameBus
    feed: Feed
    heads: Heads
    kept: Kept
    lineage: Lineage
    branches: Branches
    exports: Exports
    clouds: Clouds
    imports: Imports
    collection: Collection
    rebuild: Rebuild
    workers: Workers
    sweeper: Sweeper

    @classmethod
    async def open(
        cls, settings: Settings, objects: type[ObjectStore] = ObjectStore
    ) -> ControlPlane:
        """Connect; raises ConfigurationError, ControlPlaneDown, StoreDown."""
        if not settings.redis_url:
            raise ConfigurationError(
                "MIRAGE_REDIS_URL is empty: only `mirage up` starts a Redis of its own"
            )
        redis = connect(settings.redis_url)
        store = SegmentStore(settings.segments_url, objects)
        requests, heads = RequestLog(redis, settings), Heads(redis, store.objects)
        sessions = Sessions(redis, settings, store, requests, heads)
        frames, kept = FrameBus(redis, store), Kept(redis, store.objects)
        rebuild = Rebuild(redis, store, sessions, heads, kept)
        collection = Collection(redis, store, heads, settings.collect_grace_s)
        control = cls(
            redis=redis,
            segments=store,
            sessions=sessions,
            requests=requests,
            frames=frames,
            feed=Feed(redis, frames),
            heads=heads,
            kept=kept,
            lineage=Lineage(redis, sessions, heads),
            branches=Branches(redis, sessions, requests),
            exports=Exports(store, heads),
            clouds=Clouds(store, heads),
            imports=Imports(store, sessions, heads, settings),
            workers=Workers(redis, settings.lease_s),
            collection=collection,
            rebuild=rebuild,
            sweeper=Sweeper(redis, requests, collection, rebuild, kept, settings.lease_s),
        )
        try:
            await redis.ping()
        except (RedisError, OSError) as error:  # for the operator, who has to know which
            raise ControlPlaneDown(f"Redis does not answer: {error}", retry_after_s=1.0) from error
        try:
            await rebuild.ensure()
        except ConfigurationError:
            await control.close()
            raise
        except ControlPlaneDown as error:  # another process is at it; sessions appear as it goes
            LOG.warning("not whole yet", reason=error.detail)
        return control

    async def ping(self) -> None:
        """Raises ControlPlaneDown if Redis does not answer."""
        try:
            await self.redis.ping()
        except (RedisError, OSError) as error:
            LOG.warning("redis does not answer", error=str(error))
            raise ControlPlaneDown("Redis does not answer.", retry_after_s=1.0) from error

    async def sweep_forever(self) -> None:
        await self.sweeper.forever()

    async def close(self) -> None:
        await self.feed.close()
        await self.redis.aclose()
