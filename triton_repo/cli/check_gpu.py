"""The command `check-gpu`: its flags and its help."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from engines import console
from engines.names import PRECISION_NAMES

FOLDER = click.Path(path_type=Path)


@click.command(
    "check-gpu",
    cls=console.Command,
    example="check-gpu --precision fp8",
    epilog="Writes artifacts/gpu-check unless --out is given.",
)
@click.option("--checkpoint", type=FOLDER, help="Hugging Face checkpoint.  [default: SmolLM2, whose answer is known]")
@click.option(
    "--precision",
    type=click.Choice(PRECISION_NAMES),
    help="Precision of the engine.  [default: fp8 if the GPU supports it, else int8_sq]",
)
@click.option("--out", type=FOLDER, default=None, help="Folder for the report, the logs and the built engine.")
@click.option("--force", is_flag=True, help="Replace an existing output.")
@click.option("--list", "only_list", is_flag=True, help="Print the links and what each was checked against, and exit.")
@click.option(
    "--skip",
    "may_skip",
    is_flag=True,
    help="If this machine cannot run the check, print the reason and exit with status 0.",
)
@console.common_flags
def check_gpu(**flags: Any) -> None:
    """Build, serve and load-test a real engine on this machine, step by step, and write a report.

    The steps are the links of docs/explanation/what-was-verified.md; each is marked passed, failed or not reached.
    Needs a GPU and the container with TensorRT-LLM. Attach the report, report.md, to an issue. Exits with status 3 if
    a link failed.
    """
    from triton_repo.cli.actions.check_gpu import run

    run(**flags)


if __name__ == "__main__":
    check_gpu(prog_name="check-gpu")
