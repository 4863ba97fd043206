"""What libraries print stays out of a command's results."""

from __future__ import annotations

import logging
import sys

import pytest

from engines.checkpoint.library_output import nothing_on_stdout


def test_a_library_that_logs_to_stdout_stays_silent(capsys: pytest.CaptureFixture[str]) -> None:
    """Neither its output at import nor a handler that it keeps writes to stdout; the command still can."""
    log = logging.getLogger("tests.library_output")
    with nothing_on_stdout():
        sys.stdout.write("imported\n")
        log.addHandler(logging.StreamHandler(sys.stdout))
        log.warning("no accelerator")
    log.warning("later")
    sys.stdout.write("{}\n")
    assert capsys.readouterr().out == "{}\n"
