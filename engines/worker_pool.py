"""Worker processes that end with their parent, however it ends."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from typing import Literal, ParamSpec, TypeVar

from engines.processes import ending_with_parent

_LEFT_TO_PARENT = {signal.SIGINT, signal.SIGTERM}
P = ParamSpec("P")
T = TypeVar("T")


class WorkerPool:
    """Processes that leave Ctrl-C and SIGTERM to this one, and end with it, even if it gets SIGKILL.

    Args:
        count: Number of processes; they start with the first task.
        method: `fork` copies what is imported here; `spawn` copies no lock that another thread holds.
        begin: Called first in each process.
    """

    def __init__(
        self, count: int, *, method: Literal["fork", "spawn"], begin: Callable[[], object] | None = None
    ) -> None:
        context = multiprocessing.get_context(method)
        self._pool = ProcessPoolExecutor(count, context, _begin, (ending_with_parent(), begin))

    def submit(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Run a function in one of the processes."""
        with _left_to_parent():
            return self._pool.submit(work, *args, **kwargs)

    def close(self) -> None:
        """End the processes at once, even within a task, and wait for their end.

        Python 3.11, as it exits, wakes the thread of a pool that is ending by a pipe that this thread may just have
        closed: a traceback after the line that says why the command ends.
        """
        for child in multiprocessing.active_children():
            child.kill()
        self._pool.shutdown(cancel_futures=True)


@contextmanager
def _left_to_parent() -> Iterator[None]:
    """Defer signals within the block, and forever in the processes that start in it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _LEFT_TO_PARENT)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _begin(end_with_parent: Callable[[], None], begin: Callable[[], object] | None) -> None:
    end_with_parent()
    if begin is not None:
        begin()
