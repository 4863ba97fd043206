"""Measured points for a calibration: rows of a CSV table, or levels of measured runs."""

from __future__ import annotations

import csv
import difflib
import math
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from engines.errors import UserError
from engines.files import require_file, text_file
from engines.names import engine_title
from engines.spec import gpu_named
from engines.units import S_PER_MS
from loadtest.metrics import LevelSummary, summarize
from loadtest.results import RUN_NAME, read_records, read_run, read_samples

Load = Literal["concurrency", "request_rate", "static_batch", "max_load"]
LOADS: tuple[Load, ...] = ("concurrency", "request_rate", "static_batch", "max_load")
SERVED: tuple[Load, ...] = ("concurrency", "request_rate")  # through a server; other kinds use the bare engine
# Share of a level's requests that may have failed; with more, its latencies are those of a smaller load. A convention
# of load tests (Grafana k6, "Thresholds": less than 1 % of requests return an error); the load is then right to 1 %.
MAX_ERRORS_RATIO = 0.01
_NEEDED = ("isl", "osl")
_MEASURED = ("ttft_ms", "itl_ms", "throughput_out_tok_s")
_COLUMNS = ("concurrency_or_batch", "rate_per_s", *_NEEDED, *_MEASURED)
_COLUMNS_TEXT = "concurrency_or_batch or rate_per_s, isl, osl, ttft_ms, itl_ms, throughput_out_tok_s"


class Point(NamedTuple):
    """Means of one measured level. None: not measured, or not defined for this load.

    Attributes:
        load: `concurrency`: a closed loop; `request_rate`: an open loop; `static_batch`: all requests at once,
            one time, on the bare engine; `max_load`: many more requests than fit, all at once, on the bare engine.
        concurrency: Users, or the batch size; 0 for `max_load` and `request_rate`.
        where: File and line, or run and level.
        rate_per_s: Requests per second of an open loop; 0 for other loads.
        arrivals_s: Send times of its requests if known; if empty, Poisson arrivals are drawn.
    """

    where: str
    load: Load
    isl: int
    osl: int
    concurrency: int
    tokens_per_s: float | None
    itl_s: float | None
    ttft_s: float | None
    rate_per_s: float = 0.0
    arrivals_s: tuple[float, ...] = ()

    @property
    def shape(self) -> tuple[int, int]:
        """Prompt and reply length, in tokens."""
        return self.isl, self.osl

    @property
    def offered(self) -> tuple[str, int, int, int, float]:
        """What was sent: points in which it is equal are repeats of one measurement."""
        return self.load, *self.shape, self.concurrency, self.rate_per_s

    @property
    def logs(self) -> tuple[float, float, float]:
        """Natural logarithms of tokens/s, ITL, TTFT; nan where not measured, or where the load alone determines it."""
        tokens_per_s = None if self.load == "request_rate" else self.tokens_per_s
        values = (tokens_per_s, self.itl_s, self.ttft_s)
        return tuple(math.nan if value is None else math.log(value) for value in values)  # type: ignore[return-value]


class Deployment(NamedTuple):
    """The deployment to calibrate; rows that name another one are skipped."""

    model: str
    gpu: str
    precision: str
    tensor_parallel: int = 1

    @property
    def title(self) -> str:
        """The engine's name on a server that says what it serves."""
        return engine_title(self.model, self.precision, self.gpu)


def read_points(path: Path, wanted: Deployment) -> tuple[list[Point], Counter[str]]:
    """Return the points of a CSV table or run folder, and the number of rows or levels skipped for each reason.

    Raises:
        MissingError: The file does not exist.
        UserError: A column or value is missing or invalid, or the run measured nothing, or another engine.
    """
    if path.is_dir():
        return _points_of_run(path, wanted)
    require_file(path, hint="give a CSV of measured points or a run folder")
    with text_file(path, newline="", encoding="utf-8-sig") as file:
        rows = csv.DictReader(file)
        _check_header(path, list(rows.fieldnames or ()))
        points: list[Point] = []
        others: Counter[str] = Counter()
        try:
            for line, row in enumerate(rows, start=2):
                why = _why_left_out(row, wanted)
                if why is None:
                    points.append(_point_of_row(row, f"{path.name}:{line}"))
                else:
                    others[why] += 1
        except csv.Error as error:
            raise UserError(f"{path}: line {rows.line_num}: not CSV: {error}") from error
    return points, others


def _check_header(path: Path, columns: list[str]) -> None:
    """Refuse a header that lacks a column, or whose name for one is close: its cells would not be read.

    Raises:
        UserError: It does.
    """
    hint = f"columns, separated by commas: {_COLUMNS_TEXT}"
    absent = [name for name in _COLUMNS if name not in columns]
    for name in [each for each in absent if each != "rate_per_s"]:
        meant = [column for column in difflib.get_close_matches(name, columns, cutoff=0.7) if column not in _COLUMNS]
        if meant:
            raise UserError(f"{path}: unknown column '{meant[0]}'", hint=f"did you mean '{name}'? {hint}")
    missing = [name for name in _NEEDED if name in absent]
    if missing:
        raise UserError(f"{path}: no column '{missing[0]}'", hint=hint)
    if not {"concurrency_or_batch", "rate_per_s", "load_kind", "notes"} & set(columns):
        raise UserError(f"{path}: no column with the load: concurrency_or_batch or rate_per_s", hint=hint)
    if all(name in absent for name in _MEASURED):
        raise UserError(f"{path}: no column with a measurement: {', '.join(_MEASURED)}", hint=hint)


def points_text(path: Path, points: Sequence[Point], left_out: Counter[str]) -> str:
    """Return how many points of which loads a file or run gave, and why others were left out."""
    kinds = Counter(point.load for point in points)
    used = (
        ", ".join(f"{count} point{'' if count == 1 else 's'} ({load})" for load, count in kinds.items()) or "no points"
    )
    return f"{path}: {used}" + "".join(f"; {count} left out: {why}" for why, count in left_out.items())


def _why_left_out(row: dict[str, str], wanted: Deployment) -> str | None:
    """Return why a row does not apply to a deployment, or None. Names are compared after normalization."""
    checks = (
        ("load_kind", lambda text: text in LOADS, "load that cannot be simulated: "),
        ("tp", lambda text: text == str(wanted.tensor_parallel), "tensor parallel "),
        ("precision", lambda text: text.lower() == wanted.precision, "precision "),
        ("gpu", lambda text: _gpu_name(text) == wanted.gpu, "GPU "),
        ("model", lambda text: _bare(text) == _bare(wanted.model), "model "),
        ("notes", lambda text: "SUSPECT" not in text, "suspect by its own notes: "),
    )
    for name, is_fine, what in checks:
        text = row.get(name) or ""
        if text and not is_fine(text):
            return what + text
    return None


def _gpu_name(text: str) -> str:
    try:
        return gpu_named(text).name
    except UserError:
        return text


def _bare(model: str) -> str:
    return re.sub(r"-(instruct|chat|it|base|hf)$", "", model.lower().rsplit("/", 1)[-1])


def _point_of_row(row: dict[str, str], where: str) -> Point:
    rate = _rate(row, where)
    load = row.get("load_kind") or ("concurrency" if rate is None else "request_rate")
    concurrency = _number(row, "concurrency_or_batch", where)
    if load == "request_rate" and rate is None:
        raise UserError(f"{where}: no rate_per_s", hint="requests a second of the open loop")
    if concurrency is None and load not in {"max_load", "request_rate"}:
        raise UserError(
            f"{where}: no concurrency_or_batch", hint="give the users of the closed loop, or the static batch size"
        )
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
        itl_s=None if itl is None else itl * S_PER_MS,
        ttft_s=None if ttft is None else ttft * S_PER_MS,
        rate_per_s=rate or 0.0,
    )


def _rate(row: dict[str, str], where: str) -> float | None:
    """Return a row's offered requests per second, from its column or its notes."""
    found = re.search(r"offered_qps=([0-9.]+)", row.get("notes") or "")
    return _number(row, "rate_per_s", where) or (float(found[1]) if found else None)


def _number(row: dict[str, str], name: str, where: str) -> float | None:
    text = (row.get(name) or "").strip()
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not value > 0 or math.isinf(value):
        raise UserError(f"{where}: {name} is '{text}'", hint="expected a number above 0, or an empty cell")
    return value


def _points_of_run(folder: Path, wanted: Deployment) -> tuple[list[Point], Counter[str]]:
    run = read_run(folder)
    if run.kind == "predicted":
        raise UserError(f"{folder / RUN_NAME}: the run is predicted, not measured", hint="give a run of run-load")
    if not run.scenario.is_uniform:
        raise UserError(
            f"{folder / RUN_NAME}: its requests differ in length or hit the prefix cache, so no point represents them",
            hint="calibrate on runs with fixed lengths, for example run-load --isl 1024 --osl 128",
        )
    named = run.server.engine
    if named is not None and named != wanted.title:
        raise UserError(
            f"{folder / RUN_NAME}: the run measured {named}, not {wanted.title}",
            hint="state the model, precision and GPU of the run: --model, --precision, --gpu",
        )
    records = list(read_records(folder))
    points: list[Point] = []
    others: Counter[str] = Counter()
    for index, level in enumerate(summarize(run, records, read_samples(folder)).levels):
        where = f"{folder.name}: level {index}"
        if level.itl_s is None or level.ttft_s is None:
            others["a level without a reply"] += 1
        elif level.errors > MAX_ERRORS_RATIO * level.requests:
            others[f"a level with {level.errors} of {level.requests} requests failed"] += 1
        elif level.concurrency is not None:
            points.append(_point_of_level(level, where))
        else:
            sent_s = sorted(record.sent_s for record in records if record.level == index)
            arrivals = tuple(at_s - sent_s[0] for at_s in sent_s)
            points.append(_point_of_level(level, where)._replace(arrivals_s=arrivals))
    if not points:
        why = ", ".join(f"{text} ({count})" for text, count in others.items()) or "the run has no level"
        raise UserError(f"{folder}: no level can be used: {why}", hint=f"report-load {folder} shows what failed")
    return points, others


def _point_of_level(level: LevelSummary, where: str) -> Point:
    return Point(
        where=where,
        load="request_rate" if level.concurrency is None else "concurrency",
        isl=level.isl,
        osl=level.osl,
        concurrency=level.concurrency or 0,
        tokens_per_s=level.output_tokens_per_s,
        itl_s=None if level.itl_s is None else level.itl_s.mean,
        ttft_s=None if level.ttft_s is None else level.ttft_s.mean,
        rate_per_s=level.rate_per_s or 0.0,
    )
