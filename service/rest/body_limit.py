"""ASGI layer that refuses bodies over a limit by what really arrives, not by what is announced.

What the endpoint reads decides, not the media type that the client claims: the gate, which stands
in front, has found the route. Endpoints without a body read none; an import is counted as it is
read (service/store/imports.py).
"""

from __future__ import annotations

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.limits import FORM_FILES, FORM_OVERHEAD_BYTES, MAX_JSON_BYTES
from service.rest.problems import FORM, JSON, body_type


class BodyLimit:
    """JSON up to `MAX_JSON_BYTES`; forms up to their files and fields."""

    def __init__(self, app: ASGIApp, max_upload_bytes: int) -> None:
        self._app = app
        form_bytes = FORM_FILES * max_upload_bytes + FORM_OVERHEAD_BYTES
        self._limits: dict[str | None, int] = {JSON: MAX_JSON_BYTES, FORM: form_bytes}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        limit = self._limits.get(body_type(scope))
        if limit is None:
            await self._app(scope, receive, send)
            return
        seen = 0

        async def limited() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > limit:
                raise HTTPException(413, f"the body has more than {limit:,} bytes")
            return message

        await self._app(scope, limited, send)
