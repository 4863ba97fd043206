"""Process handling: identify a process, end children with their parent, stop a process group."""

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

_PR_SET_PDEATHSIG = 1  # linux/prctl.h: sets the signal that this process receives when the thread that started it ends
_LOOK_EVERY_S = 0.05
_KILLED_WITHIN_S = 5.0  # how long a process may stay in a system call before SIGKILL takes effect


def started_ticks(pid: int) -> int | None:
    """Return a process's start time in clock ticks since boot; None if it has ended or is a zombie.

    A pid can be reused. Pid and start time together identify a process.
    """
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = text.rpartition(")")[2].split()
    return None if fields[0] == "Z" else int(fields[19])


def ending_with_parent(number: signal.Signals = signal.SIGKILL) -> Callable[[], None]:
    """Return a function for a child to call first, so that the child ends with this process, even after SIGKILL.

    Use it as `preexec_fn` of subprocess, or at the start of a forked or spawned worker; it can be pickled.

    Args:
        number: The signal that the kernel sends the child.
    """
    _prctl()  # resolved before the fork
    return partial(_end_with, os.getpid(), number)


def _end_with(parent: int, number: signal.Signals) -> None:
    """Ask the kernel to send a signal when the parent ends; does nothing except on Linux."""
    call = _prctl()
    if call is None:
        return
    call(_PR_SET_PDEATHSIG, int(number))
    if os.getppid() != parent:  # the parent ended before the request
        os._exit(1)


@cache
def _prctl() -> Any:
    """Return prctl(2). Resolve it before any fork: in a child of a threaded process, the loader's lock may be held."""
    return ctypes.CDLL(None).prctl if sys.platform == "linux" else None


def signal_group(pid: int, number: signal.Signals) -> None:
    """Send a signal to a process group, if it still exists."""
    try:
        os.killpg(pid, number)
    except ProcessLookupError:
        return


def stop_group(pid: int, is_running: Callable[[], bool], *, grace_s: float) -> None:
    """Stop a process group: SIGTERM first, SIGKILL when its leader has ended or after `grace_s` seconds.

    Args:
        pid: The group's leader.
        is_running: Whether the leader is still running. If it had already ended, its pid is not signalled.
    """
    if not is_running():
        return
    if grace_s > 0:
        signal_group(pid, signal.SIGTERM)
        wait_gone(pid, is_running, grace_s)
    signal_group(pid, signal.SIGKILL)
    wait_gone(pid, is_running, _KILLED_WITHIN_S)


def kill_session(leader: int, word: str) -> None:
    """Kill the processes of a session, its leader perhaps ended, that have a text in their command lines.

    Args:
        word: What none but them has: the session's number may be another's by now.
    """
    killed = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        pid = int(path.parent.name)
        try:
            if os.getsid(pid) == leader and word.encode() in path.read_bytes():
                os.kill(pid, signal.SIGKILL)
                killed.append(pid)
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
    for pid in killed:
        wait_gone(pid, partial(_is_alive, pid), _KILLED_WITHIN_S)


def _is_alive(pid: int) -> bool:
    return started_ticks(pid) is not None


def reap(pid: int) -> None:
    """Collect the exit status of a child of this process, if it has ended."""
    try:
        os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:  # not a child: started by an earlier command
        return


def wait_gone(pid: int, is_running: Callable[[], bool], limit_s: float) -> bool:
    """Wait until a process has ended; return whether it has within the limit."""
    end_s = time.monotonic() + limit_s
    while is_running():
        if time.monotonic() >= end_s:
            return False
        reap(pid)
        time.sleep(_LOOK_EVERY_S)
    return True
