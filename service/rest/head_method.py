"""ASGI layer that answers HEAD wherever there is GET: the same head, without a body.

How: GET is asked, and ended once it has said its head. So a player learns a video's size, and
nothing waits for a stream's end or reads a world that is being exported.
"""

from __future__ import annotations

import asyncio
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.tasks import end


class HeadAsGet:
    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self._app(scope, receive, send)
            return
        head: asyncio.Future[Message] = asyncio.get_running_loop().create_future()

        async def first(message: Message) -> None:
            if not head.done():
                head.set_result(message)

        asked = {**scope, "method": "GET"}
        task = asyncio.ensure_future(self._app(asked, receive, first))
        either: tuple[asyncio.Future[Any], ...] = (task, head)
        try:
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if not head.done():
                await task  # raises what kept it from answering
                return
            await send(await head)
            await send({"type": "http.response.body"})
        finally:
            await end([task])
            scope.update(asked | {"method": "HEAD"})  # the route that was found, for the log
