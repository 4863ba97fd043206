"""Levels side by side: latency and throughput against batch size, and against load."""

from __future__ import annotations

from collections.abc import Callable
from itertools import cycle
from typing import Any, NamedTuple

from engines.units import MS_PER_S
from loadtest.metrics import Knee, LevelSummary, Spread, Summary
from loadtest.report.charts.labels import Spot, label_loads
from loadtest.report.charts.style import (
    Drawing,
    drawing_of,
    head,
    lengths_of,
    new_figure,
    panel_title,
    place_x,
    place_y,
    plain,
    style,
    what_ran,
)
from loadtest.report.theme import BLUE, FAINT, ORANGE, PAPER, RUN_COLOURS, VERMILION

PERCENTILE_COLOURS = {"p50": BLUE, "p95": ORANGE, "p99": VERMILION}
PERCENTILE_LINES = {"p50": "-", "p95": "--", "p99": ":"}
PERCENTILE_MARKERS = {"p50": "o", "p95": "s", "p99": "^"}
MARKER_SIZES = {"p50": 5, "p95": 6, "p99": 8}  # p99 first, so that equal values stay visible behind each other
LEGEND_LINE = 0.06  # of a panel's height: kept free above the points, so that the legend covers none


class _Axis(NamedTuple):
    """The x axis: a level's position, and the axis label.

    Attributes:
        tells_users: The position is the concurrency itself, so the points need no label.
    """

    place: Callable[[LevelSummary], float]
    label: str
    title: str
    tells_users: bool = False


class _Line(NamedTuple):
    """The levels of one run at one pair of lengths, connected by lines."""

    name: str
    levels: list[LevelSummary]


def latency_against_batch(summary: Summary) -> Drawing:
    """Draw latency and throughput against the server's batch size.

    If any level lacks the server's own count, the client's is used for all, and the axis label says so.
    """
    title = "Latency against batch size"
    if all(level.batch_size is not None for level in summary.levels):
        axis = _Axis(_server_batch, "mean batch size: sequences decoding, counted by the server", title)
    else:
        axis = _Axis(_client_batch, "mean batch size: requests decoding, as seen by the client", title)
    return _draw(summary, axis)


def latency_against_load(summary: Summary, *, knee: Knee | None = None) -> Drawing:
    """Draw latency and throughput against the offered load: users, or requests per second; the knee is marked.

    Args:
        knee: Of the summary's levels; None: no mark.
    """
    title = "Latency against load"
    if all(level.concurrency is not None for level in summary.levels):
        axis = _Axis(lambda level: level.offered, "concurrency (users)", title, True)
    elif all(level.concurrency is None for level in summary.levels):
        axis = _Axis(lambda level: level.offered, "offered load, requests/s", title, True)
    else:
        axis = _Axis(lambda level: level.offered, "load: users or requests/s, see the table", title, True)
    return _draw(summary, axis, knee)


def _server_batch(level: LevelSummary) -> float:
    return level.batch_size.mean if level.batch_size else float("nan")


def _client_batch(level: LevelSummary) -> float:
    return level.batch_size_client.mean if level.batch_size_client else float("nan")


def _draw(summary: Summary, axis: _Axis, knee: Knee | None = None) -> Drawing:
    with style(axis.title):
        figure = new_figure()
        panels = figure.subplots(1, 3)
        figure.subplots_adjust(left=0.055, right=0.985, top=0.74, bottom=0.155, wspace=0.22)
        lines = _lines(summary)
        ttft = "Time to first token, ms"
        _latency_panel(panels[0], lines, axis, "Inter-token latency, ms", lambda level: level.itl_s)
        _latency_panel(panels[1], lines, axis, ttft, lambda level: level.felt_ttft_s)
        _rate_panel(panels[2], lines, axis)
        for panel in panels:
            place_x(panel, [axis.place(level) for level in summary.levels])
            if knee is not None and knee.level is not None:
                _mark_knee(panel, axis.place(summary.levels[knee.level]))
        figure.supxlabel(axis.label, fontsize=11, y=0.045)
        _foot(figure, summary, knee)
        head(figure, axis.title, _subtitle(summary, axis), summary)
        if not axis.tells_users:
            _annotate(panels, summary.levels, axis)
        return drawing_of(figure)


def _subtitle(summary: Summary, axis: _Axis) -> str:
    return what_ran(summary) if axis.tells_users else f"{what_ran(summary)}   |   numbers at points: load"


def _mark_knee(panel: Any, place: float) -> None:
    panel.axvline(place, color=FAINT, linewidth=1.2, linestyle=(0, (4, 3)), zorder=1)
    panel.annotate(
        "knee", (place, 1), xycoords=("data", "axes fraction"), xytext=(4, -4), textcoords="offset points",
        ha="left", va="top", fontsize=9, color=FAINT,
    )  # fmt: skip


def _foot(figure: Any, summary: Summary, knee: Knee | None) -> None:
    """Explain the marks: knee, bars, hollow points."""
    notes = [] if knee is None or knee.level is None else [f"knee: {knee.why}"]
    if any(found.ci for level in summary.levels for found in (level.itl_s, level.ttft_s) if found):
        notes.append("bars: 95 % confidence interval")
    if any(found.unsupported for level in summary.levels for found in (level.itl_s, level.ttft_s) if found):
        notes.append("hollow: sample too small for this percentile")
    figure.text(0.985, 0.022, "   |   ".join(notes), ha="right", va="center", fontsize=9, color=FAINT)


def _lines(summary: Summary) -> list[_Line]:
    """Group levels into lines: a run's levels, by load; drawn lengths differ slightly between levels."""
    groups: dict[str | None, list[LevelSummary]] = {}
    for level in summary.levels:
        groups.setdefault(level.run, []).append(level)
    return [
        _Line(
            lengths_of(levels) if len(groups) == 1 else f"{run}: {lengths_of(levels)}",
            sorted(levels, key=lambda level: level.offered),
        )
        for run, levels in groups.items()
    ]


def _latency_panel(
    panel: Any, lines: list[_Line], axis: _Axis, title: str, quantity: Callable[[LevelSummary], Spread | None]
) -> None:
    """Draw p50, p95 and p99: distinguished by colour if there is one line, by dashes if runs have the colours."""
    alone = len(lines) == 1
    highest, lowest = 0.0, float("inf")
    for line, run_colour in zip(lines, cycle(RUN_COLOURS), strict=False):
        for name in ("p99", "p95", "p50"):
            colour = PERCENTILE_COLOURS[name] if alone else run_colour
            values = _percentile_line(panel, line, axis, (quantity, name, colour), named=alone or line is lines[0])
            highest, lowest = max([highest, *values]), min([lowest, *values])
    place_y(panel, lowest, highest)
    panel_title(panel, title)
    if highest > 0:
        _legend(panel, alone=alone)


def _percentile_line(
    panel: Any,
    line: _Line,
    axis: _Axis,
    what: tuple[Callable[[LevelSummary], Spread | None], str, str],
    *,
    named: bool,
) -> list[float]:
    """Draw one percentile of one line, with its confidence interval; return its values in ms."""
    quantity, name, colour = what
    places, values = _points(line, axis, lambda level: _percentile_ms(quantity(level), name))
    known = [(axis.place(level), found) for level in line.levels if (found := quantity(level)) is not None]
    ranges = [(place, *(found.ci or {}).get(name, (0.0, 0.0))) for place, found in known if place > 0]
    _bars(panel, [(place, low * MS_PER_S, high * MS_PER_S) for place, low, high in ranges], colour)
    panel.plot(places, values, PERCENTILE_LINES[name], color=colour, linewidth=1.8)
    marker = {"marker": PERCENTILE_MARKERS[name], "markersize": MARKER_SIZES[name], "color": colour}
    hollow = {place for place, found in known if name in found.unsupported}
    for is_hollow in (False, True):
        spots = [(x, y) for x, y in zip(places, values, strict=True) if (x in hollow) == is_hollow]
        fill = {"markerfacecolor": PAPER} if is_hollow else {}
        if spots:
            panel.plot([x for x, _ in spots], [y for _, y in spots], linestyle="none", **marker, **fill)
    panel.plot([], [], PERCENTILE_LINES[name], linewidth=1.8, label=name if named else None, **marker)
    return values


def _legend(panel: Any, *, alone: bool) -> None:
    """Name the percentiles, p50 first; in grey if colour means the run."""
    legend = panel.legend(loc="upper left", reverse=True, handlelength=2.6)
    if not alone:
        for handle in legend.legend_handles:
            handle.set_color(FAINT)


def _rate_panel(panel: Any, lines: list[_Line], axis: _Axis) -> None:
    highest = 0.0
    for line, run_colour in zip(lines, cycle(RUN_COLOURS), strict=False):
        places, values = _points(line, axis, lambda level: level.output_tokens_per_s)
        panel.plot(places, values, "-o", color=run_colour, markersize=5.5, linewidth=2.0, label=line.name)
        rates = [(level.rates_ci or {}).get("output_tokens_per_s", (0.0, 0.0)) for level in line.levels]
        _bars(panel, [(axis.place(level), *rate) for level, rate in zip(line.levels, rates, strict=True)], run_colour)
        highest = max([highest, *values, *(high for _, high in rates)])
    named = len(lines) if len(lines) > 1 else 0
    panel.set_ylim(0, highest / (1 - min(0.13 + LEGEND_LINE * named, 0.6)) or 1)
    panel.yaxis.set_major_formatter(plain())
    panel_title(panel, "Output tokens per second")
    if highest > 0 and len(lines) > 1:
        panel.legend(loc="upper left")


def _bars(panel: Any, bars: list[tuple[float, float, float]], colour: str) -> None:
    """Draw confidence intervals: place, lower and upper end of each; an unknown one has none."""
    known = [bar for bar in bars if bar[2] > 0]
    if known:
        panel.vlines(*zip(*known, strict=True), color=colour, linewidth=1.2, alpha=0.75)


def _points(
    line: _Line, axis: _Axis, quantity: Callable[[LevelSummary], float | None]
) -> tuple[list[float], list[float]]:
    """Return the positions and values of the levels that have both."""
    pairs = [(axis.place(level), quantity(level)) for level in line.levels]
    known = [(place, value) for place, value in pairs if value is not None and place == place and place > 0]  # noqa: PLR0124 (NaN)
    return [place for place, _ in known], [value for _, value in known]


def _percentile_ms(found: Spread | None, name: str) -> float | None:
    return None if found is None else float(getattr(found, name)) * MS_PER_S


def _annotate(panels: Any, levels: list[LevelSummary], axis: _Axis) -> None:
    """Label each concurrency at its highest point in a panel."""
    quantities: list[Callable[[LevelSummary], float | None]] = [
        lambda level: _percentile_ms(level.itl_s, "p99"),
        lambda level: _percentile_ms(level.felt_ttft_s, "p99"),
        lambda level: level.output_tokens_per_s,
    ]
    for panel, quantity in zip(panels, quantities, strict=True):
        panel.autoscale_view()  # positions are needed now, not at the first drawing
        label_loads(panel, _spots(levels, axis, quantity))


def _spots(levels: list[LevelSummary], axis: _Axis, quantity: Callable[[LevelSummary], float | None]) -> list[Spot]:
    """Return the highest point of each load, by load."""
    highest: dict[float, tuple[float, float]] = {}
    for level in levels:
        for x, y in zip(*_points(_Line("", [level]), axis, quantity), strict=True):
            if level.offered not in highest or y > highest[level.offered][1]:
                highest[level.offered] = (x, y)
    return [Spot(x, y, f"{users:g}") for users, (x, y) in sorted(highest.items())]
