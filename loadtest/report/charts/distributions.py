"""Distributions of latency at each level, and throughput against the speed per user."""

from __future__ import annotations

from itertools import cycle
from typing import Any

import numpy as np

from engines.units import MS_PER_S
from loadtest.metrics import Ecdf, LevelDetail, LevelSummary, RunDetail, Summary
from loadtest.report.charts.labels import ABOVE, BELOW, Spot, label_loads
from loadtest.report.charts.style import (
    Drawing,
    drawing_of,
    head,
    log_x,
    new_figure,
    no_ticks,
    nothing,
    panel_title,
    plain,
    style,
    ticks_at,
    what_ran,
    width_ratio,
)
from loadtest.report.theme import FAINT, LEVEL_COLOURS, RUN_COLOURS

MAX_LEVELS = len(LEVEL_COLOURS)
MIN_OF_MEDIAN = 10
RAREST = 1e-4
OTHER_FONT_RATIO = 1.1  # of a legend's width: an SVG's text has the reader's own font
LEGEND_GAP = 0.01  # of the figure's width, on both sides
MAX_NAME = 30


def distributions(summary: Summary, details: list[RunDetail]) -> Drawing:
    """Draw cumulative distributions of TTFT and inter-token latency, one line per level, with the tails below."""
    title = "Distributions of latency"
    with style(title):
        figure = new_figure(height_in=8.2)
        panels = figure.subplots(2, 2, height_ratios=[1.25, 1])
        chosen, left_out = _chosen(details)
        figure.subplots_adjust(left=0.075, top=0.83, bottom=0.08, wspace=0.22, hspace=0.34)
        names = ("Time to first token", "Inter-token latency")
        for column, (name, quantity) in enumerate(zip(names, ("ttft", "itl"), strict=True)):
            curves = [(load, colour, getattr(level, quantity)) for load, colour, level in chosen]
            _ecdf_panel(panels[0][column], curves, f"{name}: share at or below")
            _tail_panel(panels[1][column], curves, f"{name}: share above")
        name_loads(figure, panels[0][1])
        head(figure, title, what_ran(summary) + left_out, summary)
        return drawing_of(figure)


def _chosen(details: list[RunDetail]) -> tuple[list[tuple[str, str, LevelDetail]], str]:
    """Return up to MAX_LEVELS levels, evenly spread over the loads, with colours, and a note on the others."""
    several = len(details) > 1
    levels = [
        (f"{_short(run.name)}: {level.load}" if several else level.load, level)
        for run in details
        for level in run.levels
    ]
    places = np.unique(np.linspace(0, len(levels) - 1, min(MAX_LEVELS, len(levels))).round().astype(int)).tolist()
    colours = np.linspace(0, MAX_LEVELS - 1, max(len(places), 2)).round().astype(int).tolist()
    left_out = f"   |   {len(places)} of {len(levels)} levels" if len(places) < len(levels) else ""
    return [
        (levels[place][0], LEVEL_COLOURS[colour], levels[place][1])
        for place, colour in zip(places, colours, strict=False)
    ], left_out


def name_loads(figure: Any, panel: Any) -> None:
    """Write a panel's legend right of all panels, which leave it the room that its longest name needs."""
    handles, names = panel.get_legend_handles_labels()
    right = 1 - LEGEND_GAP
    if handles:
        legend = figure.legend(
            handles, names, loc="upper left", bbox_to_anchor=(0, 0.84), title="load", alignment="left"
        )
        right -= OTHER_FONT_RATIO * width_ratio(figure, legend)
        legend.set_bbox_to_anchor((right, 0.84))
    figure.subplots_adjust(right=right - LEGEND_GAP)


def _short(name: str) -> str:
    return name if len(name) <= MAX_NAME else f"{name[: MAX_NAME - 1]}…"


def _ecdf_panel(panel: Any, curves: list[tuple[str, str, Ecdf | None]], title: str) -> None:
    panel_title(panel, title)
    for load, colour, curve in curves:
        if curve is not None:
            panel.plot(curve.seconds * MS_PER_S, curve.share, color=colour, linewidth=1.8, label=load)
    _finish(panel, curves)
    panel.set_ylim(0, 1.02)
    for share in (0.5, 0.95):
        panel.axhline(share, color=FAINT, linewidth=0.8, linestyle=":")


def _tail_panel(panel: Any, curves: list[tuple[str, str, Ecdf | None]], title: str) -> None:
    """Draw the tail on a logarithmic axis, down to the rarest share that the sample supports."""
    panel_title(panel, title)
    for _, colour, curve in curves:
        if curve is not None:
            supported = 1.0 - curve.share >= 1.0 / curve.size  # the sample has no value beyond it
            panel.plot(curve.seconds[supported] * MS_PER_S, (1.0 - curve.share)[supported], color=colour, linewidth=1.8)
    _finish(panel, curves)
    panel.set_yscale("log")
    largest = max((curve.size for _, _, curve in curves if curve is not None), default=1)
    panel.set_ylim(max(RAREST / 2, 0.5 / largest), 1.2)
    ticks = {1: "all", 0.1: "1 in 10", 0.01: "1 in 100", 0.001: "1 in 1,000", RAREST: "1 in 10,000"}
    shown = [share for share in ticks if share >= panel.get_ylim()[0]]
    ticks_at(panel.yaxis, shown, [ticks[share] for share in shown])
    panel.yaxis.set_minor_locator(no_ticks())


def _finish(panel: Any, curves: list[tuple[str, str, Ecdf | None]]) -> None:
    if not any(curve is not None for _, _, curve in curves):
        nothing(panel, "no value")
        return
    log_x(panel)
    known = [curve for _, _, curve in curves if curve is not None]
    middle = min(float(np.interp(0.5, curve.share, curve.seconds)) for curve in known) * MS_PER_S
    if panel.get_xlim()[0] < middle / MIN_OF_MEDIAN:  # tokens that arrived together have almost no gap
        panel.set_xlim(left=middle / MIN_OF_MEDIAN)
    panel.set_xlabel("ms")


def frontier(summary: Summary) -> Drawing:
    """Draw the speed of one user against the throughput of all: up and to the right is better."""
    title = "Throughput against latency"
    with style(title):
        figure = new_figure()
        left, right = figure.subplots(1, 2)
        figure.subplots_adjust(left=0.06, right=0.985, top=0.74, bottom=0.13, wspace=0.18)
        spots: tuple[list[Spot], list[Spot]] = ([], [])
        for run, colour in zip(_runs(summary), cycle(RUN_COLOURS), strict=False):
            levels = [level for level in summary.levels if level.run == run and level.output_tokens_per_s]
            spots[0].extend(_frontier_line(left, levels, (run, colour), _speed))
            spots[1].extend(_frontier_line(right, levels, (run, colour), _e2e_s))
        _frontier_axes(left, "Tokens/s per user (1 / mean TPOT)", "output tokens/s, all users")
        _frontier_axes(right, "End-to-end latency p50, s", "output tokens/s, all users")
        for panel, points in zip((left, right), spots, strict=True):
            label_loads(panel, points, sides=(ABOVE, BELOW))
        if len(_runs(summary)) > 1 and left.lines:
            left.legend(loc="lower left")
        head(figure, title, f"{what_ran(summary)}   |   numbers at points: load", summary)
        return drawing_of(figure)


def _runs(summary: Summary) -> list[str | None]:
    return list(dict.fromkeys(level.run for level in summary.levels))


def _speed(level: LevelSummary) -> float | None:
    return None if level.tpot_s is None or level.tpot_s.mean <= 0 else 1.0 / level.tpot_s.mean


def _e2e_s(level: LevelSummary) -> float | None:
    return None if level.felt_e2e_s is None else level.felt_e2e_s.p50


def _frontier_line(panel: Any, levels: list[LevelSummary], who: tuple[str | None, str], quantity: Any) -> list[Spot]:
    run, colour = who
    found = [(level.output_tokens_per_s or 0.0, quantity(level), level.load) for level in levels]
    known = [Spot(x, y, load, FAINT if run is None else colour) for x, y, load in found if y is not None]
    if not known:
        return []
    x, y = [spot.x for spot in known], [spot.y for spot in known]
    panel.plot(x, y, "-o", color=colour, markersize=5.5, linewidth=1.8, label=run)
    return known


def _frontier_axes(panel: Any, title: str, label: str) -> None:
    panel_title(panel, title)
    if not panel.lines:
        nothing(panel, "no successful request")
        return
    panel.set_xlim(left=0)
    panel.set_ylim(0, panel.get_ylim()[1] * 1.12)
    panel.set_xlabel(label)
    panel.xaxis.set_major_formatter(plain())
    panel.yaxis.set_major_formatter(plain())
