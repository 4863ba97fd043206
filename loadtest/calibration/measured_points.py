"""Measured points a calibration is fitted to: rows of a table, or the levels of measured runs."""

from __future__ import annotations

import csv
import math
import re
from pathlib import Path
from typing import Literal, NamedTuple

from engines.errors import MissingError, UserError
from engines.files import text_file
from engines.spec import gpu_named
from loadtest.metrics import LevelSummary, summarize
from loadtest.results import RUN_NAME, read_records, read_run, read_samples

Load = Literal["concurrency", "static_batch", "max_load"]
LOADS: tuple[Load, ...] = ("concurrency", "static_batch", "max_load")
_NEEDED = ("isl", "osl")
_MS = 1e-3


class Point(NamedTuple):
    """Means of one measured level; None: not measured, or not of this load.

    Attributes:
        load: `concurrency`: a closed loop of so many users; `static_batch`: so many requests at once, once, engine
            only; `max_load`: many more requests than fit, all at once, engine only.
        concurrency: Users, or the batch; 0 for `max_load`.
        where: File and line, or run and level.
    """

    where: str
    load: Load
    isl: int
    osl: int
    concurrency: int
    tokens_per_s: float | None
    itl_s: float | None
    ttft_s: float | None

    @property
    def shape(self) -> tuple[int, int]:
        """Prompt and reply length."""
        return self.isl, self.osl

    @property
    def logs(self) -> tuple[float, float, float]:
        """Natural logarithms of tokens/s, ITL, TTFT; nan where there is none."""
        values = (self.tokens_per_s, self.itl_s, self.ttft_s)
        return tuple(math.nan if value is None else math.log(value) for value in values)  # type: ignore[return-value]


class Deployment(NamedTuple):
    """Whose points are wanted; a row that says it is of another is left out."""

    model: str
    gpu: str
    precision: str
    tensor_parallel: int = 1


def read_points(path: Path, wanted: Deployment) -> tuple[list[Point], int]:
    """Return the points of a CSV table or of a run folder, and how many rows were of another deployment.

    Raises:
        MissingError: There is no such file.
        UserError: A column or a number is missing or wrong, or the run measured nothing.
    """
    if path.is_dir():
        return _points_of_run(path), 0
    if not path.is_file():
        raise MissingError(f"{path}: no such file", hint="a CSV of measured points, or the folder of a run")
    with text_file(path, newline="", encoding="utf-8-sig") as file:
        rows = csv.DictReader(file)
        missing = [name for name in _NEEDED if name not in (rows.fieldnames or ())]
        if missing:
            raise UserError(
                f"{path}: no column '{missing[0]}'",
                hint="columns: concurrency_or_batch, isl, osl, ttft_ms, itl_ms, throughput_out_tok_s",
            )
        points, others = [], 0
        try:
            for line, row in enumerate(rows, start=2):
                if _is_of(row, wanted):
                    points.append(_point_of_row(row, f"{path.name}:{line}"))
                else:
                    others += 1
        except csv.Error as error:
            raise UserError(f"{path}: line {rows.line_num}: not CSV: {error}") from error
    return points, others


def _is_of(row: dict[str, str], wanted: Deployment) -> bool:
    """Whether a row is of a deployment, as far as it says; names are compared without their dressing."""
    if row.get("load_kind") and row["load_kind"] not in LOADS:
        return False
    if row.get("tp") and row["tp"] != str(wanted.tensor_parallel):
        return False
    if row.get("precision") and row["precision"].lower() != wanted.precision:
        return False
    if row.get("gpu") and _gpu_name(row["gpu"]) != wanted.gpu:
        return False
    return not row.get("model") or _bare(row["model"]) == _bare(wanted.model)


def _gpu_name(text: str) -> str:
    try:
        return gpu_named(text).name
    except UserError:
        return text


def _bare(model: str) -> str:
    return re.sub(r"-(instruct|chat|it|base|hf)$", "", model.lower().rsplit("/", 1)[-1])


def _point_of_row(row: dict[str, str], where: str) -> Point:
    load = row.get("load_kind") or "concurrency"
    concurrency = _number(row, "concurrency_or_batch", where)
    if concurrency is None and load != "max_load":
        raise UserError(f"{where}: no concurrency_or_batch", hint="users of the closed loop, or the static batch")
    lengths = [_number(row, name, where) for name in _NEEDED]
    if None in lengths:
        raise UserError(f"{where}: no isl or no osl", hint="both are needed")
    itl, ttft = (_number(row, name, where) for name in ("itl_ms", "ttft_ms"))
    return Point(
        where=where,
        load=next(known for known in LOADS if known == load),
        isl=int(lengths[0] or 0),
        osl=int(lengths[1] or 0),
        concurrency=int(concurrency or 0),
        tokens_per_s=_number(row, "throughput_out_tok_s", where),
        itl_s=None if itl is None else itl * _MS,
        ttft_s=None if ttft is None else ttft * _MS,
    )


def _number(row: dict[str, str], name: str, where: str) -> float | None:
    text = (row.get(name) or "").strip()
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not value > 0 or math.isinf(value):
        raise UserError(f"{where}: {name} is '{text}'", hint="a number above 0, or nothing")
    return value


def _points_of_run(folder: Path) -> list[Point]:
    run = read_run(folder)
    if run.kind == "predicted":
        raise UserError(f"{folder / RUN_NAME}: a predicted run is no measurement", hint="a run of run-load")
    if not run.scenario.is_uniform:
        raise UserError(
            f"{folder / RUN_NAME}: its requests differ in length, or find what is cached: no one point stands for them",
            hint="calibrate on runs of one length each, as run-load --isl 1024 --osl 128 makes them",
        )
    summary = summarize(run, read_records(folder), read_samples(folder))
    points = [
        _point_of_level(level, level.concurrency, f"{folder.name}: level {index}")
        for index, level in enumerate(summary.levels)
        if level.concurrency is not None
    ]
    if not points:
        raise UserError(
            f"{folder}: no level of a closed loop was measured", hint="run-load writes what can be read here"
        )
    return points


def _point_of_level(level: LevelSummary, concurrency: int, where: str) -> Point:
    return Point(
        where=where,
        load="concurrency",
        isl=level.isl,
        osl=level.osl,
        concurrency=concurrency,
        tokens_per_s=level.output_tokens_per_s,
        itl_s=None if level.itl_s is None else level.itl_s.mean,
        ttft_s=None if level.ttft_s is None else level.ttft_s.mean,
    )
