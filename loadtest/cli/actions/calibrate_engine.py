"""The implementation of `calibrate-engine`."""

from __future__ import annotations

from collections import Counter
from typing import Any

from engines.calibration import LoadGenerator
from engines.console import command_line, progress, quoted, show, wrote
from engines.errors import UserError
from engines.files import Document, made_by, source_of, to_json, write_json
from engines.outputs import paths_named, refuse_existing_file
from engines.spec import engine_profile_named, is_accelerator_file, resolve_gpu, resolve_model, sources_named
from loadtest.calibration import (
    MIN_POINTS,
    SERVED,
    TOKEN_BUDGETS,
    Deployment,
    Point,
    Request,
    calibrate,
    points_text,
    read_points,
)
from loadtest.cli.engine_options import planned
from loadtest.cli.tables import show_calibration
from loadtest.results import RUN_NAME, read_run
from loadtest.traffic import length_stats_of


def run(**flags: Any) -> None:
    """Fit the step-time model to measurements of a deployment, and write the calibration."""
    points, kinds = _read_measurements(flags)
    target = flags["out"]
    if flags["dry_run"]:
        show(f"would fit {len(points)} points and write {target}")
        return
    refuse_existing_file(target, force=flags["force"], inputs=paths_named(flags))
    longest = length_stats_of([max(point.isl for point in points)], [max(point.osl for point in points)])
    limits = {"max_num_tokens": flags["max_num_tokens"] or max(TOKEN_BUDGETS)}
    source = flags["step_time"] or ("roofline" if is_accelerator_file(flags["gpu"]) else "silicon")
    manifest = planned({**flags, **limits, "step_time": source}, None, [longest])
    named = flags["engine_profile"]
    request = Request(
        manifest,
        tuple(points),
        LoadGenerator(start=flags["start"] or ("together" if "table" in kinds else "staggered")),
        flags["max_num_tokens"],
        "emulated" if "emulated" in kinds else "measured",
        None if named is None else engine_profile_named(named),
    )
    head = Document(
        made_by=made_by(command_line("calibrate-engine")),
        made_from=[
            *(source_of(path / RUN_NAME if path.is_dir() else path) for path in flags["measurements"]),
            *sources_named(gpu=flags["gpu"], model=flags["model_name"]),
        ],
    )
    found = calibrate(request, head=head, progress=progress)
    target.parent.mkdir(parents=True, exist_ok=True)
    write_json(target, found)
    if flags["as_json"]:
        show(to_json(found).rstrip())
        return
    show_calibration(found)
    wrote(target, f"predict-load --calibration {quoted(target)}")


def _read_measurements(flags: dict[str, Any]) -> tuple[list[Point], set[str]]:
    """Return the points of all files, and the set of their kinds: `table`, `measured`, `emulated`."""
    wanted = Deployment(
        resolve_model(flags["model_name"]).name, resolve_gpu(flags["gpu"]).name, flags["precision"], flags["tp"]
    )
    points: list[Point] = []
    kinds: set[str] = set()
    others: Counter[str] = Counter()
    for path in flags["measurements"]:
        kinds.add(read_run(path).kind if path.is_dir() else "table")
        found, left_out = read_points(path, wanted)
        points += found
        others += left_out
        progress(points_text(path, found, left_out))
    if len(points) < MIN_POINTS:
        left_out_of = ", ".join(f"{why} ({count})" for why, count in others.most_common(3))
        raise UserError(
            f"{len(points)} measured point{'' if len(points) == 1 else 's'} of {wanted.title}, tensor parallel "
            f"{wanted.tensor_parallel}; at least {MIN_POINTS} are needed",
            hint=f"left out: {left_out_of}"
            if others
            else ("measure more levels of load, preferably with two or more prompt lengths"),
        )
    if "emulated" in kinds and len(kinds) > 1:
        raise UserError(
            "emulated and measured points cannot be fitted together", hint="calibrate on one kind at a time"
        )
    if len({point.load in SERVED for point in points}) > 1:
        raise UserError(
            "the file mixes points measured under served load with points of the bare engine (load_kind)",
            hint="use rows of one load_kind only",
        )
    return points, kinds
