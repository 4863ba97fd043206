"""The manner all commands share: one error, one hint, a known exit status."""

from __future__ import annotations

import click
import pytest

from engines.console import Command, common_flags
from engines.errors import CommandError, MissingError, TargetMissedError, ToolError, UserError


def _command(error: BaseException) -> Command:
    @click.command("do-thing", cls=Command)
    @common_flags
    def run(as_json: bool, verbose: bool) -> None:  # noqa: ARG001
        raise error

    assert isinstance(run, Command)
    return run


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (UserError("asked wrongly"), 2),
        (MissingError("not here"), 1),
        (ToolError("tool failed", status=9), 1),
        (TargetMissedError("too slow"), 3),
        (KeyboardInterrupt(), 130),
        (click.UsageError("no such option"), 2),
    ],
)
def test_exit_status(error: BaseException, status: int, capsys: pytest.CaptureFixture[str]) -> None:
    """Each kind of failure has its exit status and one error line on stderr."""
    with pytest.raises(SystemExit) as ended:
        _command(error).main([])
    assert ended.value.code == status
    captured = capsys.readouterr()
    assert captured.err.lstrip("\n").startswith("do-thing: error: ")
    assert captured.out == ""


def test_bug_keeps_its_traceback() -> None:
    """What is not a failure of the user's or of a tool is a bug, and is not dressed up."""
    with pytest.raises(ZeroDivisionError):
        _command(ZeroDivisionError()).main([])


def test_hint_and_tool_log_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    """A failed tool's status and last lines are part of the message; the hint has its own line."""
    error: CommandError = ToolError("trtllm-build failed", status=2, last_lines=["a", "b"], hint="read the log")
    with pytest.raises(SystemExit):
        _command(error).main([])
    assert capsys.readouterr().err == (
        "do-thing: error: trtllm-build failed; exit status 2\n  | a\n  | b\nhint: read the log\n"
    )
