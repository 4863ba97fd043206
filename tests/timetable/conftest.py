"""The server with a known timetable, compiled once and started where it is asked for."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from running import LIMIT_S, Run, load_command
from timetable import Start, Timetable

SOURCE = Path(__file__).with_name("server.c")


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Compile the server."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler (cc) to build the server with a known timetable")
    built = tmp_path_factory.mktemp("timetable") / "timetable"
    subprocess.run([compiler, "-O2", "-o", built, SOURCE, "-lm"], check=True, capture_output=True, timeout=60)
    return built


@pytest.fixture
def start(program: Path) -> Iterator[Start]:
    """Start servers that end with the test, and by themselves after two minutes."""
    running: list[Timetable] = []

    def started(
        *, first_ms: float = 50, gap_ms: float = 10, port: int = 0, key: str | None = None, log: Path | None = None
    ) -> Timetable:
        times = ["--first-ms", str(first_ms), "--gap-ms", str(gap_ms), "--seconds", "120", "--port", str(port)]
        command = [str(program), *times, *(["--key", key] if key else []), *(["--log", log] if log else [])]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        running.append(Timetable(process, int(process.stdout.readline().split()[1])))
        return running[-1]

    yield started
    for server in running:
        if server.process.poll() is None:
            server.stop()
        if server.process.stdout is not None:
            server.process.stdout.close()


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    """Start run-load in the background; whatever a test leaves running ends with it."""
    running: list[subprocess.Popen[str]] = []

    def started(port: int, *arguments: object, **options: Any) -> subprocess.Popen[str]:
        command = load_command(port, tmp_path / "run", *arguments)
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True, **options
        )
        running.append(process)
        return process

    yield started
    for process in running:
        if process.poll() is None:
            process.kill()
        process.communicate(timeout=LIMIT_S)
