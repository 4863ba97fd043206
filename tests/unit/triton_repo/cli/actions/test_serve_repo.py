"""What ends a server that `serve-repo` attends."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from triton_repo.cli.actions import serve_repo

FLAGS = {"as_json": False, "openai": False, "detach": False, "drain_within": 30.0}


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Record what is done to the server."""
    done: list[str] = []

    def stop(_: Path, *, grace_s: float) -> bool:
        done.append(f"stop after {grace_s:g} s")
        return True

    monkeypatch.setattr(serve_repo.signal, "signal", lambda *_: None)  # the tests' own handlers stay
    monkeypatch.setattr(serve_repo, "drain_server", lambda *_: done.append("drain"))
    monkeypatch.setattr(serve_repo, "stop_front", lambda _: done.append("stop the front"))
    monkeypatch.setattr(serve_repo, "stop_server", stop)
    return done


@pytest.mark.parametrize("place", ["_show_server", "watch_server"])
def test_ctrl_c_drains_from_the_first_line_on(
    steps: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, place: str
) -> None:
    """A server has clients once its address was printed: a signal right then drains it as any later one does."""

    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(serve_repo, "_show_server", lambda *_, **__: None)
    monkeypatch.setattr(serve_repo, place, interrupted)
    with pytest.raises(KeyboardInterrupt):
        serve_repo._attend(tmp_path, None, FLAGS, twin=False)  # type: ignore[arg-type]
    assert steps == ["drain", "stop the front", f"stop after {serve_repo.DRAINED_GRACE_S:g} s"]
