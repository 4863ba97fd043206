"""Loads written at the points of a chart, without two of them on one place."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from loadtest.report.theme import FAINT, PAPER

LABEL_GAP_PX = 20.0
POINTS_PER_INCH = 72.0
_BOX = {"boxstyle": "round,pad=0.1", "facecolor": PAPER, "edgecolor": "none", "alpha": 0.6}


class Side(NamedTuple):
    """Where a label stands beside its point, in points, and which of its edges is there."""

    right: float
    up: float
    edge: str


ABOVE, BELOW = Side(0.0, 8.0, "center"), Side(0.0, -15.0, "center")
UPPER_RIGHT, LOWER_LEFT = Side(8.0, 6.0, "left"), Side(-8.0, -12.0, "right")


class Spot(NamedTuple):
    """A point of a chart, its load, and the colour to write it in."""

    x: float
    y: float
    load: str
    colour: str = FAINT


class _Label(NamedTuple):
    """The loads that share a label, and its place in pixels."""

    place: tuple[float, float]
    side: Side
    spots: list[Spot]


def label_loads(panel: Any, spots: Iterable[Spot], *, sides: tuple[Side, ...] = (ABOVE,)) -> None:
    """Write the loads at their points, each on the first side that is free; without one it joins the label there.

    The panel's limits must be final: what is close depends on them.
    """
    labels: list[_Label] = []
    for spot in spots:
        places = [_place(panel, spot, side) for side in sides]
        taken = [next((label for label in labels if _touch(label.place, place)), None) for place in places]
        if None in taken:
            free = taken.index(None)
            labels.append(_Label(places[free], sides[free], [spot]))
        elif taken[0] is not None:
            taken[0].spots.append(spot)
    for _, side, (first, *more) in labels:
        loads = dict.fromkeys(spot.load for spot in (first, *more))
        colours = {spot.colour for spot in (first, *more)}
        panel.annotate(
            ", ".join(loads), (first.x, first.y), xytext=(side.right, side.up), textcoords="offset points",
            ha=side.edge, fontsize=9, color=first.colour if len(colours) == 1 else FAINT, bbox=_BOX,
        )  # fmt: skip


def _place(panel: Any, spot: Spot, side: Side) -> tuple[float, float]:
    x, y = panel.transData.transform((spot.x, spot.y))
    pixels = panel.figure.dpi / POINTS_PER_INCH
    return float(x + side.right * pixels), float(y + side.up * pixels)


def _touch(one: tuple[float, float], other: tuple[float, float]) -> bool:
    return abs(one[0] - other[0]) < LABEL_GAP_PX and abs(one[1] - other[1]) < LABEL_GAP_PX
