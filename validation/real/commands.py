"""Running this project's commands, pinned to a core, each printed as it is typed."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from engines.console import progress
from engines.errors import CommandError, ToolError
from engines.machine import available_cores

BIN = Path(sys.executable).parent
TIMEOUT_S = 900.0


class Ran(NamedTuple):
    """One command that ended.

    Attributes:
        cpu_s: CPU seconds of it and of every process it started; `wall_s` beside.
    """

    stdout: str
    status: int
    cpu_s: float
    wall_s: float

    @property
    def cpu_share(self) -> float:
        """How much of one core it took."""
        return self.cpu_s / self.wall_s


def ours(
    command: str, *words: object, core: int | None = None, also_fine: Sequence[int] = (), timeout_s: float = TIMEOUT_S
) -> Ran:
    """Run one of this project's commands and return what it printed on stdout; its progress goes to stderr.

    Args:
        core: Pinned to this one; None: wherever the system puts it.
        also_fine: Exit statuses beside 0 that are an answer.

    Raises:
        ToolError: It failed.
    """
    typed = [command, *map(str, words)]
    progress(f"$ {shlex.join(typed)}")
    before, began_s = os.times(), time.monotonic()
    done = subprocess.run(
        [BIN / command, *typed[1:]],
        stdout=subprocess.PIPE,
        text=True,
        timeout=timeout_s,
        check=False,
        preexec_fn=None if core is None else pinned_to(core),
    )
    after = os.times()
    cpu_s = after.children_user + after.children_system - before.children_user - before.children_system
    if done.returncode and done.returncode not in also_fine:
        last = done.stdout.strip().splitlines()[-5:]
        raise ToolError(f"{command} failed", status=done.returncode, last_lines=last)
    return Ran(done.stdout, done.returncode, cpu_s, time.monotonic() - began_s)


def server_and_load_core() -> tuple[int, int]:
    """Return the server's core, the last one, and the load's, the first.

    Raises:
        CommandError: There is only one core.
    """
    cores = available_cores()
    if len(cores) == 1:
        raise CommandError("two cores are needed: one for the server, one for the load")
    return cores[-1], cores[0]


def pinned_to(core: int) -> Callable[[], None]:
    """Return what a child calls first to run on one core, with all it starts."""
    return partial(os.sched_setaffinity, 0, {core})
