"""The report of a load test as an HTML page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from engines.units import milliseconds
from loadtest.metrics import LevelSummary, Summary, knee_of
from loadtest.report.page_tables import (
    classes_table,
    errors_table,
    latency_table,
    levels_table,
    more_table,
    objectives_table,
    repeats_table,
    runs_table,
)
from loadtest.report.pages import Table, inline_svg, render_page
from loadtest.scenario import Objectives


class Figure(NamedTuple):
    """A chart inside the page.

    Attributes:
        svg: The chart, with the page's colour variables.
        says: Its caption, one sentence; empty if the chart's own title suffices.
    """

    name: str
    svg: str
    says: str


def report_page(summary: Summary, figures: Sequence[Figure], objectives: Objectives | None = None) -> str:
    """Return the report as a self-contained HTML page.

    Args:
        figures: The charts, in order.
        objectives: Objectives for the levels; None if there are none.
    """
    return render_page(
        "report.html.j2",
        title=f"Load test: {', '.join(run.name for run in summary.runs)}",
        tags=[(summary.kind, summary.label)],
        summary=summary,
        failures={
            "failed": sum(level.errors for level in summary.levels),
            "sent": sum(level.requests for level in summary.levels),
        },
        issues=[(issue, _load_of(issue.level, summary)) for issue in summary.validity_issues],
        tile_items=_tiles(summary, objectives),
        figures=[(inline_svg(figure.svg, figure.name), figure.says) for figure in figures],
        tables=_tables(summary, objectives),
        money_notes=_money_notes(summary),
    )


def _tables(summary: Summary, objectives: Objectives | None) -> dict[str, Table | None]:
    held = objectives is not None and bool(summary.levels)
    return {
        "objectives": objectives_table(summary, objectives) if held and objectives is not None else None,
        "latency": latency_table(summary),
        "levels": levels_table(summary),
        "more": more_table(summary) if summary.levels else None,
        "classes": classes_table(summary) if any(level.classes for level in summary.levels) else None,
        "repeats": repeats_table(summary.repeats) if summary.repeats else None,
        "errors": errors_table(summary) if any(level.errors_by_text for level in summary.levels) else None,
        "runs": runs_table(summary.runs),
    }


def _money_notes(summary: Summary) -> list[str]:
    """Return how watts and costs came about, or why they are unknown; each once."""
    notes: dict[str, None] = {}
    for level in summary.levels:
        if level.energy is not None:
            notes[f"GPU power: by {level.energy.method}"] = None
        elif level.energy_unknown is not None:
            notes[f"GPU power unknown: {level.energy_unknown}"] = None
        if level.cost is not None:
            notes[f"cost of {level.cost.gpus} x {level.cost.price}"] = None
            split = level.cost.split
            notes[f"not split: {level.cost.split_unknown}" if split is None else f"split by {split.method}"] = None
    return list(notes)


def _tiles(summary: Summary, objectives: Objectives | None) -> list[tuple[str, str]]:
    """Return the key figures; empty for several runs."""
    known = [level for level in summary.levels if level.output_tokens_per_s and level.itl_s]
    if not known or len(summary.runs) > 1:
        return []
    best = max(known, key=lambda level: level.output_tokens_per_s or 0.0)
    tiles = [(f"{best.output_tokens_per_s:,.0f} tokens/s", f"maximum, at load {best.load}")]
    knee = knee_of(summary.levels, objectives)
    if knee is not None and knee.level is not None:
        tiles += _knee_tiles(summary.levels[knee.level], knee.why)
    elif knee is not None:
        tiles.append(("no load", "met every objective"))
    failed = sum(level.errors for level in summary.levels)
    return [*tiles, (f"{failed:,} failed", f"of {sum(level.requests for level in summary.levels):,} requests")]


def _knee_tiles(level: LevelSummary, why: str) -> list[tuple[str, str]]:
    tiles = [(f"load {level.load}", f"knee: {why}")]
    if level.itl_s and level.felt_ttft_s:
        itl, ttft = level.itl_s, level.felt_ttft_s
        tiles.append((f"ITL {milliseconds(itl.p50)} ms", f"p50 at the knee; p99 {milliseconds(itl.p99)} ms"))
        tiles.append((f"TTFT {milliseconds(ttft.p50)} ms", f"p50 at the knee; p95 {milliseconds(ttft.p95)} ms"))
    return tiles


def _load_of(level: int | None, summary: Summary) -> str:
    return "" if level is None or not 0 <= level < len(summary.levels) else summary.levels[level].load
