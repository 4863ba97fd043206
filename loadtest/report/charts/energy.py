"""Joules and cost per token against throughput."""

from __future__ import annotations

from itertools import cycle
from typing import Any

from loadtest.metrics import LevelSummary, Summary
from loadtest.report.charts.labels import LOWER_LEFT, UPPER_RIGHT, Spot, label_loads
from loadtest.report.charts.style import (
    Drawing,
    drawing_of,
    head,
    log_y,
    new_figure,
    nothing,
    panel_title,
    plain,
    style,
    what_ran,
)
from loadtest.report.theme import FAINT, RUN_COLOURS


def energy_and_cost(summary: Summary) -> Drawing:
    """Draw joules, and USD per million, of an output token against the throughput of all users."""
    title = "Energy and cost of a token"
    with style(title):
        figure = new_figure()
        left, right = figure.subplots(1, 2)
        figure.subplots_adjust(left=0.06, right=0.985, top=0.74, bottom=0.13, wspace=0.18)
        spots: list[Spot] = []
        runs = list(dict.fromkeys(level.run for level in summary.levels))
        for run, colour in zip(runs, cycle(RUN_COLOURS), strict=False):
            levels = [level for level in summary.levels if level.run == run and level.output_tokens_per_s]
            spots += _energy_line(left, levels, run, colour)
            _cost_lines(right, levels, run, colour, is_only=len(runs) == 1)
        _axes(left, "Joules per output token, GPUs only", "GPU power is unknown")
        label_loads(left, spots, sides=(UPPER_RIGHT, LOWER_LEFT))
        _axes(right, "USD per million tokens", "no price was given")
        if right.lines:
            right.legend(loc="upper right")
        head(figure, title, f"{what_ran(summary)}   |   numbers at points: load", summary)
        return drawing_of(figure)


def _energy_line(panel: Any, levels: list[LevelSummary], run: str | None, colour: str) -> list[Spot]:
    points = [
        (level.output_tokens_per_s or 0.0, level.energy.j_per_output_token, level.energy, level.load)
        for level in levels
        if level.energy is not None and level.energy.j_per_output_token is not None
    ]
    if not points:
        return []
    x, y = [each[0] for each in points], [each[1] for each in points]
    panel.plot(x, y, "-o", color=colour, markersize=5.5, linewidth=1.8, label=run)
    for rate, joules, energy, _ in points:
        if energy.power_range_w is not None:
            ends = [joules * watts / energy.power_w for watts in energy.power_range_w]
            panel.plot([rate, rate], ends, "-", color=colour, linewidth=1.2, alpha=0.6)
    return [Spot(rate, joules, load, FAINT if run is None else colour) for rate, joules, _, load in points]


def _cost_lines(panel: Any, levels: list[LevelSummary], run: str | None, colour: str, *, is_only: bool) -> None:
    """Draw the whole cost on output tokens and, of a single run, what of it input tokens carry."""
    found = [(level.output_tokens_per_s or 0.0, level.cost) for level in levels if level.cost is not None]
    if not found:
        return
    x = [rate for rate, _ in found]
    whole = [cost.usd_per_million_output_tokens for _, cost in found]
    panel.plot(
        x, whole, "-o", color=colour, markersize=5.5, linewidth=1.8, label="all cost on output" if is_only else run
    )
    if not is_only:
        return
    for name, line in (("output", "--"), ("input", ":")):
        points = [(rate, getattr(cost.split, name)) for rate, cost in found if cost.split is not None]
        points = [(rate, usd) for rate, usd in points if usd is not None]
        if points:
            panel.plot(
                [rate for rate, _ in points], [usd for _, usd in points], line, marker="s", markersize=4.5,
                color=colour, linewidth=1.4, label=f"split: {name}",
            )  # fmt: skip


def _axes(panel: Any, title: str, why_empty: str) -> None:
    panel_title(panel, title)
    if not panel.lines:
        nothing(panel, why_empty)
        return
    panel.set_xlim(left=0)
    panel.set_xlim(right=1.06 * panel.get_xlim()[1])
    log_y(panel)
    panel.set_xlabel("output tokens/s, all users")
    panel.xaxis.set_major_formatter(plain())
