"""The command that walks the whole road on a GPU: check-gpu."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from engines import console
from engines.names import PRECISION_NAMES

FOLDER = click.Path(path_type=Path)


@click.command("check-gpu", cls=console.Command, epilog="Writes artifacts/gpu-check unless --out is given.")
@click.option("--checkpoint", type=FOLDER, help="Hugging Face checkpoint; default: SmolLM2, whose answer is known.")
@click.option(
    "--precision", type=click.Choice(PRECISION_NAMES), help="Default: fp8 where the GPU has it, else int8_sq."
)
@click.option("--out", type=FOLDER, default=None, help="Folder of the report, the logs and what is built.")
@click.option("--force", is_flag=True, help="Replace what --out already holds.")
@click.option("--list", "only_list", is_flag=True, help="Print the links and what each was held to, and end.")
@click.option("--skip", "may_skip", is_flag=True, help="Where the machine cannot: print the reason and end with 0.")
@console.common_flags
def check_gpu(**flags: Any) -> None:
    """Build, serve and load a real engine on this machine, link by link, and write a report.

    The links are those of docs/explanation/what-was-verified.md; each is marked passed, failed or not reached. It needs
    a GPU and the container with TensorRT-LLM. The report, report.md, is made to be attached to an issue. Ends with
    status 3 where a link failed.
    """
    from triton_repo.cli.actions.check_gpu import run

    run(**flags)


if __name__ == "__main__":
    check_gpu(prog_name="check-gpu")
