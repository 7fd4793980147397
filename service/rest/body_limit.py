"""ASGI layer that refuses bodies over a limit by what really arrives, not by what is announced."""

from __future__ import annotations

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.exports import MEDIA_TYPE
from service.limits import FORM_OVERHEAD_BYTES, MAX_JSON_BYTES


class BodyLimit:
    """JSON up to `MAX_JSON_BYTES`; forms up to two files and their fields; exported worlds."""

    def __init__(self, app: ASGIApp, max_upload_bytes: int, max_import_bytes: int) -> None:
        self._app = app
        self._max_form_bytes = 2 * max_upload_bytes + FORM_OVERHEAD_BYTES
        self._max_import_bytes = max_import_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        kind = dict(scope["headers"]).get(b"content-type", b"")
        limit = self._max_form_bytes if kind.startswith(b"multipart/") else MAX_JSON_BYTES
        if kind == MEDIA_TYPE.encode():
            limit = self._max_import_bytes
        seen = 0

        async def limited() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > limit:
                raise HTTPException(413, f"the body has more than {limit:,} bytes")
            return message

        await self._app(scope, limited, send)
