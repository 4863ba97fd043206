"""A run over time: rates, requests in flight, batch size, KV cache, GPU, errors."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from loadtest.metrics import RunDetail, Span, Summary, Timeline
from loadtest.report.charts.style import Drawing, drawing_of, head, new_figure, plain, style, ticks_at, what_ran
from loadtest.report.theme import BAD, BLUE, FAINT, GREEN, ORANGE, VERMILION
from loadtest.results import Floats

MAX_OF_EVEN_WIDTH = 1.5  # a level may take up to this multiple of its even share of the width
MIN_NAMED_RATIO = 0.02
PANEL_IN = 1.25
HEAD_IN = 1.15


class _Strip(NamedTuple):
    """One strip of the chart.

    Attributes:
        lines: Series, colour, name.
    """

    title: str
    lines: tuple[tuple[str, str, str], ...]


_STRIPS = (
    _Strip("output tokens/s", (("output_tokens_per_s", BLUE, "output tokens/s"),)),
    _Strip(
        "requests",
        (
            ("in_flight", FAINT, "in flight"),
            ("decoding_client", BLUE, "decoding (client)"),
            ("decoding_server", VERMILION, "decoding (server)"),
            ("waiting_server", ORANGE, "waiting (server)"),
        ),
    ),
    _Strip("requests completed/s", (("requests_per_s", GREEN, "successful"), ("errors_per_s", BAD, "failed"))),
    _Strip("KV cache in use", (("kv_ratio_server", GREEN, "share"),)),
    _Strip("KV blocks in use", (("kv_blocks_used_server", GREEN, "blocks"),)),
    _Strip("GPU power, W", (("gpu_power_w_server", ORANGE, "watts"),)),
)


def timeline(summary: Summary, detail: RunDetail) -> Drawing:
    """Draw one run over time, a strip for each available quantity; measurement windows are shaded."""
    title = "Over time" if len(summary.runs) == 1 else f"Over time: {detail.name}"
    with style(title):
        found = detail.timeline
        strips = [] if found is None else _known(found)
        figure = new_figure(height_in=HEAD_IN + PANEL_IN * max(1, len(strips)) + 0.55)
        top = 1 - HEAD_IN / figure.get_figheight()
        if found is not None:
            panels = np.atleast_1d(figure.subplots(len(strips), 1, sharex=True))
            figure.subplots_adjust(left=0.075, right=0.985, top=top, bottom=0.5 / figure.get_figheight(), hspace=0.30)
            axis = _TimeAxis(found.spans)
            for panel, strip in zip(panels, strips, strict=True):
                _draw_strip(panel, found, strip, axis)
            _name_levels(panels[0], found, axis)
            panels[-1].set_xlabel("seconds since the start of the run" + _clock(summary) + axis.note)
        head(figure, title, f"{what_ran(summary)}   |   shaded: measurement window", summary)
        return drawing_of(figure)


class _TimeAxis:
    """Maps times to positions: to scale, or with equal width for each level if one would take most of the width.

    Attributes:
        note: Addition to the axis label.
    """

    def __init__(self, spans: list[Span]) -> None:
        edges = [spans[0].begin_s, *(span.begin_s for span in spans[1:]), spans[-1].end_s]
        longest = max(np.diff(edges))
        self._is_even = len(spans) > 1 and longest * len(spans) > MAX_OF_EVEN_WIDTH * (edges[-1] - edges[0])
        self._edges = np.array(edges)
        self.note = "; levels drawn with equal width" if self._is_even else ""

    def place(self, times_s: Floats | float) -> Floats:
        """Return the positions of times, in the axis' own unit."""
        times = np.asarray(times_s, dtype=np.float64)
        return np.interp(times, self._edges, np.arange(len(self._edges))) if self._is_even else times

    def finish(self, panel: Any) -> None:
        """Set the limits and, with equal widths, the ticks: the start times of levels."""
        places = self.place(self._edges)
        panel.set_xlim(places[0], places[-1])
        if self._is_even:
            digits = max(0, 2 - int(np.floor(np.log10(self._edges[-1]))))
            ticks_at(panel.xaxis, places.tolist(), [f"{edge:,.{digits}f}" for edge in self._edges])


def _clock(summary: Summary) -> str:
    return ", engine time" if summary.kind == "emulated" else ""


def _known(found: Timeline) -> list[_Strip]:
    """Return the strips that have data; the share of the KV cache rather than its blocks."""
    strips = [strip for strip in _STRIPS if any(name in found.series for name, _, _ in strip.lines)]
    has_share = any(strip.lines[0][0] == "kv_ratio_server" for strip in strips)
    return [strip for strip in strips if not (has_share and strip.lines[0][0] == "kv_blocks_used_server")]


def _draw_strip(panel: Any, found: Timeline, strip: _Strip, axis: _TimeAxis) -> None:
    highest = 0.0
    for name, colour, label in strip.lines:
        values = found.series.get(name)
        if values is not None and not (name == "errors_per_s" and not np.any(values > 0)):
            known = np.isfinite(values)
            panel.plot(axis.place(found.t_s[known]), values[known], color=colour, linewidth=1.3, label=label,
                       drawstyle="steps-mid")  # fmt: skip
            highest = max([highest, *values[known].tolist()])
    for span in found.spans:
        begin, end = axis.place(np.array([span.window_begin_s, span.window_end_s])).tolist()
        panel.axvspan(begin, end, color=BLUE, alpha=0.06, linewidth=0)
        panel.axvline(float(axis.place(span.begin_s)), color=FAINT, linewidth=0.7, linestyle=":")
    panel.set_ylim(0, highest * 1.18 or 1)
    axis.finish(panel)
    panel.yaxis.set_major_formatter(plain())
    panel.yaxis.get_major_locator().set_params(nbins=4)
    panel.text(0.004, 0.97, strip.title, transform=panel.transAxes, fontsize=10, fontweight="bold", va="top")
    if len(panel.get_legend_handles_labels()[0]) > 1:
        panel.legend(loc="upper left", bbox_to_anchor=(0.11, 1.02), ncols=4, fontsize=9, borderaxespad=0.1)


def _name_levels(panel: Any, found: Timeline, axis: _TimeAxis) -> None:
    """Write each level's load above it, if there is room."""
    places = axis.place(np.array([[span.begin_s, span.end_s] for span in found.spans]))
    whole = places[-1][1] - places[0][0]
    for span, (begin, end) in zip(found.spans, places.tolist(), strict=True):
        if end - begin > MIN_NAMED_RATIO * whole:
            panel.annotate(span.load, ((begin + end) / 2, 1), xycoords=("data", "axes fraction"),
                           xytext=(0, 4), textcoords="offset points", ha="center", fontsize=9,
                           color=FAINT)  # fmt: skip
