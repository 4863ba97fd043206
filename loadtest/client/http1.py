"""Replies off a connection, and requests to bytes: HTTP/1.1 with server-sent events; no sockets in here.

While a reply arrives, its bytes are only kept, each piece with the time it came: between two tokens there is nothing
to do but ask whether the reply may have ended. What the pieces say is read in blocks, long after they came. A general
HTTP and SSE stack costs several times what the rest of a load generator does; this one does what a stream of
events needs, and refuses what it does not know.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping

HEAD_LIMIT_BYTES = 65_536
BLOCK_BYTES = 65_536  # pieces are read once so many bytes of them are held
REPLY_LIMIT_BYTES = 1 << 26
ERROR_TEXT_BYTES = 300
HTTP_OK = 200
HTTP_REJECTED = (429, 503)
HTTP_BODILESS = (204, 304)
EVENT_STREAM = "text/event-stream"
QUEUE_FULL = ("Maximum queue size", "Exceeds maximum queue size")

Sink = Callable[[bytes, float], None]
"""Takes one message of a reply and the time its last byte came, in seconds."""


class ProtocolError(Exception):
    """The server sent what is not understood, or an error in its own words.

    Attributes:
        rejected: It took no more requests just then; the next one may be served.
    """

    def __init__(self, message: str, *, rejected: bool = False) -> None:
        super().__init__(message)
        self.rejected = rejected or any(mark in message for mark in QUEUE_FULL)


class CutError(ProtocolError):
    """The server closed the connection before the end of the reply."""


def request_head(method_and_path: str, host: str, headers: dict[str, str]) -> bytes:
    """Return the head of an HTTP request on a connection that is kept, up to its body's length.

    Raises:
        ValueError: A header's value would break out of its line.
    """
    lines = [f"{method_and_path} HTTP/1.1", f"Host: {host}", *(f"{name}: {value}" for name, value in headers.items())]
    if any("\r" in line or "\n" in line for line in lines):
        raise ValueError("a header holds a line break")
    return "\r\n".join([*lines, "Content-Length: "]).encode()


class HttpSession:
    """A kept HTTP/1.1 connection's side of the talk: one request, one streamed reply, the next request.

    Args:
        head: As `request_head` returns it; the same for every request.

    Attributes:
        reusable: Whether the connection can carry another request after this reply.
        outgoing: Bytes this side has to send of its own accord: never any in HTTP/1.1.
    """

    def __init__(self, head: bytes) -> None:
        self._head = head
        self.outgoing = b""
        self.ended = self.reusable = True

    def begin(self, payload: bytes, sink: Sink) -> bytes:
        """Return the bytes of a request; its reply's messages will go to `sink`."""
        self._sink = sink
        self._pieces: list[tuple[bytes, float]] = []
        self._held_bytes = self._seen_bytes = self._status = 0
        self.ended, self.reusable = False, True
        self._buffer = self._line = b""
        self._chunked = self._last_chunk = self._is_stream = False
        self._chunk_left = 0
        self._body_left: int | None = None
        self._type = ""
        return b"%s%d\r\n\r\n%s" % (self._head, len(payload), payload)

    def take(self, data: bytes, arrived_s: float) -> bool:
        """Take bytes as they come; return whether the reply has ended.

        Raises:
            ProtocolError: The server answered with an error, or with something that is no such stream.
        """
        if self.ended:  # nobody asked
            self.reusable = False
            return True
        self._pieces.append((data, arrived_s))
        self._held_bytes += len(data)
        # A chunked reply ends in an empty line; a shorter piece may be the rest of one.
        if not self._chunked or data[-4:] == b"\r\n\r\n" or len(data) < 4 or self._held_bytes > BLOCK_BYTES:  # noqa: PLR2004
            self.settle()
        return self.ended

    def settle(self) -> None:
        """Read what is held; errors as `take`."""
        pieces, self._pieces = self._pieces, []
        self._seen_bytes += self._held_bytes
        self._held_bytes = 0
        for data, arrived_s in pieces:
            self._read(data, arrived_s)
        if self.ended and self._buffer:  # more than was asked for
            self.reusable = False
        if self._seen_bytes > REPLY_LIMIT_BYTES:
            raise ProtocolError(f"a reply of more than {REPLY_LIMIT_BYTES >> 20} MiB")

    def close(self) -> None:
        """Take the end of the connection.

        Raises:
            CutError: The reply was not whole.
        """
        self.settle()
        if self._status and not self._chunked and self._body_left is None:
            self.ended, self.reusable = True, False
            self._read_body(b"", 0.0)
        elif not self.ended:
            raise CutError("the server closed the connection before the end of the reply")

    def _read(self, data: bytes, arrived_s: float) -> None:
        self._buffer = self._buffer + data if self._buffer else data
        if not self._status and not self._read_head():
            return
        self._read_body(self._take_chunks() if self._chunked else self._take_plain(), arrived_s)

    def _read_head(self) -> bool:
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0 or end > HEAD_LIMIT_BYTES:
            if len(self._buffer) > HEAD_LIMIT_BYTES:
                raise ProtocolError("no end of the HTTP headers in sight")
            return False
        head, self._buffer = self._buffer[:end].decode("latin-1"), self._buffer[end + 4 :]
        status, *lines = head.split("\r\n")
        match = re.match(r"HTTP/1\.[01] (\d{3})", status)
        if match is None:
            raise ProtocolError(f"not HTTP: {status[:80]!r}")
        if match[1].startswith("1"):
            return self._read_head()
        headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        self._status = int(match[1])
        self._take_framing(headers)
        coding = headers.get("content-encoding", "identity").lower()
        if coding != "identity":
            raise ProtocolError(f"a reply encoded with {coding[:20]}, which was not asked for")
        self._type = headers.get("content-type", "").partition(";")[0].strip().lower()
        self._is_stream = self._status == HTTP_OK and self._type == EVENT_STREAM
        self.reusable = headers.get("connection", "").lower() != "close"
        return True

    def _take_framing(self, headers: Mapping[str, str]) -> None:
        """Note how the end of the body will be known: by chunks, by a length, else by the connection's."""
        transfer = headers.get("transfer-encoding", "identity").lower()
        if transfer not in {"chunked", "identity"}:
            raise ProtocolError(f"a reply in transfer encoding {transfer[:20]}")
        self._chunked = transfer == "chunked"
        if self._status in HTTP_BODILESS:
            self._chunked, self._body_left = False, 0
        elif not self._chunked and "content-length" in headers:
            self._body_left = _number(headers["content-length"], 10)

    def _take_plain(self) -> bytes:
        if self._body_left is None:
            body, self._buffer = self._buffer, b""
            return body
        body, self._buffer = self._buffer[: self._body_left], self._buffer[self._body_left :]
        self._body_left -= len(body)
        self.ended = self._body_left == 0
        return body

    def _take_chunks(self) -> bytes:
        """Return the bytes of the chunks that are here, and leave the rest."""
        data, place, parts = self._buffer, 0, []
        while place < len(data) and not self.ended:
            if not self._chunk_left:
                end = data.find(b"\r\n", place)
                if end < 0:
                    if len(data) - place > HEAD_LIMIT_BYTES:
                        raise ProtocolError("no end of a chunk's size in sight")
                    break
                if self._last_chunk:  # behind it come trailers, if any, and an empty line
                    self.ended = end == place
                elif end > place:
                    self._chunk_left = _number(data[place:end].partition(b";")[0], 16)
                    self._last_chunk = self._chunk_left == 0
                place = end + 2
                continue
            part = data[place : place + self._chunk_left]
            parts.append(part)
            place += len(part)
            self._chunk_left -= len(part)
        self._buffer = data[place:]
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _read_body(self, body: bytes, arrived_s: float) -> None:
        if not self._is_stream:
            self._line = (self._line + body)[:HEAD_LIMIT_BYTES]
            if self.ended:
                raise self._refusal()
            return
        *lines, self._line = (self._line + body if self._line else body).split(b"\n")
        if self.ended and self._line:
            lines.append(self._line)
        for line in lines:
            if line.startswith(b"data:"):
                self._sink(line[5:].strip(), arrived_s)

    def _refusal(self) -> ProtocolError:
        """Return the error that a reply is that is no stream."""
        said = error_text(self._line)
        if self._status != HTTP_OK:
            return ProtocolError(said or f"HTTP status {self._status}", rejected=self._status in HTTP_REJECTED)
        return ProtocolError(f"answered with {self._type or 'no content type'}, not {EVENT_STREAM}: {said or 'empty'}")


def _number(text: str | bytes, base: int) -> int:
    try:
        number = int(text, base)
    except ValueError:
        number = -1
    if number < 0:
        raise ProtocolError(f"not a length: {text[:40]!r}")
    return number


def error_text(body: bytes) -> str | None:
    """Return what stands under `error` in a JSON body or event, or its beginning; None where it is empty."""
    text = body.decode("utf-8", "replace").strip().removeprefix("data:").strip()
    try:
        loaded = json.loads(text)
    except (ValueError, RecursionError):
        return text[:ERROR_TEXT_BYTES] or None
    error = loaded.get("error") if isinstance(loaded, dict) else None
    if isinstance(error, dict):
        error = error.get("message", error)
    return str(text if error is None else error)[:ERROR_TEXT_BYTES]
