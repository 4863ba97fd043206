"""Loads at the points of a chart: where labels of close points go."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from loadtest.report.charts.distributions import name_loads
from loadtest.report.charts.labels import ABOVE, BELOW, LOWER_LEFT, UPPER_RIGHT, Spot, label_loads
from loadtest.report.charts.style import new_figure
from loadtest.report.theme import BLUE, FAINT, ORANGE


def _panel() -> Any:
    panel = new_figure().subplots(1, 1)
    panel.set_xlim(0, 100)
    panel.set_ylim(0, 100)
    return panel


def test_labels_of_close_points_do_not_overlap() -> None:
    """Two runs of the same loads, nearly on one line: every load is written for both, and none covers another."""
    spots = [Spot(10.0 * load, 50 + shift, str(load), colour) for shift, colour in ((0, BLUE), (1, ORANGE)) for load in
             range(1, 9)]  # fmt: skip
    for sides in ((ABOVE, BELOW), (UPPER_RIGHT, LOWER_LEFT)):
        panel = _panel()
        label_loads(panel, spots, sides=sides)
        renderer = FigureCanvasAgg(panel.figure).get_renderer()
        boxes = [text.get_window_extent(renderer) for text in panel.texts]
        assert sorted(text.get_text() for text in panel.texts) == sorted([str(load) for load in range(1, 9)] * 2)
        assert not [pair for pair in combinations(boxes, 2) if pair[0].overlaps(pair[1])]


def test_without_a_free_side_points_share_a_label() -> None:
    """The first one's place, all loads once, and no run's colour where they are of several."""
    panel = _panel()
    spots = [Spot(50, 50, load, colour) for load, colour in (("1", BLUE), ("2", BLUE), ("4", ORANGE), ("1", ORANGE))]
    label_loads(panel, spots, sides=(ABOVE, BELOW))
    assert [(text.get_text(), text.get_color()) for text in panel.texts] == [("1, 4", FAINT), ("2", BLUE)]


@pytest.mark.parametrize("name", ["1", "m-front: 16", "W" * 12 + ": 1,024", "a-rather-long-name-of-a-run-f…: 0.25/s"])
def test_a_legend_ends_within_the_figure(name: str) -> None:
    """The last digit of a load, cut off, makes 16 a 1."""
    panel = _panel()
    panel.plot([1, 2], [1, 2], label=name)
    name_loads(panel.figure, panel)
    box = panel.figure.legends[0].get_window_extent(FigureCanvasAgg(panel.figure).get_renderer())
    assert panel.get_window_extent().x1 <= box.x0
    assert box.x1 <= panel.figure.bbox.x1
