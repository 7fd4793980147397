"""A Redis client from MIRAGE_REDIS_URL: one server, a master that Sentinels know, or a cluster.

    redis://[user:password@]host:6379/0           one server; rediss:// for TLS; unix:///path
    redis+sentinel://host:26379,host2/mymaster/0  whoever is master now; `rediss+sentinel` for TLS
    redis+cluster://host:6379,host2:6379          any nodes of a cluster; `rediss+cluster` for TLS

A password in the Sentinel form is that of the servers, not of the Sentinels. Options in the query
(`?ssl_ca_certs=/path`) are redis-py's. A command that a lost connection interrupted is sent again
for about three seconds, so a restart of the server is a pause: every transition here may be
repeated. Three are not told apart from another's, and harm none: a snapshot's name taken back
twice is answered "no such snapshot", a rate counts a request twice, and work that is handed over
waits for the sweeper. The Sentinel and cluster forms ask again where the master is.
"""

from __future__ import annotations

import re
from contextvars import ContextVar
from typing import Any, cast
from urllib.parse import urlsplit

from redis import DriverInfo
from redis.asyncio import Redis
from redis.asyncio.cluster import ClusterNode, RedisCluster
from redis.asyncio.connection import parse_url
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import ExponentialBackoff, NoBackoff
from redis.exceptions import ConnectionError, RedisClusterException, TimeoutError

from service.control import keys
from service.errors import ConfigurationError

RETRIES = 8
FIRST_BACK_OFF_S, LAST_BACK_OFF_S = 0.02, 0.5
FORM = re.compile(r"(rediss?)\+(sentinel|cluster)://(.*)")
PORTS = {"sentinel": 26379, "cluster": 6379}
_TRYING = ContextVar("_TRYING", default=False)  # whether this is part of something tried again


class OneLoop(Retry):
    """What fails within something that is tried again is not tried again for itself: in redis-py
    each attempt of a pipeline may connect anew, and 8 times 3 seconds are 24.
    """

    async def call_with_retry(self, *args: Any, **options: Any) -> Any:
        if _TRYING.get():
            return await Retry(NoBackoff(), 0).call_with_retry(*args, **options)
        outermost = _TRYING.set(True)
        try:
            return await super().call_with_retry(*args, **options)
        finally:
            _TRYING.reset(outermost)


class Cluster(RedisCluster):
    """Without a node it fails as one server does; what redis-py raises then is no RedisError."""

    async def initialize(self, *args: Any, **options: Any) -> Cluster:
        try:
            await super().initialize(*args, **options)
        except RedisClusterException as error:
            raise ConnectionError(str(error)) from error
        return self


def connect(url: str) -> Redis:
    """A client that has not connected yet; raises ConfigurationError."""
    options: dict[str, Any] = {
        "socket_timeout": keys.SOCKET_TIMEOUT_S,
        "retry": OneLoop(ExponentialBackoff(LAST_BACK_OFF_S, FIRST_BACK_OFF_S), RETRIES),
    }
    try:
        form = FORM.fullmatch(url)
        if form is None:
            errors = [ConnectionError, TimeoutError, OSError]
            return Redis.from_url(
                url,
                max_connections=keys.MAX_CONNECTIONS,
                retry_on_error=errors,
                driver_info=DriverInfo(),  # once: it looks for its version in the file system
                **options,
            )
        nodes, path, given = _several(form[1], form[2], form[3])
        if form[2] == "cluster":
            startup = [ClusterNode(host, port) for host, port in nodes]
            return cast(Redis, Cluster(startup_nodes=startup, **options, **given))
        return _master(nodes, path, options | given)
    except (ValueError, TypeError) as error:
        raise ConfigurationError(f"MIRAGE_REDIS_URL can't be used: {error}") from error


def _several(
    scheme: str, kind: str, rest: str
) -> tuple[list[tuple[str, int]], list[str], dict[str, Any]]:
    """Nodes, path and options; redis-py reads all but the list of nodes from one node's URL."""
    parts = urlsplit(f"{scheme}://{rest}")
    user, at, hosts = parts.netloc.rpartition("@")
    nodes = []
    for host in hosts.split(","):
        one = urlsplit(f"//{host}")
        if not one.hostname:
            raise ValueError(f"no host in {host!r}")
        nodes.append((one.hostname, one.port or PORTS[kind]))
    query = f"?{parts.query}" if parts.query else ""
    given: dict[str, Any] = dict(parse_url(f"{scheme}://{user}{at}{nodes[0][0]}/{query}"))
    for name in ("host", "port", "db"):
        given.pop(name, None)
    if given.pop("connection_class", None) is not None:
        given["ssl"] = True
    return nodes, parts.path.strip("/").split("/"), given


def _master(nodes: list[tuple[str, int]], path: list[str], options: dict[str, Any]) -> Redis:
    if not 1 <= len(path) <= 2 or not path[0]:
        raise ValueError("a Sentinel URL ends with /<name of the master> or /<name>/<database>")
    sentinel: Any = cast(Any, Sentinel)(nodes, socket_timeout=keys.SENTINEL_TIMEOUT_S)
    database = int(path[1]) if len(path) == 2 else 0
    return cast(Redis, sentinel.master_for(path[0], db=database, **options))
