"""Draining by the clock: what is unloaded when, and what is said to be left."""

from __future__ import annotations

import socket
import struct
import threading
import time
from pathlib import Path
from typing import cast

import pytest

from engines.ports import LOOPBACK
from tests.unit.conftest import DRIPPED, OK, Answering
from triton_repo.server import control
from triton_repo.server.control import Control, ControlError, drain, main

LIMIT_S = 0.3


class FakeServer:
    """A server whose business-logic queue and engine empty at stated times; it notes when it was told what."""

    def __init__(self, *, queued_until: float = 0.0, busy_until: float = 0.0, unloads: bool = False) -> None:
        self.now = 0.0
        self.told: list[tuple[str, float]] = []
        self._queued, self._busy, self._unloads = queued_until, busy_until, unloads

    def clock(self) -> float:
        """Return the time."""
        return self.now

    def sleep(self, seconds: float) -> None:
        """Let time pass."""
        self.now += seconds

    def states(self) -> dict[str, set[str]]:
        """Return what the index would: an open stream keeps unloaded models UNLOADING unless they really go."""
        gone = "UNAVAILABLE" if self._unloads else "UNLOADING"
        unloaded = {model for model, _ in self.told}
        models = ("ensemble", "tensorrt_llm", "tensorrt_llm_bls", "preprocessing")
        return {model: {gone if model in unloaded else "READY"} for model in models}

    def unload(self, model: str) -> None:
        """Note it."""
        self.told.append((model, self.now))

    def pending(self, model: str) -> int:
        """Return the business-logic queue."""
        assert model == "tensorrt_llm_bls"
        return 3 if self.now < self._queued else 0

    def in_flight(self) -> int:
        """Return the engine's requests."""
        return 2 if self.now < self._busy else 0


def _drain(server: FakeServer, within_s: float) -> int:
    return drain(cast(Control, server), within_s, clock=server.clock, sleep=server.sleep)


def test_fronts_go_first_and_the_engine_once_none_of_them_waits() -> None:
    """A business-logic request that still waits would find no engine."""
    server = FakeServer(queued_until=4.0, busy_until=6.0)
    assert _drain(server, 30) == 0
    assert [model for model, _ in server.told] == ["ensemble", "tensorrt_llm_bls", "tensorrt_llm"]
    assert server.told[2][1] > 4.0
    assert 6.0 < server.now < 8.0


def test_an_idle_server_is_drained_in_a_moment() -> None:
    """Open streams keep models from going; nothing in flight is what counts."""
    server = FakeServer()
    assert _drain(server, 30) == 0
    assert server.now < 2


def test_an_unloaded_engine_has_nothing_left_whatever_its_last_metrics_were() -> None:
    """Metrics of a model that went stay as they were."""
    server = FakeServer(busy_until=1e9, unloads=True)
    assert _drain(server, 30) == 0


def test_what_is_left_at_the_limit_is_counted() -> None:
    """The limit holds, and the number is the engine's."""
    server = FakeServer(busy_until=100.0)
    assert _drain(server, 5) == 2
    assert server.now == pytest.approx(5, abs=0.3)


def test_a_server_that_is_not_there_is_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """A hook's failure says what and where, without a traceback."""
    (tmp_path / "key").write_text("secret")
    assert main(["drain", "--url", "http://127.0.0.1:9", "--key-file", str(tmp_path / "key")]) == 1
    assert capsys.readouterr().err.startswith("drain: http://127.0.0.1:9/")
    with pytest.raises(ControlError):
        Control("http://127.0.0.1:9", "http://127.0.0.1:9/metrics").states()


@pytest.mark.parametrize("pieces", DRIPPED.values(), ids=DRIPPED)
def test_a_call_is_limited_as_a_whole(
    answering: Answering, pieces: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that sends a byte now and then is given up: a hook that waits for it would outlast the pod."""
    monkeypatch.setattr(control, "CALL_LIMIT_S", LIMIT_S)
    server = Control("http://127.0.0.1:9", "http://" + answering(pieces, pause_s=LIMIT_S / 6))
    began_s = time.monotonic()
    with pytest.raises(ControlError, match=r"no complete answer within 0\.3 s"):
        server.in_flight()
    assert time.monotonic() - began_s < 4 * LIMIT_S


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (OK + b"Content-Length: 9\r\n\r\n[]", "IncompleteRead"),
        (b"", "closed connection"),
        (b"garbage\r\n", "garbage"),
        (OK + b"X: " + b"y" * (1 << 20) + b"\r\n\r\n", "header line"),
        (b"HTTP/1.1 401 No\r\n\r\nkey\n\x1b[2J", "HTTP 401: key"),
        *((OK + b"\r\n" + body, "not a list of models") for body in (b"", b"5", b"[5]", b"[{}]", b"{", b"[" * 100_000)),
        *(
            (OK + b"\r\n" + body, "not a list of models")
            for body in (b'[{"name": ["a"]}]', b'[{"name":"a","state":[]}]')
        ),
    ],
)
def test_a_wrong_answer_is_one_line(
    answering: Answering, answer: bytes, reason: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """No answer of a server is a traceback in a hook's log."""
    (tmp_path / "key").write_text("secret")
    url = "http://" + answering([answer]).rstrip("/")
    assert main(["drain", "--url", url, "--key-file", str(tmp_path / "key")]) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"drain: {url}/v2/repository/index: ")
    assert said.rstrip("\n").isprintable()
    with pytest.raises(ControlError, match=reason):
        Control("http://" + answering([answer]).rstrip("/"), "").states()


@pytest.mark.parametrize("value", ["x", "nan", "inf", "1" * 400])
def test_a_metric_that_is_no_number_is_told(answering: Answering, value: str) -> None:
    """It is not taken for an idle engine."""
    page = f'nv_trt_llm_request_metrics{{model="m",request_type="active"}} {value}\n'.encode()
    with pytest.raises(ControlError, match="nv_trt_llm_request_metrics is not a number"):
        Control("", "http://" + answering([OK + b"\r\n" + page])).in_flight()


@pytest.mark.parametrize("url", ["", "nothing", "file:///etc/hostname", "http://[::1", "http://", "http://a:b/"])
def test_what_is_no_url_is_told(url: str) -> None:
    """Not a file, and not this machine's port 80."""
    with pytest.raises(ControlError):
        Control(url, url).in_flight()


@pytest.mark.parametrize("resets", [1, 2])
def test_a_connection_that_a_busy_server_drops_is_tried_once_more(resets: int) -> None:
    """Triton under load has reset one; a server that goes on dropping them is reported."""
    with socket.create_server((LOOPBACK, 0)) as listener:
        port, index = listener.getsockname()[1], b'[{"name": "ensemble", "state": "READY"}]'

        def serve() -> None:
            for each in range(2):
                connection = listener.accept()[0]
                with connection:
                    connection.recv(4096)
                    if each < resets:
                        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    else:
                        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(index) + index)

        server = threading.Thread(target=serve)
        server.start()
        asked = Control(f"http://{LOOPBACK}:{port}", f"http://{LOOPBACK}:{port}/metrics")
        if resets == 1:
            assert asked.states() == {"ensemble": {"READY"}}
        else:
            with pytest.raises(ControlError, match="reset by peer"):
                asked.states()
        server.join()
