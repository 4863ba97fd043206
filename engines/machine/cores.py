"""Logical cores: which there are, which are asked for, and work that is pinned to some of them."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import closing
from functools import partial
from typing import ParamSpec, TypeVar

from engines.errors import UserError
from engines.worker_pool import WorkerPool

# What the libraries read for their number of threads, before they are loaded.
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
P = ParamSpec("P")
T = TypeVar("T")


def available_cores() -> tuple[int, ...]:
    """Return the logical cores this process may run on."""
    return tuple(sorted(os.sched_getaffinity(0)))


def parse_cores(text: str, available: tuple[int, ...]) -> tuple[int, ...]:
    """Return the cores of a list such as `0,2-3`.

    Raises:
        UserError: It is no such list, or names a core this process may not use.

    >>> parse_cores("0,2-3", (0, 1, 2, 3))
    (0, 2, 3)
    """
    found: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdigit() or (dash and not last.isdigit()):
            raise UserError(f"--cores {text}: '{part}' is neither a core nor a range", hint="as in --cores 0,2-3")
        low, high = int(first), int(last) if dash else int(first)
        if low > high or high > max(available):
            raise UserError(f"--cores {text}: '{part}' is not within the cores {_words(available)}")
        found |= set(range(low, high + 1))
    if not found <= set(available):
        missing = min(found - set(available))
        raise UserError(f"--cores {text}: core {missing} is not available here", hint=f"available: {_words(available)}")
    return tuple(sorted(found))


def run_pinned(cores: tuple[int, ...], work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run a function in a new process pinned to `cores`, its libraries with as many threads.

    Args:
        work: Of a module that loads no such library when it is imported: their threads are counted once, on loading.
    """
    with closing(WorkerPool(1, method="spawn", begin=partial(_pin, cores))) as pool:
        return pool.submit(work, *args, **kwargs).result()


def _pin(cores: tuple[int, ...]) -> None:
    os.sched_setaffinity(0, cores)
    for name in _THREAD_VARIABLES:
        os.environ[name] = str(len(cores))


def _words(cores: tuple[int, ...]) -> str:
    return ", ".join(map(str, cores))
