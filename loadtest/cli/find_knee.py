"""The command `find-knee`: its flags and its help."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from engines.console import Command, common_flags, completing, writing_flags
from engines.errors import UserError
from loadtest.cli.load_flags import library_names
from loadtest.cli.target_options import TARGET_FLAGS, target_flags

KNEE_OUT = Path("artifacts/knee")
AXES = ("rate", "concurrency")
MAX_REQUESTS = 4096
GROUPS = {
    "Search": ("--objective", "--objectives", "--by", "--from", "--to", "--tolerance", "--max-requests"),
    "Load": ("--scenario", "--isl", "--osl", "--seed"),
    "Server (if no engine folder is given)": TARGET_FLAGS,
}


@click.command(
    "find-knee",
    cls=Command,
    example="find-knee --url http://127.0.0.1:8000 --objective ttft_s.p95=0.5",
    groups=GROUPS,
    epilog=f"Writes {KNEE_OUT} unless --out is given.",
)
@click.argument("engine_dir", required=False, type=click.Path(path_type=Path))
@click.option(
    "--scenario",
    "scenario_name",
    shell_complete=completing(library_names),
    metavar="NAME|FILE",
    help="Scenario with lengths, prompts and arrivals.",
)
@target_flags
@click.option("--isl", help="Prompt length in tokens.")
@click.option("--osl", help="Reply length in tokens.")
@click.option("--objectives", type=click.Path(path_type=Path), help="YAML file with objectives.")
@click.option(
    "--objective",
    multiple=True,
    metavar="QUANTITY.STATISTIC=SECONDS",
    help="An objective, for example ttft_s.p95=0.5, or errors_ratio=0.01; may be repeated.",
)
@click.option(
    "--by",
    "axis",
    type=click.Choice(AXES),
    default="rate",
    show_default=True,
    help="Search over the request rate (open loop) or over the number of users (closed loop).",
)
@click.option(
    "--from",
    "least",
    type=click.FloatRange(min=0, min_open=True),
    help="Lowest load to try.  [default: the rate that keeps a quarter of a request in flight]",
)
@click.option(
    "--to",
    "most",
    type=click.FloatRange(min=0, min_open=True),
    help="Highest load to try.  [default: the rate that keeps 4,096 requests in flight]",
)
@click.option(
    "--tolerance",
    type=click.FloatRange(min=0, min_open=True),
    default=0.05,
    show_default=True,
    help="Relative width of the bracket at which the search ends.",
)
@click.option(
    "--max-requests",
    type=click.IntRange(min=1),
    default=MAX_REQUESTS,
    show_default=True,
    help="Maximum measured requests of one probe.",
)
@click.option("--seed", type=int, help="Seed for arrivals and lengths.")
@writing_flags
@common_flags
def find_knee(**flags: Any) -> None:
    """Find the highest load that meets every objective, and what the next load missed.

    For an engine folder the knee is predicted on a virtual clock; for a server it is measured, or emulated if the
    server's engine is. A probe ends once each objective is met or missed with 99 % confidence, or after
    --max-requests. Exits with status 3 if even the lowest load misses an objective.
    """
    if not flags["objective"] and flags["objectives"] is None and flags["scenario_name"] is None:
        raise no_objectives_error()
    for flag, load in (("--from", flags["least"]), ("--to", flags["most"])):
        if load is not None and flags["axis"] == "concurrency" and not load.is_integer():
            raise UserError(f"{flag} {load:g}: a number of users is whole", hint=f"{flag} {max(1, round(load))}")
    if flags["least"] and flags["most"] and flags["least"] > flags["most"]:
        raise UserError(f"--from {flags['least']:g} is above --to {flags['most']:g}", hint="exchange the two")
    from loadtest.cli.actions.find_knee import run

    run(**flags | {"out": flags["out"] or KNEE_OUT})


def no_objectives_error() -> UserError:
    """Return the error of a search without an objective, from flags, a file or a scenario."""
    return UserError("no objectives were given", hint="--objective ttft_s.p95=0.5 --objective itl_s.p99=0.05")
