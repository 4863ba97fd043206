"""Commands that compute instead of measuring: predict-load, calibrate-engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from engines.console import Command, common_flags


@click.command("predict-load", cls=Command)
@click.argument("engine_dir", required=False, type=click.Path(path_type=Path))
@click.option("--model", "model_name", help="A known model, where no engine is given.")
@click.option("--gpu", help="A known GPU, where no engine is given.")
@click.option("--precision", help="Number format, where no engine is given.")
@click.option("--tp", type=int, help="Tensor parallel size, where no engine is given.")
@click.option("--max-batch-size", type=int, help="Sequences in one iteration, where no engine is given.")
@click.option(
    "--engine-profile",
    metavar="NAME",
    help="What is expected above the kernels: trtllm-1.x-triton, trtllm-serve, vllm-v1, ...; the engine's own choice.",
)
@click.option(
    "--step-time",
    type=click.Choice(["roofline", "silicon"]),
    help="Data sheets, or tables of measured kernels; default: what held-out rows favour, or the engine's own choice.",
)
@click.option("--calibration", type=click.Path(path_type=Path), help="calibration.json of calibrate-engine.")
@click.option("--max-num-tokens", type=int, help="Tokens in one iteration, where no engine is given.")
@click.option("--kv-cache", type=click.Choice(["16bit", "fp8", "int8"]), help="KV cache format, as above.")
@click.option(
    "--scenario", "scenario_name", metavar="NAME|FILE", help="A scenario that comes with the package, or a YAML file."
)
@click.option("--concurrency", metavar="N,N,...", help="Users at each level.")
@click.option("--static-batch", is_flag=True, help="--concurrency is a batch: all at once, once, the bare engine.")
@click.option("--at-once", is_flag=True, help="--concurrency is a queue: so many requests sent at once, once.")
@click.option("--rate", metavar="R,R,...", help="Requests a second at each level instead: Poisson arrivals.")
@click.option(
    "--duration", type=float, help="Seconds that an open loop sends for; its shape shrinks with it, its rates stay."
)
@click.option("--isl", help="Prompt length in tokens: a number, or as in 'lognormal(mean=1024, cv=0.8)'.")
@click.option("--osl", help="Reply length in tokens, likewise.")
@click.option("--requests", type=int, help="Requests measured at each level.")
@click.option("--prompts", metavar="SOURCE", help="A file of prompts whose own lengths are wanted.")
@click.option(
    "--tokenizer", type=click.Path(path_type=Path), help="tokenizer.json, to count them; default: the engine's own."
)
@click.option("--seed", type=int, help="Seed of arrivals and lengths.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder to write the run to, for report-load.")
@click.option("--force", is_flag=True, help="Replace what --out already holds.")
@common_flags
def predict_load(**flags: Any) -> None:
    """Predict what run-load would show, on a virtual clock: the same batcher, no server, no client.

    Takes an engine folder, or a model, a GPU and a precision. Without --calibration, step times are uncalibrated and
    everything above the engine is left out: see docs/measurements.md for how far off that is. With it, the means carry
    intervals, and a closed loop sends as the calibration's load generator did. --out keeps what run-load would have.
    """
    from loadtest.cli.actions.predict_load import run

    run(**flags)
