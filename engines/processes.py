"""Processes: which one a pid means, how children end with their parent, and how a group of them is stopped."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

_PR_SET_PDEATHSIG = 1  # linux/prctl.h: the signal this process gets when the thread that started it ends
_LOOK_EVERY_S = 0.05
_KILLED_WITHIN_S = 5.0  # a process in the middle of a system call may take so long


def started_ticks(pid: int) -> int | None:
    """Return when a process began, in clock ticks since boot; None where it is gone or a zombie.

    A pid alone may have been given to another process; pid and start time together name one process.
    """
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = text.rpartition(")")[2].split()
    return None if fields[0] == "Z" else int(fields[19])


def ending_with_parent(number: signal.Signals = signal.SIGKILL) -> Callable[[], None]:
    """Return what a child of this process calls first, so that it ends when this process does, even by SIGKILL.

    It is for `preexec_fn` of subprocess, and for the beginning of a forked or spawned worker; it can be pickled.

    Args:
        number: What the kernel then sends the child.
    """
    _prctl()  # looked up before the fork
    return partial(_end_with, os.getpid(), number)


def _end_with(parent: int, number: signal.Signals) -> None:
    """Ask the kernel for a signal when the parent ends; where that is no Linux, nothing is asked."""
    call = _prctl()
    if call is None:
        return
    call(_PR_SET_PDEATHSIG, int(number))
    if os.getppid() != parent:  # it ended before the kernel was asked
        os._exit(1)


@cache
def _prctl() -> Any:
    """Return prctl(2), looked up before any fork: in a child of a threaded process a loader's lock may be held."""
    return ctypes.CDLL(None).prctl if sys.platform == "linux" else None


def signal_group(pid: int, number: signal.Signals) -> None:
    """Send a signal to a process group, if it is still there."""
    try:
        os.killpg(pid, number)
    except ProcessLookupError:
        return


def stop_group(pid: int, is_running: Callable[[], bool], *, grace_s: float) -> None:
    """End a process group: SIGTERM first, SIGKILL once its leader has gone or `grace_s` seconds have passed.

    Args:
        pid: The group's leader.
        is_running: Whether that leader is still there; the pid of one that had gone before is not signalled.
    """
    if not is_running():
        return
    if grace_s > 0:
        signal_group(pid, signal.SIGTERM)
        _wait_gone(pid, is_running, grace_s)
    signal_group(pid, signal.SIGKILL)
    _wait_gone(pid, is_running, _KILLED_WITHIN_S)


def reap(pid: int) -> None:
    """Take a child's exit status, if it is one of ours and has ended."""
    try:
        os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:  # started by an earlier command, not by this process
        return


def _wait_gone(pid: int, is_running: Callable[[], bool], limit_s: float) -> None:
    end_s = time.monotonic() + limit_s
    while is_running() and time.monotonic() < end_s:
        reap(pid)
        time.sleep(_LOOK_EVERY_S)
