"""uvicorn's HTTP with a bound on what it keeps of a request's head: the parser itself has none."""

from __future__ import annotations

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD_LIMIT_BYTES = 65_536


class BoundedHttp(HttpToolsProtocol):  # type: ignore[misc]  # uvicorn is not typed here
    """Ends a connection whose head goes on past the limit."""

    _in_head = False
    _head_bytes = 0

    def data_received(self, data: bytes) -> None:
        """Take bytes; what follows an unfinished head is counted to it."""
        if self._in_head:
            self._head_bytes += len(data)
            if self._head_bytes > HEAD_LIMIT_BYTES:
                self.send_400_response(f"The request's head is larger than {HEAD_LIMIT_BYTES} bytes.")
                return
        super().data_received(data)

    def on_message_begin(self) -> None:
        """Note the beginning of a head."""
        self._in_head, self._head_bytes = True, 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """Note its end."""
        self._in_head = False
        super().on_headers_complete()
