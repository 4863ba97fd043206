"""A case beside its predictions: `comparison.csv`, the errors, and the share of points within their intervals."""

from __future__ import annotations

import csv
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from validation.fidelity.aisimulate import ask_aisimulate
from validation.fidelity.cases import PER_TOKEN, QUANTITIES, Case, Measured, read_case, read_points
from validation.fidelity.predict import Predicted, arguments_of, predict_point


class Compared(NamedTuple):
    """A case with all its points predicted."""

    folder: Path
    case: Case
    points: list[Measured]
    predicted: list[Predicted]
    beside: list[dict[str, float] | None]


def compare(folder: Path, aisimulate: str | None) -> Compared:
    """Predict all points of a case, and write its comparison."""
    found = predict_case(folder, aisimulate)
    write_comparison(found)
    return found


def predict_case(folder: Path, aisimulate: str | None) -> Compared:
    """Predict all points of a case."""
    case = read_case(folder)
    points = read_points(folder)
    by_command: dict[str, Predicted] = {}  # systems that were measured alike are predicted once
    for point in points:
        command = shlex.join(arguments_of(case, point))
        by_command[command] = by_command.get(command) or predict_point(case, point)
    predicted = [by_command[shlex.join(arguments_of(case, point))] for point in points]
    beside = [None if aisimulate is None else ask_aisimulate(aisimulate, case, point) for point in points]
    return Compared(folder, case, points, predicted, beside)


def read_comparison(folder: Path) -> Compared:
    """Return a case as its comparison has it."""
    with (folder / "comparison.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))

    def column(row: dict[str, str], what: str) -> dict[str, float]:
        cells = {name: row.get(f"{name}_{what}", "") for name in (*QUANTITIES, PER_TOKEN)}
        return {name: float(text) for name, text in cells.items() if text}

    predicted = [
        Predicted(row["command"], column(row, "predicted"), column(row, "low"), column(row, "high")) for row in rows
    ]
    beside = [column(row, "aisimulate") or None for row in rows]
    return Compared(folder, read_case(folder), read_points(folder), predicted, beside)


def write_comparison(found: Compared) -> None:
    """Write `comparison.csv`: what was published, predicted, the interval, and the command."""
    with (found.folder / "comparison.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        columns = ("published", "predicted", "low", "high", "error_percent", "aisimulate")
        names = QUANTITIES if found.case.speculative is None else (*QUANTITIES, PER_TOKEN)
        writer.writerow(["load", "isl", "osl", *(f"{name}_{each}" for name in names for each in columns), "command"])
        for point, seen, other in zip(found.points, found.predicted, found.beside, strict=True):
            cells: list[str] = []
            for name in names:
                measured, value = point.values[name], seen.values.get(name)
                off = None if measured is None or value is None else 100 * (value / measured - 1)
                row = (measured, value, seen.low.get(name), seen.high.get(name), off, (other or {}).get(name))
                cells += ["" if each is None else f"{each:.5g}" for each in row]
            writer.writerow([f"{point.load:g}", point.isl, point.osl, *cells, seen.command])


def errors_of(found: Iterable[Compared], name: str, *, beside: bool = False) -> list[float]:
    """Return predicted over published, minus 1, in percent."""
    errors = []
    for each in found:
        for point, seen, other in zip(each.points, each.predicted, each.beside, strict=True):
            measured = point.values[name]
            value = (other or {}).get(name) if beside else seen.values.get(name)
            if measured is not None and value is not None and not _is_given(each.case, name):
                errors.append(100 * (value / measured - 1))
    return errors


def _is_given(case: Case, name: str) -> bool:
    """Whether the load alone decides a figure: tokens a second of an open loop."""
    return name == "tokens_per_s" and case.load in {"open_loop", "trace"}


def covered(found: Iterable[Compared]) -> tuple[int, int]:
    """Return how many published values lie in the stated interval, and how many there are."""
    inside = total = 0
    for each in found:
        for point, seen in zip(each.points, each.predicted, strict=True):
            for name in QUANTITIES:
                measured = point.values[name]
                if measured is None or name not in seen.low or _is_given(each.case, name):
                    continue
                total += 1
                inside += seen.low[name] <= measured <= seen.high[name]
    return inside, total


def rounding_errors(found: Compared, name: str) -> tuple[float, float]:
    """Return two mean absolute errors of a rounded latency, in percent.

    Returns:
        That of a perfect prediction, expected if the true values lie anywhere within half a unit of the published; and
        that of this prediction against the nearest value that rounds to the published one.
    """
    half_s = (found.case.rounded_to_ms or 0.0) * 1e-3 / 2
    perfect, beyond = [], []
    for point, seen in zip(found.points, found.predicted, strict=True):
        measured, value = point.values[name], seen.values.get(name)
        if measured is not None and value is not None:
            nearest = min(max(value, measured - half_s), measured + half_s)
            perfect.append(half_s / 2 / measured)
            beyond.append(abs(value / nearest - 1))
    return 100 * sum(perfect) / len(perfect), 100 * sum(beyond) / len(beyond)


def speculation_errors(found: Compared) -> tuple[list[float], list[float]]:
    """Return the errors of the points with speculation, in percent: of TPOT, and of its ratio to that without."""
    pairs = [
        (point.values[PER_TOKEN], seen.values[PER_TOKEN], point.max_draft_len)
        for point, seen in zip(found.points, found.predicted, strict=True)
    ]
    (plain,) = ((published or 0.0, predicted) for published, predicted, draft_len in pairs if draft_len is None)
    drafted = [(published or 0.0, predicted) for published, predicted, draft_len in pairs if draft_len is not None]
    tpot = [100 * (predicted / published - 1) for published, predicted in drafted]
    speedup = [100 * ((plain[1] / predicted) / (plain[0] / published) - 1) for published, predicted in drafted]
    return tpot, speedup
