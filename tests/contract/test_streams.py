"""Commands in processes of their own, with standard streams that are closed, full, or read by nobody."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
_START = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from engines.start import LateCommand
LateCommand("engines.cli.build_engine", "build_engine")(prog_name="build-engine")
"""
PLAN = ["--precision", "fp8", "--emulate", "--dry-run"]
BUILD = ["--precision", "fp8", "--emulate", "--out", "an engine"]


def _shell(arguments: list[str], redirected: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = shlex.join([sys.executable, "-c", _START, *arguments])
    return subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command} {redirected}"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("closed", [">&-", "<&- >&- 2>&-"])
def test_a_closed_stream_is_no_failure(closed: str, tmp_path: Path) -> None:
    """The engine is built, and nothing that was meant for the terminal is written into its files."""
    done = _shell(BUILD, closed, tmp_path)
    assert done.returncode == 0, done
    assert "Traceback" not in done.stderr
    assert (tmp_path / "an engine" / "manifest.json").read_text().startswith("{")
    assert not [file for file in tmp_path.rglob("*") if file.is_file() and b"next: " in file.read_bytes()]


@pytest.mark.parametrize(("arguments", "status"), [(PLAN, 141), (["--help"], 0)])
def test_a_reader_that_leaves_early_ends_a_command_in_silence(
    arguments: list[str], status: int, tmp_path: Path
) -> None:
    """As in `| head -1`, with the pipe's other end closed before the first line: 128 + SIGPIPE, for work not done."""
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run(
            [sys.executable, "-c", _START, *arguments],
            cwd=tmp_path,
            stdout=writing,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
            check=False,
        )
    finally:
        os.close(writing)
    assert (done.returncode, done.stderr) == (status, "")


@pytest.mark.parametrize("arguments", [PLAN, ["--help"]])
def test_a_full_device_is_one_line(arguments: list[str], tmp_path: Path) -> None:
    """Results that cannot be printed are a failure."""
    done = _shell(arguments, "> /dev/full", tmp_path)
    line, hint = done.stderr.splitlines()
    assert (done.returncode, line) == (1, "build-engine: error: No space left on device")
    assert hint.startswith("hint: free some space on the output's disk")


def test_the_next_command_can_be_pasted(tmp_path: Path) -> None:
    """A path with a space is quoted as a shell reads it."""
    assert _shell(BUILD, "", tmp_path).stdout.splitlines()[-1] == "next: build-repo 'an engine'"
