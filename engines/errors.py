"""The errors that a command can end with, each with its exit status; docs/reference/exit-status.md states the rule.

Any other exception is a bug and keeps its traceback.
"""

from __future__ import annotations

import signal
from pathlib import Path

LAST_LINES = 12  # of a program's log, in the error about it
DISTRIBUTION = "engine-to-capacity"  # the distribution's name, as in `pip install`


class CommandError(Exception):
    """A failure with one clear message for the user.

    Args:
        message: What went wrong, where, and which limit was exceeded.
        hint: One thing to try; shown on its own line.
    """

    exit_status = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UserError(CommandError):
    """A usage error: an invalid flag, a misspelled key, an impossible combination, a file or folder of another kind."""

    exit_status = 2


class MissingError(CommandError):
    """The request is valid, but something it needs does not exist, or cannot be read or reached."""

    exit_status = 1


class ToolError(CommandError):
    """An external program failed.

    Args:
        message: The program and its task.
        status: Its exit status, -N if signal N ended it; None if it was stopped at a deadline.
        log_path: File with its complete output.
        last_lines: Last lines of its output, oldest first.
    """

    exit_status = 1

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        log_path: Path | None = None,
        last_lines: list[str] | None = None,
        hint: str | None = None,
    ) -> None:
        parts = [message]
        if status is not None:
            parts.append(f"exit status {status}" if status >= 0 else f"ended by {signal.Signals(-status).name}")
        if log_path is not None:
            parts.append(f"log: {log_path}")
        text = "; ".join(parts)
        if last_lines:
            text += "\n" + "\n".join(f"  | {line}" for line in last_lines)
        super().__init__(text, hint=hint)
        self.status = status
        self.log_path = log_path


class TargetMissedError(CommandError):
    """The work is done and the result is negative: an objective was missed, or nothing fits."""

    exit_status = 3
