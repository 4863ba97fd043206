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
    """Draw joules, and USD per million, of an output token against the throughput of all users; each where known."""
    has_energy = any(level.energy is not None for level in summary.levels)
    has_cost = any(level.cost is not None for level in summary.levels)
    title = " and ".join(name for name, has in (("Energy", has_energy), ("cost", has_cost)) if has) + " of a token"
    title = title[0].upper() + title[1:]
    with style(title):
        figure = new_figure()
        panels = list(figure.subplots(1, has_energy + has_cost, squeeze=False)[0])
        figure.subplots_adjust(left=0.06, right=0.985, top=0.74, bottom=0.13, wspace=0.18)
        runs = list(dict.fromkeys(level.run for level in summary.levels))
        levels = [level for level in summary.levels if level.output_tokens_per_s]
        of_runs = [
            (run, colour, [level for level in levels if level.run == run])
            for run, colour in zip(runs, cycle(RUN_COLOURS), strict=False)
        ]
        if has_energy:
            panel = panels.pop(0)
            spots = [spot for run, colour, own in of_runs for spot in _energy_line(panel, own, run, colour)]
            _axes(panel, "Joules per output token, GPUs only")
            label_loads(panel, spots, sides=(UPPER_RIGHT, LOWER_LEFT))
        if has_cost:
            panel = panels.pop(0)
            for run, colour, own in of_runs:
                _cost_lines(panel, own, run, colour, is_only=len(runs) == 1)
            _axes(panel, "USD per million tokens")
            if panel.lines:
                panel.legend(loc="upper right")
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


def _axes(panel: Any, title: str) -> None:
    panel_title(panel, title)
    if not panel.lines:
        nothing(panel, "no level has output tokens")
        return
    panel.set_xlim(left=0)
    panel.set_xlim(right=1.06 * panel.get_xlim()[1])
    log_y(panel)
    panel.set_xlabel("output tokens/s, all users")
    panel.xaxis.set_major_formatter(plain())
