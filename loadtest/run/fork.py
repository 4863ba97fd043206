"""Runs memory-intensive work in a separate process, so that its memory is released."""

from __future__ import annotations

import multiprocessing
import signal
import warnings
from collections.abc import Callable
from multiprocessing.connection import Connection

from engines.errors import CommandError
from engines.processes import ending_with_parent


def done_aside(work: Callable[[], object]) -> None:
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
