"""The command `report-load`: its flags and its help."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import click

from engines.console import Command, common_flags, writing_flags
from engines.errors import UserError

REPORT_OUT = Path("artifacts/report")
COMPARISON_OUT = Path("artifacts/comparison")
# Only charts leave garbage that a search would find, some 4,000 objects each: searching as often as other commands do
# would take a twentieth of this one's time, and free next to nothing before it ends.
_GARBAGE_OBJECTS = 500_000
_FOLDER = click.Path(path_type=Path)


@click.command(
    "report-load",
    cls=Command,
    example="report-load artifacts/run",
    epilog=f"Writes {REPORT_OUT}, or with --compare {COMPARISON_OUT}, unless --out is given.",
    groups={
        "Compare": ("--compare", "--across-kinds", "--max-regression"),
        "Gate": ("--gate", "--junit"),
        "Cost": ("--gpu-price", "--vendor", "--prices", "--terms", "--gpu", "--gpus", "--engine"),
        "Output": ("--out", "--force", "--no-exports", "--dry-run"),
    },
)
@click.argument("runs", metavar="[RUN_DIR]...", nargs=-1, type=_FOLDER)
@click.option(
    "--compare",
    nargs=2,
    type=_FOLDER,
    metavar="BASELINE CANDIDATE",
    help="Compare two runs side by side instead of writing a report.",
)
@click.option(
    "--across-kinds", is_flag=True, help="Allow runs of different kinds, for example predicted against emulated."
)
@click.option(
    "--max-regression",
    type=click.FloatRange(min=0, max=1),
    metavar="RATIO",
    help=(
        "With --compare: exit with status 3 if a figure is significantly worse, by more than this ratio (0.05 is 5 %)."
    ),
)
@click.option(
    "--gate", type=click.Path(path_type=Path), help="YAML file with objectives. Exit with status 3 if one is missed."
)
@click.option("--junit", type=click.Path(path_type=Path), help="Write the results as JUnit XML to this file.")
@click.option("--gpu-price", type=click.FloatRange(min=0, min_open=True), metavar="USD", help="Price of a GPU hour.")
@click.option("--vendor", metavar="NAME", help="Vendor whose list price to take, from the shipped price file.")
@click.option("--prices", type=click.Path(path_type=Path), metavar="FILE", help="Your own price file, with --vendor.")
@click.option(
    "--terms",
    type=click.Choice(["on_demand", "reserved", "spot"]),
    default="on_demand",
    show_default=True,
    help="Terms of the list price.",
)
@click.option("--gpu", metavar="NAME", help="GPU of the list price.  [default: the engine's]")
@click.option(
    "--gpus", type=click.IntRange(1), help="GPUs of the server, all replicas.  [default: the engine's, of one replica]"
)
@click.option(
    "--engine",
    "engine_dir",
    type=_FOLDER,
    help="Engine folder: its step-time model splits the cost into input, cached input and output.",
)
@click.option("--no-exports", is_flag=True, help="Do not write CSV, Parquet and AIPerf JSON.")
@writing_flags
@common_flags
def report_load(**flags: Any) -> None:
    """Evaluate run folders: summary.json, charts, exports, and a self-contained HTML page.

    Several runs share a report only if all are measured, all emulated or all predicted. Runs of one scenario show the
    spread between runs. --compare shows two runs side by side. --gate and --max-regression pass or fail a run.
    """
    _refuse_flags(flags["runs"], flags)
    gc.set_threshold(_GARBAGE_OBJECTS)
    from loadtest.cli.actions.report_load import run

    default = COMPARISON_OUT if flags["compare"] else REPORT_OUT
    run(**flags | {"out": flags["out"] or default})


def _refuse_flags(runs: tuple[Path, ...], flags: dict[str, Any]) -> None:
    """Refuse flags that exclude each other, and flags without the one they require."""
    if not runs and not flags["compare"]:
        raise UserError("no run folder was given", hint="report-load RUN_DIR...")
    if flags["compare"] and runs:
        raise UserError(
            "--compare takes both runs as its own arguments", hint="report-load --compare BASELINE CANDIDATE"
        )
    for flag in ("across_kinds", "max_regression"):
        if flags[flag] and not flags["compare"]:
            raise UserError(f"--{flag.replace('_', '-')} needs --compare", hint="add --compare BASELINE CANDIDATE")
    is_gated = flags["max_regression"] is not None if flags["compare"] else flags["gate"] is not None
    if flags["compare"] and flags["gate"]:
        raise UserError(
            "--gate checks one run, not a comparison",
            hint=("use report-load CANDIDATE --gate FILE, or --max-regression"),
        )
    if flags["junit"] and not is_gated:
        raise UserError("--junit needs --gate or --max-regression", hint="add --gate FILE or --max-regression RATIO")
