"""The command that searches for a server's knee: find-knee."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from engines.console import Command, common_flags, writing_flags
from loadtest.cli.target_options import TARGET_FLAGS, target_flags

KNEE_OUT = Path("artifacts/knee")
AXES = ("rate", "concurrency")
MOST_REQUESTS = 4096
GROUPS = {"The server, where no engine folder is given": TARGET_FLAGS}


@click.command("find-knee", cls=Command, groups=GROUPS, epilog=f"Writes {KNEE_OUT} unless --out is given.")
@click.argument("engine_dir", required=False, type=click.Path(path_type=Path))
@click.option("--scenario", "scenario_name", metavar="NAME|FILE", help="A scenario: lengths, prompts, arrivals.")
@target_flags
@click.option("--isl", help="Prompt length in tokens.")
@click.option("--osl", help="Reply length in tokens.")
@click.option("--objectives", type=click.Path(path_type=Path), help="Objectives, a YAML file.")
@click.option(
    "--objective", multiple=True, metavar="QUANTITY.STATISTIC=SECONDS", help="One of them, as in ttft_s.p95=0.5."
)
@click.option(
    "--by",
    "axis",
    type=click.Choice(AXES),
    default="rate",
    show_default=True,
    help="Search over requests a second of an open loop, or users of a closed one.",
)
@click.option("--from", "least", type=float, help="Least load of interest; default: a quarter request in flight.")
@click.option("--to", "most", type=float, help="Highest load of interest; default: 4,096 requests in flight.")
@click.option("--tolerance", type=float, default=0.05, show_default=True, help="Width of the bracket that is enough.")
@click.option("--most-requests", type=int, default=MOST_REQUESTS, show_default=True, help="Of one probe, measured.")
@click.option("--seed", type=int, help="Seed of arrivals and lengths.")
@writing_flags
@common_flags
def find_knee(**flags: Any) -> None:
    """Find the highest load that keeps every objective, by bracketing, and what the next load missed.

    Of an engine folder the knee is predicted, on a virtual clock; of a server it is measured, or emulated where its
    engine is. A probe takes as many requests as tell the verdicts apart with 99 % confidence, up to --most-requests.
    Ends with status 3 where even the least load misses.
    """
    from loadtest.cli.actions.find_knee import run

    run(**flags | {"out": flags["out"] or KNEE_OUT})
