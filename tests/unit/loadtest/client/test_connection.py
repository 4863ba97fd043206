"""Which time a reply's bytes are given, and which connections are made; see tests/timetable for the sockets."""

from __future__ import annotations

import socket
import threading
import time
from array import array
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.client import timestamps
from loadtest.client.connection import Connection, ServerConnections
from loadtest.client.endpoint import Endpoint
from loadtest.client.protocols import protocol_for
from loadtest.client.protocols.base import Reply, RequestSpec
from loadtest.client.receiver import UNSTAMPED, Pieces, PythonReceiver, Receiver
from loadtest.client.timestamps import Readings
from loadtest.traffic.prompts import Prompt


def _arrival_s(readings: Readings, delay_s: float) -> float:
    (arrived_s,) = readings.arrivals_s(Pieces.of(b"x", 10.0, delay_s), 9.9, began_s=0.0)
    return arrived_s


def test_a_late_reader_takes_the_kernels_time() -> None:
    """Read 4 ms after the kernel had them, bytes have come 4 ms ago; how late is kept."""
    readings = Readings()
    assert _arrival_s(readings, 0.004) == pytest.approx(9.996)
    assert readings.late_p99_s() == pytest.approx(0.004, abs=1e-4)
    assert readings.clock == "kernel"


@pytest.mark.parametrize("delay_s", [1000.0, 0.5, -1.0, 1_000_000.0])
def test_a_step_of_the_machines_clock_moves_no_arrival(delay_s: float) -> None:
    """A stamp of before the last bytes, or of the future, is not believed: the reading's time is taken."""
    readings = Readings()
    assert _arrival_s(readings, delay_s) == 10.0
    assert (readings.refused, readings.unstamped, readings.stamped) == (1, 1, 0)
    assert readings.clock == "reader"


def test_arrivals_never_go_back() -> None:
    """Clocks read a moment apart put no arrival before the one before it, and none after the reading."""
    readings = Readings()
    assert _arrival_s(readings, 0.1005) == 9.9
    assert _arrival_s(readings, -0.0005) == 10.0
    assert readings.stamped == 2


def test_each_piece_is_dated_after_the_one_before_it() -> None:
    """Of pieces dated together, a stamp of before the last piece is not believed; times count from the run's start."""
    pieces = Pieces(b"abc", (1, 2, 3), (10.0, 10.1, 10.2), (0.002, 0.2, 0.001))
    readings = Readings()
    assert readings.arrivals_s(pieces, 0.9, began_s=9.0) == pytest.approx([0.998, 1.1, 1.199])
    assert (readings.stamped, readings.refused) == (2, 1)


def test_without_stamps_the_reader_is_the_clock() -> None:
    """Some of one kind and some of the other are said to be mixed."""
    readings = Readings()
    assert _arrival_s(readings, UNSTAMPED) == 10.0
    assert (readings.clock, readings.late_p99_s()) == ("reader", 0.0)
    _arrival_s(readings, 0.0)
    assert readings.clock == "mixed"


def _door(port: int, silence_s: float = 0.2) -> ServerConnections:
    endpoint = Endpoint(host="127.0.0.1", port=port, protocol="openai-chat")
    began_s = time.monotonic()
    protocol = protocol_for(endpoint, "m", environment={})
    return ServerConnections(endpoint, protocol, silence_s=silence_s, reply_s=5.0, began_s=began_s)


def _ask(door: ServerConnections) -> tuple[str, str | None]:
    answer, asked = Reply(), RequestSpec("r0", Prompt(tokens=1, text="x"), 4)
    Connection(door).ask(asked, answer)
    assert answer.done_s < 3
    return answer.outcome(asked)


def test_where_nobody_listens_is_said() -> None:
    """A refused connection is an error with the address in it."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    assert _ask(_door(port)) == ("error", f"no server at 127.0.0.1:{port}: Connection refused")


def test_a_name_that_means_nothing_is_said() -> None:
    """A host that cannot be looked up is an error with its name."""
    door = _door(1)
    door.endpoint = door.endpoint.model_copy(update={"host": "no-such-host.invalid"})
    outcome, reason = _ask(door)
    assert outcome == "error"
    assert reason is not None
    assert "no-such-host.invalid" in reason


def test_a_server_that_takes_and_says_nothing_is_left() -> None:
    """A connection that is taken and never answered ends at its limit; so does one to TLS that is none."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        door = _door(silent.getsockname()[1])
        assert _ask(door) == ("timeout", "nothing for 0.2 s")
        door.endpoint = door.endpoint.model_copy(update={"tls": True, "insecure": True})
        assert _ask(door)[0] == "timeout"


HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
TOKEN = b'data: {"choices": [{"delta": {"content": "a"}, "finish_reason": "length"}]}\n\n'
LINES = TOKEN + b'data: {"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 4}}\n\ndata: [DONE]\n\n'
WHOLE = HEAD + b"%x\r\n%b\r\n0\r\n\r\n" % (len(LINES), LINES)


def _answer_in(pieces: tuple[bytes, ...], server: socket.socket) -> None:
    there, _ = server.accept()
    with there:
        there.recv(65_536)
        for piece in pieces:
            there.sendall(piece)
            time.sleep(0.05)
        there.recv(1)  # until the client closes


@pytest.mark.parametrize("receiver", [PythonReceiver, Receiver])
@pytest.mark.parametrize(
    ("pieces", "longest_s"),
    [
        ((WHOLE + b"X",), 0.1),
        ((WHOLE[: len(HEAD)], WHOLE[len(HEAD) :] + b"X"), 0.15),
        ((WHOLE[:-7] + b"\r", b"\n0\r\n\r\nX"), 0.15),
        ((WHOLE[:-2], b"\r\nHTTP/1.1 408 Request Timeout\r\n"), 5.0),  # seen after the time without a byte
    ],
)
def test_bytes_after_a_whole_reply_are_no_part_of_it(
    pieces: tuple[bytes, ...], longest_s: float, receiver: type[PythonReceiver]
) -> None:
    """The reply is whole, and known to be at once where one piece holds its end; the connection is not used again."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=_answer_in, args=(pieces, server))
        thread.start()
        door, answer = _door(server.getsockname()[1], silence_s=0.5), Reply()
        door.receiver = receiver
        began_s = time.monotonic()
        connection, asked = Connection(door), RequestSpec("r0", Prompt(tokens=1, text="x"), 4)
        connection.ask(asked, answer)
        took_s = time.monotonic() - began_s
        thread.join(5)
    assert answer.outcome(asked) == ("ok", None)
    assert answer.whole
    assert answer.done_s < 0.4
    assert took_s < longest_s + 0.3
    assert not thread.is_alive()


SECONDS = st.floats(-10, 10, allow_nan=False) | st.floats(-0.01, 0.01)


@given(st.lists(st.tuples(SECONDS, SECONDS | st.just(UNSTAMPED)), max_size=20), SECONDS, SECONDS)
def test_the_compiled_form_dates_pieces_alike(
    pieces: list[tuple[float, float]], previous_s: float, began_s: float
) -> None:
    """The same arrivals to the last digit, the same counts."""
    reads_s, delays_s = [each for each, _ in pieces], [each for _, each in pieces]
    found = []
    for date in (timestamps._arrivals, timestamps.arrivals):
        late = array("q", bytes(8 * 50))
        found.append((date(reads_s, delays_s, previous_s, began_s, late, (0.001, 5.0, 0.0001)), late))
    assert found[0] == found[1]


@given(st.lists(st.floats(0, 1e9), max_size=20).map(lambda times_s: array("d", times_s)))
def test_the_compiled_form_rounds_times_alike(times_s: array[float]) -> None:
    """To the last digit, as close to the microsecond as can be; nothing else is rounded."""
    assert timestamps.whole_microseconds(times_s) == timestamps._whole_microseconds(times_s)
    assert all(
        abs(rounded - time_s) <= 6e-7
        for rounded, time_s in zip(timestamps.whole_microseconds(times_s), times_s, strict=True)
    )


@pytest.mark.skipif(
    timestamps.whole_microseconds is timestamps._whole_microseconds, reason="no C compiler at the build"
)
@pytest.mark.parametrize("wrong", [array("q", [1]), [1.0], b"12345678"])
def test_what_is_no_array_of_times_is_refused(wrong: Any) -> None:
    """A wrong argument is an exception, not a crash."""
    with pytest.raises(TypeError):
        timestamps.whole_microseconds(wrong)
