"""What ends a server that `serve-repo` attends."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from engines.files import MadeBy
from triton_repo.cli.actions import serve_repo
from triton_repo.server import FrontRecord, ServerRecord

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
        serve_repo._attend(tmp_path, None, FLAGS)  # type: ignore[arg-type]
    assert steps == ["drain", "stop the front", f"stop after {serve_repo.DRAINED_GRACE_S:g} s"]


@pytest.mark.parametrize(
    ("openai", "variant", "line"),
    [
        (False, "inflight_batcher_llm", "next: run-load --url http://127.0.0.1:8000"),
        (True, "inflight_batcher_llm", "next: run-load --url http://127.0.0.1:9000"),
        (True, "trtllm_serve", "next: run-load --url http://127.0.0.1:9000"),
    ],
)
def test_the_last_line_is_the_next_command(
    openai: bool,
    variant: str,
    line: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """With the front, that is a load on the front, and the only one that is named."""
    head: dict[str, Any] = {"made_by": MadeBy(command="test", version="0"), "pid": 2, "address": "127.0.0.1"}
    ports = {"http_port": 8000, "grpc_port": 8001, "metrics_port": 8002}
    record = ServerRecord(
        **head, **ports, started_ticks=1, triton_version="2", log="s.log", shared_memory_prefix="triton_1_1_"
    )
    repository = SimpleNamespace(variant=variant, engine=SimpleNamespace(model=SimpleNamespace(name="m")))
    monkeypatch.setattr(serve_repo, "start_front", lambda *_, **__: FrontRecord(**head, port=9000, log="f.log"))
    monkeypatch.setattr(serve_repo, "read_repository", lambda _: repository)
    asked = {"openai_port": 9000, "openai_model": "my model", "reasoning": "auto", "api_key_file": None}
    flags = FLAGS | asked | {"openai": openai, "detach": True, "address": "127.0.0.1", "stop_after": 0.0}
    serve_repo._attend(tmp_path, record, flags)
    printed = capsys.readouterr().out.splitlines()
    assert printed[-1] == line
    assert [each.startswith("next: ") for each in printed].count(True) == 1
