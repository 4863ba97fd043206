"""Start Triton on a repository, wait until it is ready, stop it, and leave nothing behind."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from engines.errors import MissingError, ToolError, UserError
from engines.files import Document, MadeBy, read_json, write_json
from triton_repo.runtime import Runtime

SERVER_NAME = "server.json"
LOG_NAME = "server.log"
LOOPBACK = "127.0.0.1"
TERM_GRACE_S = 6.0  # Triton with an open gRPC stream never ends by itself; past this it is killed
LAST_LINES = 12
_SHARED_MEMORY = Path("/dev/shm")
_FAILURE_MARKS = ("failed to load", "Traceback", "Error:", "error:", "Internal:", "Invalid argument")


@dataclass(frozen=True, slots=True)
class Ports:
    """Where the server listens; loopback unless told otherwise."""

    http: int = 8000
    grpc: int = 8001
    metrics: int = 8002
    address: str = LOOPBACK


class ServerRecord(Document):
    """`server.json`: a server that was started; gone once it was stopped.

    Attributes:
        pid: Leader of its own process group and session.
        started_ticks: When the process began, by the kernel's clock: a pid alone may have been given to another.
        shared_memory_prefix: Beginning of the names of its shared memory files.
    """

    pid: int
    started_ticks: int
    address: str
    http_port: int
    grpc_port: int
    metrics_port: int
    triton_version: str
    log: str
    shared_memory_prefix: str

    @property
    def url(self) -> str:
        """Return the HTTP address."""
        return f"http://{self.address}:{self.http_port}"


def start_server(
    repository: Path,
    runtime: Runtime,
    ports: Ports,
    *,
    deadline_s: float,
    stop_after_s: float | None,
    made_by: MadeBy,
    progress: Callable[[str], None],
) -> ServerRecord:
    """Start a server and return once it is ready for requests.

    Args:
        stop_after_s: Seconds after which the server is ended, whatever happens to its starter; None: never.

    Raises:
        UserError: A port is taken, or a server is already running on this repository.
        ToolError: The server ended, or was not ready in time; it was stopped, and the message has its log's last lines.
    """
    _refuse_running(repository)
    for port in (ports.http, ports.grpc, ports.metrics):
        _refuse_taken(ports.address, port)
    log = repository / LOG_NAME
    prefix = f"triton_{os.getpid()}_{time.time_ns()}_"
    command = server_command(repository, runtime, ports, prefix)
    if stop_after_s is not None:
        command = ["timeout", "--foreground", "--kill-after=5", f"{stop_after_s:g}", *command]
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            cwd=runtime.server.parent,
            env=server_environment(runtime),
        )
    record = ServerRecord(
        made_by=made_by,
        pid=process.pid,
        started_ticks=_started_ticks(process.pid) or 0,
        address=ports.address,
        http_port=ports.http,
        grpc_port=ports.grpc,
        metrics_port=ports.metrics,
        triton_version=runtime.version,
        log=str(log),
        shared_memory_prefix=prefix,
    )
    write_json(repository / SERVER_NAME, record)
    try:
        _wait_ready(process, record, deadline_s, progress)
    except BaseException:
        stop_server(repository)
        raise
    return record


def stop_server(repository: Path) -> bool:
    """Stop the server that was started on a repository; return whether one was running."""
    path = repository / SERVER_NAME
    if not path.is_file():
        return False
    record = read_json(path, ServerRecord)
    running = is_running(record)
    if running:
        _signal_group(record.pid, signal.SIGTERM)
        _wait_gone(record, TERM_GRACE_S)
    _signal_group(record.pid, signal.SIGKILL, only_if=running)
    _wait_gone(record, TERM_GRACE_S)
    for leftover in _SHARED_MEMORY.glob(f"{record.shared_memory_prefix}*"):
        leftover.unlink(missing_ok=True)
    path.unlink(missing_ok=True)
    return running


def running_server(repository: Path) -> ServerRecord:
    """Return the record of the server running on a repository.

    Raises:
        MissingError: There is none.
    """
    path = repository / SERVER_NAME
    record = read_json(path, ServerRecord) if path.is_file() else None
    if record is None or not is_running(record):
        raise MissingError(f"{repository}: no server is running on it", hint=f"serve-repo {repository} starts one")
    return record


def is_running(record: ServerRecord) -> bool:
    """Whether the very process that was started is still there."""
    return _started_ticks(record.pid) == record.started_ticks


def watch_server(repository: Path, record: ServerRecord) -> None:
    """Stay until the server ends.

    Raises:
        ToolError: It ended by itself; the message has its log's last lines.
    """
    while is_running(record):
        time.sleep(0.2)
    raise ToolError(
        f"the server of {repository} ended by itself",
        log_path=Path(record.log),
        last_lines=telling_lines(Path(record.log)),
    )


def server_command(repository: Path, runtime: Runtime, ports: Ports, prefix: str) -> list[str]:
    """Return the command line that serves a repository."""
    command = [
        str(runtime.server),
        f"--model-repository={repository.absolute()}",
        "--disable-auto-complete-config",
        "--exit-on-error=true",
        "--exit-timeout-secs=3",
        f"--backend-config=python,shm-region-prefix-name={prefix}",
        "--backend-config=python,stub-timeout-seconds=60",
    ]
    if runtime.backends is not None:
        command.append(f"--backend-directory={runtime.backends}")
    for name, port in (("http", ports.http), ("grpc", ports.grpc), ("metrics", ports.metrics)):
        command += [f"--{name}-address={ports.address}", f"--{name}-port={port}"]
    return command


def server_environment(runtime: Runtime) -> dict[str, str]:
    """Return the environment of the server: its models' Python first, and no file of ours taken by accident."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    environment["PYTHONDONTWRITEBYTECODE"] = "1"
    if runtime.python_bin is not None:
        environment["PATH"] = f"{runtime.python_bin}{os.pathsep}{environment.get('PATH', os.defpath)}"
    if runtime.libraries is not None:
        environment["LD_LIBRARY_PATH"] = str(runtime.libraries)
    return environment


def telling_lines(log: Path) -> list[str]:
    """Return the lines of a server's log that say what went wrong, or else the last ones."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.is_file() else []
    telling = [line for line in lines if any(mark in line for mark in _FAILURE_MARKS)]
    return (telling or lines)[-LAST_LINES:]


def _wait_ready(
    process: subprocess.Popen[bytes], record: ServerRecord, deadline_s: float, progress: Callable[[str], None]
) -> None:
    begin = time.monotonic()
    log = Path(record.log)
    metrics_url = f"http://{record.address}:{record.metrics_port}/metrics"
    while time.monotonic() - begin < deadline_s:
        if process.poll() is not None:
            raise ToolError(
                "Triton ended before it was ready",
                status=process.returncode,
                log_path=log,
                last_lines=telling_lines(log),
            )
        if _answers(f"{record.url}/v2/health/ready") and _answers(metrics_url):
            progress(f"ready after {time.monotonic() - begin:.1f} s")
            return
        time.sleep(0.05)
    raise ToolError(
        f"Triton was not ready after {deadline_s:g} s",
        log_path=log,
        last_lines=telling_lines(log),
        hint="--ready-within gives it longer",
    )


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as reply:
            return bool(reply.status == 200)  # noqa: PLR2004 (HTTP OK)
    except (urllib.error.URLError, OSError):
        return False


def _refuse_running(repository: Path) -> None:
    path = repository / SERVER_NAME
    if path.is_file() and is_running(read_json(path, ServerRecord)):
        raise UserError(
            f"{repository}: a server is already running on it", hint=f"serve-repo {repository} --stop ends it"
        )


def _refuse_taken(address: str, port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
        except OSError as error:
            raise UserError(
                f"{address}:{port} cannot be listened on: {error.strerror}",
                hint="choose other ports with --http-port, --grpc-port, --metrics-port",
            ) from error


def _started_ticks(pid: int) -> int | None:
    """Return when a process began, in clock ticks since boot; None where it is gone or a zombie."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = text.rpartition(")")[2].split()
    return None if fields[0] == "Z" else int(fields[19])


def _wait_gone(record: ServerRecord, limit_s: float) -> None:
    end = time.monotonic() + limit_s
    while is_running(record) and time.monotonic() < end:
        _reap(record.pid)
        time.sleep(0.05)


def _reap(pid: int) -> None:
    try:
        os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:  # started by an earlier command, not by this process
        return


def _signal_group(pid: int, number: signal.Signals, *, only_if: bool = True) -> None:
    if not only_if:
        return
    try:
        os.killpg(pid, number)
    except ProcessLookupError:
        return
