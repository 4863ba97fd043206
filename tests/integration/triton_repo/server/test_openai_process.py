"""The front as a process: what it is told, whose process is stopped, and where its keys come from."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from engines.errors import MissingError, ToolError, UserError
from engines.files import MadeBy, write_json
from triton_repo.openai_api.api_keys import is_key, read_keys
from triton_repo.server.openai_process import (
    RECORD_NAME,
    FrontOptions,
    FrontRecord,
    require_free,
    require_front,
    start_front,
    stop_front,
)

HEAD = MadeBy(command="test", version="0")


def _record(repository: Path, pid: int) -> None:
    (repository / "front.log").write_text("one\ntwo\n")
    log = str(repository / "front.log")
    write_json(
        repository / RECORD_NAME,
        FrontRecord(made_by=HEAD, pid=pid, address="127.0.0.1", port=9, log=log),
    )


def _options(port: int, address: str = "127.0.0.1", keys: Path | None = None) -> FrontOptions:
    return FrontOptions(
        address=address,
        port=port,
        grpc_target="127.0.0.1:1",
        metrics_url="http://127.0.0.1:2/metrics",
        model=None,
        reasoning="auto",
        api_key_file=keys,
        stop_after_s=None,
    )


def test_a_process_of_somebody_else_is_not_stopped(tmp_path: Path) -> None:
    """A record may outlive its front, and its number be another's by then: here, this very test's."""
    _record(tmp_path, os.getpid())
    assert stop_front(tmp_path) is False
    assert not (tmp_path / RECORD_NAME).exists()
    assert stop_front(tmp_path) is False


def test_a_front_that_ended_by_itself_is_told(tmp_path: Path) -> None:
    """With the last lines of its log; where none was started, there is nothing to tell."""
    require_front(tmp_path)
    _record(tmp_path, os.getpid())
    with pytest.raises(ToolError, match="exited unexpectedly"):
        require_front(tmp_path)


def test_what_it_is_told_holds_no_key(tmp_path: Path) -> None:
    """The file's name alone: anybody can read a command line."""
    keys = tmp_path / "keys"
    keys.write_text("sk-secret\n")
    assert _options(9000, keys=keys).arguments() == [
        "--address", "127.0.0.1", "--port", "9000", "--grpc", "127.0.0.1:1", "--metrics-url",
        "http://127.0.0.1:2/metrics", "--reasoning", "auto", "--api-key-file", str(keys),
    ]  # fmt: skip


def test_a_front_that_cannot_start_says_why(tmp_path: Path) -> None:
    """No repository there: the error is the front's own, and no record stays behind."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with pytest.raises(ToolError, match="exited before it was ready") as failed:
        start_front(tmp_path, _options(port), detached=False, made_by=HEAD, progress=lambda _: None)
    assert "manifest.json" in str(failed.value)
    assert not (tmp_path / RECORD_NAME).exists()


def test_a_taken_port_is_named() -> None:
    """Before anything is started."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"cannot listen on 127.0.0.1:{port}"):
            require_free("127.0.0.1", port)


def test_listening_without_a_key_is_warned_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On anything but loopback."""
    monkeypatch.delenv("FRONT_API_KEY", raising=False)
    said: list[str] = []
    with pytest.raises(ToolError):
        start_front(tmp_path, _options(1, address="0.0.0.0"), detached=False, made_by=HEAD, progress=said.append)
    assert "without an API key" in said[0]


def test_where_keys_come_from(tmp_path: Path) -> None:
    """The file first, one a line; else the environment; an empty file is no open door."""
    keys = tmp_path / "keys"
    keys.write_text("# team A\none\n\n  two \n")
    assert read_keys(keys, "three") == ["one", "two"]
    assert read_keys(None, "three") == ["three"]
    assert read_keys(None, None) == []
    assert read_keys(None, "") == []
    keys.write_text("\n# none yet\n")
    with pytest.raises(UserError, match="contains no API key"):
        read_keys(keys, "three")
    with pytest.raises(MissingError, match="no such file"):
        read_keys(tmp_path / "gone", None)
    assert is_key("two", ["one", "two"])
    assert not is_key("tw", ["one", "two"])
    assert not is_key("é", ["one"])
