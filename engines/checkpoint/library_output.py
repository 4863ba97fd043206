"""Redirects the libraries' output, and converts their failures."""

from __future__ import annotations

import contextlib
import io
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from engines.errors import LAST_LINES, ToolError


class _LibraryOutput(io.TextIOBase):
    """A stream that libraries may keep: it writes to `file` while that is set, and discards text afterwards."""

    def __init__(self, file: TextIO | None) -> None:
        self.file = file

    def writable(self) -> bool:
        """Return True: text may be written."""
        return True

    def write(self, text: str) -> int:
        """Write the text, or discard it."""
        if self.file is not None:
            self.file.write(text)
        return len(text)

    def flush(self) -> None:
        """Flush the underlying file."""
        if self.file is not None:
            self.file.flush()


@contextmanager
def library_output_to(log: Path | None) -> Iterator[None]:
    """Redirect what libraries print, warn and log within the block to a file, or discard it.

    A logging handler that a library installs within the block keeps the stream; its later output is discarded.
    """
    with contextlib.ExitStack() as stack:
        file = None if log is None else stack.enter_context(log.open("a", encoding="utf-8"))
        output = _LibraryOutput(file)
        stack.callback(setattr, output, "file", None)
        stack.enter_context(contextlib.redirect_stdout(output))
        stack.enter_context(contextlib.redirect_stderr(output))
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("default")
        warnings.showwarning = _show_warning
        yield


def nothing_on_stdout() -> contextlib.redirect_stdout[_LibraryOutput]:
    """Discard what libraries print within the block, and what the handlers that they install there write later.

    DeepSpeed, which ModelOpt imports where it is installed, logs to stdout: in front of the result of --json.
    """
    return contextlib.redirect_stdout(_LibraryOutput(None))


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Write a warning to the redirected stream, even if a test runner would have captured it."""
    (file or sys.stderr).write(warnings.formatwarning(message, category, filename, lineno, line))


@contextmanager
def as_tool_error(log: Path | None) -> Iterator[None]:
    """Convert ModelOpt's exceptions for unsupported models into a `ToolError` with the end of the log."""
    try:
        yield
    except (ValueError, RuntimeError, NotImplementedError, AssertionError, KeyError, AttributeError) as error:
        lines = [] if log is None else log.read_text(encoding="utf-8").splitlines()[-LAST_LINES:]
        raise ToolError(f"ModelOpt failed: {error!r}", log_path=log, last_lines=lines) from error
