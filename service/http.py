"""HTTP/1.1 as uvicorn reads it, but for heads without an end.

How: uvicorn keeps whatever arrives of a head before anybody asks who sends it. Here bytes are
counted that belong to no part which is whole: a head (or what follows the last piece of a body) of
more than so many ends the connection.
"""

from __future__ import annotations

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from service.limits import MAX_HEAD_BYTES


class BoundedHttp(HttpToolsProtocol):
    _num_held = 0

    def data_received(self, data: bytes) -> None:
        self._num_held += len(data)
        super().data_received(data)
        if self._num_held > MAX_HEAD_BYTES and not self.transport.is_closing():
            self.send_400_response(f"The head of a request has {MAX_HEAD_BYTES:,} bytes at most.")

    def on_headers_complete(self) -> None:
        self._num_held = 0
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._num_held = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._num_held = 0
        super().on_message_complete()
