"""Ticks of a chart's axes: of each axis one line for the grid, one for the marks, and one text for all labels.

Matplotlib makes three lines and two texts for every tick, and copies the properties of the first tick's to each: two
fifths of the time to draw a chart (docs/decisions/0008). Where ticks stand, what their labels say and where those are
placed is Matplotlib's; a test holds the pixels to those of its own ticks.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.axis import XAxis, YAxis
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.markers import TICKDOWN, TICKLEFT
from matplotlib.text import Text
from matplotlib.ticker import NullLocator
from matplotlib.transforms import Bbox, IdentityTransform

_AT_THE_EDGE = 1e-10  # of an axis' length: a tick that rounding puts outside is drawn


class _Ticks(NamedTuple):
    """The ticks of an axis that are in view: their places in data coordinates, and what their labels say."""

    places: npt.NDArray[np.float64]
    names: list[str]


class _Labels(Text):
    """The labels of an axis' ticks: one text, drawn at each of them."""

    def __init__(self, ticks: _Ticks, *, is_x: bool, **look: Any) -> None:
        super().__init__(**look)
        self._ticks, self._is_x = ticks, is_x
        self._left = np.inf

    def draw(self, renderer: Any) -> None:
        """Draw every label."""
        look, font, (_, height) = renderer.new_gc(), self.get_fontproperties(), renderer.get_canvas_width_height()
        look.set_foreground(self.get_color())
        least_up = self._least_up(renderer)
        for place, name in zip(self._ticks.places.tolist(), self._ticks.names, strict=True):
            self.set_position((place, 0) if self._is_x else (0, place))
            self.set_text(name)
            if "$" in name or "\n" in name:  # a formula, or several lines
                super().draw(renderer)
                self._left = min(self._left, super().get_window_extent(renderer).x0)
                continue
            x, y = self.get_transform().transform(self.get_position())
            wide, high, down = renderer.get_text_width_height_descent(name, font, False)
            up = max(high - down, least_up)
            at = (x - wide / 2, y - up) if self._is_x else (x - wide, y - up / 2)
            renderer.draw_text(look, at[0], height - at[1], name, font, 0, mtext=self)
            self._left = min(self._left, at[0])
        look.restore()

    def get_window_extent(self, renderer: Any = None, dpi: float | None = None) -> Any:
        """Return the extent of the last label, from where the longest one begins: the axis' label is beside it."""
        box = super().get_window_extent(renderer, dpi)
        return Bbox.from_extents(min(self._left, box.x0), box.y0, box.x1, box.y1)

    def _least_up(self, renderer: Any) -> float:
        """Return the height of a line above its base."""
        figure: Any = self.get_figure()
        line = Text(0, 0, "0", transform=IdentityTransform(), va="baseline", fontproperties=self.get_fontproperties())
        line.set_figure(figure)
        return float(line.get_window_extent(renderer).y1)


def draw_ticks(panel: Any) -> None:
    """Draw the ticks of a panel whose limits are final, and the labels of its axes, and hide the axes."""
    if not panel.axison:
        return
    for axis in filter(Artist.get_visible, (panel.xaxis, panel.yaxis)):
        for group, locator in (("major", axis.get_major_locator()), ("minor", axis.get_minor_locator())):
            if not isinstance(locator, NullLocator):
                _draw(panel, axis, group)
        axis.set_visible(False)


def _draw(panel: Any, axis: Any, group: str) -> None:
    is_x, zorder, params = axis.axis_name == "x", axis.get_zorder(), axis.get_tick_params(group)
    size, width, pad = (mpl.rcParams[f"{axis.axis_name}tick.{group}.{part}"] for part in ("size", "width", "pad"))
    color = mpl.rcParams[f"{axis.axis_name}tick.color"]
    transform_of = panel.get_xaxis_transform if is_x else panel.get_yaxis_transform
    ticks = _in_view(axis, group)
    if params["gridOn"]:
        ends, across = np.repeat(ticks.places, 3), np.tile([0.0, 1.0, np.nan], len(ticks.places))
        look = {part: mpl.rcParams[f"grid.{part}"] for part in ("color", "linewidth", "linestyle", "alpha")}
        grid = Line2D(*((ends, across) if is_x else (across, ends)), transform=transform_of("grid"), zorder=zorder,
                      **look)  # fmt: skip
        panel.add_artist(grid)
    edge = np.zeros(len(ticks.places))
    marks = Line2D(
        *((ticks.places, edge) if is_x else (edge, ticks.places)), transform=transform_of("tick1"), linestyle="none",
        marker=TICKDOWN if is_x else TICKLEFT, markersize=size, markeredgewidth=width, markeredgecolor=color,
        zorder=zorder, clip_on=False,
    )  # fmt: skip
    panel.add_artist(marks)
    if params.get("labelbottom" if is_x else "labelleft", True):
        place_of = panel.get_xaxis_text1_transform if is_x else panel.get_yaxis_text1_transform
        transform, va, ha = place_of(size + pad)
        labels = _Labels(ticks, is_x=is_x, transform=transform, va=va, ha=ha, color=color, zorder=zorder, clip_on=False)
        panel.add_artist(labels)
        if group == "major" and axis.get_label_text():
            # Beside the tick labels, in the middle of the axis.
            place, coordinates, beside = ((0.5, 0), ("axes fraction", labels), (0, -axis.labelpad)) if is_x else (
                (0, 0.5), (labels, "axes fraction"), (-axis.labelpad, 0))  # fmt: skip
            label = axis.label
            panel.annotate(
                label.get_text(), place, xycoords=coordinates, xytext=beside, textcoords="offset points",
                ha=label.get_ha(), va=label.get_va(), rotation=label.get_rotation(),
                rotation_mode=label.get_rotation_mode(), zorder=zorder,
            )  # fmt: skip


def _in_view(axis: Any, group: str) -> _Ticks:
    is_major = group == "major"
    places = np.asarray(axis.get_majorticklocs() if is_major else axis.get_minorticklocs(), dtype=np.float64)
    names = (axis.get_major_formatter() if is_major else axis.get_minor_formatter()).format_ticks(places)
    transform = axis.get_transform()
    low, high = sorted(transform.transform(axis.get_view_interval()).tolist())
    margin = _AT_THE_EDGE * (high - low)
    at = transform.transform(places)
    seen = (at >= low - margin) & (at <= high + margin)
    return _Ticks(places[seen], [name for name, is_seen in zip(names, seen.tolist(), strict=True) if is_seen])


class _XAxis(XAxis):
    """An x axis without a tick until Matplotlib draws one."""

    def reset_ticks(self) -> None:
        """Remove all ticks."""
        self.majorTicks, self.minorTicks = [], []


class _YAxis(YAxis):
    """A y axis without a tick until Matplotlib draws one."""

    def reset_ticks(self) -> None:
        """Remove all ticks."""
        self.majorTicks, self.minorTicks = [], []


class _Panel(Axes):
    """Axes without a tick until Matplotlib draws one: it would make four to set what they look like."""

    def _init_axis(self) -> None:
        """Make the axes as Matplotlib's own example of a projection does (gallery, skewed axes)."""
        self.xaxis, self.yaxis = _XAxis(self, clear=False), _YAxis(self, clear=False)
        for name, axis in (("bottom", self.xaxis), ("top", self.xaxis), ("left", self.yaxis), ("right", self.yaxis)):
            self.spines[name].register_axis(axis)


class PanelFigure(Figure):
    """A figure whose axes are panels."""

    def add_subplot(self, *args: Any, **kwargs: Any) -> Any:
        """Add a panel."""
        return super().add_subplot(*args, axes_class=_Panel, **kwargs)
