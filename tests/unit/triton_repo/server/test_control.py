"""Draining by the clock: what is unloaded when, and what is said to be left."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import pytest

from triton_repo.server.control import Control, ControlError, drain, main


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
