"""The only door to matplotlib: figures from a summary, drawn off screen, each marked with its kind.

Kinds never share a figure, because a summary is of one kind.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from itertools import cycle
from typing import Any, Literal, NamedTuple

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter, NullLocator

from loadtest.metrics import LevelSummary, Spread, Summary

Image = Literal["svg", "png"]

# Okabe and Ito's palette, which colour-blind readers tell apart: https://jfly.uni-koeln.de/color/
RUN_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
PERCENTILE_COLOURS = {"p50": "#0072B2", "p95": "#E69F00", "p99": "#D55E00"}
PERCENTILE_LINES = {"p50": "-", "p95": "--", "p99": ":"}
PERCENTILE_MARKERS = {"p50": "o", "p95": "s", "p99": "^"}
MARKER_SIZES = {"p50": 5, "p95": 6, "p99": 8}  # drawn p99 first: equal values stay visible behind each other
INK, FAINT, GRID = "#1f2933", "#616e7c", "#e4e7eb"
KIND_COLOURS = {"measured": "#009E73", "emulated": "#B26A00", "predicted": "#7A5195"}
WIDTH_IN, HEIGHT_IN, PNG_DPI = 14.0, 5.4, 150
LOG_AXIS_RATIO = 20.0
LABEL_GAP_PX = 20.0
MS = 1e3

_STYLE = {
    "svg.fonttype": "none",  # text stays text: searchable, and small
    "font.family": "sans-serif",
    "font.size": 11,
    "text.color": INK,
    "axes.edgecolor": "#9aa5b1",
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.9,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "legend.frameon": False,
}


class _Axis(NamedTuple):
    """What is drawn against: a level's place, and the axis label that says what it is.

    Attributes:
        tells_users: The place is the concurrency itself, so the points need not name it.
    """

    place: Callable[[LevelSummary], float]
    label: str
    title: str
    tells_users: bool = False


class _Line(NamedTuple):
    """The levels of one run at one pair of lengths, joined by lines."""

    name: str
    levels: list[LevelSummary]


def latency_against_batch(summary: Summary, *, image: Image = "svg") -> bytes:
    """Draw latency and throughput against the batch size the server ran.

    Where any level lacks the server's own count, all are placed by the client's, and the axis says so.
    """
    title = "Latency against batch size"
    if all(level.batch_size is not None for level in summary.levels):
        axis = _Axis(_server_batch, "batch size: sequences decoding, mean, by the server's own count", title)
    else:
        axis = _Axis(_client_batch, "batch size: requests decoding, mean, as seen by the client", title)
    return _draw(summary, axis, image)


def latency_against_concurrency(summary: Summary, *, image: Image = "svg") -> bytes:
    """Draw latency and throughput against the number of users."""
    axis = _Axis(lambda level: level.offered, "concurrency: users at a time", "Latency against concurrency", True)
    return _draw(summary, axis, image)


def _server_batch(level: LevelSummary) -> float:
    return level.batch_size.mean if level.batch_size else float("nan")


def _client_batch(level: LevelSummary) -> float:
    return level.batch_size_client.mean if level.batch_size_client else float("nan")


def _draw(summary: Summary, axis: _Axis, image: Image) -> bytes:
    with mpl.rc_context({**_STYLE, "svg.hashsalt": axis.title}):
        figure = Figure(figsize=(WIDTH_IN, HEIGHT_IN), facecolor="white")
        panels = figure.subplots(1, 3)
        figure.subplots_adjust(left=0.055, right=0.985, top=0.74, bottom=0.13, wspace=0.22)
        lines = _lines(summary)
        _latency_panel(panels[0], lines, axis, "Inter-token latency, ms", lambda level: level.itl_s)
        _latency_panel(panels[1], lines, axis, "Time to first token, ms", lambda level: level.ttft_s)
        _rate_panel(panels[2], lines, axis)
        for panel in panels:
            _place_x_axis(panel, [axis.place(level) for level in summary.levels])
        figure.supxlabel(axis.label, fontsize=11, y=0.015)
        _head(figure, summary, axis)
        if not axis.tells_users:
            _annotate(figure, panels, summary.levels, axis)
        return _bytes_of(figure, image)


def _lines(summary: Summary) -> list[_Line]:
    """Group levels into lines: a run's levels of equal lengths, in order of concurrency."""
    groups: dict[tuple[str | None, int, int], list[LevelSummary]] = {}
    for level in summary.levels:
        groups.setdefault((level.run, level.isl, level.osl), []).append(level)
    one_run = len({run for run, _, _ in groups}) == 1
    return [
        _Line(
            f"isl {isl}, osl {osl}" if one_run else f"{run} ({isl}/{osl})",
            sorted(levels, key=lambda level: level.offered),
        )
        for (run, isl, osl), levels in groups.items()
    ]


def _latency_panel(
    panel: Any, lines: list[_Line], axis: _Axis, title: str, quantity: Callable[[LevelSummary], Spread | None]
) -> None:
    """Draw p50, p95 and p99: told apart by colour where there is one line, by dashes where runs have the colours."""
    alone = len(lines) == 1
    highest, lowest = 0.0, float("inf")
    for line, run_colour in zip(lines, cycle(RUN_COLOURS), strict=False):
        for name in ("p99", "p95", "p50"):
            places, values = _points(line, axis, lambda level, name=name: _percentile_ms(quantity(level), name))  # type: ignore[misc]
            panel.plot(
                places,
                values,
                PERCENTILE_LINES[name],
                color=PERCENTILE_COLOURS[name] if alone else run_colour,
                marker=PERCENTILE_MARKERS[name],
                markersize=MARKER_SIZES[name],
                linewidth=1.8,
                label=name if alone or line is lines[0] else None,
            )
            highest, lowest = max([highest, *values]), min([lowest, *values])
    _place_y_axis(panel, lowest, highest)
    panel.set_title(title, loc="left", fontsize=12, fontweight="bold", pad=10)
    if highest > 0:
        _legend(panel, alone=alone)


def _legend(panel: Any, *, alone: bool) -> None:
    """Name the percentiles, p50 first; in ink where colour means the run."""
    legend = panel.legend(loc="upper left", reverse=True, fontsize=10, handlelength=2.6)
    if not alone:
        for handle in legend.legend_handles:
            handle.set_color(FAINT)


def _rate_panel(panel: Any, lines: list[_Line], axis: _Axis) -> None:
    highest = 0.0
    for line, run_colour in zip(lines, cycle(RUN_COLOURS), strict=False):
        places, values = _points(line, axis, lambda level: level.output_tokens_per_s)
        panel.plot(places, values, "-o", color=run_colour, markersize=5.5, linewidth=2.0, label=line.name)
        highest = max([highest, *values])
    panel.set_ylim(0, highest * 1.15 or 1)
    panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    panel.set_title("Output tokens per second", loc="left", fontsize=12, fontweight="bold", pad=10)
    if highest > 0 and len(lines) > 1:
        panel.legend(loc="lower right", fontsize=10)


def _points(
    line: _Line, axis: _Axis, quantity: Callable[[LevelSummary], float | None]
) -> tuple[list[float], list[float]]:
    """Return the places and values of the levels that have both."""
    pairs = [(axis.place(level), quantity(level)) for level in line.levels]
    known = [(place, value) for place, value in pairs if value is not None and place == place and place > 0]  # noqa: PLR0124 (NaN)
    return [place for place, _ in known], [value for _, value in known]


def _percentile_ms(found: Spread | None, name: str) -> float | None:
    return None if found is None else float(getattr(found, name)) * MS


def _place_x_axis(panel: Any, places: list[float]) -> None:
    """Give the axis powers of two where batch sizes span them, plain numbers otherwise."""
    known = [place for place in places if place > 0]
    if not known:
        panel.text(0.5, 0.5, "no successful request", transform=panel.transAxes, ha="center", color=FAINT)
        return
    least, most = min(known), max(known)
    if most / least < 4:  # noqa: PLR2004 (two doublings)
        panel.set_xlim(left=0, right=most * 1.15)
        return
    panel.set_xscale("log", base=2)
    panel.set_xlim(least / 1.25, most * 1.35)
    panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    panel.xaxis.set_minor_locator(NullLocator())


def _place_y_axis(panel: Any, lowest: float, highest: float) -> None:
    """Start at zero; where the values span too much for that to be legible, use a logarithmic axis and say so."""
    if lowest > 0 and highest > LOG_AXIS_RATIO * lowest:
        panel.set_yscale("log")
        panel.set_ylim(lowest / 1.6, highest * 3)
        panel.yaxis.set_minor_formatter(NullFormatter())
        panel.text(1.0, 1.02, "log scale", transform=panel.transAxes, ha="right", fontsize=9, color=FAINT)
    elif highest > 0:
        panel.set_ylim(0, highest * 1.4)
    panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))


def _head(figure: Any, summary: Summary, axis: _Axis) -> None:
    """Write title, what ran, and the tag with the run's kind; a second tag where the figures are in doubt."""
    figure.text(0.02, 0.925, axis.title, fontsize=17, fontweight="bold")
    subtitle = _what_ran(summary) if axis.tells_users else f"{_what_ran(summary)}   |   numbers at points: concurrency"
    figure.text(0.02, 0.865, subtitle, fontsize=11, color=FAINT)
    _tag(figure, 0.95, summary.label, KIND_COLOURS[summary.kind])
    if not summary.valid:
        _tag(figure, 0.875, "in doubt: see the report", "#B00020")


def _tag(figure: Any, height: float, text: str, colour: str) -> None:
    box = {"boxstyle": "round,pad=0.45", "facecolor": colour, "edgecolor": "none"}
    figure.text(0.98, height, text, ha="right", va="center", fontsize=11, fontweight="bold", color="white", bbox=box)


def _what_ran(summary: Summary) -> str:
    lengths = sorted({(level.isl, level.osl) for level in summary.levels})
    engines = sorted({run.server.engine or run.server.model for run in summary.runs})
    parts = [", ".join(engines), "; ".join(f"prompt {isl} tokens, reply {osl}" for isl, osl in lengths)]
    return "   |   ".join(part for part in parts if part)


def _annotate(figure: Any, panels: Any, levels: list[LevelSummary], axis: _Axis) -> None:
    """Put each concurrency at the highest point it has in a panel; labels that would touch are joined."""
    figure.draw_without_rendering()
    quantities: list[Callable[[LevelSummary], float | None]] = [
        lambda level: _percentile_ms(level.itl_s, "p99"),
        lambda level: _percentile_ms(level.ttft_s, "p99"),
        lambda level: level.output_tokens_per_s,
    ]
    box = {"boxstyle": "round,pad=0.1", "facecolor": "white", "edgecolor": "none", "alpha": 0.6}
    for panel, quantity in zip(panels, quantities, strict=True):
        for spot in _spots(panel, levels, axis, quantity):
            users = ", ".join(f"{count:g}" for count in spot.users)
            panel.annotate(
                users,
                (spot.x, spot.y),
                xytext=(0, 8),
                textcoords="offset points",
                ha="center",
                fontsize=9,
                color=FAINT,
                bbox=box,
            )


class _Spot(NamedTuple):
    """Where a label stands, and the concurrencies it names."""

    x: float
    y: float
    users: list[float]


def _spots(
    panel: Any, levels: list[LevelSummary], axis: _Axis, quantity: Callable[[LevelSummary], float | None]
) -> list[_Spot]:
    highest: dict[float, tuple[float, float]] = {}
    for level in levels:
        for x, y in zip(*_points(_Line("", [level]), axis, quantity), strict=True):
            if level.offered not in highest or y > highest[level.offered][1]:
                highest[level.offered] = (x, y)
    spots: list[_Spot] = []
    for users, (x, y) in sorted(highest.items()):
        near = next((spot for spot in spots if _touch(panel, spot, (x, y))), None)
        if near is None:
            spots.append(_Spot(x, y, [users]))
        else:
            near.users.append(users)
    return spots


def _touch(panel: Any, spot: _Spot, point: tuple[float, float]) -> bool:
    (x, y), (other_x, other_y) = panel.transData.transform([point, (spot.x, spot.y)])
    return bool(abs(x - other_x) < LABEL_GAP_PX and abs(y - other_y) < LABEL_GAP_PX)


def _bytes_of(figure: Any, image: Image) -> bytes:
    """Return the image; the same summary gives the same bytes."""
    buffer = io.BytesIO()
    if image == "svg":
        figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    else:
        figure.savefig(buffer, format="png", dpi=PNG_DPI, metadata={"Software": None})
    return buffer.getvalue()
