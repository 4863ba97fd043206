"""The command `calibrate-engine`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from engines.console import Command, common_flags, writing_flags

CALIBRATION_OUT = Path("artifacts/calibration.json")


@click.command("calibrate-engine", cls=Command, epilog=f"Writes {CALIBRATION_OUT} unless --out is given.")
@click.option(
    "--measurements",
    multiple=True,
    required=True,
    type=click.Path(exists=True, path_type=Path),
    help="A CSV of measured points, or the folder of a run; may be given again.",
)
@click.option("--model", "model_name", default="deepseek-r1-0528-qwen3-8b", show_default=True, help="A known model.")
@click.option("--gpu", default="h100-sxm-80gb", show_default=True, help="A known GPU.")
@click.option("--precision", default="fp8", show_default=True, help="Number format of the linear layers.")
@click.option("--kv-cache", type=click.Choice(["16bit", "fp8", "int8"]), help="KV cache format; default: as built.")
@click.option("--tp", type=int, default=1, show_default=True, help="Tensor parallel size.")
@click.option("--max-batch-size", type=int, default=512, show_default=True, help="The deployment's.")
@click.option("--max-num-tokens", type=int, help="The deployment's; default: what explains the points best.")
@click.option(
    "--engine-profile",
    metavar="NAME",
    help="What is expected before any point is seen: trtllm-1.x-triton (default), trtllm-serve, vllm-v1, sglang, ...",
)
@click.option(
    "--step-time",
    type=click.Choice(["roofline", "silicon"]),
    default="silicon",
    show_default=True,
    help="What the factors stand before: data sheets, or tables of measured kernels.",
)
@click.option(
    "--start",
    type=click.Choice(["together", "staggered"]),
    help="How the measured load began; default: together for a CSV, staggered for runs of run-load.",
)
@writing_flags
@common_flags
def calibrate_engine(**flags: Any) -> None:
    """Learn from measurements how a deployment differs from its parts: a handful of physical factors.

    A CSV has the columns concurrency_or_batch, isl, osl, ttft_ms, itl_ms, throughput_out_tok_s, any of the last three
    possibly empty; rows that say they are of another model, GPU, precision or load are left out. Six points are enough
    to begin with; two shapes of prompt and reply let the errors be judged on what was not seen.
    """
    from loadtest.cli.actions.calibrate_engine import run

    run(**flags | {"out": flags["out"] or CALIBRATION_OUT})
