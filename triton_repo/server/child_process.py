"""Starting a server as a child process."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

from engines.processes import ending_with_parent


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
