"""Measurement windows of a level: the span with full load, and its steady state.

The window. In a closed loop: from the first to the last instant, while measuring, with as many requests in flight as
users (`steady`); if that is less than a tenth of the level, or never happened, the whole measurement (`whole`). In an
open loop: as long as requests were sent.

The cut. Within the window, the remaining warm-up is found by MSER-5: the start is dropped at the point that minimizes
the standard error of the rest, over means of five bins each, and never more than half of it (White, "An Effective
Truncation Heuristic for Bias Reduction in Simulation Output", Simulation 69(6), 1997; five at a time: Spratt,
University of Virginia, 1998). The cool-down is the same rule on the bins in reverse. Bins contain the requests in
flight and the tokens that arrived. A cut is made only if what it drops differs from what it keeps by more than three
standard errors and by more than a twentieth: the rule alone would also trim noise.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Literal, NamedTuple

import numpy as np

from loadtest.results import Bools, Columns, Floats, Ints, Level

STEADY_LEAST_RATIO = 0.1
MSER_BATCH = 5
MIN_BINS = 50  # ten batches of five
MAX_BINS = 400
MIN_REQUESTS = 100  # below this, a bin would contain hardly one request
TOKENS_PER_BIN = 20
CUT_STANDARD_ERRORS = 3.0
CUT_RATIO = 0.05
GROWN_RATIO = 1.25


class Window(NamedTuple):
    """A span of a level, in wall seconds since the start of the run."""

    begin_s: float
    end_s: float
    kind: Literal["steady", "whole"]

    @property
    def length_s(self) -> float:
        """How long it is."""
        return max(0.0, self.end_s - self.begin_s)


class Cut(NamedTuple):
    """The steady part of a window.

    Attributes:
        growing: Requests in flight grew to the end: there is no steady state.
    """

    window: Window
    warmup_s: float
    cooldown_s: float
    growing: bool = False

    @property
    def is_cut(self) -> bool:
        """Whether anything is cut."""
        return self.warmup_s > 0 or self.cooldown_s > 0


def window_of(level: Level, columns: Columns) -> Window:
    """Return the span in which all users of the level were active, or the whole level."""
    whole = Window(level.measure_s, level.end_s, "whole")
    if level.concurrency is None:  # an open loop offers its load from start to end, then drains
        ends_s = float(columns.scheduled_s.max()) if len(columns) else level.end_s
        return Window(level.measure_s, ends_s, "steady")
    instants = _full_instants(level.concurrency, columns)
    if instants is None:
        return whole
    steady = Window(max(instants[0], whole.begin_s), min(instants[1], whole.end_s), "steady")
    return steady if steady.length_s > STEADY_LEAST_RATIO * whole.length_s else whole


def _full_instants(concurrency: int, columns: Columns) -> tuple[float, float] | None:
    """Return the first and the last instant with this many requests in flight."""
    instants = np.concatenate([columns.sent_s, columns.done_s])
    changes = np.concatenate([np.ones(len(columns)), -np.ones(len(columns))])
    order = np.lexsort((changes, instants))  # an end sorts before a start at the same instant
    after = np.cumsum(changes[order])
    full = np.flatnonzero(after >= concurrency)
    if not len(full) or full[-1] + 1 >= len(order):
        return None
    return float(instants[order[full[0]]]), float(instants[order[full[-1] + 1]])


def cut_of(window: Window, columns: Columns, *, is_open: bool) -> Cut:
    """Return the steady part of a window; all of it if there is too little data."""
    nothing = Cut(window, 0.0, 0.0)
    bins = min(MAX_BINS, int(columns.tokens.sum()) // TOKENS_PER_BIN)
    if bins < MIN_BINS or len(columns) < MIN_REQUESTS or window.length_s <= 0:
        return nothing
    edges = np.linspace(window.begin_s, window.end_s, bins + 1)
    in_flight = mean_count(edges, columns.sent_s, columns.done_s)
    if is_open and is_growing(in_flight):
        return nothing._replace(growing=True)
    watched = [in_flight, arrivals_in(edges, columns).astype(np.float64)]
    warmup = max(settled_after(values) for values in watched)
    cooldown = max(settled_after(values[::-1]) for values in watched)
    width_s = window.length_s / bins
    begin_s, end_s = window.begin_s + warmup * width_s, window.end_s - cooldown * width_s
    if end_s - begin_s < window.length_s / 2:
        return nothing
    return Cut(Window(begin_s, end_s, window.kind), warmup * width_s, cooldown * width_s)


def settled_after(values: Floats) -> int:
    """Return the number of initial values to drop by MSER-5; a multiple of five.

    >>> settled_after(np.concatenate([np.linspace(0, 10, 20), np.tile([9.0, 11.0, 10.0, 10.5, 9.5], 30)]))
    20
    """
    means = values[: len(values) // MSER_BATCH * MSER_BATCH].reshape(-1, MSER_BATCH).mean(axis=1)
    if len(means) < MIN_BINS // MSER_BATCH:
        return 0
    dropped = mser(means)
    rest = means[dropped:]
    if dropped == 0:
        return 0
    error = float(rest.std(ddof=1)) / math.sqrt(len(rest))
    apart = abs(float(means[:dropped].mean() - rest.mean()))
    is_cut = apart > CUT_STANDARD_ERRORS * error and apart > CUT_RATIO * abs(float(rest.mean()))
    return dropped * MSER_BATCH if is_cut else 0


def mser(values: Floats) -> int:
    """Return how many values to drop so that the standard error of the rest is minimal; at most half of them."""
    count = len(values)
    from_here = np.arange(count, 0, -1)
    sums = np.cumsum(values[::-1])[::-1]
    squares = np.cumsum(np.square(values)[::-1])[::-1]
    spread = np.maximum(squares - sums**2 / from_here, 0.0) / from_here.astype(np.float64) ** 2
    return int(np.argmin(spread[: count // 2 + 1]))


def is_growing(in_flight: Floats) -> bool:
    """Whether requests in flight grew from each quarter to the next, and by over 25 % from the second to the last."""
    means = [float(part.mean()) for part in np.array_split(in_flight, 4)]
    rises = all(later > earlier for earlier, later in pairwise(means))
    return rises and means[-1] > GROWN_RATIO * means[1] and means[-1] - means[1] > 1.0


def mean_count(edges: Floats, begins_s: Floats, ends_s: Floats) -> Floats:
    """Return the time-averaged number of spans that cover each bin; shape (bins,)."""
    return np.diff(_spent(edges, begins_s) - _spent(edges, ends_s)) / np.diff(edges)


def _spent(at_s: Floats, since_s: Floats) -> Floats:
    """Return the accumulated time of all spans at each instant."""
    known = np.sort(since_s[np.isfinite(since_s)])
    started = np.searchsorted(known, at_s, side="right")
    sums = np.concatenate([[0.0], np.cumsum(known)])
    found: Floats = at_s * started - sums[started]
    return found


def arrivals_in(edges: Floats, columns: Columns) -> Ints:
    """Return the number of tokens that arrived in each of the equal bins; shape (bins,)."""
    counts = np.zeros(len(edges) - 1, dtype=np.int64)
    if columns.spans is not None:
        times_s, weights = columns.spans.times_s()
        places, inside = _places(edges, times_s)
        return counts + np.bincount(places, weights=weights[inside], minlength=len(counts)).astype(np.int64)
    for chunk in columns.token_chunks():
        places, _ = _places(edges, chunk.time_s)
        counts += np.bincount(places, minlength=len(counts))
    return counts


def _places(edges: Floats, times_s: Floats) -> tuple[Ints, Bools]:
    """Return the bin of each time that is in one, and which times are."""
    bins = len(edges) - 1
    inside = (times_s >= edges[0]) & (times_s <= edges[-1])
    places = ((times_s[inside] - edges[0]) / (edges[-1] - edges[0]) * bins).astype(np.int64)
    return places.clip(0, bins - 1), inside
