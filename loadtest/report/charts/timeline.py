"""How a run went, over time: rates, requests in flight, batch, KV cache, GPU, errors."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from loadtest.metrics import RunDetail, Summary, Timeline
from loadtest.report.charts.style import (
    BAD,
    BLUE,
    FAINT,
    GREEN,
    ORANGE,
    VERMILION,
    Image,
    bytes_of,
    head,
    new_figure,
    plain,
    style,
    what_ran,
)

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
            ("decoding_client", BLUE, "decoding, by the records"),
            ("decoding_server", VERMILION, "decoding, by the server"),
            ("waiting_server", ORANGE, "waiting, by the server"),
        ),
    ),
    _Strip("requests ended/s", (("requests_per_s", GREEN, "well"), ("errors_per_s", BAD, "failed"))),
    _Strip("KV cache in use", (("kv_ratio_server", GREEN, "share"),)),
    _Strip("KV blocks in use", (("kv_blocks_used_server", GREEN, "blocks"),)),
    _Strip("GPU power, W", (("gpu_power_w_server", ORANGE, "watts"),)),
)


def timeline(summary: Summary, detail: RunDetail, *, image: Image = "svg") -> bytes:
    """Draw one run over time, a strip for each quantity the run knows; what its figures are of is shaded."""
    title = "Over time" if len(summary.runs) == 1 else f"Over time: {detail.name}"
    with style(title):
        found = detail.timeline
        strips = [] if found is None else _known(found)
        figure = new_figure(height_in=HEAD_IN + PANEL_IN * max(1, len(strips)) + 0.55)
        top = 1 - HEAD_IN / figure.get_figheight()
        if found is not None:
            panels = np.atleast_1d(figure.subplots(len(strips), 1, sharex=True))
            figure.subplots_adjust(left=0.075, right=0.985, top=top, bottom=0.5 / figure.get_figheight(), hspace=0.30)
            for panel, strip in zip(panels, strips, strict=True):
                _draw_strip(panel, found, strip)
            _name_levels(panels[0], found)
            panels[-1].set_xlabel("seconds since the run began" + _clock(summary))
        head(figure, title, f"{what_ran(summary)}   |   shaded: what the figures are of", summary)
        return bytes_of(figure, image)


def _clock(summary: Summary) -> str:
    return ", engine time" if summary.kind == "emulated" else ""


def _known(found: Timeline) -> list[_Strip]:
    """Return the strips that have something to show; the share of the KV cache rather than its blocks."""
    strips = [strip for strip in _STRIPS if any(name in found.series for name, _, _ in strip.lines)]
    has_share = any(strip.lines[0][0] == "kv_ratio_server" for strip in strips)
    return [strip for strip in strips if not (has_share and strip.lines[0][0] == "kv_blocks_used_server")]


def _draw_strip(panel: Any, found: Timeline, strip: _Strip) -> None:
    highest = 0.0
    for name, colour, label in strip.lines:
        values = found.series.get(name)
        if values is not None and not (name == "errors_per_s" and not np.any(values > 0)):
            known = np.isfinite(values)
            panel.plot(found.t_s[known], values[known], color=colour, linewidth=1.3, label=label,
                       drawstyle="steps-mid")  # fmt: skip
            highest = max([highest, *values[known].tolist()])
    for span in found.spans:
        panel.axvspan(span.window_begin_s, span.window_end_s, color=BLUE, alpha=0.06, linewidth=0)
        panel.axvline(span.begin_s, color=FAINT, linewidth=0.7, linestyle=":")
    panel.set_ylim(0, highest * 1.18 or 1)
    panel.set_xlim(found.spans[0].begin_s, found.spans[-1].end_s)
    panel.yaxis.set_major_formatter(plain())
    panel.yaxis.get_major_locator().set_params(nbins=4)
    panel.text(0.004, 0.97, strip.title, transform=panel.transAxes, fontsize=10, fontweight="bold", va="top")
    if len(panel.get_legend_handles_labels()[0]) > 1:
        panel.legend(loc="upper left", bbox_to_anchor=(0.11, 1.02), ncols=4, fontsize=9, borderaxespad=0.1)


def _name_levels(panel: Any, found: Timeline) -> None:
    """Write each level's load above it, where there is room."""
    whole_s = found.spans[-1].end_s - found.spans[0].begin_s
    for span in found.spans:
        if span.end_s - span.begin_s > 0.02 * whole_s:
            panel.annotate(span.load, ((span.begin_s + span.end_s) / 2, 1), xycoords=("data", "axes fraction"),
                           xytext=(0, 4), textcoords="offset points", ha="center", fontsize=9,
                           color=FAINT)  # fmt: skip
