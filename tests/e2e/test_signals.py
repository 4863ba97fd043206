"""Signals against the real server: told to stop at any time, or killed, serve-repo leaves no process behind."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from engines.processes import started_ticks
from tests.e2e.conftest import BIN, free_ports, succeed

pytestmark = pytest.mark.e2e

PATIENCE_S = 60.0


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, engine: Path) -> Path:
    """Build a repository."""
    folder = tmp_path_factory.mktemp("built") / "repository"
    succeed("build-repo", engine, "--out", folder, "--time-scale", 0.05)
    return folder


@pytest.fixture
def repository(tmp_path: Path, built: Path) -> Iterator[Path]:
    """Copy it; whatever happens, nothing serves the copy afterwards."""
    folder = tmp_path / "repository"
    shutil.copytree(built, folder)
    yield folder
    if _of_server(folder):
        succeed("serve-repo", folder, "--stop", "--drain-within", 0)


def _serve(repository: Path, *flags: str) -> subprocess.Popen[str]:
    http, grpc, metrics = free_ports()
    ports = ["--http-port", http, "--grpc-port", grpc, "--metrics-port", metrics]
    return subprocess.Popen(
        [str(BIN / "serve-repo"), str(repository), *map(str, ports), *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def _await(condition: Callable[[], bool], what: str) -> float:
    begin_s = time.monotonic()
    while not condition():
        assert time.monotonic() - begin_s < PATIENCE_S, what
        time.sleep(0.02)
    return time.monotonic() - begin_s


def _of_server(repository: Path) -> list[int]:
    """Return the living processes that name the repository on their command line, serve-repo's own left out."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or started_ticks(int(entry.name)) is None:
            continue
        try:
            words = (entry / "cmdline").read_bytes().decode(errors="replace")
        except (FileNotFoundError, ProcessLookupError):
            continue
        if re.search(rf"{re.escape(str(repository))}\b", words) and "serve-repo" not in words:
            found.append(int(entry.name))
    return found


def _is_up(repository: Path) -> Callable[[], bool]:
    return lambda: (
        "Started HTTPService"
        in ((repository / "server.log").read_text(errors="replace") if (repository / "server.log").is_file() else "")
    )


@pytest.mark.quiet
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_serve_repo_stopped_before_it_is_ready_leaves_no_server(repository: Path, number: signal.Signals) -> None:
    """While Triton loads its models: it is ended too, within three seconds of a signal that can be caught."""
    process = _serve(repository)
    _await(lambda: bool(_of_server(repository)), "tritonserver never began")
    begin_s = time.monotonic()
    process.send_signal(number)
    _, said = process.communicate(timeout=PATIENCE_S)
    took_s = time.monotonic() - begin_s
    _await(lambda: not _of_server(repository), "tritonserver lives on")
    if number == signal.SIGKILL:
        assert process.returncode == -signal.SIGKILL
        return
    assert (process.returncode, took_s < 3.0) == (130, True), (took_s, said)
    assert said.splitlines() == [
        f"serve-repo: error: {'interrupted' if number == signal.SIGINT else 'terminated by the system'}"
    ]
    assert "Traceback" not in said
    assert not (repository / "server.json").exists()


def test_a_killed_serve_repo_takes_its_server_along(repository: Path) -> None:
    """SIGKILL cannot be caught: the kernel tells the server, and nothing of it is left, not even shared memory."""
    process = _serve(repository)
    _await(_is_up(repository), "tritonserver was never up")
    assert process.stdout is not None
    assert process.stdout.readline().startswith("Triton ")
    process.kill()
    process.communicate()
    _await(lambda: not _of_server(repository), "tritonserver lives on")


@pytest.mark.quiet
def test_ctrl_c_ends_an_idle_server_at_once(repository: Path) -> None:
    """With no request in flight there is nothing to drain: three seconds, as for any command."""
    process = _serve(repository)
    assert process.stdout is not None
    assert process.stdout.readline().startswith("Triton ")
    begin_s = time.monotonic()
    os.kill(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=PATIENCE_S)
    assert time.monotonic() - begin_s < 3.0, said
    assert process.returncode == 130
    assert not _of_server(repository)
