"""The server with a known timetable, compiled once and started where it is asked for."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from loadtest.dialects import dialect_of
from loadtest.dialects.base import Answer, Asked
from loadtest.dialects.endpoint import Endpoint
from loadtest.prompts import Prompt
from loadtest.scenario import Protocol
from loadtest.wires import Connection, Door

SOURCE = Path(__file__).with_name("server.c")


@dataclass
class Timetable:
    """A running server: its process and its port."""

    process: subprocess.Popen[str]
    port: int

    def stop(self) -> str:
        """End it; return what it said of its own lateness."""
        self.process.terminate()
        return self.process.communicate(timeout=10)[0]


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Compile the server."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler (cc) to build the server with a known timetable")
    built = tmp_path_factory.mktemp("timetable") / "timetable"
    subprocess.run([compiler, "-O2", "-o", built, SOURCE, "-lm"], check=True, capture_output=True, timeout=60)
    return built


Start = Callable[..., Timetable]


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


def door_to(port: int, protocol: Protocol, model: str = "timetable", **more: float | bool) -> Door:
    """Return a door to a server on this machine."""
    endpoint = Endpoint(host="127.0.0.1", port=port, protocol=protocol)
    began = time.monotonic()
    limits = {"silence_s": 5.0, "reply_s": 20.0, **more}
    return Door(endpoint, dialect_of(endpoint, model, environment={}), clock=lambda: time.monotonic() - began, **limits)


def ask(connection: Connection, tokens: int = 16) -> tuple[Answer, Asked]:
    """Send one request of a connection and wait for its answer."""
    answer, asked = Answer(), Asked("r0", Prompt(tokens=1, text="hello"), tokens)
    connection.ask(asked, answer)
    return answer, asked
