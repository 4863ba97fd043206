"""The command `describe-machine`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from engines.console import Command, common_flags, writing_flags

OUT = Path("artifacts/machine.yaml")
GROUPS = {"What to measure": ("--device", "--threads", "--cores", "--vllm", "--model", "--name")}


@click.command(
    "describe-machine",
    cls=Command,
    groups=GROUPS,
    example="describe-machine --cores 1 --out artifacts/one-core.yaml",
    epilog=f"Writes {OUT} unless --out is given.",
)
@click.option(
    "--device",
    type=click.Choice(["auto", "cpu", "gpu"]),
    default="auto",
    show_default=True,
    help="What to describe. auto: the GPU if torch sees one, else the CPU.",
)
@click.option(
    "--threads",
    type=click.IntRange(min=1),
    help="Threads that measure the CPU, each on its own core.  [default: all cores]",
)
@click.option("--cores", metavar="LIST", help="Logical cores to pin to, as in 0,2-3: those that the server will have.")
@click.option(
    "--vllm",
    type=click.Path(path_type=Path),
    metavar="PYTHON",
    help="Python of an environment with vLLM for CPUs: also measure its matrix products by number of rows.",
)
@click.option(
    "--model",
    "model_name",
    help="With --vllm: a known model, or a folder with a config.json, whose matrices to measure with.",
)
@click.option("--name", help="Name in figures and calibrations.  [default: after the processor's model]")
@writing_flags
@common_flags
def describe_machine(**flags: Any) -> None:
    """Measure this machine and write the file that --gpu takes.

    Memory bandwidth (STREAM's copy and triad, and reading), matrix products by precision and threads with numpy, and
    with torch if it is installed. A server on one core has one core's bandwidth: give its --cores.
    """
    from engines.cli.actions.describe_machine import run

    run(**flags)
