"""`python -m triton_repo.openai_api REPOSITORY`: the front's process, started by `serve-repo --openai`."""

from __future__ import annotations

import gc
import os
import signal
import threading
from pathlib import Path
from typing import Any, cast

import click
import uvicorn

from engines import console
from triton_repo.openai_api.access import Access
from triton_repo.openai_api.api_keys import KEY_VARIABLE, read_keys
from triton_repo.openai_api.app import make_app
from triton_repo.openai_api.head_limit import BoundedHttp
from triton_repo.openai_api.reasoning import Reasoning
from triton_repo.openai_api.serve_metrics import MeasuredEngine, ServeMetrics
from triton_repo.openai_api.service import Service
from triton_repo.openai_api.triton_client import EngineClient
from triton_repo.settings import TOKENIZER_FOLDER, read_repository

DRAIN_S = 20  # time for replies in flight to finish after SIGTERM
KEEP_ALIVE_S = 75


@click.command("triton_repo.openai_api", cls=console.Command)
@click.argument("repository", type=click.Path(path_type=Path))
@click.option("--address", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=9000, show_default=True)
@click.option(
    "--grpc",
    "grpc_target",
    default="127.0.0.1:8001",
    show_default=True,
    help="Host and port of Triton's gRPC endpoint.",
)
@click.option("--metrics-url", default=None, help="Triton's metrics page, for /metrics.")
@click.option("--model", default=None, help="Model name that clients send.  [default: the engine's model]")
@click.option("--reasoning", type=click.Choice(["auto", "always", "off"]), default="auto", show_default=True)
@click.option("--api-key-file", type=click.Path(path_type=Path), default=None, help="File with one API key per line.")
@click.option("--stop-after", type=float, default=None, help="Stop after this many seconds.")
def main(repository: Path, **flags: Any) -> None:
    """Serve an OpenAI-compatible API in front of a Triton that serves REPOSITORY.

    API keys come from --api-key-file, else from the environment variable FRONT_API_KEY. Without either, no key is
    required.
    """
    manifest = read_repository(repository)
    service = Service(
        manifest,
        repository / TOKENIZER_FOLDER,
        model=flags["model"],
        reasoning=cast(Reasoning, flags["reasoning"]),
    )
    gc.collect()
    gc.freeze()  # exclude all that was loaded from garbage collection: scanning it would stall every stream
    access = Access(keys=read_keys(flags["api_key_file"], os.environ.get(KEY_VARIABLE)))
    if flags["stop_after"] is not None:
        timer = threading.Timer(flags["stop_after"], os.kill, (os.getpid(), signal.SIGTERM))
        timer.daemon = True
        timer.start()
    serve = ServeMetrics.of(manifest) if manifest.variant == "trtllm_serve" else None
    target = flags["grpc_target"]
    engine = EngineClient(target) if serve is None else MeasuredEngine(target, serve)
    uvicorn.run(
        make_app(service, engine, access, metrics_url=flags["metrics_url"], serve=serve),
        host=flags["address"],
        port=flags["port"],
        loop="uvloop",
        http=BoundedHttp,
        ws="none",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=DRAIN_S,
    )


if __name__ == "__main__":
    main()
