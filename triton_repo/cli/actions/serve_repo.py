"""The implementation of `serve-repo`."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path
from typing import Any

from engines import console
from engines.errors import MissingError, UserError
from engines.files import made_by, to_json
from engines.ports import free_ports, ipv4_of
from triton_repo.audit import check_repository, read_config
from triton_repo.openai_api import read_keys
from triton_repo.server import (
    DRAINED_GRACE_S,
    SERVER_NAME,
    TERM_GRACE_S,
    FrontOptions,
    FrontRecord,
    Ports,
    ServerRecord,
    become_trtllm_serve,
    drain_server,
    local_triton,
    require_free,
    require_front,
    require_servable,
    running_server,
    start_front,
    start_server,
    stop_front,
    stop_server,
    watch_server,
)
from triton_repo.settings import (
    REPOSITORY_NAME,
    RepositoryManifest,
    not_a_repository,
    read_repository,
    refuse_other_kind,
)

_EXPOSED = (
    "warning: listening on {address}: anyone who can reach these ports can send requests and read "
    "metrics; Triton has no authentication and this server no TLS. Put a network policy or an "
    "authenticating proxy in front, or use 127.0.0.1"
)

_OF_THE_FRONT = {"--openai-port", "--openai-model", "--reasoning", "--api-key-file"}


def _numeric(address: str) -> str:
    """Return the IPv4 address to listen on: Triton's HTTP server never becomes ready on a name, nor on IPv6.

    Raises:
        UserError: It is empty, an IPv6 address, or an unknown name.
    """
    hint = "127.0.0.1 for this machine alone; 0.0.0.0 for every interface"
    if not address:
        raise UserError("--address: it is empty", hint=hint)
    found = ipv4_of(address)
    if found is None:
        raise UserError(f"--address {address}: not an IPv4 address, nor the name of one", hint=hint)
    return found


def run(repository: Path, **flags: Any) -> None:
    """Serve a model repository with Triton; Ctrl-C and SIGTERM drain and stop it."""
    if flags["stop"]:
        _stop(repository, flags["drain_within"], as_json=flags["as_json"])
        return
    flags["address"] = _numeric(flags["address"])
    if not flags["address"].startswith("127."):
        console.progress(_EXPOSED.format(address=flags["address"]))
    check_repository(repository)
    manifest = read_repository(repository)
    if manifest.variant == "trtllm_serve":
        if manifest.kind != "emulated":
            _refuse_tritons(flags)
            where = {"address": flags["address"], "port": flags["http_port"]}
            become_trtllm_serve(repository, manifest, **where)
        flags = _as_twin(flags)
    if not flags["openai"] and (ignored := sorted(console.given_flags() & _OF_THE_FRONT)):
        raise UserError(f"{ignored[0]} has no effect without --openai", hint=f"add --openai, or omit {ignored[0]}")
    require_servable(manifest.engine, _engine_folder(repository))
    _require_different_ports(flags)
    if flags["openai"]:
        require_free(flags["address"], flags["openai_port"])
        # before the server starts, so that an unreadable key file is reported at once
        read_keys(flags["api_key_file"], None)
    found = local_triton.find_runtime(flags["tritonserver"], local_triton.default_folder())
    ports = Ports(flags["http_port"], flags["grpc_port"], flags["metrics_port"], flags["address"])
    record = start_server(
        repository,
        found,
        ports,
        deadline_s=flags["ready_within"],
        stop_after_s=flags["stop_after"],
        detached=flags["detach"],
        made_by=made_by(console.command_line("serve-repo")),
        progress=console.progress,
    )
    _attend(repository, record, flags)


def _require_different_ports(flags: dict[str, Any]) -> None:
    """Refuse the same port for two flags."""
    names = ("http_port", "grpc_port", "metrics_port", *(("openai_port",) if flags["openai"] else ()))
    of_port: dict[int, str] = {}
    for name in names:
        flag = f"--{name.replace('_', '-')}"
        if flags[name] in of_port:
            raise UserError(f"{of_port[flags[name]]} and {flag} are both {flags[name]}", hint="give each its own port")
        of_port[flags[name]] = flag


def _refuse_tritons(flags: dict[str, Any]) -> None:
    """Refuse flags for Triton and for the OpenAI front: trtllm-serve replaces this process and has none of them."""
    given = [flag for flag in ("detach", "openai", "stop_after", "api_key_file") if flags[flag]]
    if given:
        raise UserError(
            f"--{given[0].replace('_', '-')} applies to Triton only; this repository is served by trtllm-serve",
            hint="omit it; `timeout SECONDS serve-repo` stops the server, systemd or nohup keep it running",
        )


def _as_twin(flags: dict[str, Any]) -> dict[str, Any]:
    """Return the flags of an emulated trtllm-serve: the OpenAI front on its port, Triton on a free one."""
    (port,) = free_ports(1)
    return flags | {"openai": True, "openai_port": flags["http_port"], "http_port": port}


def _add_front(repository: Path, record: ServerRecord, flags: dict[str, Any]) -> None:
    """Start the OpenAI front for a ready server."""
    options = FrontOptions(
        address=flags["address"],
        port=flags["openai_port"],
        grpc_target=f"{record.address}:{record.grpc_port}",
        metrics_url=f"http://{record.address}:{record.metrics_port}/metrics",
        model=flags["openai_model"],
        reasoning=flags["reasoning"],
        api_key_file=flags["api_key_file"],
        stop_after_s=flags["stop_after"],
    )
    made = made_by(console.command_line("serve-repo"))
    front = start_front(repository, options, detached=flags["detach"], made_by=made, progress=console.progress)
    if not flags["as_json"]:
        _show_front(front, read_repository(repository))


def _show_front(front: FrontRecord, manifest: RepositoryManifest) -> None:
    console.show(f"OpenAI-compatible: {front.url}/v1, log: {front.log}")
    if manifest.variant == "trtllm_serve":
        console.show(f"trtllm-serve's metrics (emulated): {front.url}/prometheus/metrics and {front.url}/metrics")
    console.show(f"next: run-load --url {front.url}")


def _engine_folder(repository: Path) -> Path:
    """Return the engine folder that a repository's `tensorrt_llm` model loads."""
    config = read_config(repository / "tensorrt_llm" / "config.pbtxt")
    return Path(config.parameters["gpt_model_path"].string_value)


def _show_server(record: ServerRecord, *, has_front: bool, as_json: bool) -> None:
    if as_json:
        console.show(to_json(record).rstrip())
        return
    console.show(
        f"Triton {record.triton_version}: {record.url}, gRPC {record.grpc_port}, metrics {record.metrics_port}"
    )
    console.show(f"log: {record.log}")
    if not has_front:
        console.show(f"next: run-load --url {record.url}")


def _attend(repository: Path, record: ServerRecord, flags: dict[str, Any]) -> None:
    """Show a ready server, add its front and, unless detached, wait until it ends.

    It has clients from its first line on. The first signal drains and stops it; a second one stops it at once.
    """
    try:
        _show_server(record, has_front=flags["openai"], as_json=flags["as_json"])
        if flags["openai"]:
            _add_front(repository, record, flags)
        if not flags["detach"]:
            signal.signal(signal.SIGTERM, _leave)
            watch_server(repository, record, require_front)
    except (KeyboardInterrupt, SystemExit):
        within_s = flags["drain_within"]
        console.progress(f"draining: new requests are refused, those in flight have {within_s:g} s")
        try:
            if within_s > 0:
                drain_server(repository, record, within_s)
        finally:
            _end(repository, within_s)
        raise
    except BaseException:
        _end(repository, 0)
        raise


def _end(repository: Path, drained_within_s: float) -> bool:
    """Stop front and server; return whether one was running.

    Args:
        drained_within_s: How long requests in flight had before; 0: they were not drained.
    """
    stop_front(repository)
    return stop_server(repository, grace_s=DRAINED_GRACE_S if drained_within_s > 0 else TERM_GRACE_S)


def _leave(number: int, frame: object) -> None:  # noqa: ARG001 (a signal handler's signature)
    """Exit with status 0: a signal asked for the stop."""
    sys.exit(0)


def _stop(repository: Path, drain_within_s: float, *, as_json: bool) -> None:
    try:
        if drain_within_s > 0 and (repository / SERVER_NAME).is_file():
            _drain_running(repository, drain_within_s)
    finally:
        stopped = _end(repository, drain_within_s)
    if not stopped:
        _refuse_misspelled(repository)
    if as_json:
        console.show(json.dumps({"repository": str(repository), "stopped": stopped}))
        return
    console.show("stopped" if stopped else f"{repository}: no server was running")


def _refuse_misspelled(folder: Path) -> None:
    """Refuse a folder of another kind; not a damaged repository, whose server may have ended unexpectedly."""
    if not (folder / REPOSITORY_NAME).exists():
        raise not_a_repository(folder, REPOSITORY_NAME)
    refuse_other_kind(folder)


def _drain_running(repository: Path, drain_within_s: float) -> None:
    try:
        record = running_server(repository)
    except MissingError:
        return  # the server ended unexpectedly; stopping clears what it left
    drain_server(repository, record, drain_within_s)
