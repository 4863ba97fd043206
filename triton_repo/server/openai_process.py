"""The front's process: started beside a server and stopped with it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from engines.errors import LAST_LINES, MissingError, ToolError, UserError
from engines.files import Document, MadeBy, read_json, write_json
from engines.http_fetch import answers
from engines.ports import why_not_free
from engines.processes import reap, signal_group, stop_group
from engines.signals import interrupts_deferred
from triton_repo.openai_api import KEY_VARIABLE
from triton_repo.server.child_process import start_child

RECORD_NAME = "front.json"
LOG_NAME = "front.log"
MODULE = "triton_repo.openai_api"
STOP_GRACE_S = 25.0  # longer than the front's own grace period for replies
READY_WITHIN_S = 60.0
EXPOSED = (
    "warning: the OpenAI front listens on {address} without an API key: anyone who can reach it can use the engine. "
    "--api-key-file FILE or the environment variable {variable} sets one; for TLS, use a proxy"
)


class FrontRecord(Document):
    """`front.json`: a front that was started; removed when it is stopped."""

    pid: int
    address: str
    port: int
    log: str

    @property
    def url(self) -> str:
        """Return its address for clients; loopback for a front that listens on all interfaces."""
        return f"http://{'127.0.0.1' if self.address == '0.0.0.0' else self.address}:{self.port}"


@dataclass(frozen=True, slots=True)
class FrontOptions:
    """How to start a front.

    Attributes:
        grpc_target: Host and port of Triton's gRPC endpoint.
        model: Model name for clients; None: the engine's model.
        stop_after_s: Seconds after which it stops; None: never.
    """

    address: str
    port: int
    grpc_target: str
    metrics_url: str
    model: str | None
    reasoning: str
    api_key_file: Path | None
    stop_after_s: float | None

    def arguments(self) -> list[str]:
        """Return the options as command-line arguments; keys are never among them."""
        given = {
            "--address": self.address,
            "--port": self.port,
            "--grpc": self.grpc_target,
            "--metrics-url": self.metrics_url,
            "--model": self.model,
            "--reasoning": self.reasoning,
            "--api-key-file": self.api_key_file,
            "--stop-after": self.stop_after_s,
        }
        return [text for flag, value in given.items() if value is not None for text in (flag, str(value))]


def require_free(address: str, port: int) -> None:
    """Refuse an address that cannot be bound, before anything is started.

    Raises:
        UserError: The port is in use, or the address does not belong to this machine.
    """
    if (reason := why_not_free(address, port)) is not None:
        raise UserError(f"cannot listen on {address}:{port}: {reason}", hint="choose another port with --openai-port")


def start_front(
    repository: Path, options: FrontOptions, *, detached: bool, made_by: MadeBy, progress: Callable[[str], None]
) -> FrontRecord:
    """Start a front and return once it answers.

    Args:
        detached: Whether it outlives this process. If not, it ends with this process, even if that gets SIGKILL.

    Raises:
        MissingError: A dependency is not installed.
        ToolError: It exited or did not answer in time. It was stopped; the message contains the last lines of its log.
    """
    if find_spec("starlette") is None or find_spec("uvicorn") is None:
        raise MissingError(
            "the OpenAI front needs starlette and uvicorn", hint="pip install 'engine-to-capacity[front]'"
        )
    if options.address not in {"127.0.0.1", "localhost"} and not (options.api_key_file or os.environ.get(KEY_VARIABLE)):
        progress(EXPOSED.format(address=options.address, variable=KEY_VARIABLE))
    log = repository / LOG_NAME
    command = [sys.executable, "-P", "-m", MODULE, str(repository.resolve()), *options.arguments()]
    process: subprocess.Popen[bytes] | None = None
    try:
        with interrupts_deferred():  # a front that runs has a record
            with log.open("wb") as output:
                process = start_child(command, output, detached=detached)
            record = FrontRecord(
                made_by=made_by, pid=process.pid, address=options.address, port=options.port, log=str(log)
            )
            write_json(repository / RECORD_NAME, record)
        _wait_ready(process, record)
    except BaseException:
        stop_front(repository, grace_s=0)
        if process is not None:
            signal_group(process.pid, signal.SIGKILL)  # in case its record could not be written
        raise
    return record


def stop_front(repository: Path, *, grace_s: float = STOP_GRACE_S) -> bool:
    """Stop the front of a repository; return whether one was running.

    Args:
        grace_s: Seconds for its replies to finish; 0: killed at once.
    """
    path = repository / RECORD_NAME
    if not path.is_file():
        return False
    record = read_json(path, FrontRecord)
    running = _is_running(record, repository)
    stop_group(record.pid, lambda: _is_running(record, repository), grace_s=grace_s)
    path.unlink(missing_ok=True)
    return running


def require_front(repository: Path) -> None:
    """Check that the front of a repository is still running.

    Raises:
        ToolError: It exited unexpectedly; the message contains the last lines of its log.
    """
    path = repository / RECORD_NAME
    if not path.is_file():
        return
    record = read_json(path, FrontRecord)
    reap(record.pid)
    if not _is_running(record, repository):
        log = Path(record.log)
        raise ToolError(
            f"the OpenAI front of {repository} exited unexpectedly", log_path=log, last_lines=_last_lines(log)
        )


def _is_running(record: FrontRecord, repository: Path) -> bool:
    """Whether the pid still belongs to this front: pids are reused."""
    try:
        words = Path(f"/proc/{record.pid}/cmdline").read_bytes().split(b"\0")
    except (FileNotFoundError, ProcessLookupError):
        return False
    return MODULE.encode() in words and str(repository.resolve()).encode() in words


def _wait_ready(process: subprocess.Popen[bytes], record: FrontRecord) -> None:
    end = time.monotonic() + READY_WITHIN_S
    while time.monotonic() < end:
        if process.poll() is not None:
            raise ToolError(
                f"the OpenAI front on {record.address}:{record.port} exited before it was ready",
                status=process.returncode,
                log_path=Path(record.log),
                last_lines=_last_lines(Path(record.log)),
                hint="choose another port with --openai-port",
            )
        if answers(f"{record.url}/health") and process.poll() is None:
            return
        time.sleep(0.1)
    raise ToolError(
        f"the OpenAI front did not answer within {READY_WITHIN_S:g} s",
        log_path=Path(record.log),
        last_lines=_last_lines(Path(record.log)),
    )


def _last_lines(log: Path) -> list[str]:
    return log.read_text(encoding="utf-8", errors="replace").splitlines()[-LAST_LINES:]
