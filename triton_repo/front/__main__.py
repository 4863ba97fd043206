"""`python -m triton_repo.front REPOSITORY`: the front's process; `serve-repo --openai` starts it."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path
from typing import Any, cast

import click
import uvicorn

from engines import console
from engines.errors import UserError
from triton_repo.front.app import Access, make_app
from triton_repo.front.engine import Engine
from triton_repo.front.reasoning import Reasoning
from triton_repo.front.service import Service
from triton_repo.settings import read_repository

KEY_VARIABLE = "FRONT_API_KEY"
TOKENIZER_FOLDER = Path("preprocessing/1/tokenizer")
DRAIN_S = 20  # replies in flight at SIGTERM may take this long to end
KEEP_ALIVE_S = 75


@click.command("triton_repo.front", cls=console.Command)
@click.argument("repository", type=click.Path(path_type=Path))
@click.option("--address", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=9000, show_default=True)
@click.option(
    "--grpc", "grpc_target", default="127.0.0.1:8001", show_default=True, help="Host and port of Triton's gRPC."
)
@click.option("--metrics-url", default=None, help="Triton's metrics page, for /metrics.")
@click.option("--model", default=None, help="Name that clients give.  [default: the engine's model]")
@click.option("--reasoning", type=click.Choice(["auto", "always", "off"]), default="auto", show_default=True)
@click.option("--api-key-file", type=click.Path(path_type=Path), default=None, help="File with one key a line.")
@click.option("--stop-after", type=float, default=None, help="End after this many seconds.")
def main(repository: Path, **flags: Any) -> None:
    """Serve an OpenAI-compatible API before a Triton that runs on REPOSITORY.

    Keys are taken from --api-key-file, else from the environment variable FRONT_API_KEY; without either, everybody
    is let in.
    """
    service = Service(
        read_repository(repository),
        repository / TOKENIZER_FOLDER,
        model=flags["model"],
        reasoning=cast(Reasoning, flags["reasoning"]),
    )
    access = Access(keys=read_keys(flags["api_key_file"], os.environ.get(KEY_VARIABLE)))
    if flags["stop_after"] is not None:
        timer = threading.Timer(flags["stop_after"], os.kill, (os.getpid(), signal.SIGTERM))
        timer.daemon = True
        timer.start()
    uvicorn.run(
        make_app(service, Engine(flags["grpc_target"]), access, metrics_url=flags["metrics_url"]),
        host=flags["address"],
        port=flags["port"],
        loop="uvloop",
        http="httptools",
        ws="none",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=DRAIN_S,
    )


def read_keys(path: Path | None, variable: str | None) -> list[str]:
    """Return the API keys.

    Raises:
        UserError: The file is not there, or holds no key.
    """
    if path is None:
        return [variable] if variable else []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise UserError(f"--api-key-file {path}: {error.strerror}", hint="give a file with one key a line") from error
    keys = [line.strip() for line in lines if line.strip()]
    if not keys:
        raise UserError(f"--api-key-file {path}: no key in it", hint="write one key a line")
    return keys


if __name__ == "__main__":
    main()
