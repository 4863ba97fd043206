"""The command `serve-repo`: its flags and its help."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from engines import console
from engines.errors import UserError
from triton_repo.cli.front_options import front_flags

FOLDER = click.Path(path_type=Path)
GROUPS = {
    "Server": ("--address", "--http-port", "--grpc-port", "--metrics-port", "--tritonserver"),
    "Start and stop": ("--ready-within", "--stop-after", "--drain-within", "--detach", "--stop"),
    "OpenAI API": ("--openai", "--openai-port", "--openai-model", "--reasoning", "--api-key-file"),
}

_OF_STOP = {"--stop", "--drain-within", "--verbose", "--json"}


@click.command(
    "serve-repo", cls=console.Command, groups=GROUPS, example="serve-repo artifacts/repositories/NAME --openai"
)
@click.argument("repository", type=FOLDER)
@click.option("--address", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--http-port", type=console.PORT, default=8000, show_default=True, help="Port of Triton's HTTP endpoint.")
@click.option("--grpc-port", type=console.PORT, default=8001, show_default=True, help="Port of Triton's gRPC endpoint.")
@click.option("--metrics-port", type=console.PORT, default=8002, show_default=True, help="Port of its metrics page.")
@click.option(
    "--tritonserver",
    default="auto",
    show_default=True,
    help="Triton's program: a path; local: that of install-triton; auto: the one on PATH, else the local one.",
)
@click.option(
    "--ready-within",
    type=console.SECONDS,
    default=120.0,
    show_default=True,
    help="Maximum seconds to wait until the server is ready.",
)
@click.option("--stop-after", type=console.SECONDS, default=None, help="Stop the server after this many seconds.")
@click.option(
    "--drain-within",
    type=console.SECONDS,
    default=30.0,
    show_default=True,
    help="Seconds that requests in flight may take to finish when the server stops. 0: cancel them.",
)
@front_flags
@click.option("--detach", is_flag=True, help="Return once the server is ready. Stop it with --stop.")
@click.option("--stop", is_flag=True, help="Stop the server of this repository.")
@console.common_flags
def serve_repo(**flags: Any) -> None:
    """Serve a model repository with Triton; Ctrl-C and SIGTERM drain and stop the server.

    While it drains, new requests are refused and those in flight have --drain-within seconds. A second signal stops it
    at once. The command uses an installed tritonserver, or else the local one from install-triton. The server's output
    goes to server.log in the repository. A repository for trtllm-serve is served by trtllm-serve, or by its emulation
    if the engine is emulated.
    """
    if flags["stop"] and (ignored := sorted(console.given_flags() - _OF_STOP)):
        raise UserError(f"--stop: {ignored[0]} has no effect", hint=f"omit {ignored[0]}, or --stop to start a server")
    from triton_repo.cli.actions.serve_repo import run

    run(**flags)
