"""Two runs side by side: the change at each load, with its confidence."""

from __future__ import annotations

from typing import Any

from loadtest.report.charts.style import (
    Drawing,
    drawing_of,
    new_figure,
    nothing,
    panel_title,
    percent,
    style,
    ticks_at,
    titles,
)
from loadtest.report.comparison_schema import Change, Comparison
from loadtest.report.theme import FAINT, GREEN, INK, KIND_COLOURS, VERMILION

COLOURS = {"better": GREEN, "worse": VERMILION, "same": INK, "unclear": FAINT, "unknown": FAINT}
COLOUR_KEY = (
    "green: better, orange: worse, black or white: same, grey: no difference detected, hollow: too few requests"
)
DRAWN = {
    "itl_s p50": "Inter-token latency, p50",
    "itl_s p99": "Inter-token latency, p99",
    "ttft_s p50": "Time to first token, p50",
    "ttft_s p99": "Time to first token, p99",
    "e2e_s p50": "End to end, p50",
    "output_tokens_per_s": "Output tokens per second",
}
TITLE = "Candidate against baseline"


def changes(comparison: Comparison) -> Drawing:
    """Draw the change of each figure at each load with its confidence interval; the centre line means no change."""
    with style(TITLE):
        panel_in, between_in = 0.35 + 0.28 * max(len(comparison.levels), 2), 0.95
        height_in = 1.9 + 2 * panel_in + between_in
        figure = new_figure(height_in=height_in)
        panels = figure.subplots(2, 3, sharey=True)
        figure.subplots_adjust(
            left=0.07,
            right=0.985,
            top=1 - 1.35 / height_in,
            bottom=0.55 / height_in,
            hspace=between_in / panel_in,
            wspace=0.08,
        )
        for panel, (name, title) in zip(panels.flat, DRAWN.items(), strict=True):
            _panel(panel, comparison, name, title)
        for panel in panels[:, 0]:
            panel.set_ylabel("load")
        base, new = comparison.baseline, comparison.candidate
        subtitle = f"{new.name} against {base.name}   |   {COLOUR_KEY}"
        tags = [
            (f"baseline: {base.label}", KIND_COLOURS[base.kind]),
            (f"candidate: {new.label}", KIND_COLOURS[new.kind]),
        ]
        titles(figure, TITLE, subtitle, tags)
        return drawing_of(figure)


def _panel(panel: Any, comparison: Comparison, name: str, title: str) -> None:
    panel_title(panel, title)
    found = [(place, _named(level.changes, name)) for place, level in enumerate(comparison.levels)]
    known = [(place, change) for place, change in found if change is not None and change.change_ratio is not None]
    panel.axvline(0, color=INK, linewidth=1.0)
    for place, change in known:
        _mark(panel, place, change)
    if not known:
        nothing(panel, "nothing measured")
    ticks_at(panel.yaxis, range(len(comparison.levels)), [level.load for level in comparison.levels])
    panel.set_ylim(len(comparison.levels) - 0.4, -0.6)
    reach = max([0.02, *(abs(end) for _, change in known for end in _ends(change))]) * 1.12
    panel.set_xlim(-reach, reach)
    panel.xaxis.set_major_formatter(percent())
    panel.xaxis.get_major_locator().set_params(nbins=5)


def _mark(panel: Any, place: int, change: Change) -> None:
    colour = COLOURS[change.outcome]
    if change.low is not None and change.high is not None:
        panel.hlines(place, change.low, change.high, color=colour, linewidth=2.4, alpha=0.7)
    fill = {} if change.low is not None else {"markerfacecolor": "none"}
    panel.plot([change.change_ratio], [place], "o", color=colour, markersize=6.5, **fill)


def _named(all_changes: list[Change], name: str) -> Change | None:
    return next((change for change in all_changes if change.figure == name), None)


def _ends(change: Change) -> list[float]:
    return [end for end in (change.change_ratio, change.low, change.high) if end is not None]
