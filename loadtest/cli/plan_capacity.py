"""The command `plan-capacity`: its flags and its help."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from engines.console import Command, common_flags, writing_flags
from engines.errors import UserError

OUT = Path("artifacts/capacity")
GROUPS = {
    "What to do": ("--what-if", "--verify", "--plan", "--calibrate-from"),
    "Search": ("--workers", "--ray", "--fresh"),
    "Output": ("--out", "--force", "--dry-run"),
}


HELP = """Plan a deployment: precision, GPU, limits, replicas and cost for a given traffic and its objectives.

\b
  plan-capacity demand.yaml                        plan, table and page
  plan-capacity demand.yaml --what-if traffic*=2   also for twice the traffic
  plan-capacity --verify RUN --plan capacity.json  check the plan with a run
  plan-capacity --verify RUN --plan capacity.json --calibrate-from RUN2
                                                   also calibrate, plan again

Exit status: 0: done; 1: failed; 2: usage error; 3: no possible plan, or the plan missed an objective.
"""


@click.command(
    "plan-capacity",
    cls=Command,
    example="plan-capacity demand.yaml --what-if 'traffic*=2'",
    groups=GROUPS,
    help=HELP,
    epilog=f"Writes {OUT}/NAME unless --out is given.",
)
@click.argument("demand_file", required=False, type=click.Path(path_type=Path))
@click.option(
    "--what-if",
    "changes",
    multiple=True,
    metavar="KEY=VALUE|KEY*=RATIO",
    help=(
        "Also plan with a changed demand and compare: precision=int8_sq, gpu=a100-sxm-80gb, osl*=1.5, traffic*=2, ..."
    ),
)
@click.option(
    "--verify",
    "run",
    type=click.Path(path_type=Path),
    help="Check the plan against this run folder of its verify.yaml.",
)
@click.option(
    "--plan",
    "plan_file",
    type=click.Path(path_type=Path),
    help="The plan, capacity.json, for --verify and --calibrate-from.",
)
@click.option(
    "--calibrate-from",
    "calibration_runs",
    multiple=True,
    metavar="RUN",
    type=click.Path(path_type=Path),
    help="Run folder of the plan's calibrate.yaml: calibrate the recommended engine from it and plan again.",
)
@click.option("--workers", type=click.IntRange(min=1), help="Number of search processes.  [default: one per core]")
@click.option("--ray", "on_ray", is_flag=True, help="Search on Ray: on the cluster at RAY_ADDRESS, or locally.")
@click.option("--fresh", is_flag=True, help="Do not use the cache of search results.")
@writing_flags
@common_flags
def plan_capacity(**flags: Any) -> None:
    """Plan a deployment, or verify a plan against a run."""
    _refuse_flags(**flags)
    from loadtest.cli.actions.plan_capacity import plan_demand, verify_or_replan

    if flags["demand_file"] is not None:
        plan_demand(flags["demand_file"], default_folder=OUT, flags=flags)
    else:
        verify_or_replan(flags["run"], flags["plan_file"], default_folder=OUT, flags=flags)


def _refuse_flags(
    demand_file: Path | None, run: Path | None, plan_file: Path | None, calibration_runs: tuple[Path, ...], **_: Any
) -> None:
    """Refuse a command line that names no work, or two kinds of it."""
    if demand_file is None and run is None and plan_file is None and not calibration_runs:
        raise UserError("no demand file was given", hint="plan-capacity demand.yaml; see docs/how-to/plan-capacity.md")
    if demand_file is None and run is None and not calibration_runs:
        raise UserError("--plan alone does nothing", hint="--verify RUN, --calibrate-from RUN, or both")
    if demand_file is not None and (run is not None or plan_file is not None or calibration_runs):
        raise UserError("--verify and --calibrate-from take the demand from the plan", hint=f"omit {demand_file}")
    if demand_file is None and plan_file is None:
        raise UserError("--plan is required", hint="--plan artifacts/capacity/NAME/capacity.json")
