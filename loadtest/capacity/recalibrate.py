"""A plan recomputed from measurements of the deployment it recommends."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from engines.calibration import Calibration, LoadGenerator
from engines.errors import UserError
from engines.files import Document, MadeBy, source_of
from engines.manifest import EngineManifest
from engines.spec import engine_profile_named
from loadtest.calibration import (
    MIN_POINTS,
    Deployment,
    Point,
    Request,
    calibrate,
    points_text,
    read_points,
)
from loadtest.capacity.inputs import Demand
from loadtest.capacity.schema import CapacityPlan
from loadtest.results import RUN_NAME, read_run

CALIBRATION_NAME = "calibration.json"


def recalibrate(
    plan: CapacityPlan, runs: Sequence[Path], *, made_by: MadeBy, progress: Callable[[str], None]
) -> Calibration:
    """Return the calibration of the plan's recommended engine; hardware, precision and limits come from the plan.

    Expected before any point is seen is what the plan was predicted with: its engine profile. The load generator starts
    its users as `run-load` does.

    Raises:
        UserError: The plan recommends no engine, or the runs have too few points with fixed lengths.
    """
    engine = plan.engine
    if engine is None:
        raise UserError("the plan recommends a measured run, so there is nothing to calibrate")
    points, kinds = _points(engine, runs, progress)
    if len(points) < MIN_POINTS:
        where = ", ".join(str(run) for run in runs)
        raise UserError(
            f"{len(points)} measured points in {where}; at least {MIN_POINTS} are needed",
            hint="run-load with the plan's calibrate.yaml measures six loads; repeat --calibrate-from for several runs",
        )
    if len(kinds) > 1:
        raise UserError("emulated and measured runs cannot be fitted together", hint="use runs of one kind")
    bare = engine.model_copy(
        update={"step_time": engine.step_time.model_copy(update={"profile": None, "factors": None, "host": None})}
    )
    profile = engine.step_time.profile
    request = Request(
        bare,
        tuple(points),
        LoadGenerator(start="staggered"),
        engine.limits.max_num_tokens,
        kinds.pop(),
        None if profile is None else engine_profile_named(profile),
    )
    head = Document(made_by=made_by, made_from=[source_of(run / RUN_NAME) for run in runs])
    return calibrate(request, head=head, progress=progress)


def with_calibration(demand: Demand, calibration: Path) -> Demand:
    """Return a demand whose candidates are predicted with a calibration."""
    known = (*demand.candidates.calibrations, str(calibration.resolve()))
    return demand.model_copy(update={"candidates": demand.candidates.model_copy(update={"calibrations": known})})


def _points(
    engine: EngineManifest, runs: Sequence[Path], progress: Callable[[str], None]
) -> tuple[list[Point], set[str]]:
    """Return the points of all runs and the kinds of their figures; say what each run gave."""
    wanted = Deployment(engine.model.name, engine.gpu.name, engine.precision.name, engine.parallel.tensor)
    points: list[Point] = []
    kinds: set[str] = set()
    for run in runs:
        kinds.add(read_run(run).kind)
        found, left_out = read_points(run, wanted)
        progress(points_text(run, found, left_out))
        points += found
    return points, kinds
