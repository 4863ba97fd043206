"""Starts Triton on a repository, waits until it is ready, and stops it without leaving anything behind."""

from __future__ import annotations

import os
import resource
import secrets
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field

from engines.errors import LAST_LINES, MissingError, ToolError, UserError
from engines.files import Document, MadeBy, read_json, to_json
from engines.http_fetch import answers
from engines.ports import LOOPBACK, why_not_free
from engines.processes import kill_session, signal_group, started_ticks, stop_group, wait_gone
from engines.signals import interrupts_deferred
from triton_repo.server.child_process import start_child
from triton_repo.server.control import KEY_HEADER, RESTRICTED, Control, ControlError, drain
from triton_repo.server.local_triton import Runtime
from triton_repo.server.mpi_ranks import across_ranks, rank_environment
from triton_repo.server.start_time import record_start
from triton_repo.settings import REPOSITORY_NAME, read_repository

SERVER_NAME = "server.json"
LOG_NAME = "server.log"
KEY_NAME = "server.key"
KEY_VARIABLE = "TRITON_ADMIN_KEY"
KEY_CHARACTERS = 16
# Triton 2.51's HTTP reads a request's body onto its stack: with the usual 8 MiB, a body of 8 MB crashes the server.
STACK_BYTES = 256 * 2**20
TERM_GRACE_S = 6.0  # Triton with an open gRPC stream never exits; after this time it is killed
# After the drain nothing is in flight; Triton would look only once a second whether its models have been unloaded.
DRAINED_GRACE_S = 0.5
# Triton's Python backend now and then aborts on a lock in its shared memory as it loads models; the next start works:
# https://github.com/triton-inference-server/tensorrtllm_backend/issues/349
LOCK_FAULT = "boost::interprocess::lock_exception"
STARTS = 3
_ENDING_S = 2.0  # a killed server is a process until its memory is free
_SHARED_MEMORY = Path("/dev/shm")
_FAILURE_MARKS = ("failed to load", "Traceback", "Error:", "error:", "Internal:", "Invalid argument")


@dataclass(frozen=True, slots=True)
class Ports:
    """The server's ports and address; loopback by default."""

    http: int = 8000
    grpc: int = 8001
    metrics: int = 8002
    address: str = LOOPBACK


class ServerRecord(Document):
    """`server.json`: a server that was started; removed when it is stopped.

    Attributes:
        pid: Leader of its process group and session.
        started_ticks: Start time of the process by the kernel's clock, because pids are reused.
        shared_memory_prefix: Prefix of its shared memory files, which are removed with it. Nothing shorter is read: an
            empty one would name the files of every process.
    """

    pid: int = Field(gt=1)
    started_ticks: int
    address: str
    http_port: int
    grpc_port: int
    metrics_port: int
    triton_version: str
    log: str
    shared_memory_prefix: str = Field(pattern=r"^triton_[0-9]+_[0-9]+_$")

    @property
    def url(self) -> str:
        """Return the HTTP address; loopback for a server that listens on all interfaces."""
        return f"http://{self._reached_at}:{self.http_port}"

    @property
    def metrics_url(self) -> str:
        """Return the address of the metrics page."""
        return f"http://{self._reached_at}:{self.metrics_port}/metrics"

    @property
    def _reached_at(self) -> str:
        return LOOPBACK if self.address == "0.0.0.0" else self.address


def start_server(
    repository: Path,
    runtime: Runtime,
    ports: Ports,
    *,
    deadline_s: float,
    stop_after_s: float | None,
    detached: bool,
    made_by: MadeBy,
    progress: Callable[[str], None],
) -> ServerRecord:
    """Start a server and return once it is ready for requests.

    Where Triton aborts with `LOCK_FAULT` as it loads the models, it is started again, at most `STARTS` times in all.

    Args:
        detached: Whether it outlives this process. If not, it ends with this process, even if that gets SIGKILL.
        stop_after_s: Seconds after which the server is stopped in any case; None: never.

    Raises:
        UserError: A port is in use, a server is already running on this repository, or the secret is invalid.
        ToolError: The server exited, was not ready in time, or did not answer a request although ready. It was
            stopped; the message contains the last lines of its log.
    """
    _refuse_running(repository)
    for port in (ports.http, ports.grpc, ports.metrics):
        _refuse_taken(ports.address, port)
    log = repository / LOG_NAME

    def start() -> ServerRecord:
        prefix = f"triton_{os.getpid()}_{time.time_ns()}_"
        begin = time.monotonic()
        process: subprocess.Popen[bytes] | None = None
        try:
            with interrupts_deferred():  # a server that runs has a record
                command, environment = _command(repository, runtime, ports, prefix)
                if stop_after_s is not None or not detached:  # it forwards SIGTERM, and SIGKILL after 5 s; 0: no limit
                    command = ["timeout", "--foreground", "--kill-after=5", f"{stop_after_s or 0:g}", *command]
                with log.open("wb") as output, _stack_of(STACK_BYTES):
                    process = start_child(
                        command, output, detached=detached, cwd=runtime.server.parent, environment=environment
                    )
                record = _record(process, runtime, ports, made_by=made_by, log=log, prefix=prefix)
                # no temporary file: Triton lists the folder as it starts, and ends if a listed one has gone
                (repository / SERVER_NAME).write_text(to_json(record), encoding="utf-8")
            _wait_ready(process, record, deadline_s)
            _probe(repository, record)
            took_s = time.monotonic() - begin
            recorded = record_start(repository, took_s, triton_version=runtime.version, made_by=made_by)
            progress(f"ready after {took_s:.1f} s: a request was answered{recorded}")
        except BaseException:
            stop_server(repository, grace_s=0)  # it has no clients yet
            if process is not None:
                signal_group(process.pid, signal.SIGKILL)  # in case its record could not be written
            (repository / KEY_NAME).unlink(missing_ok=True)  # likewise
            raise
        return record

    return _again_after_lock_fault(start, log, progress)


def _command(repository: Path, runtime: Runtime, ports: Ports, prefix: str) -> tuple[list[str], dict[str, str]]:
    """Write the secret; return the server's command line and environment."""
    command = server_command(repository, runtime, ports, prefix, _write_key(repository))
    environment = server_environment(runtime)
    if (repository / REPOSITORY_NAME).is_file():
        manifest = read_repository(repository)
        command = across_ranks(command, manifest, str(repository.absolute()), prefix)
        environment |= rank_environment(manifest)
    return command, environment


def _again_after_lock_fault(
    start: Callable[[], ServerRecord], log: Path, progress: Callable[[str], None]
) -> ServerRecord:
    for _ in range(STARTS - 1):
        try:
            return start()
        except ToolError as error:
            if error.status is None or LOCK_FAULT not in log.read_text(encoding="utf-8", errors="replace"):
                raise
            progress(f"Triton aborted as it loaded the models ({LOCK_FAULT}, a known fault); starting it again")
    return start()


def _record(
    process: subprocess.Popen[bytes], runtime: Runtime, ports: Ports, *, made_by: MadeBy, log: Path, prefix: str
) -> ServerRecord:
    return ServerRecord(
        made_by=made_by,
        pid=process.pid,
        started_ticks=started_ticks(process.pid) or 0,
        address=ports.address,
        http_port=ports.http,
        grpc_port=ports.grpc,
        metrics_port=ports.metrics,
        triton_version=runtime.version,
        log=str(log),
        shared_memory_prefix=prefix,
    )


def stop_server(repository: Path, *, grace_s: float = TERM_GRACE_S) -> bool:
    """Stop the server of a repository; return whether one was running.

    Args:
        grace_s: Seconds to exit after SIGTERM; 0: killed at once, as for a server without clients.
    """
    path = repository / SERVER_NAME
    if not path.is_file():
        return False
    record = read_json(path, ServerRecord)
    running = is_running(record)
    stop_group(record.pid, lambda: is_running(record), grace_s=grace_s)
    kill_session(record.pid, record.shared_memory_prefix)  # a killed Triton's models may wait for it
    for leftover in _SHARED_MEMORY.glob(f"{record.shared_memory_prefix}*"):
        leftover.unlink(missing_ok=True)
    path.unlink(missing_ok=True)
    (repository / KEY_NAME).unlink(missing_ok=True)
    return running


def drain_server(repository: Path, record: ServerRecord, within_s: float) -> None:
    """Refuse new requests and let those in flight finish; the server keeps running.

    A server that was ending already, and so does not answer, has none.

    Raises:
        ToolError: Some requests were unfinished at the limit, or the server did not answer or refused the key.
    """
    try:
        left = drain(control_of(repository, record), within_s)
    except ControlError as error:
        if wait_gone(record.pid, lambda: is_running(record), _ENDING_S):
            return
        raise ToolError(f"the server could not be drained: {error}", log_path=Path(record.log)) from error
    if left:
        raise ToolError(
            f"{left} requests were still in flight after {within_s:g} s and were cancelled",
            hint="allow more time with --drain-within",
        )


def control_of(repository: Path, record: ServerRecord) -> Control:
    """Return the control interfaces of a running server, with its secret.

    Raises:
        MissingError: The secret's file does not exist.
    """
    path = repository / KEY_NAME
    if not path.is_file():
        raise MissingError(f"{path}: no such file", hint="start the server with serve-repo, which writes it")
    return Control(record.url, record.metrics_url, path.read_text(encoding="utf-8"))


def running_server(repository: Path) -> ServerRecord:
    """Return the record of the server running on a repository.

    Raises:
        MissingError: No server is running.
    """
    path = repository / SERVER_NAME
    record = read_json(path, ServerRecord) if path.is_file() else None
    if record is None or not is_running(record):
        raise MissingError(f"{repository}: no server is running", hint=f"start one with serve-repo {repository}")
    return record


def is_running(record: ServerRecord) -> bool:
    """Whether the process that was started is still running."""
    return started_ticks(record.pid) == record.started_ticks


def watch_server(repository: Path, record: ServerRecord, look: Callable[[Path], None]) -> None:
    """Wait until the server ends.

    Args:
        look: Called periodically with the repository; raises if something else has ended.

    Raises:
        ToolError: The server exited unexpectedly; the message contains the last lines of its log.
    """
    while is_running(record):
        look(repository)
        time.sleep(0.2)
    raise ToolError(
        f"the server of {repository} exited unexpectedly",
        log_path=Path(record.log),
        last_lines=telling_lines(Path(record.log)),
    )


@contextmanager
def _stack_of(size_bytes: int) -> Iterator[None]:
    """Set the stack size of processes started within the block, up to the hard limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_STACK)
    largest = size_bytes if hard == resource.RLIM_INFINITY else min(size_bytes, hard)
    resource.setrlimit(resource.RLIMIT_STACK, (largest, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_STACK, (soft, hard))


def server_flags(repository: str, key: str) -> list[str]:
    """Return the flags common to all servers, local and deployed.

    Models are controlled through the interface that replaces an engine and drains a server. That interface, and all
    others that could write to the server or its disk, require a secret.

    Args:
        repository: Path of the model repository on the server.
        key: The secret.
    """
    restricted = f"{','.join(RESTRICTED)}:{KEY_HEADER}={key}"
    return [
        f"--model-repository={repository}",
        "--model-control-mode=explicit",
        "--load-model=*",
        f"--http-restricted-api={restricted}",
        f"--grpc-restricted-protocol={restricted}",
        "--disable-auto-complete-config",
        "--exit-on-error=true",
        "--exit-timeout-secs=3",
    ]


def server_command(repository: Path, runtime: Runtime, ports: Ports, prefix: str, key: str) -> list[str]:
    """Return the command line that serves a repository."""
    command = [
        str(runtime.server),
        *server_flags(str(repository.absolute()), key),
        f"--backend-config=python,shm-region-prefix-name={prefix}",
        "--backend-config=python,stub-timeout-seconds=60",
    ]
    if runtime.backends is not None:
        command.append(f"--backend-directory={runtime.backends}")
    for name, port in (("http", ports.http), ("grpc", ports.grpc), ("metrics", ports.metrics)):
        command += [f"--{name}-address={ports.address}", f"--{name}-port={port}"]
    return command


def server_environment(runtime: Runtime) -> dict[str, str]:
    """Return the server's environment: the models' Python first on PATH, and no PYTHON* variables of this process."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    environment["PYTHONDONTWRITEBYTECODE"] = "1"
    if runtime.python_bin is not None:
        environment["PATH"] = f"{runtime.python_bin}{os.pathsep}{environment.get('PATH', os.defpath)}"
    if runtime.libraries is not None:
        environment["LD_LIBRARY_PATH"] = str(runtime.libraries)
    return environment


def telling_lines(log: Path) -> list[str]:
    """Return the lines of a server's log that state an error, or else the last lines."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.is_file() else []
    telling = [line for line in lines if any(mark in line for mark in _FAILURE_MARKS)]
    return (telling or lines)[-LAST_LINES:]


def _wait_ready(process: subprocess.Popen[bytes], record: ServerRecord, deadline_s: float) -> None:
    begin = time.monotonic()
    log = Path(record.log)
    while time.monotonic() - begin < deadline_s:
        if process.poll() is not None:
            raise ToolError(
                "Triton exited before it was ready",
                status=process.returncode,
                log_path=log,
                last_lines=telling_lines(log),
            )
        if answers(f"{record.url}/v2/health/ready") and answers(record.metrics_url):
            return
        time.sleep(0.05)
    raise ToolError(
        f"Triton was not ready after {deadline_s:g} s",
        log_path=log,
        last_lines=telling_lines(log),
        hint="allow more time with --ready-within",
    )


def _probe(repository: Path, record: ServerRecord) -> None:
    """Check that a server which reports ready answers a request.

    Raises:
        ToolError: It does not: if the models' Python does not match Triton's stub, every response is an error.
    """
    try:
        control_of(repository, record).probe()
    except ControlError as error:
        log = Path(record.log)
        raise ToolError(
            f"Triton reports that it is ready but does not answer: {error}", log_path=log, last_lines=telling_lines(log)
        ) from error


def _write_key(repository: Path) -> str:
    """Write the secret of the restricted interfaces with owner-only permissions, and return it.

    Raises:
        UserError: The secret in the environment is too short, or has characters that a header cannot contain.
    """
    key = os.environ.get(KEY_VARIABLE) or secrets.token_hex(KEY_CHARACTERS)
    if len(key) < KEY_CHARACTERS or not key.isascii() or not key.isalnum():
        raise UserError(
            f"{KEY_VARIABLE}: the key must consist of at least {KEY_CHARACTERS} letters and digits, and nothing else",
            hint="unset it, and serve-repo generates one",
        )
    path = repository / KEY_NAME
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        file.write(key)
    return key


def _refuse_running(repository: Path) -> None:
    path = repository / SERVER_NAME
    if path.is_file() and is_running(read_json(path, ServerRecord)):
        raise UserError(
            f"{repository}: a server is already running", hint=f"stop it with serve-repo {repository} --stop"
        )
    stop_server(repository, grace_s=0)  # clears what a killed one left


def _refuse_taken(address: str, port: int) -> None:
    if (reason := why_not_free(address, port)) is not None:
        raise UserError(
            f"cannot listen on {address}:{port}: {reason}",
            hint="stop the server there (serve-repo REPOSITORY --stop), or set --http-port, --grpc-port and "
            "--metrics-port",
        )
