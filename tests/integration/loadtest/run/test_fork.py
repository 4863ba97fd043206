"""Work done in a process of its own."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from engines.errors import MissingError
from loadtest.run.fork import ForkedProgram, run_in_child


def test_what_work_writes_stays_and_its_process_goes(tmp_path: Path) -> None:
    """The file is there; it was another process that wrote it."""
    run_in_child(lambda: (tmp_path / "pid").write_text(str(os.getpid())))
    assert int((tmp_path / "pid").read_text()) != os.getpid()


def test_errors_for_people_come_back_whole() -> None:
    """Message and hint are those of the work."""

    def work() -> None:
        raise MissingError("no such tokenizer", hint="--tokenizer FILE")

    with pytest.raises(MissingError, match="no such tokenizer") as failed:
        run_in_child(work)
    assert failed.value.hint == "--tokenizer FILE"


def test_a_bug_is_not_hidden(capfd: pytest.CaptureFixture[str]) -> None:
    """Another failure is an error here, and its traceback is shown."""
    with pytest.raises(RuntimeError, match="status 1"):
        run_in_child(lambda: {}["nothing"])
    assert "KeyError" in capfd.readouterr().err


def test_a_forked_program_has_its_streams_and_nothing_else(tmp_path: Path) -> None:
    """It leads a session, reads and writes its own streams, and none of this process's files is open in it."""
    text = (
        "import os, sys\nprint(input(), sys.argv[1:], os.getsid(0) == os.getpid(), os.environ['READY'])\n"
        "print(sorted(int(name) for name in os.listdir('/proc/self/fd'))[:4])\nsys.exit('the reason')\n"
    )
    program, log = tmp_path / "program.py", tmp_path / "log"
    program.write_text(text)
    with (tmp_path / "open").open("w"), log.open("wb") as errors:
        forked = ForkedProgram(program, ["a"], errors.fileno(), lambda: os.environ.update({"READY": "yes"}))
    with forked.stdin, forked.stdout:
        forked.stdin.write(b"plan\n")
        forked.stdin.flush()
        assert forked.stdout.read() == b"plan ['a'] True yes\n[0, 1, 2, 3]\n"  # 3 is the listing itself
    assert forked.wait(timeout=20) == 1
    assert log.read_text() == "the reason\n"
    assert "READY" not in os.environ


def test_a_forked_program_can_be_killed(tmp_path: Path) -> None:
    """Its status is then the signal's; waiting for it is limited until then."""
    program = tmp_path / "program.py"
    program.write_text("import time\ntime.sleep(60)\n")
    with (tmp_path / "log").open("wb") as errors:
        forked = ForkedProgram(program, [], errors.fileno(), lambda: None)
    with forked.stdin, forked.stdout:
        with pytest.raises(TimeoutError):
            forked.wait(timeout=0.05)
        forked.kill()
        assert forked.wait(timeout=20) == -9
