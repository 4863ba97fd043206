"""The implementation of `plan-capacity`."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from engines.console import command_line, progress, quoted, show, wrote
from engines.errors import TargetMissedError
from engines.files import Document, made_by, read_json, source_of, to_json, write_json, write_text
from engines.outputs import refuse_existing, whole_folder
from engines.spec import sources_named
from loadtest.capacity import (
    CALIBRATION_NAME,
    COMPARED_NAME,
    PLAN_NAME,
    CapacityPlan,
    Compared,
    ResultCache,
    SearchOptions,
    WhatIf,
    compared,
    impossible,
    make_capacity,
    recalibrate,
    verify,
    what_if,
    with_calibration,
    workers_of,
)
from loadtest.capacity.inputs import Demand, read_demand
from loadtest.capacity.output import (
    CALIBRATE_NAME,
    PAGE_NAME,
    RECIPE_NAME,
    SCENARIO_NAME,
    show_compared,
    show_first,
    show_plan,
    show_verification,
    write_deployment_files,
)
from loadtest.cli.tables import warn_of_limits
from loadtest.scenario import Trace


def plan_demand(demand_file: Path, *, default_folder: Path, flags: dict[str, Any]) -> None:
    """Plan a deployment for a demand."""
    demand = read_demand(demand_file)
    warn_of_limits(*demand.all_objectives.values())
    changed = [what_if(demand, change) for change in flags["changes"]]
    if flags["dry_run"]:
        show(to_json(demand).rstrip())
        return
    target = flags["out"] or default_folder / demand.name
    refuse_existing(target, force=flags["force"], inputs=_inputs(demand, demand_file), command="plan-capacity")
    _plan(demand, changed, _head(demand, demand_file), demand_file.parent, target, flags)


def _plan(
    demand: Demand, changed: list[WhatIf], head: Document, folder: Path, target: Path, flags: dict[str, Any]
) -> None:
    """Plan a demand and its what-if variants; write and print the result."""
    today = datetime.now(tz=UTC).date()
    cache = ResultCache(None if flags["fresh"] else target.parent / ".searched")
    with workers_of(flags["workers"] or os.cpu_count() or 1, on_ray=flags["on_ray"]) as workers:
        options = SearchOptions(cache, workers, progress, show_first)
        plan = make_capacity(demand, folder, head, options, today=today)
        others = {
            each.change: make_capacity(each.demand, folder, head, options, today=today, is_brief=True)
            for each in changed
        }
    together = compared(plan, others, head) if others else None
    _write(plan, together, folder, target, force=flags["force"])
    if flags["as_json"]:
        show(to_json(together or plan).rstrip())
    else:
        _show(plan, together, target)
    if plan.recommended is None:
        raise TargetMissedError(impossible(demand), hint=plan.nearest)


def verify_or_replan(run: Path | None, plan_file: Path, *, default_folder: Path, flags: dict[str, Any]) -> None:
    """Verify a plan against a run; with runs to calibrate from, plan again from them."""
    runs: tuple[Path, ...] = flags["calibration_runs"]
    if run is not None:
        _verify(run, plan_file, as_json=flags["as_json"] and not runs, is_last=not runs)
    if runs:
        _replan(plan_file, runs, default_folder, flags)


def _verify(run: Path, plan_file: Path, *, as_json: bool, is_last: bool) -> None:
    found = verify(plan_file, run, made_by=made_by(command_line("plan-capacity")))
    if as_json:
        show(to_json(found).rstrip())
    else:
        show_verification(found)
    why = [*(f"missed {each}" for each in found.missed), *(f"not valid: {each}" for each in found.validity_issues)]
    if found.held:
        return
    text = f"the plan failed its verification ({found.label}): {'; '.join(why)}"
    if not is_last:
        progress(text)
        return
    again = f"run-load with the plan's {CALIBRATE_NAME}, then plan-capacity --plan {plan_file} --calibrate-from RUN"
    repeat = f"repeat run-load with the plan's {SCENARIO_NAME}: this run cannot verify it"
    raise TargetMissedError(text, hint=repeat if found.validity_issues else again)


def _replan(plan_file: Path, runs: tuple[Path, ...], default_folder: Path, flags: dict[str, Any]) -> None:
    """Calibrate the plan's recommended engine from runs, and plan its demand again with the calibration."""
    plan = read_json(plan_file, CapacityPlan)
    target = flags["out"] or default_folder / f"{plan.demand.name}-calibrated"
    refuse_existing(target, force=flags["force"], inputs=[plan_file, *runs], command="plan-capacity")
    by = made_by(command_line("plan-capacity"))
    found = recalibrate(plan, runs, made_by=by, progress=progress)
    path = target.parent / f"{target.name}.{CALIBRATION_NAME}"
    write_json(path, found)
    folder = Path(plan.made_from[0].path).parent if plan.made_from else Path()
    head = Document(made_by=by, made_from=[*plan.made_from[:1], source_of(plan_file), source_of(path)])
    _plan(with_calibration(plan.demand, path), [], head, folder, target, flags)


def _inputs(demand: Demand, demand_file: Path) -> list[Path]:
    """Return every file and folder that a demand refers to."""
    chosen = demand.candidates
    named = [*chosen.engines, *chosen.calibrations, *(run.path for run in chosen.runs)]
    named += () if demand.accuracy is None else (demand.accuracy.baseline, *demand.accuracy.engines)
    named += [demand.traffic.path] if isinstance(demand.traffic, Trace) else []
    named += [demand.prices.file] if demand.prices.file is not None else []
    named += [demand.autoscaling.loading_from] if demand.autoscaling.loading_from is not None else []
    return [demand_file, *(demand_file.parent / each for each in named)]


def _head(demand: Demand, demand_file: Path) -> Document:
    folder = demand_file.parent
    read = [demand_file]
    if isinstance(demand.traffic, Trace):
        read.append(folder / demand.traffic.path)
    if demand.prices.file is not None:
        read.append(folder / demand.prices.file)
    if demand.autoscaling.loading_from is not None:
        read.append(folder / demand.autoscaling.loading_from)
    sources = [source_of(path) for path in read if path.is_file()]
    for gpu in demand.limits.gpu_names:
        sources += sources_named(gpu=gpu, model=None)
    sources += sources_named(gpu=None, model=demand.model)
    return Document(made_by=made_by(command_line("plan-capacity")), made_from=sources)


def _write(plan: CapacityPlan, together: Compared | None, folder: Path, target: Path, *, force: bool) -> None:
    from loadtest.capacity.output.html_page import page_of  # imports matplotlib, which the search does not need

    with whole_folder(target, made_by=plan.made_by, force=force) as made:
        write_json(made / PLAN_NAME, plan)
        write_text(made / PAGE_NAME, page_of(plan, together))
        if together is not None:
            write_json(made / COMPARED_NAME, together)
        for name, text in write_deployment_files(plan, folder, target).items():
            write_text(made / name, text)


def _show(plan: CapacityPlan, together: Compared | None, target: Path) -> None:
    show_plan(plan)
    if together is not None:
        show_compared(together)
    if plan.recommended is not None:
        check = f"plan-capacity --verify RUN --plan {quoted(target / PLAN_NAME)}"
        run = f"run-load --scenario {quoted(target / SCENARIO_NAME)} --url URL --out RUN"
        recipe = target / RECIPE_NAME
        wrote(target, f"build-engine --recipe {quoted(recipe)} --checkpoint DIR" if recipe.is_file() else run)
        if recipe.is_file():
            show(f"with one replica served: {run}")
        show(f"then: {check}")
    else:
        wrote(target)
