"""Which time a reply's bytes are given, and which connections are made; see tests/timetable for the sockets."""

from __future__ import annotations

import socket
import time

import pytest

from loadtest.client.connection import Connection, ServerConnections
from loadtest.client.endpoint import Endpoint
from loadtest.client.protocols import protocol_for
from loadtest.client.protocols.base import Reply, RequestSpec
from loadtest.client.timestamps import Readings
from loadtest.traffic.prompts import Prompt


def test_a_late_reader_takes_the_kernels_time() -> None:
    """Read 4 ms after the kernel had them, bytes have come 4 ms ago; how late is kept."""
    readings = Readings()
    assert readings.arrival_s(10.0, 1_000_000.0, 999_999.996, 9.9) == pytest.approx(9.996)
    assert readings.late_p99_s() == pytest.approx(0.004, abs=1e-4)
    assert readings.clock == "kernel"


@pytest.mark.parametrize("stamp_s", [999_000.0, 999_999.5, 1_000_001.0, 0.0])
def test_a_step_of_the_machines_clock_moves_no_arrival(stamp_s: float) -> None:
    """A stamp of before the last bytes, or of the future, is not believed: the reading's time is taken."""
    readings = Readings()
    assert readings.arrival_s(10.0, 1_000_000.0, stamp_s, 9.9) == 10.0
    assert (readings.refused, readings.unstamped, readings.stamped) == (1, 1, 0)
    assert readings.clock == "reader"


def test_arrivals_never_go_back() -> None:
    """Clocks read a moment apart put no arrival before the one before it, and none after the reading."""
    readings = Readings()
    assert readings.arrival_s(10.0, 1_000_000.0, 999_999.8995, 9.9) == 9.9
    assert readings.arrival_s(10.0, 1_000_000.0, 1_000_000.0005, 9.9) == 10.0
    assert readings.stamped == 2


def test_without_stamps_the_reader_is_the_clock() -> None:
    """Some of one kind and some of the other are said to be mixed."""
    readings = Readings()
    assert readings.arrival_s(10.0, 1_000_000.0, None, 9.9) == 10.0
    assert (readings.clock, readings.late_p99_s()) == ("reader", 0.0)
    readings.arrival_s(10.0, 1_000_000.0, 1_000_000.0, 9.9)
    assert readings.clock == "mixed"


def _door(port: int, silence_s: float = 0.2) -> ServerConnections:
    endpoint = Endpoint(host="127.0.0.1", port=port, protocol="openai-chat")
    began = time.monotonic()
    protocol = protocol_for(endpoint, "m", environment={})
    return ServerConnections(
        endpoint, protocol, silence_s=silence_s, reply_s=5.0, clock=lambda: time.monotonic() - began
    )


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
