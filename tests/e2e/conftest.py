"""The real Triton, started once for the tests that only look at it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import entry_points
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

BIN = Path(sys.executable).parent
LOCAL_TRITON = Path(sys.prefix) / "opt" / "triton"
COMMAND_LIMIT_S = 240
# They only read and write files: where they must succeed, they run in the tests' own process, its modules loaded.
FILES_ALONE = {"build-repo", "build-deployment", "predict-load", "report-load"}
# Each worker of xdist takes ports of a range of its own: below Linux's ephemeral ports, from 32768 on.
_WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
_WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
_PORTS = 12_000 // _WORKERS // 3 * 3
_FIRST_PORTS = (20_000 + _WORKER * _PORTS + (3 * os.getpid() + 3 * n) % _PORTS for n in count())


def command(*arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run one of our commands to its end."""
    name, *rest = [str(argument) for argument in arguments]
    return subprocess.run(
        [str(BIN / name), *rest],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=COMMAND_LIMIT_S,
        check=False,
        env={**os.environ, "COLUMNS": "200"},
    )


def succeed(*arguments: object) -> str:
    """Run one of our commands; it must end well. Return what it printed."""
    if arguments[0] in FILES_ALONE or (arguments[0] == "build-engine" and "--emulate" in arguments):
        return _succeed_here(*arguments)
    done = command(*arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def _succeed_here(name: object, *arguments: object) -> str:
    [script] = entry_points(group="console_scripts", name=str(name))
    done = CliRunner(env={"COLUMNS": "200"}).invoke(script.load().loaded(), [str(argument) for argument in arguments])
    assert done.exit_code == 0, done.output
    return done.stdout


def free_ports() -> tuple[int, int, int]:
    """Return three ports in a row that nobody listens on and that no earlier call returned."""
    for _ in range(_PORTS // 3):
        first = next(_FIRST_PORTS)
        probes = [socket.socket() for _ in range(3)]
        try:
            for offset, probe in enumerate(probes):
                probe.bind(("127.0.0.1", first + offset))
        except OSError:
            continue
        finally:
            for probe in probes:
                probe.close()
        return first, first + 1, first + 2
    raise RuntimeError("no three free ports in a row")


@dataclass(frozen=True)
class Server:
    """A running server and where it listens."""

    repository: Path
    http: int
    grpc: int
    metrics: int

    @property
    def url(self) -> str:
        """Return the HTTP address."""
        return f"http://127.0.0.1:{self.http}"

    @property
    def pid(self) -> int:
        """Return the server's process."""
        return int(json.loads((self.repository / "server.json").read_text())["pid"])

    def end(self) -> None:
        """End it at once: killed, and what it left is removed; stopping takes Triton three seconds more."""
        os.killpg(self.pid, signal.SIGKILL)
        _succeed_here("serve-repo", self.repository, "--stop")


def start(repository: Path) -> Server:
    """Start a server that ends by itself after an hour, should nobody stop it."""
    http, grpc, metrics = free_ports()
    ports = ["--http-port", http, "--grpc-port", grpc, "--metrics-port", metrics]
    succeed("serve-repo", repository, *ports, "--detach", "--stop-after", 3600, "--tritonserver", "local")
    return Server(repository, http, grpc, metrics)


def timely(measure: Callable[[Path], dict[str, Any]], folder: Path, attempts: int = 3) -> dict[str, Any]:
    """Return a report of which no time was late by its own account; of the last attempt, whatever it says.

    The emulated engine needs a core at the right moments. A machine that others use may not have one, and the run then
    says so: its figures are no prediction's.

    Args:
        measure: Runs into a folder that does not exist yet, and returns a report with `validity_issues`.
    """
    for number in range(attempts):
        found = measure(folder / f"attempt-{number}")
        if not any(issue["code"].endswith("-late") for issue in found["validity_issues"]):
            break
    return found


@pytest.fixture(scope="session")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Emulate the default engine."""
    if not LOCAL_TRITON.is_dir():
        pytest.skip("the local Triton is not installed: make setup, or install-triton")
    folder = tmp_path_factory.mktemp("engine") / "engine"
    succeed("build-engine", "--precision", "fp8", "--emulate", "--out", folder)
    return folder


@pytest.fixture(scope="session")
def server(engine: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Serve the emulated engine."""
    repository = tmp_path_factory.mktemp("served") / "repository"
    succeed("build-repo", engine, "--out", repository, "--time-scale", 2)
    running = start(repository)
    yield running
    running.end()
