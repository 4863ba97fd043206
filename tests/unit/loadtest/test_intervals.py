"""Confidence intervals: they hold the truth as often as they say, and say when a sample is too small."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from loadtest import intervals
from loadtest.columns import Floats


def test_mean_and_percentiles_are_covered() -> None:
    """Of 200 samples of 200 exponential values, about 95 % of the intervals hold the true mean, median and p90."""
    rng = np.random.default_rng(1)
    truth = {"mean": 1.0, "p50": float(np.log(2)), "p90": float(np.log(10))}
    held = dict.fromkeys(truth, 0)
    for _ in range(200):
        values = rng.exponential(size=200)
        resampler = intervals.by_requests(len(values))
        assert resampler is not None
        drawn = resampler.replicates(values)
        for name, true in truth.items():
            low, high = intervals.middle(drawn[name])
            held[name] += low <= true <= high
    for name, count in held.items():
        assert stats.binomtest(count, 200, 0.94).pvalue > 1e-4, (name, count)


def test_gaps_of_one_request_are_drawn_together() -> None:
    """Where a request's gaps are all alike, a thousand gaps are worth their fifty requests: the interval is wide."""
    rng = np.random.default_rng(2)
    of_request = rng.normal(10.0, 1.0, 50)
    rows = np.repeat(np.arange(50), 20)
    values = of_request[rows]
    together, apart = intervals.by_requests(50), intervals.by_requests(1000)
    assert together is not None
    assert apart is not None
    wide = np.ptp(intervals.middle(together.replicates(values, rows)["mean"]))
    narrow = np.ptp(intervals.middle(apart.replicates(values)["mean"]))
    assert wide == pytest.approx(2 * 1.96 * of_request.std(ddof=1) / np.sqrt(50), rel=0.15)
    assert wide > 3 * narrow
    assert intervals.effective_size(values, rows, float(np.median(values))) == pytest.approx(50, rel=0.05)


def _queue(rng: np.random.Generator, count: int) -> Floats:
    """Return values that resemble their neighbours, mean 0: an autoregressive series."""
    noise = rng.normal(size=count)
    values = np.zeros(count)
    for place in range(1, count):
        values[place] = 0.9 * values[place - 1] + noise[place]
    return values


def test_blocks_of_time_cover_what_single_requests_do_not() -> None:
    """In an open loop neighbours meet the same queue: one by one, intervals hold the truth far too rarely."""
    rng = np.random.default_rng(3)
    by_blocks, by_requests = 0, 0
    for _ in range(100):
        values = _queue(rng, 2000)
        blocks, single = intervals.by_blocks(np.arange(2000.0), values), intervals.by_requests(2000)
        assert blocks is not None
        assert single is not None
        for resampler in (blocks, single):
            low, high = intervals.middle(resampler.replicates(values)["mean"])
            by_blocks += (resampler is blocks) and low <= 0 <= high
            by_requests += (resampler is single) and low <= 0 <= high
    assert by_blocks >= 80
    assert by_requests <= 60


def test_few_requests_have_no_interval() -> None:
    """Nine requests are too few to be drawn again."""
    assert intervals.by_requests(9) is None
    assert intervals.by_blocks(np.arange(9.0), np.ones(9)) is None
    assert intervals.rate_replicates(np.ones(9)) is None


@pytest.mark.parametrize(("good", "count"), [(0, 10), (10, 10), (95, 100), (1, 1)])
def test_wilson_is_scipys(good: int, count: int) -> None:
    """The score interval of a share is the one that scipy computes."""
    expected = stats.binomtest(good, count).proportion_ci(method="wilson")
    assert intervals.wilson(good, count) == pytest.approx((expected.low, expected.high), abs=1e-12)
