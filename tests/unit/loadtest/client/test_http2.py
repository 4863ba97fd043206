"""The lean gRPC session, frame by frame, and against gRPC's own server."""

from __future__ import annotations

import socket
import struct
import threading
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import pairwise
from typing import Any

import grpc
import hpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engines.errors import MissingError
from loadtest.client.endpoint import Endpoint
from loadtest.client.http1 import CutError, ProtocolError
from loadtest.client.http2 import (
    ACK,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    MAX_FRAME_SIZE,
    PADDED,
    PING,
    PREFACE,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    GrpcSession,
    call_headers,
    frame,
)
from loadtest.client.queries import call
from loadtest.client.receiver import Pieces

NO_STATUS = [(":status", "200"), ("content-type", "application/grpc")]


def _message(body: bytes) -> bytes:
    return struct.pack(">BI", 0, len(body)) + body


def _headers(encoder: hpack.Encoder, headers: list[tuple[str, str]], *, last: bool = False, stream: int = 1) -> bytes:
    flags = END_HEADERS | (END_STREAM if last else 0)
    return frame(HEADERS, flags, stream, encoder.encode(headers))


def _reply(stream: int = 1, encoder: hpack.Encoder | None = None, status: str = "0", message: str = "") -> bytes:
    encoder = encoder or hpack.Encoder()
    two = _message(b"two") + _message(b"thr")[:6]
    return (
        frame(SETTINGS, 0, 0, struct.pack(">HI", 4, 1_000_000))
        + _headers(encoder, NO_STATUS, stream=stream)
        + frame(DATA, 0, stream, _message(b"one"))
        + frame(PING, 0, 0, b"12345678")
        + frame(DATA, PADDED, stream, b"\3" + two + b"\0\0\0")
        + frame(DATA, 0, stream, _message(b"thr")[6:])
        + _headers(encoder, [("grpc-status", status), ("grpc-message", message)], last=True, stream=stream)
    )


class Heard:
    """A session that has called, and what its sink was given."""

    def __init__(self, payload: bytes = b"request") -> None:
        self.messages: list[bytes] = []
        self.session = GrpcSession(call_headers("/a/b", "h:1", tls=False))
        self.sent = self.session.begin(payload, self.take)

    def take(self, messages: Sequence[bytes], _: object) -> None:
        """Keep messages."""
        self.messages += messages


@given(st.lists(st.integers(1, len(_reply()) - 1), max_size=12))
def test_however_the_bytes_are_cut_the_messages_are_the_same(cuts: list[int]) -> None:
    """Three messages in three frames, one padded; settings and a ping are answered whatever pieces they come in."""
    reply = _reply()
    places = [0, *sorted(set(cuts)), len(reply)]
    heard = Heard()
    ended = [heard.session.take(Pieces.of(reply[begin:end], 0.0)) for begin, end in pairwise(places)]
    assert heard.messages == [b"one", b"two", b"thr"]
    assert ended == [False] * (len(places) - 2) + [True]
    assert heard.session.outgoing == frame(SETTINGS, ACK, 0) + frame(PING, ACK, 0, b"12345678")


def test_a_connection_carries_one_call_after_another() -> None:
    """The second call has its own stream and needs no opening; header tables live on."""
    heard, encoder = Heard(), hpack.Encoder()
    assert heard.session.take(Pieces.of(_reply(1, encoder), 0.0))
    heard.session.outgoing = b""
    second = heard.session.begin(b"again", heard.take)
    assert heard.sent.startswith(PREFACE)
    assert PREFACE not in second
    assert heard.session.take(Pieces.of(_reply(3, encoder), 0.0))
    assert heard.messages == [b"one", b"two", b"thr"] * 2
    assert heard.session.reusable


def test_a_long_request_waits_for_the_servers_windows() -> None:
    """What the server has no room for is sent as it makes room, in frames of the size it takes."""
    heard = Heard(b"x" * 100_000)
    sent = len(heard.sent)
    assert 65_535 < sent < 67_000
    heard.session.take(Pieces.of(frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", 1 << 20)), 0.0))
    assert heard.session.outgoing == b""
    heard.session.take(Pieces.of(frame(WINDOW_UPDATE, 0, 1, struct.pack(">I", 1 << 20)), 0.0))
    rest = heard.session.outgoing
    assert len(rest) == 100_005 - 65_535 + 9 * 3
    last = rest[-((100_005 - 65_535) % 16_384) - 9 :]
    assert last[4] == END_STREAM


@pytest.mark.parametrize(
    ("status", "message", "text", "rejected"),
    [
        ("3", "no such%20model%3A x", "INVALID_ARGUMENT: no such model: x", False),
        ("8", "", "RESOURCE_EXHAUSTED", True),
        ("14", "[request id: r1] Exceeds maximum queue size", "UNAVAILABLE: .*Exceeds maximum", True),
        ("99", "new", "status 99: new", False),
        ("9" * 5000, "", f"status {'9' * 20}: $", False),
    ],
)
def test_a_status_is_an_error_in_the_servers_words(status: str, message: str, text: str, rejected: bool) -> None:
    """Trailers are decoded; a full queue is a rejection; what came before is kept."""
    heard = Heard()
    with pytest.raises(ProtocolError, match=text) as failed:
        heard.session.take(Pieces.of(_reply(status=status, message=message), 0.0))
    assert failed.value.rejected is rejected
    assert heard.messages == [b"one", b"two", b"thr"]


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (frame(RST_STREAM, 0, 1, struct.pack(">I", 8)), "reset the stream: HTTP/2 error 8"),
        (frame(GOAWAY, 0, 0, struct.pack(">II", 0, 11)), "going away: HTTP/2 error 11"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "is this a gRPC port"),
        (frame(HEADERS, END_HEADERS, 1, b"\xff\xff\xff\xff\xff\xff"), "headers cannot be read"),
        (frame(DATA, PADDED, 1, b"\x09x"), "padded beyond"),
        (_headers(hpack.Encoder(), [(":status", "503")], last=True), "HTTP status 503"),
        (frame(DATA, END_STREAM, 1, _message(b"one")), "without a gRPC status"),
        (frame(5, 0, 1, b"push"), "push"),
        (frame(DATA, END_STREAM, 1, struct.pack(">BI", 0, 1 << 31)), "a gRPC message of 2147483648 bytes"),
        (
            frame(DATA, 0, 1, _message(b"one")[:6]) + _headers(hpack.Encoder(), [("grpc-status", "0")], last=True),
            "the stream ended within a message",
        ),
        (frame(SETTINGS, 0, 0, struct.pack(">HI", MAX_FRAME_SIZE, 1)), "an HTTP/2 frame size of 1, below 16384"),
        (_headers(hpack.Encoder(), [(":status", "100"), ("a", "b" * 1000)]) * 100, "headers of more than 65536 bytes"),
        (frame(HEADERS, 0, 1) + frame(CONTINUATION, 0, 1) * 10_000, "headers of more than 65536 bytes"),
        (frame(PING, 0, 0, b"12345678") * 10_000, "a flood of HTTP/2 pings or settings"),
        (frame(SETTINGS, 0, 0) * 20_000, "a flood of HTTP/2 pings or settings"),
    ],
)
def test_a_broken_call_is_one_clear_error(data: bytes, text: str) -> None:
    """Resets, a server going away, other protocols and broken frames each say what they are."""
    with pytest.raises(ProtocolError, match=text):
        Heard().session.take(Pieces.of(data, 0.0))


def test_data_after_the_end_of_a_call_is_not_kept() -> None:
    """A server that goes on sending on an idle connection costs no memory, and the next call is not disturbed."""
    heard, encoder = Heard(), hpack.Encoder()
    heard.session.take(Pieces.of(_reply(1, encoder), 0.0))
    tracemalloc.start()
    for _ in range(100):
        heard.session.take(Pieces.of(frame(DATA, 0, 1, b"x" * 16_000), 0.0))
    assert tracemalloc.get_traced_memory()[0] < 100_000
    tracemalloc.stop()
    heard.session.begin(b"again", heard.take)
    assert heard.session.take(Pieces.of(_reply(3, encoder), 0.0))
    assert heard.messages == [b"one", b"two", b"thr"] * 2


def test_frames_without_data_are_not_kept() -> None:
    """A flood of them costs no memory."""
    heard = Heard()
    flood = Pieces.of(frame(DATA, 0, 1) * 1000, 0.0)
    tracemalloc.start()
    for _ in range(10):
        heard.session.take(flood)
    assert tracemalloc.get_traced_memory()[0] < 10_000
    tracemalloc.stop()


def test_a_server_going_away_lets_the_call_end() -> None:
    """A call the server still serves goes on; the next one needs another connection."""
    heard = Heard()
    heard.session.take(Pieces.of(frame(GOAWAY, 0, 0, struct.pack(">II", 1, 0)), 0.0))
    assert heard.session.take(Pieces.of(_reply(), 0.0))
    assert not heard.session.reusable


def test_a_connection_closed_early_is_a_cut() -> None:
    """What had come is kept."""
    heard = Heard()
    heard.session.take(Pieces.of(_reply()[:-20], 0.0))
    with pytest.raises(CutError):
        heard.session.close()
    assert heard.messages == [b"one", b"two", b"thr"]


class _Stream(grpc.GenericRpcHandler):  # type: ignore[misc,no-any-unimported]  # grpc has no types
    """Answers `/t/Echo` with its request, and `/t/Fail` with an error."""

    def service(self, details: Any) -> Any:
        def echo(requests: Iterator[bytes], _: Any) -> Iterator[bytes]:
            for request in requests:
                yield request[:10]
                yield request

        def fail(_: Iterator[bytes], context: Any) -> Iterator[bytes]:
            yield b"first"
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "wrong: 100 % ä")

        found: Callable[..., Any] | None = {"/t/Echo": echo, "/t/Fail": fail}.get(details.method)
        return grpc.stream_stream_rpc_method_handler(found) if found else None


@pytest.fixture(scope="module")
def server() -> Iterator[Endpoint]:
    """Serve with gRPC's own library."""
    running = grpc.server(ThreadPoolExecutor(2), handlers=[_Stream()])
    port = running.add_insecure_port("127.0.0.1:0")
    running.start()
    yield Endpoint(host="127.0.0.1", port=port, protocol="triton-grpc")
    stopped: threading.Event = running.stop(None)
    stopped.wait(10)


def _talk(endpoint: Endpoint, path: str, payloads: list[bytes]) -> list[bytes]:
    """Make calls on one connection, one after another; return all messages."""
    session = GrpcSession(call_headers(path, endpoint.authority, tls=False))
    messages: list[bytes] = []
    with socket.create_connection((endpoint.host, endpoint.port), timeout=10) as connection:
        for payload in payloads:
            connection.sendall(session.begin(payload, lambda found, _: messages.extend(found)))
            while not session.ended:
                session.take(Pieces.of(connection.recv(65_536), 0.0))
                connection.sendall(session.outgoing)
                session.outgoing = b""
    return messages


def test_grpcs_own_server_understands_us(server: Endpoint) -> None:
    """Calls small and of several windows, one after another on one connection, come back whole."""
    payloads = [b"a" * 20, b"b" * 3_000_000, b"", b"c" * 70_000]
    messages = _talk(server, "/t/Echo", payloads)
    assert messages == [part for payload in payloads for part in (payload[:10], payload)]


def test_grpcs_own_errors_are_understood(server: Endpoint) -> None:
    """A status in trailers and one instead of a reply are errors in the server's words."""
    with pytest.raises(ProtocolError, match="INVALID_ARGUMENT: wrong: 100 % ä"):
        _talk(server, "/t/Fail", [b"x"])
    with pytest.raises(ProtocolError, match="UNIMPLEMENTED"):
        _talk(server, "/t/Nothing", [b"x"])


def test_a_call_to_a_server_without_triton_is_one_error(server: Endpoint) -> None:
    """What answers there is no Triton: one clear error, no traceback."""
    with pytest.raises(MissingError, match="ServerMetadata: UNIMPLEMENTED"):
        call(server, "ServerMetadata", b"")


def test_a_call_takes_one_response() -> None:
    """A flood of responses is an error at the second one; kept to the deadline, they took 591 MB."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def flood() -> None:
            with listener.accept()[0] as connection, suppress(OSError):
                connection.sendall(frame(SETTINGS, 0, 0) + _headers(hpack.Encoder(), NO_STATUS))
                while True:
                    connection.sendall(frame(DATA, 0, 1, _message(b"x") * 2000))

        thread = threading.Thread(target=flood)
        thread.start()
        endpoint = Endpoint(host="127.0.0.1", port=listener.getsockname()[1], protocol="triton-grpc")
        with pytest.raises(MissingError, match=r"no Triton server answers at .*: more than one response"):
            call(endpoint, "ServerMetadata", b"")
        thread.join(10)
        assert not thread.is_alive()
