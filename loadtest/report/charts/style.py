"""Figures in a common style, each labelled with its kind.

Kinds never share a figure, because a summary has one kind.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import matplotlib as mpl
from matplotlib import artist
from matplotlib.ticker import FixedFormatter, FixedLocator, FuncFormatter, LogLocator, NullFormatter, NullLocator

from loadtest.metrics import LevelSummary, Summary
from loadtest.report.theme import AXIS, BAD, FAINT, GRID, INK, KIND_COLOURS, ON_TAG, PAPER

# Lists of properties in docstrings and signatures of Matplotlib's classes: half of the time to import its figures
vars(artist)["kwdoc"] = lambda _: ""
artist.ArtistInspector.get_setters = lambda self: []  # type: ignore[method-assign]  # noqa: ARG005
artist.ArtistInspector.get_aliases = lambda self: {}  # type: ignore[method-assign]  # noqa: ARG005

WIDTH_IN, HEIGHT_IN = 14.0, 5.4
LOG_AXIS_RATIO = 20.0
MAX_NAMES = 60  # characters of engines in a subtitle, which has about 110 beside the tags

_STYLE = {
    "svg.fonttype": "none",  # text stays text: searchable, and small
    "font.family": "sans-serif",
    "font.size": 11,
    "text.color": INK,
    "text.hinting": "none",  # of a PNG; a third of the time to draw its text, and its letters stand where an SVG's do
    "axes.edgecolor": AXIS,
    "axes.labelcolor": INK,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.titley": 1.0,  # where it is anyway: to find that out, Matplotlib would lay out every tick label once more
    "grid.color": GRID,
    "grid.linewidth": 0.9,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "legend.frameon": False,
    "legend.fontsize": 10,
    "figure.facecolor": PAPER,
}


class Drawing(NamedTuple):
    """One figure in both formats."""

    svg: str
    png: bytes


@contextmanager
def style(name: str) -> Iterator[None]:
    """Draw in the common style; the same drawing with the same name gives the same bytes."""
    with mpl.rc_context({**_STYLE, "svg.hashsalt": name}):
        yield


def new_figure(*, height_in: float = HEIGHT_IN, width_in: float = WIDTH_IN) -> Any:
    """Return an empty figure."""
    from loadtest.report.charts.ticks import PanelFigure  # noqa: PLC0415 (after the setting above; and a dry run draws nothing)

    return PanelFigure(figsize=(width_in, height_in), facecolor=PAPER)


def head(figure: Any, title: str, subtitle: str, summary: Summary) -> None:
    """Write title, subject, and a tag with the run's kind; a second tag if the figures are not valid."""
    tags = [(summary.label, KIND_COLOURS[summary.kind])]
    if not summary.valid:
        tags.append(("not valid: see the report", BAD))
    titles(figure, title, subtitle, tags)


def titles(figure: Any, title: str, subtitle: str, tags: list[tuple[str, str]]) -> None:
    """Write title and subtitle, and up to two tags with their colours."""
    inch = 1.0 / figure.get_figheight()
    figure.text(0.02, 1 - 0.40 * inch, title, fontsize=17, fontweight="bold")
    figure.text(0.02, 1 - 0.73 * inch, subtitle, fontsize=11, color=FAINT)
    for place, (text, colour) in enumerate(tags):
        tag(figure, 1 - (0.27 + 0.41 * place) * inch, text, colour)


def tag(figure: Any, height: float, text: str, colour: str) -> None:
    """Write a word on a coloured background at the right edge."""
    box = {"boxstyle": "round,pad=0.45", "facecolor": colour, "edgecolor": "none"}
    figure.text(0.98, height, text, ha="right", va="center", fontsize=11, fontweight="bold", color=ON_TAG, bbox=box)


def panel_title(panel: Any, text: str) -> None:
    """Write a panel's title, left-aligned."""
    panel.set_title(text, loc="left", fontsize=12, fontweight="bold", pad=10)


def nothing(panel: Any, text: str) -> None:
    """State why a panel is empty, and draw no axes there."""
    panel.set_axis_off()
    panel.text(0.5, 0.5, text, transform=panel.transAxes, ha="center", va="center", color=FAINT)


def what_ran(summary: Summary) -> str:
    """Return engines and lengths as text; many engines by their number, since a line of a figure has an end."""
    engines = sorted({run.server.engine or run.server.model for run in summary.runs})
    named = ", ".join(engines)
    parts = [
        named if len(named) <= MAX_NAMES else f"{len(engines)} engines",
        lengths_of(summary.levels) if summary.levels else "",
    ]
    return "   |   ".join(part for part in parts if part)


def lengths_of(levels: Sequence[LevelSummary]) -> str:
    """Return the lengths of some levels as text: means if they are drawn."""
    isl, osl = (sorted({getattr(level, name) for level in levels}) for name in ("isl", "osl"))
    return f"prompt {_span(isl)} tokens, reply {_span(osl)}"


def _span(values: Sequence[int]) -> str:
    return f"{values[0]:,}" if len(values) == 1 else f"{values[0]:,} to {values[-1]:,}"


def place_x(panel: Any, places: list[float], *, why_empty: str = "no successful request") -> None:
    """Use powers of two as ticks if positions span them, plain numbers otherwise."""
    known = [place for place in places if place > 0]
    if not known:
        nothing(panel, why_empty)
        return
    smallest, largest = min(known), max(known)
    if largest / smallest < 4:  # noqa: PLR2004 (two doublings)
        panel.set_xlim(left=0, right=largest * 1.15)
        return
    panel.set_xscale("log", base=2)
    panel.set_xlim(smallest / 1.25, largest * 1.35)
    panel.xaxis.set_major_formatter(plain())
    panel.xaxis.set_minor_locator(NullLocator())


def place_y(panel: Any, lowest: float, highest: float) -> None:
    """Start at zero; if the values span too much for that, use a logarithmic axis and say so."""
    if lowest > 0 and highest > LOG_AXIS_RATIO * lowest:
        panel.set_yscale("log")
        panel.set_ylim(lowest / 1.6, highest * 3)
        panel.yaxis.set_minor_formatter(NullFormatter())
        panel.text(1.0, 1.02, "log scale", transform=panel.transAxes, ha="right", fontsize=9, color=FAINT)
    elif highest > 0:
        panel.set_ylim(0, highest * 1.4)
    panel.yaxis.set_major_formatter(plain())


def plain() -> Any:
    """Return a formatter of plain numbers."""
    return FuncFormatter(lambda value, _: f"{value:,g}")


def percent() -> Any:
    """Return a formatter that writes a ratio as a change in percent."""
    return FuncFormatter(lambda value, _: f"{value * 100:+.3g} %" if value else "0")


def no_ticks() -> Any:
    """Return a locator without ticks."""
    return NullLocator()


def ticks_at(axis: Any, places: Sequence[float], names: Sequence[str]) -> None:
    """Put an axis' ticks at given places, each with its name."""
    axis.set_major_locator(FixedLocator(places))
    axis.set_major_formatter(FixedFormatter(names))


def log_x(panel: Any) -> None:
    """Use a logarithmic scale with 1, 2, 5, 10 ... written out."""
    panel.set_xscale("log")
    panel.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    panel.xaxis.set_major_formatter(plain())
    panel.xaxis.set_minor_locator(NullLocator())
    panel.xaxis.set_minor_formatter(NullFormatter())


def log_y(panel: Any) -> None:
    """Use a logarithmic scale with 1, 2, 5, 10 ... written out."""
    panel.set_yscale("log")
    panel.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    panel.yaxis.set_major_formatter(plain())
    panel.yaxis.set_minor_locator(NullLocator())
    panel.yaxis.set_minor_formatter(NullFormatter())


def width_ratio(figure: Any, artist: Any) -> float:
    """Return the share of a figure's width that a legend or a text takes."""
    from matplotlib.backends.backend_agg import RendererAgg  # noqa: PLC0415 (as above)

    return float(artist.get_window_extent(RendererAgg(1, 1, figure.dpi)).width / figure.bbox.width)


def drawing_of(figure: Any) -> Drawing:
    """Return a finished figure; the same summary gives the same bytes."""
    from loadtest.report.charts.both_formats import draw_both  # noqa: PLC0415 (as above)
    from loadtest.report.charts.ticks import draw_ticks  # noqa: PLC0415 (as above)

    for panel in figure.axes:
        draw_ticks(panel)
    return Drawing(*draw_both(figure))
