"""Latencies of one level's requests: which requests count, their reference time, their statistics."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from loadtest.metrics import bootstrap
from loadtest.metrics.bootstrap import Range, Resampler
from loadtest.metrics.steady_state import Cut, cut_of, window_of
from loadtest.metrics.summary import PERCENTILES, Spread
from loadtest.results import Columns, Floats, Ints, Level, RequestRecord, TokenSpans, Weighted, columns_of
from loadtest.scenario import clock_start_s

_Values = npt.NDArray[np.floating]
_ValueT = TypeVar("_ValueT")


class Counted(NamedTuple):
    """One level's requests, selected for evaluation.

    Attributes:
        all: Requests of every phase.
        measured: Requests of phase `measure` that ended.
        good: Those of them that count for latencies.
    """

    level: Level
    all: Columns
    measured: Columns
    good: Columns
    cut: Cut
    time_scale: float

    @property
    def is_open(self) -> bool:
        """Whether the level is an open loop."""
        return self.level.concurrency is None

    @property
    def begin_s(self) -> Floats:
        """Reference time of latencies, for the good requests."""
        return clock_start_s(self.good, is_open=self.is_open)


@dataclass(frozen=True, slots=True)
class RequestLatencies:
    """Latencies of requests, one entry each, in wall seconds; the only place where they are computed from times.

    Each has shape (requests,), with nan where a request has none.
    """

    requests: Columns
    begin_s: Floats

    @property
    def ttft_s(self) -> Floats:
        """Time to the first token."""
        return self.requests.first_s - self.begin_s

    @property
    def e2e_s(self) -> Floats:
        """Time to the end of the reply."""
        return self.requests.done_s - self.begin_s

    @property
    def ttst_s(self) -> Floats:
        """Time from the first token to the second."""
        return self.requests.second_s - self.requests.first_s

    @property
    def tpot_s(self) -> Floats:
        """Mean gap between tokens; nan of a single token."""
        return self.requests.tpot_s

    @property
    def longest_gap_s(self) -> Floats:
        """Longest gap between tokens; 0 of a single token."""
        return self.requests.longest_gap_s


def request_latencies(requests: Columns, *, is_open: bool) -> RequestLatencies:
    """Return the latencies of requests, counted from `clock_start_s`."""
    return RequestLatencies(requests, clock_start_s(requests, is_open=is_open))


def counted(level: Level, records: Columns | Iterable[RequestRecord], *, time_scale: float, settles: bool) -> Counted:
    """Return one level's requests with its window cut to the steady state.

    Nothing is cut from a level that was ended early, whose last requests are those that ended first, nor if the cut
    would leave less than half of the good requests.
    """
    columns = columns_of(records)
    window = window_of(level, columns)
    whole = Cut(window, 0.0, 0.0)
    cut = cut_of(window, columns, is_open=level.concurrency is None) if settles and not level.sufficed else whole
    measured = columns.select(columns.measured)
    good = measured.good
    inside = good & (measured.sent_s >= cut.window.begin_s) & (measured.sent_s <= cut.window.end_s)
    if cut.is_cut and 2 * int(inside.sum()) >= int(good.sum()):
        good = inside
    elif cut.is_cut:
        cut = whole
    return Counted(level, columns, measured, measured.select(good), cut, time_scale)


def spread(
    wall_s: Sequence[float] | _Values,
    time_scale: float = 1.0,
    *,
    counts: Ints | None = None,
    resampler: Resampler | None = None,
) -> Spread | None:
    """Return the statistics of durations, in engine seconds; None if there are none.

    Args:
        counts: Number of values per request, which are adjacent; None: one each.
        resampler: Resampler of requests for confidence intervals; None: no intervals.

    >>> spread([1.0, 2.0, 3.0, 4.0]).p50
    2.5
    """
    if not len(wall_s):
        return None
    values = np.asarray(wall_s)
    ordered = np.sort(values)
    quantiles = dict(zip(PERCENTILES, bootstrap.quantiles_of_sorted(ordered, list(PERCENTILES.values())), strict=True))
    supported = {
        name: share for name, share in PERCENTILES.items() if _is_supported(values, counts, share, quantiles[name])
    }
    known = {name: quantile / time_scale for name, quantile in quantiles.items()}
    return Spread(
        count=len(values),
        mean=float(values.mean(dtype=np.float64)) / time_scale,
        min=float(ordered[0]) / time_scale,
        max=float(ordered[-1]) / time_scale,
        sd=bootstrap.standard_deviation(values) / time_scale if len(values) > 1 else None,
        ci=None
        if resampler is None
        else _ranges(resampler.replicates(values, counts, ordered=ordered, percentiles=supported), time_scale),
        unsupported=tuple(name for name in PERCENTILES if name not in supported),
        **known,
    )


def spread_of_spans(spans: TokenSpans, time_scale: float = 1.0) -> Spread | None:
    """Return the statistics of gaps between simulated tokens; equals `spread` of all gaps."""
    (values, weights), _ = spans.gaps()
    if not len(values):
        return None
    ordered = Weighted(values, weights).sorted()
    count = int(weights.sum())
    mean = float(values @ weights) / count
    left = float(np.square(values - mean) @ weights)
    quantiles = dict(
        zip(PERCENTILES, bootstrap.quantiles_of_weighted(ordered, list(PERCENTILES.values())), strict=True)
    )
    return Spread(
        count=count,
        mean=mean / time_scale,
        min=float(ordered.values[0]) / time_scale,
        max=float(ordered.values[-1]) / time_scale,
        sd=math.sqrt(left / (count - 1)) / time_scale if count > 1 else None,
        unsupported=tuple(
            name for name in PERCENTILES if not _is_supported_by_spans(spans, count, PERCENTILES[name], quantiles[name])
        ),
        **{name: quantile / time_scale for name, quantile in quantiles.items()},
    )


def _is_supported_by_spans(spans: TokenSpans, count: int, share: float, quantile: float) -> bool:
    needed = bootstrap.needed(share)
    if count < needed:
        return False
    passed = spans.gaps_passing(quantile, or_equal=False)
    if not passed.any():
        passed = spans.gaps_passing(quantile, or_equal=True)
    return bootstrap.effective_size_of(passed, spans.gap_counts()) >= needed


def _ranges(replicates: dict[str, Floats], time_scale: float) -> dict[str, Range]:
    ranges = {name: bootstrap.middle(found) for name, found in replicates.items()}
    return {name: (low / time_scale, high / time_scale) for name, (low, high) in ranges.items()}


def _is_supported(values: _Values, counts: Ints | None, share: float, quantile: float) -> bool:
    needed = bootstrap.needed(share)
    return len(values) >= needed and bootstrap.effective_size(values, counts, quantile) >= needed


def resampler_of(found: Counted, *, seed: int = bootstrap.SEED) -> Resampler | None:
    """Return the resampler of a level's good requests: by time in an open loop, by request in a closed loop."""
    if found.is_open:
        return bootstrap.by_blocks(found.good.scheduled_s, found.good.done_s - found.begin_s, seed=seed)
    return bootstrap.by_requests(len(found.good), seed=seed)


def latencies_of(found: Counted) -> dict[str, tuple[_Values, Ints | None]]:
    """Return each latency's values in wall seconds, and the number per request unless it is one each."""
    return {"itl_s": (found.good.gaps_s, np.diff(found.good.starts)), **_of_requests(found)}


def _of_requests(found: Counted) -> dict[str, tuple[_Values, Ints | None]]:
    """Return the latencies with at most one value per request."""
    good = found.good
    sent = request_latencies(good, is_open=False)
    values: dict[str, tuple[_Values, Ints | None]] = {
        "ttft_s": (sent.ttft_s, None),
        "tpot_s": _known(sent.tpot_s),
        "e2e_s": (sent.e2e_s, None),
        "ttst_s": _known(sent.ttst_s),
        "normalized_s": (sent.e2e_s / np.maximum(good.tokens, 1), None),
        "queue_s": _known(good.queue_s),
    }
    if found.is_open:
        due = request_latencies(good, is_open=True)
        values["ttft_scheduled_s"] = (due.ttft_s, None)
        values["e2e_scheduled_s"] = (due.e2e_s, None)
    return values


def felt(latencies: Mapping[str, _ValueT], quantity: str) -> _ValueT:
    """Return a latency as the user experiences it: from when the request was due, where that is known."""
    return latencies.get(quantity.removesuffix("_s") + "_scheduled_s") or latencies[quantity]


def _known(values: Floats) -> tuple[_Values, Ints | None]:
    """Return the known values, and the number per request unless all have one."""
    is_known = np.isfinite(values)
    return (values, None) if is_known.all() else (values[is_known], is_known.astype(np.int64))


def spreads_of(found: Counted, *, confidence: bool) -> dict[str, Any]:
    """Return every latency's statistics by its key in the summary."""
    resampler = resampler_of(found) if confidence else None
    spans = found.good.spans if resampler is None else None
    latencies = latencies_of(found) if spans is None else _of_requests(found)
    spreads = {
        name: spread(values, found.time_scale, counts=counts, resampler=resampler)
        for name, (values, counts) in latencies.items()
    }
    return spreads if spans is None else {**spreads, "itl_s": spread_of_spans(spans, found.time_scale)}
