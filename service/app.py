"""The gateway as an ASGI app: REST, stream, health, the viewer at / and a documentation page that
needs no other server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Response
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import FileResponse, HTMLResponse
from fastapi.staticfiles import StaticFiles
from starlette.routing import BaseRoute

from service import error_page, ws
from service.auth.exposure import check_exposure, is_open
from service.auth.gate import Gate
from service.auth.guard import Guard
from service.control.plane import ControlPlane
from service.gateway import Gateway
from service.limits import MAX_HEAVY, MAX_VIDEO_CACHE_BYTES
from service.rest import (
    access,
    branches,
    frames,
    generations,
    health,
    observations,
    points,
    samples,
    sessions,
    videos,
    worlds,
)
from service.rest.body_limit import BodyLimit
from service.rest.head_method import HeadAsGet
from service.rest.openapi import completed
from service.rest.problems import add_handlers
from service.rest.queries import FORM_ONCE, KNOWN_QUERY
from service.rpc.server import RpcServer
from service.samples import SAMPLES, Samples
from service.settings import Settings
from service.telemetry import Metrics, Telemetry
from service.video_cache import VideoCache
from service.webhooks import Webhooks

VIEWER = Path(__file__).parent / "viewer"
DOCS = Path(__file__).parent / "rest" / "docs.html"
PAGES = frozenset(
    {"/", "/docs", "/errors", "/openapi.json", "/viewer"}
)  # they know nothing of any world
ROUTERS = (
    sessions.router,
    points.router,
    generations.router,
    branches.router,
    worlds.router,
    frames.router,
    observations.router,
    videos.router,
    access.router,
    samples.router,
    health.router,
    ws.router,
)
# headers that a page of another origin may send, and read: browsers know neither by themselves
ASKED = (
    "Authorization Content-Type Idempotency-Key If-Match If-None-Match If-Range Last-Event-ID "
    "Range traceparent X-Request-Id"
).split()
ANSWERED = (
    "Content-Range ETag Idempotent-Replayed Location Mirage-Points Mirage-Points-Remembered "
    "Mirage-Used-By-Forks Retry-After X-Request-Id"
).split()
FRESH = {"Cache-Control": "no-cache"}
ABOUT = (
    "Video worlds that remember what you saw. Open a session from one image, send camera poses, "
    "get frames. Poses are world_from_camera, metres, OpenCV axes (x right, y down, z forward) "
    "unless `axes` says otherwise. Live walking goes over the WebSocket "
    "/v1/sessions/{id}/stream: send "
    '{"type":"pose","matrix":[16 numbers]}, {"type":"path","poses":[...]} or '
    '{"type":"action","actions":[...]}; each frame comes as a JSON message, then its picture.'
)


class FreshFiles(StaticFiles):
    """Files that a browser asks for again after each update of the server."""

    def file_response(self, *args: Any, **kwargs: Any) -> Response:
        response = super().file_response(*args, **kwargs)
        response.headers.update(FRESH)
        return response


class Api(FastAPI):
    """FastAPI whose document says what each endpoint needs."""

    behind_gate: Sequence[BaseRoute] = ()
    keyed = False

    def openapi(self) -> dict[str, Any]:
        return completed(super().openapi(), self.behind_gate, self.keyed)


def create_app(settings: Settings, samples_folder: Path = SAMPLES) -> FastAPI:
    """The app; it connects to the control plane when it starts and leaves it when it stops.

    Raises ConfigurationError for a public address without keys.
    """
    check_exposure(settings)
    metrics = Metrics()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        control = await ControlPlane.open(settings)
        gateway = Gateway(
            settings,
            control,
            Guard(control.redis, control.kept, settings.require_keys),
            Samples(samples_folder),
            metrics,
            VideoCache(MAX_VIDEO_CACHE_BYTES),
            Webhooks(control, settings),
            asyncio.Semaphore(MAX_HEAVY),
        )
        app.state.gateway = gateway
        rpc = RpcServer(gateway, app) if settings.grpc_port else None
        try:
            if rpc is not None:
                await rpc.start()
            async with gateway.webhooks.running():
                yield
        finally:
            gateway.closing.set()
            if rpc is not None:
                await rpc.stop()
            await control.close()

    app = Api(
        title="mirage-server",
        version=version("mirage-server"),
        description=ABOUT,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        generate_unique_id_function=lambda route: route.name,  # what generated clients call it
    )
    app.keyed = settings.require_keys
    add_handlers(app)
    for router in ROUTERS:
        is_probe = "health" in router.tags  # whose callers may add what they like
        app.include_router(router, dependencies=[] if is_probe else [KNOWN_QUERY, FORM_ONCE])
    _add_pages(app)
    pages = [route for route in app.routes if getattr(route, "path", None) in PAGES]
    app.behind_gate = [*pages, *(route for router in ROUTERS for route in router.routes)]
    app.add_middleware(BodyLimit, max_upload_bytes=settings.max_upload_bytes)
    app.add_middleware(
        Gate, app.behind_gate, PAGES, settings.allowed_origins, only_local=is_open(settings)
    )
    if settings.allowed_origins:
        _add_cors(app, settings)
    app.add_middleware(HeadAsGet)
    app.add_middleware(Telemetry, metrics=metrics)
    return app


def _add_cors(app: FastAPI, settings: Settings) -> None:
    app.add_middleware(
        CORSMiddleware,
        allow_origins=sorted(settings.allowed_origins),
        allow_methods=["GET", "POST", "DELETE"],
        allow_headers=ASKED,
        expose_headers=ANSWERED,
    )


def _add_pages(app: FastAPI) -> None:
    @app.get("/docs", include_in_schema=False)
    async def docs() -> FileResponse:
        return FileResponse(DOCS, headers=FRESH)

    @app.get("/errors", include_in_schema=False)
    async def errors() -> HTMLResponse:
        return HTMLResponse(error_page.page(), headers=FRESH)

    @app.get("/", include_in_schema=False)
    async def viewer() -> FileResponse:
        return FileResponse(VIEWER / "index.html", headers=FRESH)

    app.mount("/viewer", FreshFiles(directory=VIEWER), name="viewer")
