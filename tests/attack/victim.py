"""Run a command as a user would, in a forked child with limits, and say in what way it broke its promises.

A command ends within 10 s with a documented status; a failure is one line `COMMAND: error: ...` and at most a hint; it
leaves no process and no temporary file behind.
"""

from __future__ import annotations

import faulthandler
import os
import re
import resource
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import click

from engines.processes import reap

STATUSES = {0, 1, 2, 3, 130}
LIMIT_S = 10.0
UMBRELLA = "e2c"  # its errors are those of the command that it runs, under that command's name
GRACE_S = 1.0  # generators see the end of their input, and end
_MARK = "ATTACK_CASE"  # in the environment of all that a command starts, in a session of its own too
MEMORY_BYTES = 6 << 30  # of address space: what asks for more than this has not looked at its input
_LOOK_EVERY_S = 0.002
_LEFTOVER = re.compile(r"^\..*\.(part|old|lock)$")
SAFE_ENVIRONMENT = {"PIP_NO_INDEX": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "COLUMNS": "120"}


@dataclass(frozen=True)
class Ended:
    """How a command ended.

    Attributes:
        status: None: it was still running after `LIMIT_S`.
        said: Its stderr.
        left: Processes and files it left behind.
    """

    status: int | None
    said: str
    left: tuple[str, ...]

    def broken(self, name: str) -> str | None:
        """Return the first promise that was broken; None where all were kept."""
        if self.status is None:
            return f"still running after {LIMIT_S:g} s"
        if "Traceback (most recent call last)" in self.said:
            return "a traceback"
        if self.status not in STATUSES:
            return f"status {self.status}"
        if self.left:
            return f"left behind: {', '.join(self.left)}"
        errors = [line for line in self.said.splitlines() if re.match(r"[\w-]+: error: ", line)]
        wanted = 0 if self.status == 0 else 1
        if len(errors) != wanted or any(not line.startswith(f"{name}: error: ") for line in errors if name != UMBRELLA):
            return f"{len(errors)} error lines for status {self.status}"
        return None


def run(command: click.Command, words: list[str], place: Path, *, file_bytes: int | None = None) -> Ended:
    """Run a command in a child, standing in `place`.

    Args:
        file_bytes: No file may grow past this: what a full disk does to a writer.
    """
    before = _leftovers(place)
    log = place.parent / "said.log"
    pid = os.fork()
    if pid == 0:
        _be(command, words, place, log, file_bytes)
    status = _wait(pid)
    strays = _strays(pid)
    for stray in strays:
        os.kill(stray, signal.SIGKILL)
        reap(stray)
    said = log.read_text(encoding="utf-8", errors="replace")
    left = [f"process {stray}" for stray in strays] + sorted(_leftovers(place) - before)
    return Ended(status, said, tuple(left) if status is not None else ())


def _be(command: click.Command, words: list[str], place: Path, log: Path, file_bytes: int | None) -> NoReturn:
    status = 70
    try:
        os.setsid()
        os.chdir(place)
        os.environ.update(SAFE_ENVIRONMENT | {_MARK: str(os.getpid())})
        with log.open("wb") as said, Path(os.devnull).open("r+b") as nothing:
            os.dup2(said.fileno(), 2)
            os.dup2(nothing.fileno(), 1)
            os.dup2(nothing.fileno(), 0)
        sys.stdout, sys.stderr = (os.fdopen(number, "w", closefd=False) for number in (1, 2))
        faulthandler.enable(file=2)
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
        if file_bytes is not None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, file_bytes))
        sys.argv = [command.name or "", *words]
        command.main(words, prog_name=command.name)
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else 1 if ended.code else 0
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stderr.flush()
        os._exit(status)


def _wait(pid: int) -> int | None:
    """Return a child's exit status; None where it had to be killed."""
    end_s = time.monotonic() + LIMIT_S
    while time.monotonic() < end_s:
        found, how = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(how)
        time.sleep(_LOOK_EVERY_S)
    os.killpg(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return None


def _strays(leader: int) -> list[int]:
    """Return the processes that a command started and that do not end within `GRACE_S` of it."""
    end_s = time.monotonic() + GRACE_S
    while (found := _started_by(leader)) and time.monotonic() < end_s:
        time.sleep(_LOOK_EVERY_S)
    return found


def _started_by(leader: int) -> list[int]:
    """Return the living processes of a command: in its session, or with its mark, zombies left out."""
    found, mark = [], f"{_MARK}={leader}\0".encode()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
            if fields[0] != "Z" and (int(fields[3]) == leader or mark in (stat.parent / "environ").read_bytes()):
                found.append(int(stat.parent.name))
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
    return found


def _leftovers(place: Path) -> set[str]:
    """Return the temporary files and folders below a folder."""
    return {
        str(Path(root) / name)
        for root, folders, files in os.walk(place)
        for name in (*folders, *files)
        if _LEFTOVER.match(name)
    }
