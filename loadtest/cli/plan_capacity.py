"""plan-capacity: which precision on which GPU, how many replicas, at what cost, for a traffic at its objectives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from engines.console import Command, common_flags, writing_flags

OUT = Path("artifacts/capacity")
GROUPS = {
    "What to ask": ("--what-if", "--verify", "--plan", "--calibrate-from"),
    "How to search": ("--workers", "--ray", "--fresh"),
    "Where to": ("--out", "--force", "--dry-run"),
}


HELP = """Plan a deployment: precision, GPU, limits, replicas and cost for a traffic at its objectives.

\b
  plan-capacity demand.yaml                         the plan, its table, its page
  plan-capacity demand.yaml --what-if traffic*=2    and what twice the traffic would take
  plan-capacity --verify RUN --plan capacity.json   did it hold on the real deployment?
  plan-capacity --verify RUN --plan capacity.json --calibrate-from RUN2   and plan again from what was measured

\b
Exit status: 0 done; 1 could not; 2 asked wrongly; 3 the demand is not possible, or the plan did not hold.
"""


@click.command(
    "plan-capacity", cls=Command, groups=GROUPS, help=HELP, epilog=f"Writes {OUT}/NAME unless --out is given."
)
@click.argument("demand_file", required=False, type=click.Path(path_type=Path))
@click.option(
    "--what-if",
    "changes",
    multiple=True,
    metavar="KEY=VALUE|KEY*=RATIO",
    help="Plan again with this changed, side by side: precision=int8_sq, gpu=a100-sxm-80gb, osl*=1.5, traffic*=2, ...",
)
@click.option("--verify", "run", type=click.Path(path_type=Path), help="Run folder of the plan's verify.yaml.")
@click.option("--plan", "plan_file", type=click.Path(path_type=Path), help="capacity.json that --verify is held to.")
@click.option(
    "--calibrate-from",
    "calibration_runs",
    multiple=True,
    metavar="RUN",
    type=click.Path(path_type=Path),
    help="Run folder of the plan's calibrate.yaml: calibrate the recommended engine from it and plan again.",
)
@click.option("--workers", type=click.IntRange(min=1), help="Processes to search in; default: one for each core.")
@click.option("--ray", "on_ray", is_flag=True, help="Search on Ray: RAY_ADDRESS's cluster, or a local one.")
@click.option("--fresh", is_flag=True, help="Neither read nor keep results of single searches.")
@writing_flags
@common_flags
def plan_capacity(**flags: Any) -> None:
    """Plan a deployment, or say whether a plan held."""
    from loadtest.cli.actions.plan_capacity import run

    run(**flags, default_folder=OUT)
