"""Runs build-engine in children of a process that has imported ModelOpt: 6 s of CPU time less for each build.

Each build is a process of its own, from the console script's entry point on: it has its own limits and environment, is
killed and stopped as any other, and ends with its own status. As a program, this file is the process that forks them.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NoReturn

ROOT = Path(__file__).parents[2]
LIMIT_S = 240


@dataclass(frozen=True)
class Signal:
    """A signal that a build sends itself as it prints a line that begins so: then, however busy the machine is."""

    line: str
    number: signal.Signals


@dataclass(frozen=True)
class Build:
    """A build that has ended, or stands still.

    Attributes:
        returncode: As subprocess has it: negative where a signal ended it. None: it was stopped.
    """

    returncode: int | None
    pid: int
    output: Path
    errors: Path

    @property
    def stderr(self) -> str:
        """What it has printed there so far."""
        return self.errors.read_text(encoding="utf-8")


class WarmBuilds:
    """The process that has imported ModelOpt.

    Args:
        folder: For what the builds print.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._builds = folder, 0
        self._process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
        )

    def run(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        file_bytes: int | None = None,
        itself: Signal | None = None,
    ) -> Build:
        """Run a command line until it ends or stops.

        Args:
            env: Added to the environment.
            file_bytes: No file may grow past this.
        """
        self._builds += 1
        output, errors = (self._folder / f"{self._builds}.{name}" for name in ("out", "err"))
        sent = None if itself is None else [itself.line, int(itself.number)]
        order = {"argv": list(argv), "env": dict(env or {}), "file_bytes": file_bytes, "signal": sent}
        return self._ended({**order, "output": str(output), "errors": str(errors)}, output, errors)

    def go_on(self, stopped: Build) -> Build:
        """Let a stopped build go on to its end."""
        return self._ended({"resume": stopped.pid}, stopped.output, stopped.errors)

    def end(self) -> None:
        """End the process, and with it a build that still stands."""
        self._process.communicate(timeout=LIMIT_S)

    def _ended(self, order: dict[str, Any], output: Path, errors: Path) -> Build:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, "the process that forks builds has ended"
        found = json.loads(answer)
        return Build(found["returncode"], found["pid"], output, errors)


class _Listening:
    """Stderr that sends its process a signal once it is given a line that begins as stated."""

    def __init__(self, stream: IO[str], line: str, number: int) -> None:
        self._stream, self._line, self._number = stream, line, number

    def write(self, text: str) -> int:
        """Write the text; then send the signal if this is the line."""
        written = self._stream.write(text)
        if text.startswith(self._line):
            self._stream.flush()
            os.kill(os.getpid(), self._number)
        return written

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _serve() -> None:
    """Fork a build for each order on stdin, and answer with how it ended, until stdin ends."""
    import gc  # noqa: PLC0415 (the tests use this module without what follows)

    from engines.checkpoint import require_modelopt  # noqa: PLC0415
    from engines.cli.actions import build_engine  # noqa: F401, PLC0415

    require_modelopt("bf16")
    gc.freeze()  # a collection in a child would copy every page that holds an object
    stopped: set[int] = set()
    for line in sys.stdin:
        order = json.loads(line)
        pid = order.get("resume")
        if pid is None and (pid := os.fork()) == 0:
            _be(order)
        if pid in stopped:
            os.kill(pid, signal.SIGCONT)
        status = _wait(pid)
        has_stopped = os.WIFSTOPPED(status)
        (stopped.add if has_stopped else stopped.discard)(pid)
        code = None if has_stopped else os.waitstatus_to_exitcode(status)
        sys.stdout.write(json.dumps({"pid": pid, "returncode": code}) + "\n")
        sys.stdout.flush()
    for pid in stopped:
        os.kill(pid, signal.SIGKILL)


def _wait(pid: int) -> int:
    """Return a child's status once it has ended or stopped; after the limit it is killed."""
    end_s = time.monotonic() + LIMIT_S
    while time.monotonic() < end_s:
        found, status = os.waitpid(pid, os.WNOHANG | os.WUNTRACED)
        if found:
            return status
        time.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
    return os.waitpid(pid, 0)[1]


def _be(order: dict[str, Any]) -> NoReturn:
    """Become the build: its streams, its environment, its limits, then the console script's entry point."""
    status = 70
    try:
        nothing = os.open(os.devnull, os.O_RDONLY)
        for number, name in ((1, "output"), (2, "errors")):
            os.dup2(os.open(order[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644), number)
        os.dup2(nothing, 0)
        sys.stdout, sys.stderr = (os.fdopen(number, "w", closefd=False) for number in (1, 2))
        os.environ.update(order["env"])
        sys.path[1:1] = order["env"].get("PYTHONPATH", "").split(":") if "PYTHONPATH" in order["env"] else []
        if order["file_bytes"] is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (order["file_bytes"], order["file_bytes"]))
        if order["signal"] is not None:
            sys.stderr = _Listening(sys.stderr, *order["signal"])  # type: ignore[assignment]
        sys.argv = order["argv"]
        from engines.cli.start import build_engine  # noqa: PLC0415

        build_engine()
        status = 0
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else 1 if ended.code else 0
    except BaseException:
        sys.excepthook(*sys.exc_info())
        status = 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    sys.path[0] = str(ROOT)
    _serve()
