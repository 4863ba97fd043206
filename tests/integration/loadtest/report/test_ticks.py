"""Ticks that are drawn together, compared pixel by pixel with those that Matplotlib draws one by one."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from loadtest.report.charts.both_formats import PNG_DPI
from loadtest.report.charts.style import (
    HEIGHT_IN,
    WIDTH_IN,
    drawing_of,
    log_x,
    log_y,
    new_figure,
    nothing,
    percent,
    place_x,
    place_y,
    style,
    ticks_at,
)


def _plain(figure: Any) -> None:
    for panel, high in zip(figure.subplots(1, 3), (0.7, 23.0, 7_100.0), strict=True):
        panel.plot([0, high], [high, -high])
        panel.set_xlabel("an axis (gjpqy)")


def _logarithmic(figure: Any) -> None:
    left, middle, right = figure.subplots(1, 3)
    left.plot([3.0, 4_000.0], [0.02, 40.0])
    log_x(left)
    log_y(left)
    left.set_xlabel("ms")
    middle.plot([1, 64], [1, 900])
    place_x(middle, [1.0, 8.0, 64.0])
    place_y(middle, 1.0, 900.0)  # with minor ticks
    right.plot([1, 64], [1, 900])
    right.set_xscale("log")  # with labels at minor ticks
    right.set_xlim(20, 60)


def _named(figure: Any) -> None:
    upper, lower = figure.subplots(2, 1, sharex=True)
    for panel in (upper, lower):
        panel.plot([0, 100], [0.0, 1.0])
        ticks_at(panel.yaxis, [0.0, 0.25, 1.0, 9.0], ["none", "a quarter (Ägypten)", "", "out of view"])
    lower.set_xlabel("shared")


def _few(figure: Any) -> None:
    left, middle, right = figure.subplots(1, 3, sharey=True)
    left.set_ylabel("load")
    left.xaxis.set_major_formatter(percent())
    ticks_at(middle.xaxis, [7.0], ["out of view"])
    middle.set_xlim(0, 1)
    nothing(right, "nothing measured")


@pytest.mark.parametrize("fill", [_plain, _logarithmic, _named, _few])
def test_ticks_have_the_pixels_of_matplotlibs_own(fill: Callable[[Any], None]) -> None:
    """Grid, marks and labels of every kind of axis, and the label below them, stand where Matplotlib puts them."""
    own = io.BytesIO()
    with style("test"):
        figure, reference = new_figure(), Figure(figsize=(WIDTH_IN, HEIGHT_IN), dpi=PNG_DPI)
        fill(figure)
        fill(reference)
        ours = drawing_of(figure)
        FigureCanvasAgg(reference).print_png(own)
    with Image.open(io.BytesIO(ours.png)) as image, Image.open(own) as expected:
        assert np.array_equal(np.asarray(image), np.asarray(expected.convert("RGB")))


def test_each_axis_has_one_line_of_each_kind() -> None:
    """However many ticks an axis has, its grid is one path of the SVG, its marks are one marker, used at each place."""
    with style("test"):
        figure = new_figure()
        panel = figure.subplots()
        panel.set_xlim(0, 1)
        ticks_at(panel.xaxis, np.linspace(0, 1, 41).tolist(), [f"n{place}" for place in range(41)])
        panel.yaxis.set_visible(False)
        ticks_at(panel.yaxis, [], [])
        svg = drawing_of(figure).svg
    assert [f">n{place}</text>" in svg for place in range(41)] == [True] * 41
    assert svg.count("<use ") == 41
    assert svg.count("<path ") < 12
