"""plan-capacity: which precision on which GPU, how many replicas, at what cost, for a traffic at its objectives."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from engines.console import Command, command_line, common_flags, progress, show, writing_flags, wrote
from engines.errors import TargetMissedError, UserError
from engines.files import Document, made_by, refuse_existing, source_of, to_json, whole_folder, write_json
from loadtest.capacity.demand import read_demand
from loadtest.capacity.plan import PLAN_NAME, CapacityPlan, Means, make_capacity
from loadtest.capacity.spread import Kept
from loadtest.capacity.table import show_plan
from loadtest.traces import Trace

OUT = Path("artifacts/capacity")


@click.command("plan-capacity", cls=Command, epilog=f"Writes {OUT}/NAME unless --out is given.")
@click.argument("demand_file", required=False, type=click.Path(path_type=Path))
@click.option("--workers", type=int, help="Processes to search in; default: one for each core.")
@click.option("--ray", "on_ray", is_flag=True, help="Search on Ray: RAY_ADDRESS's cluster, or a local one.")
@click.option("--fresh", is_flag=True, help="Do not read results kept from earlier plans.")
@writing_flags
@common_flags
def plan_capacity(demand_file: Path | None, **flags: Any) -> None:
    r"""Plan a deployment: precision, GPU, limits, replicas and cost for a traffic at its objectives.

    \b
    Exit status: 0 done; 1 could not; 2 asked wrongly; 3 the demand is not possible, or the plan did not hold.
    """
    if demand_file is None:
        raise UserError("no demand given", hint="plan-capacity demand.yaml; see docs/how-to/plan-capacity.md")
    demand = read_demand(demand_file)
    target = flags["out"] or OUT / demand.name
    if flags["dry_run"]:
        show(to_json(demand).rstrip())
        return
    refuse_existing(target, force=flags["force"])
    folder = demand_file.parent
    sources = [source_of(demand_file)]
    if isinstance(demand.traffic, Trace) and (folder / demand.traffic.path).is_file():
        sources.append(source_of(folder / demand.traffic.path))
    head = Document(made_by=made_by(command_line("plan-capacity")), made_from=sources)
    kept = Kept(None if flags["fresh"] else target.parent / ".searched")
    means = Means(kept, flags["workers"] or os.cpu_count() or 1, flags["on_ray"], progress)
    plan = make_capacity(demand, folder, head, means, today=datetime.now(tz=UTC).date())
    with whole_folder(target, force=flags["force"]) as made:
        write_plan(plan, made)
    if flags["as_json"]:
        show(to_json(plan).rstrip())
    else:
        show_plan(plan)
        wrote(target, None)
    if plan.recommended is None:
        raise TargetMissedError(f"nothing possible serves {demand.name}", hint=f"nearest possible: {plan.nearest}")


def write_plan(plan: CapacityPlan, folder: Path) -> None:
    """Write a plan's folder."""
    write_json(folder / PLAN_NAME, plan)
