"""Run the commands of the road, each with a log of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from engines.errors import LAST_LINES, MissingError, ToolError
from engines.processes import stop_group

_TERM_GRACE_S = 20.0


def program_path(name: str) -> str:
    """Return the path of a program: beside this Python first, so that commands of this package are this one's.

    Raises:
        MissingError: It is not on PATH.
    """
    found = shutil.which(name, path=_path())
    if found is None:
        raise MissingError(f"{name} is not on PATH")
    return found


def run_command(argv: Sequence[str], *, log: Path, limit_s: float) -> str:
    """Run a command to its end and return what it printed on stdout; all it printed is appended to `log`.

    Raises:
        MissingError: The program is not here.
        ToolError: It failed, or was ended after `limit_s` seconds.
    """
    command = [program_path(argv[0]), *argv[1:]]
    with log.open("a", encoding="utf-8") as file:
        file.write(f"$ {' '.join(argv)}\n")
        file.flush()
        begin = file.tell()
        try:
            done = subprocess.run(
                command,
                stdout=subprocess.PIPE,
                stderr=file,
                text=True,
                timeout=limit_s,
                check=False,
                env=_environment(),
            )
        except subprocess.TimeoutExpired as error:
            raise ToolError(
                f"{argv[0]} was ended after {limit_s:g} s", log_path=log, last_lines=_tail(log, begin)
            ) from error
        file.write(done.stdout)
    if done.returncode != 0:
        raise ToolError(f"{argv[0]} failed", status=done.returncode, log_path=log, last_lines=_tail(log, begin))
    return done.stdout


@contextmanager
def running(argv: Sequence[str], *, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Keep a command running within the block; it and what it started are ended after it.

    Raises:
        MissingError: The program is not here.
    """
    command = [program_path(argv[0]), *argv[1:]]
    with log.open("ab") as file:
        file.write(f"$ {' '.join(argv)}\n".encode())
        file.flush()
        process = subprocess.Popen(
            command, stdout=file, stderr=subprocess.STDOUT, start_new_session=True, env=_environment()
        )
        try:
            yield process
        finally:
            _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process group: asked first, then forced."""
    stop_group(process.pid, lambda: process.poll() is None, grace_s=_TERM_GRACE_S)
    process.wait()


def _path() -> str:
    return os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])


def _environment() -> dict[str, str]:
    return {**os.environ, "PATH": _path(), "COLUMNS": "200"}


def _tail(log: Path, begin: int) -> list[str]:
    """Return the last lines of a log, of those after its first `begin` bytes."""
    return log.read_bytes()[begin:].decode(errors="replace").splitlines()[-LAST_LINES:]
