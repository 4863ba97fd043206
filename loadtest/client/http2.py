"""One gRPC call at a time on a persistent HTTP/2 connection, client side; without sockets.

Designed for streamed replies: windows are opened so wide at the start that the server never waits for this side, frames
are processed on arrival (settings and pings are answered at once), and gRPC messages are extracted in blocks later.

Source:
    RFC 9113 (HTTP/2), RFC 7541 (HPACK, by the `hpack` package), gRPC over HTTP2 (grpc/grpc, doc/PROTOCOL-HTTP2.md).
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any
from urllib.parse import unquote

import hpack

from loadtest.client.http1 import (
    HEAD_LIMIT_BYTES,
    CutError,
    Dating,
    ProtocolError,
    Session,
    Sink,
    read_on_arrival,
)
from loadtest.client.receiver import (
    BLOCK_BYTES,
    DATA,
    END_STREAM,
    FRAME_HEAD_BYTES,
    Pieces,
    PieceStore,
    Quiet,
)

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
HEADERS, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = 1, 3, 4, 5, 6, 7, 8, 9
ACK = 0x1
END_HEADERS, PADDED, PRIORITY = 0x4, 0x8, 0x20
HEADER_TABLE_SIZE, ENABLE_PUSH, INITIAL_WINDOW_SIZE, MAX_FRAME_SIZE = 1, 2, 4, 5
DEFAULT_WINDOW = 65_535
WIDEST_WINDOW = 2**31 - 1
REFILL_BYTES = 1 << 28  # the connection's window is reopened after this many bytes
MESSAGE_LIMIT_BYTES = 1 << 22  # gRPC's own default for what a client receives
OWN_FRAME_LIMIT = 16_384  # the protocol's default; the server may not send longer frames, nor ask for shorter ones
ANSWERS_LIMIT_BYTES = 1 << 17  # of a call's pings and settings: some 7,000, of which a server need not read the answers
LAST_STREAM = 2**31 - 3
MESSAGE_HEAD_BYTES = 5
STATUS_NAMES = (
    "OK", "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND", "ALREADY_EXISTS",
    "PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ABORTED", "OUT_OF_RANGE", "UNIMPLEMENTED",
    "INTERNAL", "UNAVAILABLE", "DATA_LOSS", "UNAUTHENTICATED",
)  # fmt: skip
STATUS_OF_CODE = {str(code): name for code, name in enumerate(STATUS_NAMES)}
_WORD = struct.Struct(">I")
_SETTING = struct.Struct(">HI")


class StatusError(ProtocolError):
    """The call ended with a status other than OK."""


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """Return one frame's bytes."""
    return struct.pack(">IBI", (len(payload) << 8) | kind, flags, stream) + payload


def call_headers(path: str, authority: str, *, tls: bool) -> list[tuple[str, str]]:
    """Return the headers of a gRPC call."""
    pseudo = [(":method", "POST"), (":scheme", "https" if tls else "http"), (":path", path), (":authority", authority)]
    return [*pseudo, ("te", "trailers"), ("content-type", "application/grpc")]


class GrpcSession(Session):
    """One connection: a request message, the complete stream of its replies, the next request.

    Args:
        headers: Headers of every call, pseudo headers first.
        dating: As of `Session`.

    Attributes:
        reusable: Whether the connection can carry another call.
        outgoing: Bytes to send: answers to the server's frames, and request data that its windows now allow.
    """

    def __init__(self, headers: list[tuple[str, str]], dating: Dating = read_on_arrival) -> None:
        super().__init__(dating)
        self._headers = headers
        self._encoder, self._decoder = hpack.Encoder(), hpack.Decoder()
        self._stream = -1
        self._frame_limit, self._first_window = OWN_FRAME_LIMIT, DEFAULT_WINDOW
        self._connection_window = DEFAULT_WINDOW
        self._rest = b""
        self._payloads = PieceStore()
        self._used_bytes = self._head_bytes = self._answer_bytes = 0
        self._block: bytes | None = None
        self.outgoing = b""
        self.ended = self.reusable = True
        self._handlers: dict[int, Callable[[int, int, bytes], None]] = {
            HEADERS: self._on_headers,
            CONTINUATION: self._on_continuation,
            RST_STREAM: self._on_reset,
            SETTINGS: self._on_settings,
            PUSH_PROMISE: self._on_push,
            PING: self._on_ping,
            GOAWAY: self._on_goaway,
            WINDOW_UPDATE: self._on_window,
        }

    def begin(self, payload: bytes, sink: Sink, sent_s: float = 0.0) -> bytes:
        """Return the first bytes of a call with one request message; the rest follows in `outgoing`."""
        opening = b"" if self._stream > 0 else self._opening()
        self._stream += 2
        self._clear(sink, sent_s)
        self._payloads.drain()
        self._message = b""
        self._trailers: dict[str, str] = {}
        self._status = ""
        self._head_bytes = self._answer_bytes = 0
        self.ended, self.reusable = False, self._stream < LAST_STREAM
        self._window = self._first_window
        self._unsent = memoryview(struct.pack(">BI", 0, len(payload)) + payload)
        head = self._encoder.encode(self._headers)
        self.outgoing = opening + frame(HEADERS, END_HEADERS, self._stream, head)
        self._send_more()
        request, self.outgoing = self.outgoing, b""
        return request

    @staticmethod
    def _opening() -> bytes:
        settings = _SETTING.pack(ENABLE_PUSH, 0) + _SETTING.pack(INITIAL_WINDOW_SIZE, WIDEST_WINDOW)
        wider = _WORD.pack(WIDEST_WINDOW - DEFAULT_WINDOW)
        return PREFACE + frame(SETTINGS, 0, 0, settings) + frame(WINDOW_UPDATE, 0, 0, wider)

    def take(self, pieces: Pieces) -> bool:
        """Take bytes that were read; return whether the call has ended.

        Raises:
            ProtocolError: The call failed, or the server violated the protocol.
        """
        was_idle, begin = self.ended, 0
        for end, read_s, delay_s in zip(pieces.ends, pieces.read_s, pieces.delays_s, strict=True):
            self._take_frames(pieces.data[begin:end], read_s, delay_s)
            begin = end
            if not was_idle and self.ended:
                self._payloads.add(b"", read_s, delay_s)  # dates the end, which may come without data
        if not was_idle and (self.ended or self._payloads.size > BLOCK_BYTES):
            self.settle()
        return self.ended

    def _take_frames(self, data: bytes, read_s: float, delay_s: float) -> None:
        if self._rest:
            data = self._rest + data
        place, size = 0, len(data)
        while size - place >= FRAME_HEAD_BYTES:
            length = (data[place] << 16) | (data[place + 1] << 8) | data[place + 2]
            if length > OWN_FRAME_LIMIT:
                raise ProtocolError(f"an HTTP/2 frame of {length} bytes; is this a gRPC port?")
            end = place + FRAME_HEAD_BYTES + length
            if end > size:
                break
            kind, flags = data[place + 3], data[place + 4]
            stream = _WORD.unpack_from(data, place + 5)[0] & WIDEST_WINDOW
            payload = data[place + FRAME_HEAD_BYTES : end]
            place = end
            if kind == DATA:
                self._on_data(flags, stream, payload, read_s, delay_s)
            elif kind in self._handlers:
                self._handlers[kind](flags, stream, payload)
        self._rest = data[place:]

    @property
    def quiet(self) -> Quiet:
        """Data, unless a frame has come in part: all other frames must be answered."""
        return Quiet.NONE if self.ended or self._rest else Quiet.FRAMES

    def settle(self) -> None:
        """Extract the messages from the stored bytes. Raises as `take` does."""
        self._parse(self._payloads.drain(), self._cut)
        if self.ended:
            self._raise_if_failed()

    def close(self) -> None:
        """Handle the end of the connection.

        Raises:
            CutError: The call had not ended.
        """
        self.settle()
        if not self.ended:
            raise CutError("the server closed the connection before the end of the reply")

    def _cut(self, data: bytes) -> None:
        data = self._message + data if self._message else data
        place = 0
        while len(data) - place >= MESSAGE_HEAD_BYTES:
            if data[place]:
                raise ProtocolError("a compressed gRPC message, which was not requested")
            length = int(_WORD.unpack_from(data, place + 1)[0])
            if length > MESSAGE_LIMIT_BYTES:
                raise ProtocolError(f"a gRPC message of {length} bytes; at most {MESSAGE_LIMIT_BYTES} are taken")
            end = place + MESSAGE_HEAD_BYTES + length
            if end > len(data):
                break
            self._found(data[place + MESSAGE_HEAD_BYTES : end])
            place = end
        self._message = data[place:]

    def _raise_if_failed(self) -> None:
        """Raise the error in the trailers, if there is one."""
        code, text = self._trailers.get("grpc-status"), unquote(self._trailers.get("grpc-message", ""))
        if code == "0" and not self._message:
            return
        if code is None or code == "0":
            if self._status not in {"", "200"}:
                raise ProtocolError(f"HTTP status {self._status}", rejected=self._status in {"429", "503"})
            raise CutError("the stream ended " + ("within a message" if code else "without a gRPC status"))
        name = STATUS_OF_CODE.get(code, f"status {code[:20]}")
        raise StatusError(f"{name}: {text}", rejected=name == "RESOURCE_EXHAUSTED")

    def _on_data(self, flags: int, stream: int, payload: bytes, read_s: float, delay_s: float) -> None:
        self._used_bytes += len(payload)
        if self._used_bytes > REFILL_BYTES:
            self.outgoing += frame(WINDOW_UPDATE, 0, 0, _WORD.pack(self._used_bytes))
            self._used_bytes = 0
        if stream != self._stream or self.ended:
            return
        if flags & PADDED:
            payload = _unpadded(payload)
        if payload:
            self._payloads.add(payload, read_s, delay_s)
        if flags & END_STREAM:
            self.ended = True

    def _on_headers(self, flags: int, stream: int, payload: bytes) -> None:
        if flags & PADDED:
            payload = _unpadded(payload)
        if flags & PRIORITY:
            payload = payload[5:]
        self._block, self._block_flags = b"", flags
        self._add_to_block(flags, stream, payload)

    def _on_continuation(self, flags: int, stream: int, payload: bytes) -> None:
        if self._block is None:
            raise ProtocolError("an unexpected HTTP/2 CONTINUATION frame")
        self._add_to_block(flags, stream, payload)

    def _add_to_block(self, flags: int, stream: int, payload: bytes) -> None:
        """Add a part of a block of headers; all those of a call, with empty frames, have one limit."""
        self._head_bytes += FRAME_HEAD_BYTES + len(payload)
        if self._head_bytes > HEAD_LIMIT_BYTES:
            raise ProtocolError(f"HTTP/2 headers of more than {HEAD_LIMIT_BYTES} bytes")
        self._block = (self._block or b"") + payload
        self._end_block(flags, stream)

    def _end_block(self, flags: int, stream: int) -> None:
        if not flags & END_HEADERS or self._block is None:
            return
        try:
            found: list[tuple[Any, Any]] = self._decoder.decode(self._block)
        except hpack.HPACKError as error:
            raise ProtocolError(f"HTTP/2 headers cannot be read: {error}") from error
        self._block = None
        if stream != self._stream:
            return
        headers = {str(name): str(value) for name, value in found}
        self._status = headers.get(":status", self._status)
        self._trailers |= headers
        if self._block_flags & END_STREAM:
            self.ended = True
            self.reusable = self.reusable and not self._unsent  # the server did not need the rest of the request

    def _on_reset(self, _flags: int, stream: int, payload: bytes) -> None:
        if stream == self._stream and not self.ended:
            self.settle()
            raise ProtocolError(f"the server reset the stream: HTTP/2 error {int.from_bytes(payload[:4])}")

    def _on_settings(self, flags: int, _stream: int, payload: bytes) -> None:
        if flags & ACK:
            return
        for name, value in _SETTING.iter_unpack(payload[: len(payload) // 6 * 6]):
            if name == HEADER_TABLE_SIZE:
                self._encoder.header_table_size = value
            elif name == INITIAL_WINDOW_SIZE:
                self._window += value - self._first_window
                self._first_window = value
            elif name == MAX_FRAME_SIZE:
                if value < OWN_FRAME_LIMIT:
                    raise ProtocolError(f"an HTTP/2 frame size of {value}, below {OWN_FRAME_LIMIT}")
                self._frame_limit = value
        self._answer(frame(SETTINGS, ACK, 0))
        self._send_more()

    def _on_push(self, _flags: int, _stream: int, _payload: bytes) -> None:
        raise ProtocolError("an HTTP/2 push, which was disabled")

    def _on_ping(self, flags: int, _stream: int, payload: bytes) -> None:
        if not flags & ACK:
            self._answer(frame(PING, ACK, 0, payload))

    def _answer(self, answer: bytes) -> None:
        self._answer_bytes += len(answer)
        if self._answer_bytes > ANSWERS_LIMIT_BYTES:
            raise ProtocolError("a flood of HTTP/2 pings or settings")
        self.outgoing += answer

    def _on_goaway(self, _flags: int, _stream: int, payload: bytes) -> None:
        self.reusable = False
        last, code = int.from_bytes(payload[:4]) & WIDEST_WINDOW, int.from_bytes(payload[4:8])
        if last < self._stream and not self.ended:
            raise ProtocolError(f"the server is going away: HTTP/2 error {code}")

    def _on_window(self, _flags: int, stream: int, payload: bytes) -> None:
        more = int.from_bytes(payload[:4]) & WIDEST_WINDOW
        if stream == 0:
            self._connection_window += more
        elif stream == self._stream:
            self._window += more
        self._send_more()

    def _send_more(self) -> None:
        """Move as much of the request into `outgoing` as the server's windows allow."""
        while self._unsent:
            size = min(len(self._unsent), self._window, self._connection_window, self._frame_limit)
            if size <= 0:
                return
            part, self._unsent = bytes(self._unsent[:size]), self._unsent[size:]
            self._window -= size
            self._connection_window -= size
            self.outgoing += frame(DATA, 0 if self._unsent else END_STREAM, self._stream, part)


def _unpadded(payload: bytes) -> bytes:
    if not payload or payload[0] >= len(payload):
        raise ProtocolError("an HTTP/2 frame padded beyond its length")
    return payload[1 : len(payload) - payload[0]]
