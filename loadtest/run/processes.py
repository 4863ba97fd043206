"""Load generator processes: start, monitoring, and termination with the command."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, TypeAlias

from engines.errors import LAST_LINES, ToolError
from engines.processes import signal_group
from engines.signals import interrupts_deferred
from loadtest.generator import ENOUGH, GeneratorPlan
from loadtest.run.fork import ForkedProgram
from loadtest.run.unused_modules import leave_out_unused

LINE_COLUMNS = 200
SILENT_S = 60.0  # a generator reports its progress every second
STOP_WITHIN_S = 5.0
LOCUSTFILE = Path(__file__).parent.parent / "generator" / "locustfile.py"
_Process: TypeAlias = subprocess.Popen[Any] | ForkedProgram


@dataclass(frozen=True, slots=True)
class GeneratorProcesses:
    """Number and kind of the load generator processes.

    Attributes:
        workers: Worker processes on this machine; 0 is one process without messages, the cheapest.
        expected: Workers expected from other machines.
        bind: Address on which the master listens for workers.
        port: Its port; 0: any free one.
        within_s: How long to wait for the workers.
        web_port: Port of Locust's web UI on loopback; None: no UI.
        linger_s: How long the UI stays after the run.
    """

    workers: int = 0
    expected: int = 0
    bind: str = "127.0.0.1"
    port: int = 0
    within_s: float = 60.0
    web_port: int | None = None
    linger_s: float = 0.0

    @property
    def has_master(self) -> bool:
        """Whether one process only coordinates the others."""
        return bool(self.workers or self.expected)

    @property
    def processes(self) -> int:
        """Number of processes that send load."""
        return self.workers + self.expected or 1


class Generators:
    """A run's load generator processes, from before the plan is known to after the last record.

    The processes start at once, so that they are ready when the plan is. They end when their standard input closes, so
    that none outlives this command.

    Args:
        folder: For their logs.
        program: Command line of the processes.
    """

    def __init__(self, fleet: GeneratorProcesses, folder: Path, program: Path = LOCUSTFILE) -> None:
        self.fleet = fleet
        self._program = program
        self._folder = folder
        self._running: list[_Process] = []
        self._main = self._start("master" if fleet.has_master else "alone", _options(fleet))
        self._workers = [self._start("worker", "{}") for _ in range(fleet.workers)]
        self._output = b""

    def __enter__(self) -> Generators:
        """Does nothing: the processes are already running."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End them all."""
        self.end()

    def end(self) -> None:
        """End all processes: by request first, by SIGKILL after a timeout; they write nothing after this."""
        for process in self._running:
            _end_input(process)
        due_s = time.monotonic() + STOP_WITHIN_S
        for process in self._running:
            _end(process, due_s)

    def begin(self, plan: GeneratorPlan, label: str) -> None:
        """Send them their plan, and the label of its figures for the live page."""
        if self.fleet.has_master:
            port = next(iter(self.lines(within_s=SILENT_S)))["port"]
            for worker in self._workers:
                self._write(worker, f"{_reachable(self.fleet.bind)} {port} {self.fleet.within_s:g}")
        with interrupts_deferred():
            text = plan.model_dump_json()
        self._write(self._main, text)
        if self.fleet.has_master:
            self._write(self._main, label)

    def lines(self, *, within_s: float) -> Iterator[dict[str, Any]]:
        """Yield the generator's messages until it ends.

        Args:
            within_s: Maximum silence.

        Raises:
            ToolError: It failed, or was silent for too long.
        """
        stdout = self._main.stdout
        assert stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(stdout, selectors.EVENT_READ)
            while True:
                while (line := self._next_line()) is not None:
                    yield json.loads(line)
                if not selector.select(within_s):
                    raise ToolError(
                        f"no message from the load generator for {within_s:g} s", last_lines=self._last_lines()
                    )
                with interrupts_deferred():
                    data = os.read(stdout.fileno(), 65_536)
                    self._output += data
                if not data:
                    break
        self._require_success()

    def _next_line(self) -> bytes | None:
        """Take the next whole line of what was read."""
        with interrupts_deferred():
            line, found, rest = self._output.partition(b"\n")
            if not found:
                return None
            self._output = rest
            return line

    def suffice(self) -> None:
        """Make the only generator end the current level, because its results are conclusive."""
        self._write(self._main, ENOUGH)

    def stop(self) -> None:
        """Tell them to end and record requests in flight, then exit; a master tells its workers."""
        _end_input(self._main)

    def _start(self, role: str, options: str) -> _Process:
        log = self._log(len(self._running))
        with log.open("wb") as errors:
            process = (
                self._start_with_pages(role, options, errors)
                if role == "master" and self.fleet.web_port is not None
                else ForkedProgram(self._program, [role, options], errors.fileno(), _import_less)
            )
        self._running.append(process)
        return process

    def _start_with_pages(self, role: str, options: str, errors: BinaryIO) -> subprocess.Popen[bytes]:
        """Start a process in which Locust may patch sockets and threads, for its web pages."""
        return subprocess.Popen(
            [sys.executable, str(self._program), role, options],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            env={**os.environ, "GEVENT_SUPPORT": "True"},
            start_new_session=True,
        )

    def _write(self, process: _Process, line: str) -> None:
        assert process.stdin is not None
        try:
            process.stdin.write(line.encode() + b"\n")
            process.stdin.flush()
        except BrokenPipeError as error:
            self._require_success()
            raise ToolError("a worker process exited before it started", last_lines=self._last_lines()) from error

    def _log(self, place: int) -> Path:
        return self._folder / f"generator-{place}.log"

    def _last_lines(self) -> list[str]:
        """Return the end of each process's log; the folder with the logs is removed when the command ends."""
        return [line for place in range(len(self._running)) for line in self._end_of_log(place)]

    def _end_of_log(self, place: int) -> list[str]:
        lines = self._log(place).read_text(encoding="utf-8", errors="replace").splitlines()
        return [line[:LINE_COLUMNS] for line in lines[-LAST_LINES:]]

    def failed_workers(self) -> list[str]:
        """Return how each worker on this machine that failed has ended, and the last lines of its log."""
        lines: list[str] = []
        for place, worker in enumerate(self._workers):
            if (status := worker.poll()) not in {None, 0}:
                error = ToolError("a worker process", status=status, last_lines=self._end_of_log(place + 1))
                lines += error.message.splitlines()
        return lines

    def _require_success(self) -> None:
        status = self._main.wait(timeout=STOP_WITHIN_S)
        if status != 0:
            raise ToolError("the load generator failed", status=status, last_lines=self._last_lines())


def _import_less() -> None:
    """Let a forked generator import of Locust only what it uses, and none of its patches.

    It uses gevent by name, as Locust's messages do.
    """
    os.environ["LOCUST_SKIP_MONKEY_PATCH"] = "1"
    leave_out_unused()


def _end(process: _Process, due_s: float) -> None:
    """End a process: closing its input tells it; after the deadline, it and its children are killed."""
    _end_input(process)
    with contextlib.suppress(subprocess.TimeoutExpired, TimeoutError):
        process.wait(timeout=max(0.0, due_s - time.monotonic()))
    if process.poll() is None:
        signal_group(process.pid, signal.SIGKILL)
        process.kill()  # a fork that does not lead its group yet
        process.wait()
    if process.stdout is not None:
        process.stdout.close()


def _end_input(process: _Process) -> None:
    if process.stdin is not None:
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()


def join(host: str, port: int, *, within_s: float) -> int:
    """Run as a worker of a remote master until dismissed; return the exit status.

    Raises:
        ToolError: The master did not answer, or the worker failed.
    """
    process = subprocess.Popen(
        [sys.executable, str(LOCUSTFILE), "worker", "{}"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "GEVENT_SUPPORT": "True"},
        start_new_session=True,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(f"{host} {port} {within_s:g}\n")
        process.stdin.flush()
        for line in process.stdout:
            message = json.loads(line)
            if "ended" in message:
                unreachable = "check that run-load --master runs there and that its port is reachable"
                raise ToolError(message["ended"], hint=message.get("hint") or unreachable)
        status = process.wait()
        if status != 0:
            raise ToolError("the worker failed", status=status)
        return status
    finally:
        _end(process, time.monotonic() + STOP_WITHIN_S)


def _reachable(bind: str) -> str:
    """Return the address at which workers on this machine reach a master that listens at `bind`."""
    return "127.0.0.1" if bind in {"*", "0.0.0.0", "::"} else bind


def _options(fleet: GeneratorProcesses) -> str:
    return json.dumps(
        {
            "bind": fleet.bind,
            "port": fleet.port,
            "workers": fleet.processes,
            "within_s": fleet.within_s,
            "web_port": fleet.web_port,
            "linger_s": fleet.linger_s,
        }
    )
