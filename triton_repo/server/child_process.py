"""Starting a server as a child process, and asking whether it answers."""

from __future__ import annotations

import signal
import subprocess
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

from engines.processes import ending_with_parent


def answers(url: str) -> bool:
    """Return whether a server answers a health URL with status 200 within 2 s."""
    try:
        with urllib.request.urlopen(url, timeout=2) as reply:
            return bool(reply.status == 200)  # noqa: PLR2004 (HTTP OK)
    except (urllib.error.URLError, OSError):
        return False


def start_child(
    command: Sequence[str],
    output: IO[bytes],
    *,
    detached: bool,
    cwd: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> subprocess.Popen[bytes]:
    """Start a command in its own session, with its output and errors redirected to a file.

    Args:
        output: An open file.
        detached: Whether the child outlives this process. If not, it ends with this process, even if that gets SIGKILL.
        cwd: Working directory; None: the current one.
        environment: Its complete environment; None: this process's.

    Raises:
        OSError: The program cannot be started.
    """
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        cwd=cwd,
        env=environment,
        preexec_fn=None if detached else ending_with_parent(signal.SIGTERM),  # noqa: PLW1509 (one prctl call)
    )
