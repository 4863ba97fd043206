"""The command `calibrate-engine`: its flags and its help."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from engines.console import Command, common_flags, completing, profile_flag, writing_flags
from engines.errors import UserError
from engines.names import PRECISION_NAMES, gpu_names, model_names, refuse_unknown_names

CALIBRATION_OUT = Path("artifacts/calibration.json")
GROUPS = {
    "Measurements": ("--measurements", "--start"),
    "Deployment": (*("--model", "--gpu", "--precision", "--kv-cache", "--tp", "--max-batch-size", "--max-num-tokens"),),
    "Starting point of the fit": ("--engine-profile", "--step-time"),
}


@click.command(
    "calibrate-engine",
    cls=Command,
    groups=GROUPS,
    example="calibrate-engine --measurements points.csv --gpu h100-sxm-80gb --precision fp8",
    epilog=f"Writes {CALIBRATION_OUT} unless --out is given.",
)
@click.option(
    "--measurements",
    multiple=True,
    type=click.Path(path_type=Path),
    help="CSV file of measured points, or a run folder; may be repeated.",
)
@click.option(
    "--model",
    "model_name",
    shell_complete=completing(model_names),
    default="deepseek-r1-0528-qwen3-8b",
    show_default=True,
    help="A known model, or a folder with a config.json.",
)
@click.option(
    "--gpu",
    shell_complete=completing(gpu_names),
    default="h100-sxm-80gb",
    show_default=True,
    help="A known GPU, or FILE.yaml from describe-machine.",
)
@click.option(
    "--precision",
    shell_complete=completing(lambda: PRECISION_NAMES),
    default="fp8",
    show_default=True,
    help="Precision of the linear layers.",
)
@click.option(
    "--kv-cache",
    type=click.Choice(["16bit", "int8", "fp8"]),
    help="KV cache format; a TensorRT engine has no NVFP4 one.  [default: as build-engine chooses]",
)
@click.option("--tp", type=click.IntRange(min=1), default=1, show_default=True, help="Tensor parallel size.")
@click.option(
    "--max-batch-size",
    type=click.IntRange(min=1),
    default=512,
    show_default=True,
    help="Maximum batch size of the deployment.",
)
@click.option(
    "--max-num-tokens",
    type=click.IntRange(min=1),
    help="Maximum tokens in one iteration of the deployment.  [default: the value that fits the points best]",
)
@profile_flag(
    "Engine profile to start from: trtllm-1.x-triton, vllm-v1, ...  Name one only if the deployment runs that "
    "engine.  [default: none, as expected of any engine]"
)
@click.option(
    "--step-time",
    type=click.Choice(["roofline", "silicon"]),
    help=(
        "Step times that the factors scale: data sheets (roofline) or measured kernels (silicon).  [default: silicon; "
        "roofline for an accelerator of your own]"
    ),
)
@click.option(
    "--start",
    type=click.Choice(["together", "staggered"]),
    help="How the measured load started.  [default: together for a CSV, staggered for runs of run-load]",
)
@writing_flags
@common_flags
def calibrate_engine(**flags: Any) -> None:
    """Fit the step-time model to measurements of a deployment: a few physical factors.

    A CSV has the columns concurrency_or_batch, isl, osl, ttft_ms, itl_ms, throughput_out_tok_s; the last three may be
    empty. Rows of another model, GPU, precision or load are skipped. Six points are enough for a first fit. With at
    least two combinations of prompt and reply length, errors are also computed on held-out points.
    """
    if not flags["measurements"]:
        raise UserError("no measurements were given", hint="--measurements RUN_DIR, or a CSV of points")
    refuse_unknown_names(model=flags["model_name"], gpu=flags["gpu"], precision=flags["precision"])
    from loadtest.cli.actions.calibrate_engine import run

    run(**flags | {"out": flags["out"] or CALIBRATION_OUT})
