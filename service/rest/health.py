"""For operators: is the process alive, can it accept work, and how is it doing."""

from __future__ import annotations

import math

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from redis.exceptions import RedisError

from service.auth.principal import Scope, requires
from service.errors import Unavailable
from service.gateway import Gateway, GatewayDep
from service.rest.problems import RESPONSES

router = APIRouter(tags=["health"], responses=RESPONSES)

LIMITS = (
    "max_sessions", "max_sessions_per_key", "max_streams_per_key", "max_backlog", "max_path_poses",
    "max_upload_bytes", "max_import_bytes", "max_image_pixels", "frames_kept", "session_idle_s",
    "collect_grace_s",
)  # fmt: skip
STORE_ASKED_EVERY_S = 1.0  # anybody may ask /readyz, and in a bucket each object costs
NO_WORKER = (
    "No worker is alive: sessions can be opened, but they wait. Start `mirage worker`, or wait: "
    "`mirage up` starts one."
)


@router.get("/livez")
@requires(Scope.PUBLIC)
async def livez() -> dict[str, str]:
    """The process answers."""
    return {"status": "alive"}


@router.get("/readyz")
@requires(Scope.PUBLIC)
async def readyz(gateway: GatewayDep) -> dict[str, str | int]:
    """Work can be done now; 503 with the reason when Redis, the store or every worker is away."""
    await gateway.control.ping()
    await gateway.control.segments.ping(STORE_ASKED_EVERY_S)
    alive = await gateway.control.workers.alive()
    if not alive:
        raise Unavailable(NO_WORKER, retry_after_s=5)
    if all(worker.problem for worker in alive):
        problems = "; ".join(f"worker {worker.id}: {worker.problem}" for worker in alive)
        raise Unavailable(f"No worker can work: {problems}", retry_after_s=5)
    return {"status": "ready", "num_workers": len(alive)}


@router.get(
    "/metrics",
    response_class=Response,
    responses={200: {"content": {"text/plain": {}}, "description": "Prometheus"}},
)
@requires(Scope.METRICS)
async def metrics(gateway: GatewayDep) -> Response:
    """Prometheus text."""
    await _refresh(gateway)
    return Response(generate_latest(gateway.metrics.registry), media_type=CONTENT_TYPE_LATEST)


async def _refresh(gateway: Gateway) -> None:
    metrics = gateway.metrics
    metrics.worker_sessions.clear()
    metrics.worker_memory_bytes.clear()
    for limit in LIMITS:
        metrics.limits.labels(limit).set(getattr(gateway.settings, limit))
    try:
        alive = await gateway.control.workers.alive()
        usage = await gateway.control.sessions.usage()
    except RedisError:  # the other figures are worth having just then
        metrics.workers.set(math.nan)
        return
    metrics.workers.set(len(alive))
    metrics.sessions.set(usage.num_sessions)
    for what, count in usage.waiting.items():
        metrics.waiting.labels(what).set(count)
    for worker in alive:
        metrics.worker_sessions.labels(worker.id).set(worker.num_sessions)
        metrics.worker_memory_bytes.labels(worker.id).set(worker.num_bytes)
