"""Run a command as a user would, in a forked child with limits, and say in what way it broke its promises.

A command ends within 10 s with a documented status; a failure is one line `COMMAND: error: ...` and at most a hint; it
leaves no process and no temporary file behind. As a program, this file is the process that forks the commands: it has
imported what they import, and is a tenth as large as pytest's, which a fork would copy the page tables of.
"""

from __future__ import annotations

import ctypes
import faulthandler
import gc
import importlib
import json
import os
import re
import resource
import select
import signal
import subprocess
import sys
import time
import tomllib
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import NoReturn

import click

ROOT = Path(__file__).parents[2]
SCRIPTS: dict[str, str] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]

STATUSES = {0, 1, 2, 3, 130}
LIMIT_S = 10.0
UMBRELLA = "e2c"  # its errors are those of the command that it runs, under that command's name
GRACE_S = 1.0  # generators see the end of their input, and end
_MARK = "ATTACK_CASE"  # in the environment of all that a command starts, in a session of its own too
MEMORY_BYTES = 6 << 30  # of address space: what asks for more than this has not looked at its input
_LOOK_EVERY_S = 0.01
_PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h: whatever loses its parent below this process becomes its child
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


def command_of(name: str) -> click.Command:
    """Return a command by its script's name."""
    package, _, function = SCRIPTS[name].partition(".start:")
    found: click.Command = getattr(importlib.import_module(f"{package}.{function}"), function)
    return found


class Victims:
    """The process that forks commands."""

    def __init__(self) -> None:
        path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            env={**os.environ, "PYTHONPATH": path},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Victims:
        """Does nothing: the process is running."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End it."""
        self._process.communicate(timeout=LIMIT_S)

    def run(self, name: str, words: Sequence[str], place: Path, *, file_bytes: int | None = None) -> Ended:
        """Run a command in a child, standing in `place`.

        Args:
            file_bytes: No file may grow past this: what a full disk does to a writer.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([name, list(words), str(place), file_bytes]) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, "the process that forks commands has ended"
        found = json.loads(answer)
        return Ended(found["status"], found["said"], tuple(found["left"]))


def _serve() -> None:
    """Run a command for each order on stdin, and answer with how it ended, until stdin ends."""
    known = {name: command_of(name) for name in SCRIPTS}
    _import_what_they_import()
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)
    warnings.simplefilter("error")  # as in the tests' own process
    warnings.filterwarnings("ignore", category=DeprecationWarning, module=r"torch\.")  # of libraries among themselves
    gc.freeze()  # a collection in a child would copy every page that holds an object
    with os.fdopen(os.dup(1), "w") as answers:
        for line in sys.stdin:
            name, words, place, file_bytes = json.loads(line)
            ended = _run(known[name], words, Path(place), file_bytes)
            answers.write(json.dumps(asdict(ended)) + "\n")
            answers.flush()


def _import_what_they_import() -> None:
    """Import the commands' actions and what these import late; compile the tables of measured kernels."""
    from engines.files import Document, MadeBy  # noqa: PLC0415 (the tests use this module without them)
    from engines.planning import make_plan  # noqa: PLC0415
    from engines.planning.recipe import resolve_recipe  # noqa: PLC0415

    for target in SCRIPTS.values():
        package, _, function = target.partition(".start:")
        if function != "e2c":  # which has no work of its own: it runs the others
            importlib.import_module(f"{package}.actions.{function}")
    for late in ("loadtest.report", "matplotlib.figure", "numpy.random", "rich.console"):
        importlib.import_module(late)
    head = Document(made_by=MadeBy(command="test", version="0"))
    for precision in ("fp8", "bf16"):
        make_plan(resolve_recipe(None, {"precision": precision}), head=head)


def _run(command: click.Command, words: list[str], place: Path, file_bytes: int | None) -> Ended:
    before = _leftovers(place)
    log = place.parent / "said.log"
    pid = os.fork()
    if pid == 0:
        _be(command, words, place, log, file_bytes)
    status = _wait(pid)
    strays = _strays(pid)
    for stray in strays:
        os.kill(stray, signal.SIGKILL)
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
    descriptor = os.pidfd_open(pid)
    has_ended, _, _ = select.select([descriptor], [], [], LIMIT_S)
    os.close(descriptor)
    if not has_ended:
        os.killpg(pid, signal.SIGKILL)
    _, how = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(how) if has_ended else None


def _strays(leader: int) -> list[int]:
    """Return the processes that a command started and that do not end within `GRACE_S` of it."""
    end_s = time.monotonic() + GRACE_S
    while _has_children() and time.monotonic() < end_s:
        time.sleep(_LOOK_EVERY_S)
    return _started_by(leader) if _has_children() else []


def _has_children() -> bool:
    """Whether a child of this process lives: what a command leaves becomes one. Those that have ended are collected."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return False
    return True


def _started_by(leader: int) -> list[int]:
    """Return the living processes of a command: children now, in its session, or with its mark; zombies left out."""
    found, mark = [], f"{_MARK}={leader}\0".encode()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
            is_known = int(fields[1]) == os.getpid() or int(fields[3]) == leader
            if fields[0] != "Z" and (is_known or mark in (stat.parent / "environ").read_bytes()):
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


if __name__ == "__main__":
    _serve()
