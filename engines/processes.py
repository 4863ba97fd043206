"""Processes by their pid: whether the very process that was started is still there."""

from __future__ import annotations

from pathlib import Path


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
