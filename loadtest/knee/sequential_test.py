"""Sequential test of objectives: whether the requests so far decide each one, by confidence intervals of shares.

A percentile limit is a share: p95 of TTFT is at most L if at least 95 % of requests have a TTFT of at most L. A share
has a confidence interval, so a probe can end as soon as the interval lies entirely on one side of the required share.
Neighbouring requests share queues and batches; how much that widens the interval is estimated from the spread between
blocks of consecutive requests.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from loadtest.metrics import meets_goodput, request_latencies
from loadtest.results import Columns, Ints, RequestRecord, columns_of
from loadtest.scenario import Objectives, ObjectiveScope, Quantity, share_of

CLEAR_Z = 2.576  # 99 %: a probe is evaluated repeatedly, and each evaluation can be wrong
MIN_REQUESTS = 32
BLOCKS = 16
BACKLOG = "backlog grows"

_Floats = npt.NDArray[np.float64]


class SloDecision(NamedTuple):
    """The decision on the objectives from the requests so far.

    Attributes:
        met: None while undecided.
        missed: Objectives whose interval lies entirely beyond the limit.
        open: Objectives whose interval contains the limit.
        requests: Number of requests used.
    """

    met: bool | None
    missed: tuple[str, ...]
    open: tuple[str, ...]
    requests: int


class _Share(NamedTuple):
    """One objective as a share: good and total count by request; shape (requests,) each."""

    objective: str
    required: float
    good: _Floats
    all: _Floats


class _Values(NamedTuple):
    """Values of one quantity, request after request, and the number of each request's values."""

    values: npt.NDArray[np.floating]
    counts: Ints


class _Interval(NamedTuple):
    """The interval of an objective's value, and its required minimum."""

    objective: str
    low: float
    found: float
    high: float
    required: float


def weigh(
    scopes: Sequence[ObjectiveScope],
    records: Columns | Sequence[RequestRecord],
    *,
    is_open: bool,
    time_scale: float = 1.0,
) -> SloDecision:
    """Return whether measured requests decide the objectives; those of a class by its own requests.

    This decides when to stop; whether an objective is met is decided by `metrics.verdicts_in` from the same records.
    Means and maxima are not shares: a maximum above its limit is an immediate miss, a mean is compared by its own
    interval.

    Args:
        is_open: Whether it is an open loop: latencies then count from when each request was due.
    """
    columns = columns_of(records)
    measured = columns.select(columns.measured)
    measured = measured.take(np.argsort(measured.scheduled_s, kind="stable"))
    missed: list[str] = []
    undecided: list[str] = []
    for scope in scopes:
        own = measured if scope.class_name is None else measured.of_class(scope.class_name)
        if len(own) < MIN_REQUESTS:
            undecided.append(scope.label("too few requests"))
        for each in _intervals(scope.objectives, own, time_scale, is_open=is_open) if len(own) else ():
            if each.high < each.required and len(own) >= MIN_REQUESTS:
                missed.append(scope.label(each.objective))
            elif each.low < each.required:
                undecided.append(scope.label(each.objective))
    if is_backlog_growing(measured):
        undecided.append(BACKLOG)
    met = False if missed else None if undecided else True
    return SloDecision(met, tuple(missed), tuple(undecided), len(measured))


def ended_before_the_first_under_way(records: Sequence[RequestRecord]) -> list[RequestRecord]:
    """Return the records before the first unfinished request, by id.

    During a run the slow requests are still missing; without this the fast ones would bias the result.
    """
    by_number = sorted(records, key=lambda each: each.id)
    whole = next((place for place, each in enumerate(by_number) if each.id != by_number[0].id + place), len(by_number))
    return by_number[:whole]


def is_backlog_growing(records: Columns | Sequence[RequestRecord]) -> bool:
    """Whether measured requests arrived faster than they ended, beyond chance, in the later half of their arrivals.

    An overloaded open loop meets its objectives at first, until its queue has grown.
    """
    columns = columns_of(records)
    measured = columns.select(columns.measured)
    if not len(measured):
        return False
    due_s, done_s = measured.scheduled_s, measured.done_s
    begin_s, end_s = float(due_s.min()), float(due_s.max())
    middle_s = (begin_s + end_s) / 2
    came = int(((due_s > middle_s) & (due_s <= end_s)).sum())
    ended = int(((done_s > middle_s) & (done_s <= end_s)).sum())
    return came - ended > max(4.0, CLEAR_Z * math.sqrt(came))


def share_interval(good: _Floats, count: _Floats, begins: npt.NDArray[np.int64], *, z: float) -> tuple[float, float]:
    """Return the confidence interval of a share, observed as `good` out of `count` in each request.

    Args:
        begins: Start of each block of consecutive requests; the spread between blocks shows the correlation.
        z: Half-width of the interval in standard deviations.
    """
    total = float(count.sum())
    if not total:
        return 0.0, 1.0
    found, requests = float(good.sum()) / total, float((count > 0).sum())
    independent = requests
    if 0 < found < 1:
        goods, counts = np.add.reduceat(good, begins), np.add.reduceat(count, begins)
        blocks = int((counts > 0).sum())
        # Variance of a ratio of sums over blocks (Cochran, "Sampling Techniques", 3rd edition, section 6.3).
        errors = goods - found * counts
        variance = float((errors**2).sum()) / total**2 * blocks / max(1, blocks - 1)
        independent = requests if variance <= 0 else min(requests, found * (1 - found) / variance)
    return wilson(found, max(2.0, independent), z=z)


def wilson(share: float, count: float, *, z: float = CLEAR_Z) -> tuple[float, float]:
    """Return the confidence interval of a true share, given the share in `count` independent trials.

    Source:
        Wilson, "Probable inference, the law of succession, and statistical inference", JASA 22 (1927).

    >>> [round(end, 3) for end in wilson(1.0, 126)]
    [0.95, 1.0]
    """
    centre = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z / (1 + z**2 / count) * math.sqrt(share * (1 - share) / count + z**2 / (4 * count**2))
    return max(0.0, centre - half), min(1.0, centre + half)


def _intervals(objectives: Objectives, measured: Columns, scale: float, *, is_open: bool) -> Iterator[_Interval]:
    """Yield each objective's interval; means and maxima are negated, so that larger is always better."""
    quantities = _quantities(measured, scale, is_open=is_open)
    for share in _shares(objectives, measured, quantities, scale, is_open=is_open):
        found = float(share.good.sum() / share.all.sum())
        low, high = _ends(share, found)
        yield _Interval(share.objective, low, found, high, share.required)
    for quantity, (values, counts) in quantities.items():
        limits = getattr(objectives, quantity)
        if not len(values):
            continue
        if "max" in limits:
            largest = float(values.max())
            yield _Interval(f"{quantity} max", -largest, -largest, -largest, -limits["max"])
        if "mean" in limits:
            means = _block_means(_sums(values, counts), counts.astype(np.float64))
            half = CLEAR_Z * float(means.std(ddof=1)) / math.sqrt(len(means)) if len(means) > 1 else math.inf
            mean = float(values.mean())
            yield _Interval(f"{quantity} mean", -mean - half, -mean, -mean + half, -limits["mean"])


def _shares(
    objectives: Objectives, measured: Columns, quantities: dict[Quantity, _Values], scale: float, *, is_open: bool
) -> Iterator[_Share]:
    every = np.ones(len(measured))
    yield _Share("errors_ratio", 1 - objectives.errors_ratio, measured.good.astype(np.float64), every)
    for quantity, (values, counts) in quantities.items():
        for statistic, limit in getattr(objectives, quantity).items():
            if (share := share_of(statistic)) is not None and len(values):
                within = _sums((values <= limit).astype(np.float64), counts)
                yield _Share(f"{quantity} {statistic}", share, within, counts.astype(np.float64))
    if objectives.goodput is not None:
        good = meets_goodput(objectives.goodput, measured, scale, is_open=is_open).astype(np.float64)
        yield _Share("goodput", objectives.goodput.share, good, every)


def _quantities(measured: Columns, scale: float, *, is_open: bool) -> dict[Quantity, _Values]:
    """Return each quantity's values and their number per request, for successful requests that have any."""
    good = measured.select(measured.good)
    found = request_latencies(good, is_open=is_open)
    ones, gaps = np.ones(len(good), dtype=np.int64), np.diff(good.starts)
    tpot_s = found.tpot_s[gaps > 0]
    return {
        "ttft_s": _Values(found.ttft_s / scale, ones),
        "itl_s": _Values(good.gaps_s / scale, gaps[gaps > 0]),
        "tpot_s": _Values(tpot_s / scale, np.ones(len(tpot_s), dtype=np.int64)),
        "e2e_s": _Values(found.e2e_s / scale, ones),
    }


def _sums(values: npt.NDArray[np.floating], counts: Ints) -> _Floats:
    """Return the sum over each request's values, which are adjacent; every request has at least one."""
    return np.asarray(np.add.reduceat(values, np.cumsum(counts) - counts), dtype=np.float64)


def _ends(share: _Share, found: float) -> tuple[float, float]:
    if share.required == 1.0:  # no finite sample proves that nothing ever fails: the observation decides
        return found, found
    return wilson(found, max(2.0, _independent(share, found)))


def _independent(share: _Share, found: float) -> float:
    """Return the number of independent trials that the requests are worth; at most the number of requests."""
    requests = float(len(share.all))
    if not 0 < found < 1:
        return requests
    means = _block_means(share.good, share.all)
    variance = float(means.var(ddof=1)) / len(means)
    return requests if variance <= 0 else min(requests, found * (1 - found) / variance)


def _block_means(values: _Floats, counts: _Floats) -> _Floats:
    """Return the mean of each of `BLOCKS` blocks of consecutive requests."""
    edges = np.linspace(0, len(values), min(BLOCKS, len(values)) + 1).astype(int)[:-1]
    return np.asarray(np.add.reduceat(values, edges) / np.add.reduceat(counts, edges))
