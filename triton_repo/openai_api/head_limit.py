"""uvicorn's HTTP protocol with limits on a request's head, which the parser lacks."""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD_LIMIT_BYTES = 65_536
HEAD_WITHIN_S = 20.0


class BoundedHttp(HttpToolsProtocol):  # type: ignore[misc]  # uvicorn is not typed here
    """Closes a connection whose head exceeds the size limit or is not complete within the time limit."""

    _in_head = False
    _head_bytes = 0
    _head_due: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:
        """Start waiting for the first head."""
        super().connection_made(transport)
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop waiting."""
        self._stop_waiting()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take bytes; those that arrive while a head is unfinished count towards its size."""
        if self._in_head:
            self._head_bytes += len(data)
            if self._head_bytes > HEAD_LIMIT_BYTES:
                self.send_400_response(f"The request's head is larger than {HEAD_LIMIT_BYTES} bytes.")
                return
        super().data_received(data)

    def on_message_begin(self) -> None:
        """Note the start of a head."""
        self._in_head, self._head_bytes = True, 0
        self._await_head()
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """Note the end of a head."""
        self._in_head = False
        self._stop_waiting()
        super().on_headers_complete()

    def _await_head(self) -> None:
        self._stop_waiting()
        self._head_due = self.loop.call_later(HEAD_WITHIN_S, self._end_slow_head)

    def _stop_waiting(self) -> None:
        if self._head_due is not None:
            self._head_due.cancel()
            self._head_due = None

    def _end_slow_head(self) -> None:
        """Reply 400 to an incomplete head; close a connection that sent nothing."""
        if self._in_head:
            self.send_400_response(f"The request's head was not complete within {HEAD_WITHIN_S:g} s.")
        else:
            self.transport.close()
