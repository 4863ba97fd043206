"""Measured requests of simulated servers as arrays, and their latencies.

Latencies are defined as in `loadtest.metrics` but computed from the batcher's spans instead of records: a simulation
that resolves a p99 produces tens of millions of tokens, and a record stores the time of each. A test checks that both
agree.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from loadtest.metrics import PERCENTILES, Spread, quantiles_of, quantiles_of_weighted
from loadtest.results import Floats, Ints, Weighted
from loadtest.scenario import Goodput
from loadtest.simulate import Ended

FEW_COUNTS = 8  # mean multiplicity of values up to which listing them all is faster than sorting them
Bools: TypeAlias = npt.NDArray[np.bool_]


class RequestTable(NamedTuple):
    """Measured requests of one server in one window, or of all windows, in send order within each window.

    Attributes:
        window: The window in which each request was sent; like `names` to `is_ok`, one entry per request.
        deltas_s: Time from each iteration's predecessor's tokens to its own; within a span, a gap between
            responses: one token each, or with speculation several.
        span_row: The request of each span of uninterrupted iterations, from `span_first` to `span_last`.
        cross_row: The request of each pause between two spans; `cross_s` is its duration.
    """

    window: Ints
    names: npt.NDArray[np.str_]
    sent_s: Floats
    first_s: Floats
    last_s: Floats
    tokens: Ints
    is_ok: Bools
    deltas_s: Floats
    span_row: Ints
    span_first: Ints
    span_last: Ints
    cross_row: Ints
    cross_s: Floats

    @property
    def ttft_s(self) -> Floats:
        """Time to each request's first token."""
        return np.asarray(self.first_s - self.sent_s)

    @property
    def e2e_s(self) -> Floats:
        """Time to each request's last token."""
        return np.asarray(self.last_s - self.sent_s)

    @property
    def tpot_s(self) -> Floats:
        """Each request's mean gap between tokens; without meaning for a request of one token."""
        return np.asarray((self.last_s - self.first_s) / np.maximum(self.tokens - 1, 1))


def table_of(window: int, left_s: Floats, ended: Sequence[Ended]) -> RequestTable:
    """Return the requests of a server that ended in a window.

    Args:
        left_s: When the tokens of each iteration left the server.
    """
    ordered = sorted(ended, key=lambda each: each.sent.sent_s)
    spans = [(row, first, last) for row, each in enumerate(ordered) for first, last in each.spans]
    row, first, last = (
        (np.array(column, dtype=np.int64) for column in zip(*spans, strict=True)) if spans else _no_spans()
    )
    crossings = [
        (place, before[1], after[0])
        for place, each in enumerate(ordered)
        if len(each.spans) > 1
        for before, after in pairwise(each.spans)
    ]
    is_ok = np.array([each.outcome == "ok" for each in ordered], dtype=bool)
    first_s, last_s = np.full(len(ordered), math.nan), np.full(len(ordered), math.nan)
    tokens = np.zeros(len(ordered), dtype=np.int64)
    if len(row):
        first_s[row[::-1]] = left_s[first[::-1]]  # for several spans: the first one's start and the last one's end
        last_s[row] = left_s[last]
        np.add.at(tokens, row, last - first + 1)
    for place, each in enumerate(ordered):
        if each.counts:
            tokens[place] = sum(each.counts)
    deltas_s = left_s.copy()
    deltas_s[1:] -= left_s[:-1]
    return RequestTable(
        np.full(len(ordered), window, dtype=np.int64),
        np.array([each.sent.turn.class_name or "" for each in ordered], dtype=np.str_),
        np.array([each.sent.sent_s for each in ordered]),
        first_s,
        last_s,
        tokens,
        is_ok,
        deltas_s,
        row,
        first,
        last,
        np.array([place for place, _, _ in crossings], dtype=np.int64),
        np.array([left_s[begin] - left_s[end] for _, end, begin in crossings]),
    )


def _no_spans() -> tuple[Ints, Ints, Ints]:
    none = np.array([], dtype=np.int64)
    return none, none, none


def joined(parts: Sequence[RequestTable]) -> RequestTable:
    """Return several tables as one, in order of window and send time."""
    rows = np.cumsum([0, *(len(part.sent_s) for part in parts)])
    steps = np.cumsum([0, *(len(part.deltas_s) for part in parts)])
    places = list(enumerate(parts))

    columns = {name: np.concatenate([getattr(part, name) for part in parts]) for name in RequestTable._fields}
    table = RequestTable(**columns)._replace(
        span_row=np.concatenate([part.span_row + rows[place] for place, part in places]),
        span_first=np.concatenate([part.span_first + steps[place] for place, part in places]),
        span_last=np.concatenate([part.span_last + steps[place] for place, part in places]),
        cross_row=np.concatenate([part.cross_row + rows[place] for place, part in places]),
    )
    order = np.lexsort((table.sent_s, table.window))
    if (order[1:] > order[:-1]).all():
        return table
    back = np.empty_like(order)
    back[order] = np.arange(len(order))
    return table._replace(
        **{name: getattr(table, name)[order] for name in RequestTable._fields[:7]},
        span_row=back[table.span_row],
        cross_row=back[table.cross_row],
    )


def of_class(table: RequestTable, name: str) -> Bools:
    """Return which requests belong to a class; the empty name is all of them."""
    return np.asarray(table.names == name) if name else np.ones(len(table.sent_s), dtype=bool)


def gaps_of(table: RequestTable, chosen: Bools) -> tuple[Floats, Ints]:
    """Return the gaps between tokens of some requests, and the number of requests that share each iteration's gap."""
    spans = chosen[table.span_row]
    size = len(table.deltas_s) + 2
    marks = np.bincount(table.span_first[spans] + 1, minlength=size)
    marks = marks - np.bincount(table.span_last[spans] + 1, minlength=size)
    counts = np.cumsum(marks)[: len(table.deltas_s)]
    some = counts > 0
    across = table.cross_s[chosen[table.cross_row]] if len(table.cross_row) else table.cross_s
    return (
        np.concatenate([table.deltas_s[some], across]),
        np.concatenate([counts[some], np.ones(len(across), dtype=np.int64)]),
    )


def gaps_within(table: RequestTable, limit_s: float) -> tuple[Ints, Ints]:
    """Return each request's number of gaps within a limit, and its total number of gaps."""
    upto = np.concatenate([[0], np.cumsum(table.deltas_s <= limit_s)])
    within, gaps = np.zeros(len(table.sent_s), dtype=np.int64), np.zeros(len(table.sent_s), dtype=np.int64)
    np.add.at(within, table.span_row, upto[table.span_last + 1] - upto[table.span_first + 1])
    np.add.at(gaps, table.span_row, table.span_last - table.span_first)
    np.add.at(within, table.cross_row, table.cross_s <= limit_s)
    np.add.at(gaps, table.cross_row, 1)
    return within, gaps


def meets_goodput(table: RequestTable, spec: Goodput, stretch: float) -> Bools:
    """Return which requests met every limit of a goodput objective; failed requests did not."""
    longest_s = np.zeros(len(table.sent_s))
    if spec.itl_s is not None:  # a gap beyond the limit stands for the longest gap
        within, gaps = gaps_within(table, spec.itl_s / stretch)
        longest_s[within < gaps] = math.inf
    met = spec.is_met_by(
        ttft_s=table.ttft_s * stretch,
        tpot_s=np.where(table.tokens > 1, table.tpot_s, 0.0) * stretch,
        longest_gap_s=longest_s,
        e2e_s=table.e2e_s * stretch,
    )
    return np.asarray(table.is_ok & met)


def spread_of(values: Floats) -> Spread | None:
    """Return the spread of values; None if there are none."""
    return weighted_spread(values, np.ones(len(values), dtype=np.int64))


def weighted_spread(values: Floats, counts: Ints) -> Spread | None:
    """Return the spread of values with multiplicities; equals `metrics.spread` of the expanded values.

    >>> weighted_spread(np.array([1.0, 2.0, 4.0]), np.array([2, 1, 1])).p50
    1.5
    """
    total = int(counts.sum())
    if not total:
        return None
    shares = list(PERCENTILES.values())
    if total <= FEW_COUNTS * len(values):
        quantiles = quantiles_of(np.repeat(values, counts), shares)
    else:
        quantiles = quantiles_of_weighted(Weighted(values, counts).sorted(), shares)
    return Spread(
        count=total,
        mean=float((values * counts).sum() / total),
        max=float(values[counts > 0].max()),
        **dict(zip(PERCENTILES, quantiles, strict=True)),
    )
