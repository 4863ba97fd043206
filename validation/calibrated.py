"""How near a calibration comes to points it has not seen: a whole shape of prompt and reply, or all but six points.

The path is that of `calibrate-engine`, with no engine named and with its engine named. No deployment judges itself: its
engine's profile is what the other deployment of that engine says by itself.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from engines.calibration import LoadGenerator
from engines.files import Document, MadeBy
from engines.manifest import EngineManifest
from engines.planning import emulated_manifest, make_plan, resolve_recipe
from engines.spec import EngineProfile, engine_profile_named
from loadtest.calibration import Point, Request
from loadtest.calibration.calibrate import errors_of
from loadtest.calibration.parameters import Array, factors_of, host_of
from loadtest.calibration.structures import fit_best, predicted_logs

HERE = Path(__file__).parent
ROWS = HERE / "calibrated.csv"
HEAD = Document(made_by=MadeBy(command="make fidelity", version="0"))
SIX, DRAWS, SEED = 6, 24, 20261124
FAMILY = "nim-2024"


class Deployment(NamedTuple):
    """A case whose points are fitted, as `case.yaml` has it."""

    folder: str
    model: str
    gpu: str
    precision: str
    load: str


class Row(NamedTuple):
    """A row of the table: what was predicted unseen, in percent; shape (points, 3): tokens/s, ITL, TTFT."""

    name: str
    deployment: str
    errors: Array


UNSEEN, ANY_SIX = "Calibrated, unseen shape of prompt and reply", "Calibrated on any 6 points"
NAMED = ", its engine named"
DEPLOYMENTS = (
    Deployment(
        "nim-2024/h100-sxm-80gb/llama-3-8b/closed-loop-fp8", "llama-3-8b", "h100-sxm-80gb", "fp8", "concurrency"
    ),
    Deployment(
        "nim-2024/a100-sxm-80gb/llama-3-8b/closed-loop-fp16", "llama-3-8b", "a100-sxm-80gb", "fp16", "concurrency"
    ),
)
GOALS = {UNSEEN: (3.0, 4.0, 5.0), ANY_SIX: (3.0, 3.5, 6.0)}
GOALS |= {name + NAMED: goals for name, goals in GOALS.items()}


def calibrated_rows(pool: ProcessPoolExecutor) -> Iterator[Row]:
    """Yield every row, fitted in the processes of a pool."""
    waiting = []
    profiles = dict(zip(DEPLOYMENTS, pool.map(_profile_of, DEPLOYMENTS), strict=True))
    for each in DEPLOYMENTS:
        (other,) = (profile for deployment, profile in profiles.items() if deployment != each)
        shapes = sorted({point.shape for point in points_of(each)})
        for profile in (None, other):
            waiting += [pool.submit(_unseen, each, shape, profile) for shape in shapes]
            waiting += [pool.submit(_six, each, number, profile) for number in range(DRAWS)]
    for found in waiting:
        yield found.result()


def write_rows(rows: Iterable[Row]) -> None:
    """Keep every error in `calibrated.csv`."""
    with ROWS.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["row", "deployment", "tokens_per_s_error_percent", "itl_error_percent", "ttft_error_percent"])
        for row in rows:
            writer.writerows([row.name, row.deployment, *(f"{each:.4g}" for each in errors)] for errors in row.errors)


def read_rows() -> list[Row]:
    """Return what is kept; nothing where no calibration was ever held to its points."""
    if not ROWS.is_file():
        return []
    with ROWS.open(encoding="utf-8", newline="") as file:
        found = list(csv.reader(file))[1:]
    names = dict.fromkeys((name, deployment) for name, deployment, *_ in found)
    return [
        Row(*key, np.array([[float(each) for each in row[2:]] for row in found if tuple(row[:2]) == key]))
        for key in names
    ]


def points_of(deployment: Deployment) -> list[Point]:
    """Return the points of a case as a calibration reads them."""
    with (HERE / deployment.folder / "points.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    is_open = deployment.load == "request_rate"
    return [
        Point(
            row["where"],
            "request_rate" if is_open else "concurrency",
            int(row["isl"]),
            int(row["osl"]),
            0 if is_open else int(float(row["load"])),
            float(row["tokens_per_s"]),
            float(row["itl_ms"]) * 1e-3,
            float(row["ttft_ms"]) * 1e-3,
            float(row["load"]) if is_open else 0.0,
        )
        for row in rows
    ]


def _unseen(deployment: Deployment, shape: tuple[int, int], profile: EngineProfile | None) -> Row:
    points = points_of(deployment)
    kept = [point for point in points if point.shape != shape]
    return _fitted(UNSEEN, deployment, kept, [point for point in points if point.shape == shape], profile)


def _six(deployment: Deployment, number: int, profile: EngineProfile | None) -> Row:
    points = points_of(deployment)
    chosen = set(np.random.default_rng((SEED, number)).choice(len(points), SIX, replace=False).tolist())
    kept = [point for place, point in enumerate(points) if place in chosen]
    others = [point for place, point in enumerate(points) if place not in chosen]
    return _fitted(ANY_SIX, deployment, kept, others, profile)


def _fitted(
    name: str, deployment: Deployment, kept: list[Point], others: list[Point], profile: EngineProfile | None
) -> Row:
    request = _request(deployment, kept, kept + others, profile)
    name += "" if profile is None else NAMED
    best, found, _ = fit_best(request, kept)
    return Row(name, deployment.folder, 100 * errors_of(predicted_logs(request, best, found.stated, others), others))


def _request(deployment: Deployment, kept: list[Point], points: list[Point], profile: EngineProfile | None) -> Request:
    known = 16384 if deployment.load == "request_rate" else None
    return Request(_manifest(deployment, points), tuple(kept), LoadGenerator(), known, profile=profile)


def _profile_of(deployment: Deployment) -> EngineProfile:
    """Return what a deployment by itself teaches of its family."""
    points = points_of(deployment)
    best, found, _ = fit_best(_request(deployment, points, points, None), points)
    # The most probable values: those of a profile are what is expected of a logarithm.
    factors, host = factors_of(found.logs, best.waves), host_of(found.logs)
    return engine_profile_named(FAMILY).model_copy(update={"factors": factors, "host": host})


def _manifest(deployment: Deployment, points: list[Point]) -> EngineManifest:
    resolved = resolve_recipe(
        None,
        {
            "model": deployment.model,
            "gpu": deployment.gpu,
            "precision": deployment.precision,
            "step_time": "silicon",
            "limits.max_batch_size": 512,
            "limits.max_num_tokens": 32768,
            "limits.max_seq_len": max(point.isl + point.osl for point in points),
            "workload.longest_isl": max(point.isl for point in points),
            "workload.longest_osl": max(point.osl for point in points),
        },
    )
    return emulated_manifest(make_plan(resolved, head=HEAD), resolved.recipe)
