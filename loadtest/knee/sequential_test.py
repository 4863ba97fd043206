"""Whether so many requests tell if objectives are kept: each is a share of things within a limit, with its interval.

A percentile under a limit is a share: p95 of TTFT is at most L where at least 95 % of requests have a TTFT of at most
L. A share has a confidence interval, so a probe of a load can end as soon as the interval lies wholly on one side of
what is wanted. Neighbouring requests share queues and batches; how much that widens the interval is taken from the
spread between blocks of consecutive requests.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from loadtest.metrics import kept_of
from loadtest.results import RequestRecord
from loadtest.scenario import Objectives

Z = 2.576  # 99 %: a probe is looked at more than once, and each look may mislead
LEAST_REQUESTS = 32
BLOCKS = 16
BACKLOG = "backlog grows"
_SHARE_OF = {"p50": 0.50, "p90": 0.90, "p95": 0.95, "p99": 0.99, "p999": 0.999}

_Floats = npt.NDArray[np.float64]


class ObjectiveScope(NamedTuple):
    """Objectives, and whose: of one class of a mix, or of all requests."""

    objectives: Objectives
    class_name: str | None = None


class SloDecision(NamedTuple):
    """What the requests so far say of the objectives.

    Attributes:
        met: None while they cannot tell.
        missed: Objectives whose interval lies wholly on the wrong side.
        open: Objectives whose interval holds what is wanted.
        leaning: Objectives that the figures alone say are missed, certain or not.
        requests: How many it rests on.
    """

    met: bool | None
    missed: tuple[str, ...]
    open: tuple[str, ...]
    leaning: tuple[str, ...]
    requests: int


class _Share(NamedTuple):
    """One objective as a share: good things out of all, by request; shape (requests,) each."""

    objective: str
    wanted: float
    good: _Floats
    all: _Floats


class _Interval(NamedTuple):
    """Between what an objective's figure lies, and what it is to be at least."""

    objective: str
    low: float
    found: float
    high: float
    wanted: float


def weigh(
    promises: Sequence[ObjectiveScope], records: Sequence[RequestRecord], *, time_scale: float = 1.0
) -> SloDecision:
    """Return what measured requests say of the objectives; of a class, what its own requests say.

    Means and maxima have no share: a maximum above its limit is a miss at once, a mean is compared by its own interval.
    """
    measured = sorted((each for each in records if each.phase == "measure"), key=lambda each: each.scheduled_s)
    missed: list[str] = []
    undecided: list[str] = []
    leaning: list[str] = []
    for promise in promises:
        of = "" if promise.class_name is None else f"{promise.class_name}: "
        own = [each for each in measured if promise.class_name in (None, each.class_name)]
        if len(own) < LEAST_REQUESTS:
            undecided.append(f"{of}too few requests")
        for each in _intervals(promise.objectives, own, time_scale) if own else ():
            if each.high < each.wanted and len(own) >= LEAST_REQUESTS:
                missed.append(of + each.objective)
            elif each.low < each.wanted:
                undecided.append(of + each.objective)
            if each.found < each.wanted:
                leaning.append(of + each.objective)
    if measured and is_backlog_growing(measured):
        undecided.append(BACKLOG)
        leaning.append(BACKLOG)
    met = False if missed else None if undecided else True
    return SloDecision(met, tuple(missed), tuple(undecided), tuple(leaning), len(measured))


def ended_before_the_first_under_way(records: Sequence[RequestRecord]) -> list[RequestRecord]:
    """Return the records up to the first request that has none yet, by number.

    While a run goes on, the slow requests are those still missing; without this the fast ones would speak for all.
    """
    by_number = sorted(records, key=lambda each: each.id)
    whole = next((place for place, each in enumerate(by_number) if each.id != by_number[0].id + place), len(by_number))
    return by_number[:whole]


def is_backlog_growing(measured: Sequence[RequestRecord]) -> bool:
    """Whether more requests came than ended, beyond chance, over the later half of the time they were sent in.

    An overloaded open loop keeps its objectives at first: its queue has to grow before anybody waits long.
    """
    sent = [record.scheduled_s for record in measured]
    middle_s, end_s = (sent[0] + sent[-1]) / 2, sent[-1]
    came = sum(middle_s < at_s <= end_s for at_s in sent)
    ended = sum(middle_s < record.done_s <= end_s for record in measured)
    return came - ended > max(4.0, Z * math.sqrt(came))


def share_interval(good: _Floats, count: _Floats, begins: npt.NDArray[np.int64], *, z: float) -> tuple[float, float]:
    """Return the interval a share of things lies in, seen as `good` of `count` things in each request.

    Args:
        begins: Where blocks of consecutive requests begin: how far blocks differ says how far neighbours are alike.
        z: Half the interval's width in standard deviations.
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


def wilson(share: float, count: float, *, z: float = Z) -> tuple[float, float]:
    """Return the interval a true share lies in, given one seen in `count` independent trials.

    Source:
        Wilson, "Probable inference, the law of succession, and statistical inference", JASA 22 (1927).

    >>> [round(end, 3) for end in wilson(1.0, 126)]
    [0.95, 1.0]
    """
    centre = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z / (1 + z**2 / count) * math.sqrt(share * (1 - share) / count + z**2 / (4 * count**2))
    return max(0.0, centre - half), min(1.0, centre + half)


def _intervals(objectives: Objectives, measured: list[RequestRecord], scale: float) -> Iterator[_Interval]:
    """Yield each objective's interval; means and maxima are turned round, so that more is always better."""
    for share in _shares(objectives, measured, scale):
        found = float(share.good.sum() / share.all.sum())
        low, high = _ends(share, found)
        yield _Interval(share.objective, low, found, high, share.wanted)
    for quantity, values in _quantities(measured, scale).items():
        limits = getattr(objectives, quantity)
        if not values:
            continue
        pooled = np.concatenate(values)
        if "max" in limits:
            most = float(pooled.max())
            yield _Interval(f"{quantity} max", -most, -most, -most, -limits["max"])
        if "mean" in limits:
            means = _block_means(np.array([each.sum() for each in values]), np.array([len(each) for each in values]))
            half = Z * float(means.std(ddof=1)) / math.sqrt(len(means)) if len(means) > 1 else math.inf
            mean = float(pooled.mean())
            yield _Interval(f"{quantity} mean", -mean - half, -mean, -mean + half, -limits["mean"])


def _shares(objectives: Objectives, measured: list[RequestRecord], scale: float) -> Iterator[_Share]:
    ended = np.array([float(record.outcome == "ok") for record in measured])
    yield _Share("errors_ratio", 1 - objectives.errors_ratio, ended, np.ones(len(measured)))
    for quantity, values in _quantities(measured, scale).items():
        counts = np.array([len(each) for each in values], dtype=np.float64)
        for statistic, limit in getattr(objectives, quantity).items():
            if statistic in _SHARE_OF and len(values):
                within = np.array([float((each <= limit).sum()) for each in values])
                yield _Share(f"{quantity} {statistic}", _SHARE_OF[statistic], within, counts)
    if objectives.goodput is not None:
        good = kept_of(objectives.goodput, measured, scale).astype(np.float64)
        yield _Share("goodput", objectives.goodput.share, good, np.ones(len(measured)))


def _quantities(measured: list[RequestRecord], scale: float) -> dict[str, list[_Floats]]:
    """Return each quantity's values by request, of requests that ended well."""
    ended = [record for record in measured if record.outcome == "ok" and record.token_times_s]
    gaps = [np.array([late - early for early, late in pairwise(each.token_times_s)]) / scale for each in ended]
    return {
        "ttft_s": [np.array([(each.token_times_s[0] - each.sent_s) / scale]) for each in ended],
        "itl_s": [each for each in gaps if len(each)],
        "tpot_s": [np.array([each.mean()]) for each in gaps if len(each)],
        "e2e_s": [np.array([(each.done_s - each.sent_s) / scale]) for each in ended],
    }


def _ends(share: _Share, found: float) -> tuple[float, float]:
    if share.wanted == 1.0:  # no finite sample proves that nothing ever fails: what was seen decides
        return found, found
    return wilson(found, max(2.0, _independent(share, found)))


def _independent(share: _Share, found: float) -> float:
    """Return how many independent trials the requests are worth: no more than there are requests."""
    requests = float(len(share.all))
    if not 0 < found < 1:
        return requests
    means = _block_means(share.good, share.all)
    variance = float(means.var(ddof=1)) / len(means)
    return requests if variance <= 0 else min(requests, found * (1 - found) / variance)


def _block_means(values: _Floats, counts: _Floats) -> _Floats:
    """Return the mean of each of `BLOCKS` stretches of consecutive requests."""
    edges = np.linspace(0, len(values), min(BLOCKS, len(values)) + 1).astype(int)[:-1]
    return np.asarray(np.add.reduceat(values, edges) / np.add.reduceat(counts, edges))
