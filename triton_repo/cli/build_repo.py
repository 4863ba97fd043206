"""The room's commands: install-triton, build-repo, check-repo."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from engines import console

FOLDER = click.Path(path_type=Path)


@click.command("build-repo", cls=console.Command)
@click.argument("engine_dir", type=FOLDER)
@click.option("--serving", type=FOLDER, default=None, help="Serving settings, a YAML file.")
@click.option("--set", "assignments", multiple=True, metavar="NAME=VALUE", help="One serving setting, as in the YAML.")
@click.option("--tokenizer", type=FOLDER, default=None, help="Folder with tokenizer.json; default: the engine's own.")
@click.option("--served-at", type=FOLDER, default=None, help="Where the repository will be mounted, if elsewhere.")
@click.option(
    "--server",
    type=click.Choice(["triton", "trtllm-serve"]),
    default="triton",
    show_default=True,
    help="What will serve it; trtllm-serve: checkpoints of the PyTorch backend.",
)
@click.option("--max-queue-size", type=int, help="Requests that may wait; past it, refused at once. 0: no limit.")
@click.option("--bls-instances", type=int, help="Requests the tensorrt_llm_bls model serves at the same time.")
@click.option("--time-scale", type=float, help="Wall seconds of one engine second, for an emulated engine.")
@click.option("--explain", is_flag=True, help="Print every setting, its value, who chose it and where it goes.")
@console.writing_flags
@console.common_flags
def build_repo(**flags: Any) -> None:
    """Generate the Triton model repository of an engine, and check it.

    Writes preprocessing, tensorrt_llm, postprocessing, ensemble and tensorrt_llm_bls; for an engine of the PyTorch
    backend, the LLM API's one model, or with --server trtllm-serve its YAML. For an emulated engine the repository
    carries the emulator; for a built one it points at the engine. --explain and --dry-run write nothing.
    """
    from triton_repo.cli.actions.build_repo import run

    run(**flags)
