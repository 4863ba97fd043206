"""A run of the real load generator: its command, its processes, and what it has written so far."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from engines.names import TOKENIZER_FILE
from tests.tiny_checkpoints import write_tokenizer_of

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
LIMIT_S = 90
LONG = ("--concurrency", 4, "--requests", 400, "--osl", 60)  # more than any test waits for
SHORT = ("--concurrency", 4, "--requests", 8, "--osl", 20)


Run = Callable[..., "subprocess.Popen[str]"]


def load_command(port: int, out: Path, *arguments: object) -> list[str]:
    """Return the command of a run against the server on a port, with a tokenizer beside `out` that loads at once."""
    tokenizer = write_tokenizer(out.parent)
    target = ["--url", f"http://127.0.0.1:{port}", "--model", "timetable", "--tokenizer", tokenizer]
    prompts = ["--prompts", "random", "--isl", 16]
    return [str(each) for each in (BIN / "run-load", *target, *prompts, "--out", out, *arguments)]


def write_tokenizer(folder: Path) -> Path:
    """Write a tokenizer, unless it is there; return its path. It loads at once: a real one takes 0.4 s in every run."""
    tokenizer = folder / TOKENIZER_FILE
    if not tokenizer.exists():
        write_tokenizer_of(ROOT / "README.md", folder, words=2000)
    return tokenizer


def wait_for_end(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Wait for a run's end; return its status and what it said."""
    _, errors = process.communicate(timeout=LIMIT_S)
    assert "Traceback" not in errors
    return process.returncode, errors


def records_of(folder: Path) -> list[dict[str, Any]]:
    """Return the records written so far."""
    return [json.loads(line) for line in (folder / "requests.jsonl").read_text().splitlines()]


def manifest_of(folder: Path) -> dict[str, Any]:
    """Return `run.json`."""
    found: dict[str, Any] = json.loads((folder / "run.json").read_text())
    return found


def children_of(process: subprocess.Popen[str]) -> list[int]:
    """Return the generator processes of a run, a master first; each is a fork of the command, and leads a session."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, IndexError):
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
            if int(fields[1]) == process.pid and fields[3] == entry.name:
                found.append(int(entry.name))
    return sorted(found)


def wait_for_records(folder: Path, at_least: int = 8, worker: int = 0) -> None:
    """Wait until a worker's requests have begun to end."""
    deadline_s = time.monotonic() + LIMIT_S
    while time.monotonic() < deadline_s:
        with contextlib.suppress(FileNotFoundError):
            if (folder / "requests.jsonl").read_text().count(f'"worker":{worker}') >= at_least:
                return
        time.sleep(0.05)
    raise AssertionError(f"fewer than {at_least} records of worker {worker}")


def is_gone(pid: int) -> bool:
    """Return whether a process has ended, collected or not."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    return True


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
