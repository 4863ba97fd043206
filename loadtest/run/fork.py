"""Forked copies of this process: for memory-intensive work, and for a program that needs what is imported here."""

from __future__ import annotations

import multiprocessing
import os
import runpy
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import BinaryIO, NoReturn

from engines.errors import CommandError
from engines.processes import ending_with_parent

_LOOK_EVERY_S = 0.005
_HANDLED = (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)  # by commands; see `engines.console`


def run_in_child(work: Callable[[], object]) -> None:
    """Do work in a forked copy of this process and wait for it; its only effects are on disk.

    A fork, not a new process, because this one has already imported its modules. It must not have started threads.

    Raises:
        CommandError, OSError: The work raised it.
        RuntimeError: It failed otherwise; its traceback is on standard error.
    """
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_do, args=(work, there, ending_with_parent()))
    with warnings.catch_warnings():
        # Newer Pythons warn of forking a process with threads; ours are numpy's, which tolerate it.
        warnings.simplefilter("ignore", DeprecationWarning)
        process.start()
    there.close()
    try:
        error = here.recv()
    except EOFError:
        process.join()
        raise RuntimeError(f"a child process ended with status {process.exitcode}") from None
    finally:
        process.terminate()
        process.join()
        here.close()
    if error is not None:
        raise error


def _do(work: Callable[[], object], there: Connection, begin: Callable[[], None]) -> None:
    begin()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent receives the signal too, and ends this process
    error: CommandError | OSError | None = None
    try:
        work()
    except (CommandError, OSError) as failure:
        error = failure
    there.send(error)


class ForkedProgram:
    """A Python program in a fork of this process, like a child of `subprocess`, but with everything imported here.

    This process must not have started threads. The program leads a session of its own, and has no open files but its
    three streams.

    Args:
        arguments: Its `sys.argv`, after its name.
        errors: File for its standard error.
        prepare: Called in its process before it runs.

    Attributes:
        stdin: Its standard input; `stdout`: its standard output.
        returncode: Its exit status, negative for a signal; None while it runs.
    """

    def __init__(self, program: Path, arguments: Sequence[str], errors: int, prepare: Callable[[], object]) -> None:
        read, into = os.pipe()
        out_of, write = os.pipe()
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, _HANDLED)  # until the child has handlers of its own
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # as in `run_in_child`
            self.pid = os.fork()
        if self.pid == 0:
            _become(program, arguments, (read, write, errors), prepare, mask)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        os.close(read)
        os.close(write)
        self.stdin: BinaryIO = os.fdopen(into, "wb")
        self.stdout: BinaryIO = os.fdopen(out_of, "rb")
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Return its exit status; None while it runs."""
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def kill(self) -> None:
        """Send SIGKILL, if it is running."""
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end; return its exit status.

        Raises:
            TimeoutError: It did not end within `timeout` seconds.
        """
        due_s = None if timeout is None else time.monotonic() + timeout
        while (status := self.poll()) is None:
            if due_s is not None and time.monotonic() >= due_s:
                raise TimeoutError(f"process {self.pid} did not end within {timeout:g} s")
            time.sleep(_LOOK_EVERY_S)
        return status


def _become(
    program: Path,
    arguments: Sequence[str],
    streams: tuple[int, int, int],
    prepare: Callable[[], object],
    mask: set[int],
) -> NoReturn:
    """Run a program in this forked process as if it had been started alone."""
    status = 1
    try:
        os.setsid()
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
        os.closerange(len(streams), os.sysconf("SC_OPEN_MAX"))
        sys.stdin = os.fdopen(0, encoding="utf-8", closefd=False)  # the old one may hold the parent's input
        sys.stdout = os.fdopen(1, "w", encoding="utf-8", closefd=False)
        sys.stderr = os.fdopen(2, "w", 1, encoding="utf-8", errors="backslashreplace", closefd=False)
        sys.unraisablehook = sys.__unraisablehook__
        for number in _HANDLED:
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        prepare()
        sys.argv = [str(program), *arguments]
        status = _run(program)
        sys.stdout.flush()
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def _run(program: Path) -> int:
    """Run a program; return its exit status, as the interpreter would."""
    try:
        runpy.run_path(str(program), run_name="__main__")
    except SystemExit as error:
        if isinstance(error.code, int | None):
            return error.code or 0
        sys.stderr.write(f"{error.code}\n")
        return 1
    return 0
