"""The command `build-repo`: its flags and its help."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from engines import console

FOLDER = click.Path(path_type=Path)
GROUPS = {
    "Settings": ("--serving", "--set", "--max-queue-size", "--bls-instances", "--time-scale", "--explain"),
    "Repository": ("--server", "--engine-url", "--engine-model", "--served-at", "--tokenizer"),
}


@click.command(
    "build-repo", cls=console.Command, groups=GROUPS, example="build-repo artifacts/engines/NAME --max-queue-size 64"
)
@click.argument("engine_dir", type=FOLDER)
@click.option("--serving", type=FOLDER, default=None, help="Serving settings, a YAML file.")
@click.option(
    "--set",
    "assignments",
    multiple=True,
    metavar="NAME=VALUE",
    help="One serving setting, named as in the YAML file.",
)
@click.option(
    "--tokenizer", type=FOLDER, default=None, help="Folder with tokenizer.json.  [default: the engine's tokenizer]"
)
@click.option(
    "--served-at", type=FOLDER, default=None, help="Path at which the server will see the repository, if it differs."
)
@click.option(
    "--server",
    type=click.Choice(["triton", "trtllm-serve"]),
    default="triton",
    show_default=True,
    help="Server that will load the repository. trtllm-serve: for checkpoints of the PyTorch backend.",
)
@click.option(
    "--engine-url",
    metavar="URL",
    help="Relay requests to this OpenAI-compatible server, which takes and returns token ids (vLLM).",
)
@click.option("--engine-model", metavar="NAME", help="Model name at --engine-url.  [default: the only one it serves]")
@click.option(
    "--max-queue-size", type=int, help="Maximum queue size. Further requests are refused at once. 0: no limit."
)
@click.option("--bls-instances", type=int, help="Requests that the tensorrt_llm_bls model serves concurrently.")
@click.option("--time-scale", type=float, help="Wall seconds per engine second, for an emulated engine.")
@click.option(
    "--explain", is_flag=True, help="Print every setting with its value, its origin and the parameter it sets."
)
@console.writing_flags
@console.common_flags
def build_repo(**flags: Any) -> None:
    """Generate and check the Triton model repository of an engine.

    Writes the models preprocessing, tensorrt_llm, postprocessing, ensemble and tensorrt_llm_bls. For the PyTorch
    backend it writes the LLM API's single model, or trtllm-serve's YAML with --server trtllm-serve. The repository of
    an emulated engine contains the emulator; that of a built engine points to it. With --engine-url, the tensorrt_llm
    model relays requests to a server that runs the model, and ENGINE_DIR is the plan of that engine. --explain and
    --dry-run write nothing, and query no server.
    """
    from triton_repo.cli.actions.build_repo import run

    run(**flags)
