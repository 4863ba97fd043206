"""Time per token at each batch size: from the records, by gap, and from the server, by iteration."""

from __future__ import annotations

from itertools import cycle
from typing import Any, NamedTuple

import numpy as np

from engines.units import MS_PER_S
from loadtest.metrics import BatchPoint, Summary
from loadtest.report.charts.style import (
    Drawing,
    drawing_of,
    head,
    new_figure,
    nothing,
    panel_title,
    place_x,
    plain,
    style,
    what_ran,
)
from loadtest.report.theme import BLUE, FAINT, RUN_COLOURS, VERMILION

TITLE = "Latency against batch size, moment by moment"
CLOSE_RATIO = 0.10
ALIKE_RATIO = 1.12
MIN_OF_LARGEST = 0.01  # batch sizes with a smaller share of the most frequent one's count are not drawn


class _Joined(NamedTuple):
    """The points of all levels at one batch size, weighted by number of gaps or iterations."""

    batch: float
    weight: float
    mean_s: float
    p50_s: float | None
    p95_s: float | None


def gap_against_batch(summary: Summary) -> Drawing:
    """Draw the time per token against the number of decoding sequences, from records and from the server."""
    with style(TITLE):
        figure = new_figure()
        left, right = figure.subplots(1, 2, width_ratios=[2.1, 1])
        figure.subplots_adjust(left=0.055, right=0.985, top=0.74, bottom=0.13, wspace=0.16)
        reconstructed = joined([point for curve in _curves(summary) for point in curve.reconstructed])
        server = joined([point for curve in _curves(summary) for point in curve.server])
        _curve_panel(left, reconstructed, server)
        _disagreement_panel(right, summary)
        head(figure, TITLE, what_ran(summary), summary)
        return drawing_of(figure)


def joined(points: list[BatchPoint]) -> list[_Joined]:
    """Return points of several levels, merged where their batch sizes are similar, weighted by their gaps."""
    groups: list[list[BatchPoint]] = []
    for point in sorted(points, key=lambda point: point.batch):
        if groups and point.batch <= ALIKE_RATIO * groups[-1][0].batch:
            groups[-1].append(point)
        else:
            groups.append([point])
    counts = [sum(point.count for point in group) for group in groups]
    smallest = MIN_OF_LARGEST * max(counts, default=0.0)
    return [_join(group) for group, count in zip(groups, counts, strict=True) if count >= smallest]


def _join(points: list[BatchPoint]) -> _Joined:
    weights = [point.count for point in points]

    def mean(values: list[float | None]) -> float | None:
        known = [value for value in values if value is not None]
        return float(np.average(known, weights=weights)) if len(known) == len(points) else None

    return _Joined(
        float(np.average([point.batch for point in points], weights=weights)),
        sum(weights),
        mean([point.mean_s for point in points]) or 0.0,
        mean([point.p50_s for point in points]),
        mean([point.p95_s for point in points]),
    )


def _curves(summary: Summary) -> list[Any]:
    return [level.batch_curve for level in summary.levels if level.batch_curve is not None]


def _curve_panel(panel: Any, reconstructed: list[_Joined], server: list[_Joined]) -> None:
    panel_title(panel, "Time per token, ms")
    if not reconstructed:
        nothing(panel, "no inter-token gaps")
        return
    batches = [point.batch for point in reconstructed]
    p50 = [(point.p50_s or 0.0) * MS_PER_S for point in reconstructed]
    p95 = [(point.p95_s or 0.0) * MS_PER_S for point in reconstructed]
    panel.fill_between(batches, p50, p95, color=BLUE, alpha=0.13, linewidth=0)
    means = [point.mean_s * MS_PER_S for point in reconstructed]
    panel.plot(batches, means, color=BLUE, linewidth=1.6, marker="o", markersize=4,
               label="client: inter-token gaps, mean")  # fmt: skip
    largest = max(point.weight for point in reconstructed)
    panel.scatter(batches, means, [260 * point.weight / largest for point in reconstructed], color=BLUE, alpha=0.25,
                  linewidth=0, label="area: number of gaps")  # fmt: skip
    panel.plot(batches, p50, ":", color=BLUE, linewidth=1.3, label="client: p50; shaded up to p95")
    highest = max(p95)
    if server:
        latencies_ms = [point.mean_s * MS_PER_S for point in server]
        panel.plot([point.batch for point in server], latencies_ms, linestyle="none", marker="D", markersize=5,
                   color=VERMILION, label="server: iteration time, mean")  # fmt: skip
        highest = max(highest, *latencies_ms)
    place_x(panel, batches + [point.batch for point in server])
    panel.set_ylim(0, highest * 1.25)
    panel.yaxis.set_major_formatter(plain())
    panel.set_xlabel("sequences decoding at the time")
    panel.legend(loc="upper left")


def _disagreement_panel(panel: Any, summary: Summary) -> None:
    """Draw the ratio of the server's to the client's mean batch size, by level."""
    panel_title(panel, "Batch size: server / client")
    runs = list(dict.fromkeys(level.run for level in summary.levels))
    drawn: list[float] = []
    for run, colour in zip(runs, cycle(RUN_COLOURS), strict=False):
        pairs = [
            (level.batch_size_client.mean, level.batch_size.mean / level.batch_size_client.mean)
            for level in summary.levels
            if level.run == run and level.batch_size and level.batch_size_client and level.batch_size_client.mean > 0
        ]
        panel.plot([x for x, _ in pairs], [y for _, y in pairs], "o", color=colour, markersize=6)
        drawn += [y for _, y in pairs]
    if not drawn:
        nothing(panel, "the server reports no batch size")
        return
    panel.axhspan(1 - CLOSE_RATIO, 1 + CLOSE_RATIO, color=FAINT, alpha=0.10, linewidth=0)
    panel.axhline(1.0, color=FAINT, linewidth=1.2)
    panel.text(0.99, 1 + CLOSE_RATIO, " within 10 %", transform=panel.get_yaxis_transform(), ha="right", va="bottom",
               fontsize=9, color=FAINT)  # fmt: skip
    place_x(panel, [level.batch_size_client.mean for level in summary.levels if level.batch_size_client])
    panel.set_ylim(min(0.7, min(drawn) * 0.95), max(1.3, max(drawn) * 1.05))
    panel.set_xlabel("mean batch size, client")
