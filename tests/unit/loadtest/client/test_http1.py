"""The lean reader of event streams over HTTP/1.1, fed every way a network can."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import accumulate, pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from loadtest.client import http1
from loadtest.client.http1 import CutError, HttpSession, ProtocolError, error_text, request_head
from loadtest.client.receiver import UNSTAMPED, Pieces, Quiet

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


def _chunk(data: bytes) -> bytes:
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


def _event(**values: object) -> bytes:
    return b"data: " + json.dumps(values).encode() + b"\n\n"


BODY = (
    _chunk(_event(output_ids=5, sequence_length=1))
    + _chunk(b": still here\n\n" + _event(a=1) + b"event: x\r\ndata: two\r\n\r\n")
    + _chunk(_event(text='0\r\n\r\n and "quotes"') + b"data: cut")
    + _chunk(b" in two\n\n")
)
REPLY = HEAD + BODY + b"0\r\nTrailer: x\r\n\r\n"
MESSAGES = [
    b'{"output_ids": 5, "sequence_length": 1}',
    b'{"a": 1}',
    b"two",
    *(json.dumps({"text": '0\r\n\r\n and "quotes"'}).encode(), b"cut in two"),
]


class Heard:
    """A session that has asked, and what its sink was given."""

    def __init__(self, streams: set[bytes] | None = None) -> None:
        self.messages: list[bytes] = []
        self.times: list[float] = []
        self.session = HttpSession(request_head("POST /x", "h:1", {}), streams=streams)
        self.request = self.session.begin(b"{}", self.take)

    def take(self, messages: Sequence[bytes], times_s: Sequence[float]) -> None:
        """Keep messages."""
        self.messages += messages
        self.times += times_s

    def feed(self, data: bytes, *, piece: int = 1 << 30) -> bool:
        """Take bytes in pieces, one a second; return whether the reply has ended."""
        ended = False
        for second, place in enumerate(range(0, len(data), piece)):
            ended = self.session.take(Pieces.of(data[place : place + piece], float(second)))
        return ended


@given(st.lists(st.integers(1, len(REPLY) - 1), max_size=12))
def test_however_the_bytes_are_cut_the_messages_are_the_same(cuts: list[int]) -> None:
    """Five messages in four chunks, whatever pieces they arrive in; the end is seen with the last piece alone."""
    places = [0, *sorted(set(cuts)), len(REPLY)]
    heard = Heard()
    ended = [heard.session.take(Pieces.of(REPLY[begin:end], 0.0)) for begin, end in pairwise(places)]
    assert heard.messages == MESSAGES
    assert ended == [False] * (len(places) - 2) + [True]
    assert heard.session.reusable


@given(
    st.sampled_from([b"\n", b"\r", b"\r\n"]),
    st.sampled_from([b"", b"\xef\xbb\xbf"]),
    st.lists(st.integers(0, 600), max_size=12),
    st.booleans(),
)
def test_lines_end_as_the_standard_allows_after_a_byte_order_mark_or_none(
    line_end: bytes, mark: bytes, cuts: list[int], is_known: bool
) -> None:
    """The HTML standard has LF, CR and CRLF, and one mark at the start; also where replies before had the same head."""
    last = b"data: [DONE]" + line_end * 2
    events = [mark + b"data: one" + line_end * 2, b": x" + line_end + b"data: two" + line_end, line_end + last]
    reply = HEAD + b"".join(map(_chunk, events)) + b"0\r\n\r\n"
    heard = Heard({HEAD[:-4]} if is_known else None)
    heard.session.is_whole_with(reply, last)
    for begin, end in pairwise(sorted({0, *(cut for cut in cuts if cut < len(reply)), len(reply)})):
        heard.session.take(Pieces.of(reply[begin:end], 0.0))
    assert heard.messages == [b"one", b"two", b"[DONE]"]
    assert heard.session.ended


def test_a_message_has_the_time_of_its_last_byte() -> None:
    """A message cut in two has come when its second part has, however late both are read."""
    heard = Heard()
    for second, data in enumerate(
        (HEAD + _chunk(b"data: on"), _chunk(b"e\n\ndata: two\n\n"), _chunk(b"data: three\n"))
    ):
        heard.session.take(Pieces.of(data, float(second)))
    heard.session.take(Pieces.of(b"0\r\n\r\n", 9.0))
    assert list(zip(heard.messages, heard.times, strict=True)) == [(b"one", 1.0), (b"two", 1.0), (b"three", 2.0)]


def test_long_replies_are_read_in_blocks() -> None:
    """What is held stays small, however long the reply."""
    heard = Heard()
    heard.session.take(Pieces.of(HEAD, 0.0))
    for _ in range(100):
        heard.session.take(Pieces.of(_chunk(b"data: " + b"x" * 10_000 + b"\n\n"), 1.0))
    assert len(heard.messages) > 90


def test_the_connection_carries_one_request_after_another() -> None:
    """After a whole reply the next request finds a clean reader."""
    heard = Heard()
    assert heard.feed(REPLY)
    heard.session.begin(b"{}", heard.take)
    assert heard.feed(REPLY, piece=7)
    assert heard.messages == MESSAGES * 2


DATED = HEAD.replace(b"\r\n\r\n", b"\r\ndate: %b\r\n\r\n")
DONE = b"data: [DONE]\n\n"
WHOLE = _chunk(b"data: one\n\n") + _chunk(DONE) + b"0\r\n\r\n"


def _after(reply: bytes, began: bytes = b"") -> HttpSession:
    """Return another session after one reply, which has taken the beginning of the next."""
    streams: set[bytes] = set()
    first, session = HttpSession(b"", streams=streams), HttpSession(b"", streams=streams)
    first.begin(b"{}", lambda _messages, _times_s: None)
    first.take(Pieces.of(reply, 0.0))
    session.begin(b"{}", lambda _messages, _times_s: None)
    if began:
        session.take(Pieces.of(began, 1.0))
    return session


def test_a_whole_reply_with_a_known_head_can_wait() -> None:
    """The date may be another; a head that is new, or of a connection that closes, makes the reply be read at once."""
    known = _after(DATED % b"today" + WHOLE)
    assert known.quiet is Quiet.STREAM
    assert known.is_whole_with(DATED % b"tomorrow" + WHOLE, DONE)
    closing = HEAD.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n")
    for reply in (
        HEAD.replace(b"OK", b"Fine") + WHOLE,
        closing + WHOLE,
        DATED % b"now" + WHOLE[:-1],
        DATED % b"now" + _chunk(DONE) + WHOLE[:13],
    ):
        assert not known.is_whole_with(reply, DONE)
    assert not known.is_whole_with(DATED % b"now" + _chunk(b"data: one\n\n") + b"0\r\n\r\n", DONE)
    continued = b"HTTP/1.1 100 Continue\r\n\r\n" + HEAD + WHOLE
    for first in (closing + WHOLE, continued, b""):
        assert _after(first).quiet is Quiet.NONE
        assert not _after(first).is_whole_with(first or HEAD + WHOLE, DONE)


def test_the_rest_of_a_reply_can_wait_between_chunks_alone() -> None:
    """What is left begins with a chunk's head, or its end is no end."""
    assert _after(b"", HEAD + _chunk(b"data: one\n\n")).is_whole_with(WHOLE, DONE)
    assert not _after(b"", HEAD + b"100\r\ndata: one\n\n").is_whole_with(WHOLE, DONE)
    assert not _after(b"", HEAD + _chunk(b"data: half")).is_whole_with(WHOLE, DONE)


def test_a_connection_closed_early_is_a_cut() -> None:
    """A stream without its last chunk was cut, however many messages came; they are kept."""
    heard = Heard()
    assert not heard.feed(HEAD + BODY)
    with pytest.raises(CutError, match="before the end of the reply"):
        heard.session.close()
    assert heard.messages == MESSAGES


def test_a_stream_may_end_with_its_connection() -> None:
    """Without chunks and without a length the end of the connection is the end of the reply."""
    heard = Heard()
    assert not heard.feed(b"HTTP/1.0 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: a\n\ndata: b\n\ndata: c")
    heard.session.close()
    assert heard.session.ended
    assert not heard.session.reusable
    assert heard.messages == [b"a", b"b", b"c"]


def test_what_nobody_asked_for_ends_the_connection() -> None:
    """Bytes after a whole reply, with it or later, are no part of the next one."""
    heard = Heard()
    assert heard.feed(REPLY + b"HTTP/1.1 200 OK")
    assert not heard.session.reusable
    heard = Heard()
    heard.feed(REPLY)
    heard.session.take(Pieces.of(b"data: late\n\n", 1.0))
    assert not heard.session.reusable
    assert heard.messages == MESSAGES


@pytest.mark.parametrize(
    ("status", "body", "text", "rejected"),
    [
        ("400 Bad Request", b'{"error":"request_output_len is 0"}', "request_output_len is 0", False),
        ("400 Bad Request", b'data: {"error":{"message":"too long"}}\n\n', "too long", False),
        ("429 Too Many Requests", b"", "HTTP status 429", True),
        ("503 Service Unavailable", b"busy", "busy", True),
        ("500 Internal Server Error", b'{"error":"Exceeds maximum queue size"}', "Exceeds maximum queue size", True),
        ("200 OK", b'{"error":"exactly 1 response"}', "application/json, not text/event-stream: exactly 1", False),
    ],
)
def test_errors_are_told_in_the_servers_words(status: str, body: bytes, text: str, rejected: bool) -> None:
    """Of an error status, and of an answer that is no stream, the body says why; a full server rejects."""
    head = f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    with pytest.raises(ProtocolError, match=text) as failed:
        Heard().feed(head + body)
    assert failed.value.rejected is rejected


@pytest.mark.parametrize(
    "junk",
    [
        b"SSH-2.0-OpenSSH\r\n\r\n",
        HEAD + b"xyz\r\n\r\n",
        HEAD + b"-5\r\n\r\n",
        HEAD + b"1" * 70_000,
        b"x" * 70_000,
        b"HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
        b"HTTP/1.1 204 No Content\r\n\r\n",
        HEAD.replace(b"\r\n\r\n", b"\r\nContent-Encoding: gzip\r\n\r\n"),
    ],
)
def test_what_is_no_such_stream_is_refused(junk: bytes) -> None:
    """Another protocol, a broken chunk, headers and sizes without end, a length that is none."""
    with pytest.raises(ProtocolError):
        Heard().feed(junk)


def test_an_endless_event_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A reply that only grows is given up at the limit, not when memory is."""
    monkeypatch.setattr(http1, "REPLY_LIMIT_BYTES", 300_000)
    heard = Heard()
    with pytest.raises(ProtocolError, match="a reply of more than"):
        heard.feed(HEAD + _chunk(b"data: x\n" * 80_000), piece=65_000)


def test_a_line_without_an_end_is_bounded() -> None:
    """A line is copied with each read: 64 MiB of one took a minute of CPU."""
    with pytest.raises(ProtocolError, match="a line of more than 1 MiB"):
        Heard().feed(HEAD + _chunk(b"data: " + b"x" * (1 << 21)), piece=65_000)


def test_requests_are_framed() -> None:
    """The head is what the server needs, and a header cannot break out of its line."""
    head, _, body = Heard().request.partition(b"\r\n\r\n")
    assert head == b"POST /x HTTP/1.1\r\nHost: h:1\r\nContent-Length: 2"
    assert body == b"{}"
    with pytest.raises(ValueError, match="line break"):
        request_head("POST /x", "h:1", {"Authorization": "Bearer a\r\nX: y"})


def test_an_error_of_any_shape_has_a_text() -> None:
    """JSON of two shapes, plain text, nothing, and nesting meant to break the reader."""
    assert error_text(b'{"error": "a"}') == "a"
    assert error_text(b'{"error": {"message": "b", "code": 5}}') == "b"
    assert error_text(b"plain") == "plain"
    assert error_text(b"") is None
    assert error_text(b"[" * 100_000) == "[" * 300


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b'{"error": {"message": "too long"}}', "too long"),
        (b"<html>Not Found</html>", "HTTP status 404: <html>Not Found</html>"),
        (b'{"message": "none"}', 'HTTP status 404: {"message": "none"}'),
        (b"", "HTTP status 404"),
    ],
)
def test_a_refusal_states_the_servers_reason_or_its_status(body: bytes, text: str) -> None:
    """A page of HTML, or a JSON of another shape, does not say by itself that it is an error."""
    with pytest.raises(ProtocolError) as refused:
        Heard().feed(b"HTTP/1.1 404 Not Found\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
    assert str(refused.value) == text


CHUNKS = st.lists(
    st.sampled_from(
        [
            *(_chunk(_event(text="tick")), _chunk(_event(text="tock", longer=True)), _chunk(b"data: \n\n")),
            *(_chunk(b"data:  spaced \t\n\n"), _chunk(b"data: a\rb\n\n"), _chunk(b": still here\n\n")),
            *(_chunk(b"\xef\xbb\xbfdata: marked\n\n"), _chunk(b"data: a\rdata: b\r\r"), _chunk(b"data: c\r\r\n")),
            *(_chunk(b"data: one\n\ndata: two\n\n"), _chunk(b"data: cut"), _chunk(b" in two\n\n"), _chunk(b"\n")),
            *(
                _chunk(b"data: a\r\n\r\n"),
                b"A;x=y\r\ndata: abc\n\r\n",
                b"00a\r\ndata: ab\n\n\r\n",
                b"0A\r\ndata: ab\n\n\r\n",
            ),
            _chunk(b"event: x\ndata: y\n\n"),
        ]
    ),
    max_size=12,
)
REFERENCE = http1._event_chunks


@given(CHUNKS, st.lists(st.integers(0, 600), max_size=20), st.lists(st.booleans(), min_size=22, max_size=22))
def test_events_taken_without_the_parser_are_those_that_it_would_find(
    chunks: list[bytes], cuts: list[int], drained: list[bool]
) -> None:
    """Whatever chunks come in whatever pieces, read in whatever blocks: the same messages, times and end."""
    reply = HEAD + b"".join(chunks) + b"0\r\n\r\n"
    places = sorted({0, *(cut for cut in cuts if cut < len(reply)), len(reply)})
    found = []
    with pytest.MonkeyPatch.context() as patch:
        for take in (lambda _data, begin, _ends, _arrivals_s: ([], [], begin), REFERENCE, http1.event_chunks):
            patch.setattr(http1, "event_chunks", take)
            heard, block = Heard(), []
            for number, ((begin, end), is_drained) in enumerate(zip(pairwise(places), drained, strict=False)):
                block.append((reply[begin:end], float(number)))
                if is_drained or end == len(reply):
                    ends = list(accumulate(len(data) for data, _ in block))
                    times_s = [time_s for _, time_s in block]
                    data = b"".join(data for data, _ in block)
                    heard.session.take(Pieces(data, ends, times_s, [UNSTAMPED] * len(ends)))
                    block = []
            found.append((heard.messages, heard.times, heard.session.ended, heard.session.reusable))
    assert found[0] == found[1] == found[2]
    assert found[0][2]


@given(
    st.lists(CHUNKS.map(b"".join) | st.binary(max_size=20) | st.just(b"fffffff\r\ndata: x"), max_size=4).map(b"".join),
    st.integers(0, 40),
    st.lists(st.integers(0, 600), max_size=20),
)
def test_the_compiled_form_finds_the_same_events(data: bytes, begin: int, cuts: list[int]) -> None:
    """In any bytes, from any place on, in any pieces."""
    ends = sorted({*(cut for cut in cuts if 0 < cut < len(data)), len(data)})
    times_s = [float(number) for number in range(len(ends))]
    assert http1.event_chunks(data, begin, ends, times_s) == REFERENCE(data, begin, ends, times_s)


@given(CHUNKS, st.lists(st.integers(0, 600), max_size=20), st.sampled_from([b"", b"Date: now\r\n"]))
@example(
    [b'18\r\ndata: {"text": "tick"}\n\n\r\n', b"b\r\ndata: a\r\n\r\n\r\n"], [132], b"Date: now\r\n"
)  # within CR LF
def test_a_whole_reply_with_a_known_head_is_what_the_parser_would_find(
    chunks: list[bytes], cuts: list[int], dated: bytes
) -> None:
    """Whatever it is made of, and in whatever pieces: the same messages, times and end, whether or not it is known."""
    last_event = b"data: [DONE]\n\n"
    reply = HEAD[:-2] + dated + b"\r\n" + b"".join([*chunks, _chunk(last_event)]) + b"0\r\n\r\n"
    ends = sorted({*(cut for cut in cuts if 0 < cut < len(reply)), len(reply)})
    pieces = Pieces(reply, ends, [float(number) for number in range(len(ends))], [UNSTAMPED] * len(ends))
    streams: set[bytes] = set()
    found = []
    for _ in range(3):
        heard = Heard(streams)
        is_known = heard.session.is_whole_with(reply, last_event)
        assert heard.session.take(pieces)
        found.append((heard.messages, heard.times, heard.session.arrived_s, heard.session.reusable, is_known))
    assert [is_known for *_, is_known in found] == [False, True, True]
    assert found[0][:-1] == found[1][:-1] == found[2][:-1]


def test_a_reply_after_which_the_server_closes_cannot_wait() -> None:
    """The next request would be sent on a connection that is about to end."""
    end = _chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n"
    for last_header, can_wait in ((b"", True), (b"Connection: close\r\n", False)):
        heard = Heard()
        heard.feed(HEAD[:-2] + last_header + b"\r\n" + _chunk(_event(a=1)))
        assert heard.session.is_whole_with(end, b"data: [DONE]\n\n") is can_wait


def test_a_known_reply_needs_no_parser(monkeypatch: pytest.MonkeyPatch) -> None:
    """If its head is known and its chunks are whole lines, whatever their number."""
    reply = HEAD + _chunk(_event(a=1)) + _chunk(b"data: one\n\ndata: [DONE]\n\n") + b"0\r\n\r\n"
    heard = Heard(streams := set())
    assert heard.feed(reply)
    heard = Heard(streams)
    monkeypatch.setattr(http1.httptools, "HttpResponseParser", None)
    assert heard.session.is_whole_with(reply, b"data: [DONE]\n\n")
    assert heard.feed(reply)
    assert heard.messages == [b'{"a": 1}', b"one", b"[DONE]"]
