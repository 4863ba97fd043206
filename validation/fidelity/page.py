"""The tables of errors against their goals, and the page of the documentation."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date

import numpy as np

from validation.calibrated import GOALS, Row, read_rows
from validation.fidelity.cases import PER_TOKEN, QUANTITIES, VALIDATION
from validation.fidelity.comparison import (
    Compared,
    covered,
    errors_of,
    read_comparison,
    rounding_errors,
    speculation_errors,
)

PAGE = VALIDATION.parent / "docs" / "measurements" / "fidelity.md"


def write_page() -> None:
    """Write the page from the comparisons there are; nothing is predicted."""
    found = [read_comparison(path.parent) for path in sorted(VALIDATION.rglob("case.yaml"))]
    text = tables_of(found) + speculation_table(found) + calibrated_table(read_rows())
    PAGE.write_text(page_of(text, found), encoding="utf-8")


def tables_of(found: Sequence[Compared]) -> str:
    """Return the table: a line for each row of goals and for each of its cases."""
    lines = [
        "| data | points | tokens/s | ITL | TTFT | in the 90 % interval | aisimulate: tokens/s, ITL, TTFT |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in dict.fromkeys(each.case.row for each in found):
        cases = [each for each in found if each.case.row == row]
        lines.append(_line(f"**{row}**", cases, cases[0].case.wants))
        lines += [_line(_name(each), [each], {}) for each in cases]
    return "\n".join(lines) + "\n"


def speculation_table(found: Sequence[Compared]) -> str:
    """Return the errors of time per token and of the speed-up over the same deployment without speculation."""
    cases = [each for each in found if each.case.speculative is not None]
    if not cases:
        return ""
    lines = [
        "",
        "| speculative decoding | points | TPOT | speed-up | worst of each |",
        "| --- | --- | --- | --- | --- |",
    ]
    for each in cases:
        tpot, speedup = speculation_errors(each)
        worst = ", ".join(f"{max(errors, key=abs):+.1f} %" for errors in (tpot, speedup))
        goals = each.case.wants
        cells = [_cell(tpot, goals.get(PER_TOKEN), median=False), _cell(speedup, goals.get("speedup"), median=False)]
        lines.append(f"| {_name(each)} | {len(tpot)} | {cells[0]} | {cells[1]} | {worst} |")
    return "\n".join(lines) + "\n"


def calibrated_table(rows: Sequence[Row]) -> str:
    """Return the table of what calibrations predict unseen; empty where none was fitted."""
    if not rows:
        return ""
    lines = ["", "| calibrated | points | tokens/s | ITL | TTFT (median) |", "| --- | --- | --- | --- | --- |"]
    for name, goals in GOALS.items():
        of_row = [row for row in rows if row.name == name]
        lines.append(_calibrated_line(f"**{name}**", of_row, goals))
        for folder in dict.fromkeys(row.deployment for row in of_row):
            of_folder = [row for row in of_row if row.deployment == folder]
            lines.append(_calibrated_line(f"[{folder}](../../validation/{folder})", of_folder, None))
    return "\n".join(lines) + "\n"


def _calibrated_line(name: str, rows: Sequence[Row], goals: tuple[float, ...] | None) -> str:
    errors = np.concatenate([row.errors for row in rows])
    known = [column[~np.isnan(column)] for column in errors.T]
    wanted = goals or (None,) * len(known)
    cells = [
        _cell(column.tolist(), goal, median=place == len(known) - 1)
        for place, (column, goal) in enumerate(zip(known, wanted, strict=True))
    ]
    return f"| {name} | {len(errors)} | {' | '.join(cells)} |"


def _name(each: Compared) -> str:
    folder = each.folder.relative_to(VALIDATION).as_posix()
    return f"[{folder}](../../validation/{folder}){' (fitted)' if each.case.tuned else ''}"


def _line(name: str, cases: Sequence[Compared], wants: dict[str, float]) -> str:
    cells = [
        _cell(errors_of(cases, each), wants.get(each), median=each == "ttft" and cases[0].case.ttft_median)
        for each in QUANTITIES
    ]
    if all(each.case.tuned for each in cases):
        cells = [cell.replace("met)", "met in sample)").replace("missed)", "missed in sample)") for cell in cells]
    inside, total = covered(cases)
    share = f"{100 * inside / total:.0f} % of {total}" if total else "-"
    others = [errors_of(cases, each, beside=True) for each in QUANTITIES]
    beside = ", ".join(f"{np.abs(each).mean():.1f}" if each else "-" for each in others) if any(others) else "-"
    return f"| {name} | {sum(len(each.points) for each in cases)} | {' | '.join(cells)} | {share} | {beside} |"


def _cell(errors: list[float], goal: float | None, *, median: bool) -> str:
    if not errors:
        return "-"
    value = float((np.median if median else np.mean)(np.abs(errors)))
    verdict = "" if goal is None else f" ({goal:g} %: {'met' if value <= goal else 'missed'})"
    return f"{value:.1f} %, {np.mean(errors):+.1f}{verdict}"


def coverage_table(found: Sequence[Compared]) -> str:
    """Return how many values that nothing was fitted to lie in their 90 % intervals, by engine, precision and load."""
    held_out = [each for each in found if not each.case.tuned and each.case.kind == "published"]
    lines = ["| published, nothing fitted | in the 90 % interval |", "| --- | --- |"]
    for of in (lambda case: case.engine_profile, lambda case: case.precision, lambda case: case.load.replace("_", " ")):
        for value in sorted({of(each.case) for each in held_out}):
            inside, total = covered(each for each in held_out if of(each.case) == value)
            lines.append(f"| {value} | {inside} of {total} ({100 * inside / total:.0f} %) |")
    return "\n".join(lines) + "\n"


def rounding_text(found: Sequence[Compared]) -> str:
    """Return what rounding costs the tables whose latencies are rounded; empty where there are none."""
    lines = []
    for each in found:
        if each.case.rounded_to_ms is None:
            continue
        costs = {name: rounding_errors(each, name) for name in ("itl", "ttft")}
        texts = [
            f"{name.upper()} {perfect:.1f} % for a perfect prediction, {beyond:.1f} % of this one's beyond rounding"
            for name, (perfect, beyond) in costs.items()
        ]
        lines.append(f"- {_name(each)}, rounded to {each.case.rounded_to_ms:g} ms: {'; '.join(texts)}")
    return "" if not lines else "\nMean absolute errors from rounding alone:\n\n" + "\n".join(lines) + "\n"


def missed_text() -> str:
    """Return `missed.md`, with its links as from the page."""
    text = (VALIDATION / "missed.md").read_text(encoding="utf-8")
    return text.replace("](../docs/measurements/", "](").replace("](../docs/", "](../")


def page_of(tables: str, found: Sequence[Compared]) -> str:
    """Return the page of the documentation."""
    sources = "\n".join(f"- {each}" for each in sorted({f"{one.case.source} ({one.case.licence})" for one in found}))
    inside, total = covered(each for each in found if not each.case.tuned)
    counted = sum(each is not None for one in found for each in one.beside)
    beside = f"\nNVIDIA's aisimulate predicted {counted} of the points, with its defaults.\n"
    share = "-" if not total else f"{100 * inside / total:.0f} % of {total}"
    return PAGE_TEXT.format(
        coverage=coverage_table(found),
        rounding=rounding_text(found),
        missed=missed_text(),
        date=date.today().isoformat(),
        tables=tables,
        share=share,
        sources=sources,
        beside=beside,
    )


PAGE_TEXT = """# Predicted against published

How far are predictions from what others measured? Written by `make fidelity` on {date}; do not edit. Each cell: the
mean absolute error in percent, the mean error with its sign, and the goal if there is one. Each case is a folder under
[validation/](../../validation/README.md): points as published, the command that predicts each, the prediction with its
interval, the comparison. `(fitted)`: the profile's numbers were fitted to these very points, and a goal is met or
missed in sample; nothing was fitted to the others.

{tables}
Of the points that nothing was fitted to, {share} published values lie in their 90 % interval.

{coverage}{rounding}{beside}
{missed}
## Sources

{sources}
"""
