"""The command `predict-load`: its flags and its help."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from engines.console import PROFILE_HELP, Command, common_flags, completing, draft_flags, profile_flag
from engines.errors import UserError
from engines.names import PRECISION_NAMES, gpu_names, model_names, refuse_unknown_names
from loadtest.cli.load_flags import concurrency_flag, load_flags, refuse_two_loads, scenario_flag

ENGINE_GROUP = "Engine (if no engine folder is given)"
GROUPS = {
    "Load": (
        *("--scenario", "--concurrency", "--rate", "--duration", "--requests", "--isl", "--osl", "--prompts"),
        *("--seed", "--static-batch", "--at-once", "--tokenizer"),
    ),
    ENGINE_GROUP: (
        *("--model", "--gpu", "--precision", "--kv-cache", "--tp", "--max-batch-size", "--max-num-tokens"),
        *("--speculative", "--draft-model", "--max-draft-len", "--max-total-draft-tokens", "--acceptance"),
    ),
    "Prediction": ("--calibration", "--engine-profile", "--step-time"),
}


@click.command(
    "predict-load",
    cls=Command,
    groups=GROUPS,
    example="predict-load artifacts/engines/NAME --concurrency 1,8,32 --isl 1000 --osl 200",
)
@click.argument("engine_dir", required=False, type=click.Path(path_type=Path))
@click.option(
    "--model",
    "model_name",
    shell_complete=completing(model_names),
    help="A known model, or a folder with a config.json.",
)
@click.option(
    "--gpu",
    shell_complete=completing(gpu_names),
    help="A known GPU, or FILE.yaml from describe-machine.",
)
@click.option(
    "--precision", shell_complete=completing(lambda: PRECISION_NAMES), help="Weight and arithmetic precision."
)
@click.option("--tp", type=click.IntRange(min=1), help="Tensor parallel size.")
@click.option(
    "--max-batch-size",
    type=click.IntRange(min=1),
    help="Maximum sequences in one iteration.",
)
@click.option(
    "--speculative",
    metavar="MODE",
    help="Speculative decoding: eagle3, ...",
)
@click.option("--draft-model", metavar="DIR|NAME", help="Draft model for eagle3 or draft_target.")
@draft_flags
@profile_flag(f"{PROFILE_HELP}  [default: the engine's]")
@click.option(
    "--step-time",
    type=click.Choice(["roofline", "silicon"]),
    help=(
        "Source of step times: data sheets (roofline) or measured kernels (silicon).  [default: the "
        "engine's choice, or the one with the lower held-out error]"
    ),
)
@click.option("--calibration", type=click.Path(path_type=Path), help="calibration.json from calibrate-engine.")
@click.option(
    "--max-num-tokens",
    type=click.IntRange(min=1),
    help="Maximum tokens in one iteration.",
)
@click.option(
    "--kv-cache",
    type=click.Choice(["16bit", "int8", "fp8"]),
    help="KV cache format. NVFP4: give an engine folder of --backend pytorch.",
)
@scenario_flag
@concurrency_flag
@click.option(
    "--static-batch",
    is_flag=True,
    help="Treat --concurrency as one static batch on the bare engine: all requests start at once.",
)
@click.option(
    "--at-once", is_flag=True, help="Treat --concurrency as a queue: send that many requests at once, one time."
)
@load_flags
@click.option("--prompts", metavar="SOURCE", help="File of prompts whose lengths to use.")
@click.option(
    "--tokenizer",
    type=click.Path(path_type=Path),
    help="tokenizer.json to count the prompts' tokens.  [default: the engine's tokenizer]",
)
@click.option("--seed", type=int, help="Seed for arrivals and lengths.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder for the predicted run, for report-load.")
@click.option("--force", is_flag=True, help="Replace an existing output.")
@common_flags
def predict_load(**flags: Any) -> None:
    """Predict the results of run-load on a virtual clock: the same batcher, without server and client.

    Takes an engine folder, or a model, a GPU and a precision. With --calibration, step times, overheads above the
    engine and prediction intervals are the calibration's, and a closed loop sends as its load generator did. Without
    it, they are those of the engine profile; docs/measurements/fidelity.md shows the resulting error. --out writes a
    run folder like run-load's.
    """
    refuse_two_loads(flags)
    _refuse_two_engines(flags)
    refuse_unknown_names(model=flags["model_name"], gpu=flags["gpu"], precision=flags["precision"])
    from loadtest.cli.actions.predict_load import run

    run(**flags)


def _refuse_two_engines(flags: dict[str, Any]) -> None:
    """Refuse an engine folder together with flags that describe another engine."""
    names = {"--model": "model_name"}
    given = [flag for flag in GROUPS[ENGINE_GROUP] if flags[names.get(flag, flag[2:].replace("-", "_"))] is not None]
    if flags["engine_dir"] is not None and given:
        raise UserError(
            f"{', '.join(given)}: not with an engine folder, which has its own: {flags['engine_dir']}",
            hint="omit the folder, or build another engine with build-engine",
        )
