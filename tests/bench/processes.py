"""What the benches share: running a command, a process's CPU time, and what machine this is."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

BIN = Path(sys.executable).parent


def cpu_s(pid: int) -> float:
    """Return the CPU seconds a process has spent so far, all its threads, from the scheduler's own nanoseconds."""
    tasks = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(task.read_text().split()[0]) for task in tasks) / 1e9


def run_command(*arguments: object) -> None:
    """Run one of the project's commands.

    Raises:
        RuntimeError: It failed; with what it printed.
    """
    name, *rest = map(str, arguments)
    done = subprocess.run([str(BIN / name), *rest], capture_output=True, text=True, timeout=240, check=False)
    if done.returncode:
        raise RuntimeError(f"{name}: {done.stderr}")


def machine() -> str:
    """Return what the figures were measured on, and how busy it was."""
    models = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    name = models[0].partition(":")[2].strip() if models else platform.machine()
    return f"{os.cpu_count()} x {name}, load {os.getloadavg()[0]:.1f}, Python {platform.python_version()}"


def show(text: str) -> None:
    """Print a line at once."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()
