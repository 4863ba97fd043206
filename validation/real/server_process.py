"""Starting another project's server: pinned to one core, awaited until it answers, stopped with all its processes."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from engines.console import progress
from engines.errors import ToolError
from engines.http_fetch import answers
from engines.processes import ending_with_parent, stop_group
from validation.real.commands import pinned_to

READY_WITHIN_S, STOP_WITHIN_S = 300.0, 20.0
_SIGN_OF_LIFE_S = 20.0
# No server looks for models, prices or updates on the network, or reports what it is used for.
OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "DO_NOT_TRACK": "1"}


@dataclass(frozen=True)
class Server:
    """A running server.

    Attributes:
        url: `http://HOST:PORT`.
        model: The name it serves its model by.
    """

    url: str
    model: str
    pid: int


@contextmanager
def running(
    command: Sequence[str], server: str, *, url: str, model: str, core: int, log: Path, environment: Mapping[str, str]
) -> Iterator[Server]:
    """Run a server on one core while the block runs.

    Args:
        server: Its name, for people.
        url: Where it will listen; a path in it is awaited: it must return 200.
        environment: Variables in addition to this process's own.

    Raises:
        ToolError: It ended, or did not answer in time.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as written:
        process = subprocess.Popen(
            command,
            env={**os.environ, **OFFLINE, **environment},
            stdout=written,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=_Start(core),  # noqa: PLW1509 (this process has no other thread)
        )
    try:
        _wait(process, server, url, log)
        yield Server(url[: url.find("/", len("http://"))], model, process.pid)
    finally:
        progress(f"stopping {server} (process {process.pid})")
        stop_group(process.pid, lambda: process.poll() is None, grace_s=STOP_WITHIN_S)


class _Start:
    """What the server's process does first: one core, and an end with its parent."""

    def __init__(self, core: int) -> None:
        self._steps = (pinned_to(core), ending_with_parent(signal.SIGTERM))

    def __call__(self) -> None:
        """Do it."""
        for step in self._steps:
            step()


def _wait(process: subprocess.Popen[bytes], server: str, url: str, log: Path) -> None:
    began_s = told_s = time.monotonic()
    progress(f"starting {server} at {url}; log: {log}")
    while time.monotonic() - began_s < READY_WITHIN_S:
        if process.poll() is not None:
            last = log.read_text(encoding="utf-8", errors="replace").splitlines()[-8:]
            raise ToolError(
                f"{server} ended while it started", status=process.returncode, log_path=log, last_lines=last
            )
        if answers(url):
            progress(f"ready after {time.monotonic() - began_s:.0f} s")
            return
        if time.monotonic() - told_s > _SIGN_OF_LIFE_S:
            told_s = time.monotonic()
            progress(f"waiting for {server}, {told_s - began_s:.0f} s")
        time.sleep(0.2)
    raise ToolError(f"{server} did not answer within {READY_WITHIN_S:.0f} s", log_path=log)
