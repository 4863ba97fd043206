"""Work done in a process of its own."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from engines.errors import MissingError
from loadtest.run.fork import done_aside


def test_what_work_writes_stays_and_its_process_goes(tmp_path: Path) -> None:
    """The file is there; it was another process that wrote it."""
    done_aside(lambda: (tmp_path / "pid").write_text(str(os.getpid())))
    assert int((tmp_path / "pid").read_text()) != os.getpid()


def test_errors_for_people_come_back_whole() -> None:
    """Message and hint are those of the work."""

    def work() -> None:
        raise MissingError("no such tokenizer", hint="--tokenizer FILE")

    with pytest.raises(MissingError, match="no such tokenizer") as failed:
        done_aside(work)
    assert failed.value.hint == "--tokenizer FILE"


def test_a_bug_is_not_hidden(capfd: pytest.CaptureFixture[str]) -> None:
    """Another failure is an error here, and its traceback is shown."""
    with pytest.raises(RuntimeError, match="status 1"):
        done_aside(lambda: {}["nothing"])
    assert "KeyError" in capfd.readouterr().err
