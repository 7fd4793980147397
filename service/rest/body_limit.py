"""ASGI layer that refuses bodies over a limit by what really arrives, not by what is announced."""

from __future__ import annotations

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.limits import FORM_OVERHEAD_BYTES, MAX_JSON_BYTES


class BodyLimit:
    """JSON up to `MAX_JSON_BYTES`; forms up to two files and their fields."""

    def __init__(self, app: ASGIApp, max_upload_bytes: int) -> None:
        self._app = app
        self._max_form_bytes = 2 * max_upload_bytes + FORM_OVERHEAD_BYTES

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        kind = dict(scope["headers"]).get(b"content-type", b"")
        limit = self._max_form_bytes if kind.startswith(b"multipart/") else MAX_JSON_BYTES
        seen = 0

        async def limited() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > limit:
                raise HTTPException(413, f"the body has more than {limit:,} bytes")
            return message

        await self._app(scope, limited, send)
