"""HTTP/1.1 with server-sent events: requests to bytes, bytes to messages of a reply; without sockets.

While a reply arrives, its bytes are only kept (`receiver.py`). They are parsed in blocks, after the time-critical part:
chunks of whole lines, as nearly all tokens are, by `event_chunks`, everything else by httptools (Node.js's parser).
"""

from __future__ import annotations

import json
import re
from array import array
from bisect import bisect_left
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import httptools

from loadtest.client.receiver import CHUNKS_END, EMPTY_LINE, Pieces, Quiet, begins_stream, compiled

HEAD_LIMIT_BYTES = 65_536
REPLY_LIMIT_BYTES = 1 << 26
LINE_LIMIT_BYTES = 1 << 20  # of an event stream; a line is copied with each read until it is whole
ERROR_TEXT_BYTES = 300
HTTP_OK = 200
HTTP_REJECTED = (429, 503)
HTTP_BODILESS = (204, 304)
EVENT_STREAM = "text/event-stream"
DATE = re.compile(rb"\r\ndate:[^\r]*", re.IGNORECASE)
MAX_HEADS = 16  # remembered per server; if each reply has a different head, remembering more is useless
CHUNK_HEAD = re.compile(rb"([0-9a-fA-F]{1,7})\r\n")
LONE_RETURN = re.compile(rb"\r[^\n]")
MARK = b"\xef\xbb\xbf"  # the byte order mark that a stream may begin with
LAST_CHUNK = b"\r\n" + CHUNKS_END  # and the end of the one before it
QUEUE_FULL = ("Maximum queue size", "Exceeds maximum queue size")

Sink: TypeAlias = Callable[[list[bytes], "array[float]"], None]
"""Takes messages of a reply and the arrival time of the last byte of each, in seconds."""

Dating: TypeAlias = Callable[[Pieces, float], Sequence[float]]
"""Returns when pieces arrived, given when the one before them did, in seconds."""


def read_on_arrival(pieces: Pieces, _: float) -> Sequence[float]:
    """Take the time of reading for that of arrival, where nothing is measured."""
    return pieces.read_s


class ProtocolError(Exception):
    """The server sent a malformed message or reported an error.

    Attributes:
        rejected: The server did not accept the request at that time; a later one may succeed.
    """

    def __init__(self, message: str, *, rejected: bool = False) -> None:
        super().__init__(message)
        self.rejected = rejected or any(mark in message for mark in QUEUE_FULL)


class CutError(ProtocolError):
    """The server closed the connection before the end of the reply."""


def request_head(method_and_path: str, host: str, headers: dict[str, str]) -> bytes:
    """Return the head of an HTTP request on a persistent connection, up to the length of its body.

    Raises:
        ValueError: A header's value contains a line break.
    """
    lines = [f"{method_and_path} HTTP/1.1", f"Host: {host}", *(f"{name}: {value}" for name, value in headers.items())]
    if any("\r" in line or "\n" in line for line in lines):
        raise ValueError("a header holds a line break")
    return "\r\n".join([*lines, "Content-Length: "]).encode()


class Session:
    """A persistent connection's requests and replies, without its socket; the base of each protocol's.

    Args:
        dating: Determines arrival times.

    Attributes:
        arrived_s: When the last parsed piece arrived, in seconds as `dating` returns; before it, when the request was
            sent.
    """

    def __init__(self, dating: Dating = read_on_arrival) -> None:
        self._dating = dating
        self._clear(lambda _messages, _times_s: None, 0.0)

    def _clear(self, sink: Sink, sent_s: float) -> None:
        """Discard the last reply; messages of the next one are passed to `sink`."""
        self._sink = sink
        self.arrived_s = sent_s
        self._reply_bytes = 0
        self._messages: list[bytes] = []
        self._times_s: array[float] = array("d")

    @property
    def quiet(self) -> Quiet:
        """Which pieces of the reply need not be taken at once."""
        return Quiet.NONE

    def _found(self, message: bytes) -> None:
        """Take a message whose last byte is in the current piece."""
        self._messages.append(message)
        self._times_s.append(self.arrived_s)

    def _deliver(self) -> None:
        """Pass the messages that were found to the sink."""
        messages, times_s = self._messages, self._times_s
        self._messages, self._times_s = [], array("d")
        if messages:
            self._sink(messages, times_s)

    def is_whole_with(self, data: bytes, last_event: bytes) -> bool:
        """Return whether a reply is known to end with these bytes, of which the last are an event and no other's."""
        del data, last_event
        return False

    def _take_events(self, pieces: Pieces, arrivals_s: Sequence[float], begin: int) -> int:
        """Take the messages from a place on that need no parser; return where they end."""
        del pieces, arrivals_s
        return begin

    def _parse(self, pieces: Pieces, parse: Callable[[bytes], None]) -> None:
        """Pass each piece to `parse`, then the messages that it found to the sink, even before an error.

        Raises:
            ProtocolError: The reply exceeds the size limit.
        """
        data, arrivals_s = pieces.data, self._dating(pieces, self.arrived_s)
        self._reply_bytes += len(data)
        try:
            begin = self._take_events(pieces, arrivals_s, 0)
            for end, arrived_s in zip(pieces.ends, arrivals_s, strict=True):
                if end > begin:
                    self.arrived_s = arrived_s
                    parse(data[begin:end])
                    begin = self._take_events(pieces, arrivals_s, end)
        finally:
            self._deliver()
        if self._reply_bytes > REPLY_LIMIT_BYTES:
            raise ProtocolError(f"a reply of more than {REPLY_LIMIT_BYTES >> 20} MiB")


class HttpSession(Session):
    """A persistent HTTP/1.1 connection: a request, its streamed reply, the next request.

    Args:
        head: As returned by `request_head`; the same for every request.
        dating: As of `Session`.
        streams: Heads, without dates, of earlier streamed replies that left the connection open.

    Attributes:
        reusable: Whether the connection can carry another request after this reply.
        outgoing: Bytes that this side must send unasked: always empty in HTTP/1.1.
        is_between_chunks: Whether the parser waits for a chunk's head.
    """

    def __init__(self, head: bytes, dating: Dating = read_on_arrival, streams: set[bytes] | None = None) -> None:
        super().__init__(dating)
        self._head = head
        self._streams = set() if streams is None else streams
        self.outgoing = b""
        self._status = 0
        self._chunked = self._until_close = False
        self.ended = self.reusable = True
        self.is_between_chunks = False

    def begin(self, payload: bytes, sink: Sink, sent_s: float = 0.0) -> bytes:
        """Return the bytes of a request; the messages of its reply are passed to `sink`."""
        self._clear(sink, sent_s)
        self._status = 0
        self.ended, self.reusable, self.is_between_chunks = False, True, False
        self._known_head_bytes = 0
        self._line = self._first = b""
        self._has_lines = False
        self._headers: dict[str, str] = {}
        self._chunked = self._is_stream = self._until_close = False
        self._type = ""
        self._pieces_of_body: list[bytes] = []
        self._parser: Any = None  # made when it is needed: most replies need none
        return b"%s%d\r\n\r\n%s" % (self._head, len(payload), payload)

    def take(self, pieces: Pieces) -> bool:
        """Take bytes that were read; return whether the reply has ended.

        Raises:
            ProtocolError: The server answered with an error, or with something other than an event stream.
        """
        if self.ended:
            if pieces.data:  # without a request
                self.reusable = False
            return True
        self._first = self._first or pieces.data
        self._parse(pieces, self._feed)
        if not self._status and self._reply_bytes > HEAD_LIMIT_BYTES:
            raise ProtocolError(f"HTTP headers of more than {HEAD_LIMIT_BYTES} bytes")
        return self.ended

    def is_whole_with(self, data: bytes, last_event: bytes) -> bool:
        """Return whether these bytes seem to end a reply that can be parsed later, on a connection that stays open."""
        if not (data.endswith(LAST_CHUNK) and data.endswith(last_event, 0, -len(LAST_CHUNK))):
            return False
        if self._first:
            return self.reusable and self._is_at_events
        if _head_of(data) not in self._streams:
            return False
        self._known_head_bytes = data.index(EMPTY_LINE) + len(EMPTY_LINE)
        return True

    def settle(self) -> None:
        """Do nothing: all that was taken is parsed."""

    @property
    def quiet(self) -> Quiet:
        """All before the last chunk, once the reply is known, or by earlier replies expected, to have chunks."""
        if self.ended:
            return Quiet.NONE
        if not self._first:
            return Quiet.STREAM if self._streams else Quiet.NONE
        return Quiet.CHUNKS if self._chunked else Quiet.NONE

    def close(self) -> None:
        """Handle the end of the connection.

        Raises:
            CutError: The reply was incomplete.
        """
        if self._status and self._until_close:
            self.reusable = False
            self.end()
            self._deliver()
        elif not self.ended:
            raise CutError("the server closed the connection before the end of the reply")

    @property
    def _is_at_events(self) -> bool:
        return self.is_between_chunks and self._is_stream and not self._line

    def _take_events(self, pieces: Pieces, arrivals_s: Sequence[float], begin: int) -> int:
        """Take chunks of whole lines: the parser would be in the same state after them.

        A whole reply with a known head and only such chunks does not need the parser at all.
        """
        known_bytes, self._known_head_bytes = self._known_head_bytes, 0
        if self.ended or not (known_bytes or self._is_at_events):
            return begin
        messages, times_s, end = event_chunks(pieces.data, begin or known_bytes, pieces.ends, arrivals_s)
        if known_bytes:
            if pieces.data[end:] != CHUNKS_END:
                return begin
            self._status, self.ended, end = HTTP_OK, True, len(pieces.data)
        if end > begin:
            self._messages += messages
            self._times_s += times_s
            self.arrived_s = arrivals_s[bisect_left(pieces.ends, end)]
        return end

    def _feed(self, data: bytes) -> None:
        if self.ended:  # more than one reply
            self.reusable = False
            return
        self.is_between_chunks = False
        if self._parser is None:
            self._parser = httptools.HttpResponseParser(_Callbacks(self, self._pieces_of_body))
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserCallbackError as error:
            raise error.__context__ or error from None
        except httptools.HttpParserError as error:
            if self.ended:
                self.reusable = False
                return
            self._take_body()
            raise ProtocolError(f"invalid HTTP: {error}: {data[:80]!r}") from None
        self.is_between_chunks &= data.endswith(b"\r\n")  # no part of the next chunk's head
        if self._pieces_of_body and not self.ended:
            self._take_body()

    def status_line_code(self) -> int:
        """Return the status that was parsed last."""
        return int(self._parser.get_status_code())

    def take_header(self, name: str, value: str) -> None:
        """Process a header of the reply."""
        self._headers[name.lower()] = value.strip()

    def take_head(self, status: int) -> None:
        """Process the end of the headers.

        Raises:
            ProtocolError: The body has an encoding that was not requested.
        """
        headers, self._headers = self._headers, {}
        if status < HTTP_OK:  # informational: the actual reply follows
            return
        transfer = headers.get("transfer-encoding", "identity").lower()
        if transfer not in {"chunked", "identity"}:
            raise ProtocolError(f"unknown transfer encoding {transfer[:20]}")
        coding = headers.get("content-encoding", "identity").lower()
        if coding != "identity":
            raise ProtocolError(f"the reply is encoded with {coding[:20]}, which was not requested")
        self._status = status
        self._chunked = transfer == "chunked" and status not in HTTP_BODILESS
        self._until_close = not self._chunked and "content-length" not in headers and status not in HTTP_BODILESS
        self._type = headers.get("content-type", "").partition(";")[0].strip().lower()
        self._is_stream = status == HTTP_OK and self._type == EVENT_STREAM
        self.reusable = headers.get("connection", "").lower() != "close"

    def _take_body(self) -> None:
        """Process the pieces of the body that arrived: pass on complete events, or store the text of an error.

        Raises:
            ProtocolError: A line of the event stream has no end.
        """
        pieces = self._pieces_of_body
        body = pieces[0] if len(pieces) == 1 and not self._line else self._line + b"".join(pieces)
        pieces.clear()
        if not self._is_stream:
            self._line = body[:HEAD_LIMIT_BYTES]
            return
        lines = body.replace(b"\r", b"\n").split(b"\n")  # a line may end with either or both; empty ones do not count
        self._line = lines.pop()
        if lines and not self._has_lines:
            lines[0] = lines[0].removeprefix(MARK)
            self._has_lines = True
        for line in lines:
            if line[:5] == b"data:":
                self._messages.append(line[5:].strip())
                self._times_s.append(self.arrived_s)
        if len(self._line) > LINE_LIMIT_BYTES:
            raise ProtocolError(f"an event with a line of more than {LINE_LIMIT_BYTES >> 20} MiB")

    def end(self) -> None:
        """Process the end of the reply; informational replies do not count.

        Raises:
            ProtocolError: The reply was not an event stream.
        """
        if not self._status:
            return
        self.ended = True
        if self._is_stream:
            is_usual = self._chunked and self.reusable and begins_stream(self._first)
            if is_usual and len(self._streams) < MAX_HEADS:
                self._streams.add(_head_of(self._first))
            self._pieces_of_body.append(b"\n")  # ends the last line
        self._take_body()
        if not self._is_stream:
            raise self._refusal()

    def _refusal(self) -> ProtocolError:
        """Return the error for a reply that is not an event stream."""
        text = error_text(self._line)
        if self._status != HTTP_OK:
            stated = _stated_error(self._line) or f"HTTP status {self._status}{f': {text}' if text else ''}"
            return ProtocolError(stated, rejected=self._status in HTTP_REJECTED)
        return ProtocolError(f"answered with {self._type or 'no content type'}, not {EVENT_STREAM}: {text or 'empty'}")


class _Callbacks:
    """The callbacks of httptools for one reply; the body's pieces are appended to a list."""

    def __init__(self, session: HttpSession, pieces_of_body: list[bytes]) -> None:
        self._session = session
        self.on_body = pieces_of_body.append

    def on_message_begin(self) -> None:
        if self._session.ended:
            self._session.reusable = False

    def on_header(self, name: bytes, value: bytes) -> None:
        self._session.take_header(name.decode("latin-1"), value.decode("latin-1"))

    def on_headers_complete(self) -> None:
        if not self._session.ended:
            self._session.take_head(self._session.status_line_code())
            self._session.is_between_chunks = self._session.quiet is Quiet.CHUNKS

    def on_chunk_header(self) -> None:
        self._session.is_between_chunks = False

    def on_chunk_complete(self) -> None:
        self._session.is_between_chunks = True

    def on_message_complete(self) -> None:
        if not self._session.ended:
            self._session.end()


def _head_of(data: bytes) -> bytes:
    """Return the head that a piece begins with, up to its empty line and without its date."""
    return DATE.sub(b"", data[: data.find(EMPTY_LINE)])


def _event_chunks(
    data: bytes, begin: int, ends: Sequence[int], arrivals_s: Sequence[float]
) -> tuple[list[bytes], array[float], int]:
    """Take the chunks of whole lines from a place on; return their messages, when each arrived, and where they end.

    A byte order mark and lines that end with a carriage return alone are left to the parser.

    Args:
        ends: Where each piece ends in `data`.
        arrivals_s: When each arrived.
    """
    messages, times_s = [], array("d")
    while head := CHUNK_HEAD.match(data, begin):
        line, last = head.end(), head.end() + int(head[1], 16)
        if line == last or data[last - 1 : last + 2] != b"\n\r\n":
            break
        if data.startswith(MARK, line) or LONE_RETURN.search(data, line, last):
            break
        while line < last:
            line_end = data.index(b"\n", line)
            if data[line : line + 5] == b"data:":
                messages.append(data[line + 5 : line_end].strip())
                ended = line_end + (data[line_end - 1] != ord("\r"))  # that ends the line, too
                times_s.append(arrivals_s[bisect_left(ends, ended)])
            line = line_end + 1
        begin = last + 2
    return messages, times_s, begin


event_chunks: Callable[[bytes, int, Sequence[int], Sequence[float]], tuple[list[bytes], array[float], int]]
event_chunks = compiled("event_chunks", _event_chunks)


def error_text(body: bytes) -> str | None:
    """Return the `error` of a JSON body or event, or the start of the body; None if it is empty."""
    return _stated_error(body) or _text(body)[:ERROR_TEXT_BYTES] or None


def _stated_error(body: bytes) -> str | None:
    """Return the `error` of a JSON body or event; None if it has none."""
    try:
        loaded = json.loads(_text(body))
    except (ValueError, RecursionError):
        return None
    error = loaded.get("error") if isinstance(loaded, dict) else None
    if isinstance(error, dict):
        error = error.get("message", error)
    return None if error is None else stated_text(str(error))


def stated_text(value: Any) -> str:
    """Return the beginning of a text as a server states it, in a form that can be written: no half surrogate pairs.

    Raises:
        TypeError: It is not a text.
    """
    return str.encode(value, errors="replace").decode()[:ERROR_TEXT_BYTES]


def _text(body: bytes) -> str:
    return body.decode("utf-8", "replace").strip().removeprefix("data:").strip()
