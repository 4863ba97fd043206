"""Confidence intervals hold what they claim: checked by simulation and against closed forms."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
import pytest

from loadtest.metrics.bootstrap import (
    PERCENTILES,
    by_blocks,
    by_requests,
    effective_size,
    middle,
    needed,
    quantiles_of_sorted,
    rate_replicates,
    standard_deviation,
)

TRIALS = 150


def test_quantiles_are_numpys() -> None:
    """Quantiles of sorted values are those of numpy's default method."""
    values = np.sort(np.random.default_rng(1).lognormal(size=777))
    assert quantiles_of_sorted(values, [0.0, 0.3, 0.999, 1.0]) == pytest.approx(
        np.quantile(values, [0.0, 0.3, 0.999, 1.0]).tolist()
    )


@pytest.mark.parametrize("count", [60, 3000])
def test_intervals_cover_the_truth_nineteen_times_in_twenty(count: int) -> None:
    """Of samples whose true median and mean are known, the intervals hold them about as often as they say."""
    rng = np.random.default_rng(2)
    held = {"p50": 0, "mean": 0}
    for trial in range(TRIALS):
        resampler = by_requests(count, seed=trial)
        assert resampler is not None
        found = resampler.replicates(rng.lognormal(0.0, 0.5, count))
        for name, truth in (("p50", 1.0), ("mean", math.exp(0.5**2 / 2))):
            low, high = middle(found[name])
            held[name] += low <= truth <= high
    for hits in held.values():
        assert 0.88 < hits / TRIALS < 0.995


def test_gaps_of_one_request_are_not_independent() -> None:
    """Where gaps of a request resemble each other, drawing requests again covers; drawing gaps would claim too much."""
    rng = np.random.default_rng(3)
    requests, gaps = 100, 20
    counts = np.full(requests, gaps)
    by_request, by_gap = 0, 0
    for trial in range(TRIALS):
        values = np.exp(np.repeat(rng.normal(0, 0.4, requests), gaps) + rng.normal(0, 0.1, requests * gaps))
        whole, each = by_requests(requests, seed=trial), by_requests(requests * gaps, seed=trial)
        assert whole is not None
        assert each is not None
        low, high = middle(whole.replicates(values, counts)["p50"])
        by_request += low <= 1.0 <= high
        low, high = middle(each.replicates(values)["p50"])
        by_gap += low <= 1.0 <= high
    assert by_request / TRIALS > 0.88
    assert by_gap / TRIALS < 0.6


def test_mean_interval_is_the_normal_one_for_many_values() -> None:
    """For many values the interval of a mean is the closed form's: 1.96 standard errors either side."""
    values = np.random.default_rng(4).normal(10.0, 2.0, 900)
    resampler = by_requests(900)
    assert resampler is not None
    low, high = middle(resampler.replicates(values)["mean"])
    half = NormalDist().inv_cdf(0.975) * values.std(ddof=1) / 30
    assert (high - low) / 2 == pytest.approx(half, rel=0.1)


def test_values_in_two_lumps_stay_in_them() -> None:
    """An interval of a percentile among repeated values has its ends at values there are, not between."""
    values = np.repeat([1.0, 2.0], [970, 30])
    resampler = by_requests(1000)
    assert resampler is not None
    assert middle(resampler.replicates(values)["p99"]) == (2.0, 2.0)
    assert middle(resampler.replicates(values)["p90"]) == (1.0, 1.0)


def test_same_seed_same_interval() -> None:
    """The same sample gives the same interval every time."""
    values = np.random.default_rng(5).lognormal(size=500)
    first, second = by_requests(500), by_requests(500)
    assert first is not None
    assert second is not None
    assert middle(first.replicates(values)["p95"]) == middle(second.replicates(values)["p95"])


def test_correlated_times_make_wider_intervals() -> None:
    """Where latency wanders slowly, blocks of time give a wider interval than single requests, and cover."""
    rng = np.random.default_rng(6)
    held = 0
    for trial in range(80):
        steps = rng.normal(0, 1, 1200)
        wander = np.zeros(1200)
        for place in range(1, 1200):
            wander[place] = 0.95 * wander[place - 1] + steps[place]
        at_s = np.arange(1200.0)
        blocks, single = by_blocks(at_s, wander, seed=trial), by_requests(1200, seed=trial)
        assert blocks is not None
        assert single is not None
        low, high = middle(blocks.replicates(wander)["mean"])
        narrow = middle(single.replicates(wander)["mean"])
        assert high - low > 1.5 * (narrow[1] - narrow[0])
        held += low <= 0.0 <= high
    assert held / 80 > 0.82


def test_rates_of_a_poisson_process() -> None:
    """The interval of a Poisson process's rate is as wide as theory says: 1.96 roots of the count either side."""
    counts = np.random.default_rng(7).poisson(25.0, 256).astype(float)
    replicates = rate_replicates(counts)
    assert replicates is not None
    low, high = middle(replicates)
    assert (high - low) / 2 == pytest.approx(1.96 * np.sqrt(counts.sum()) / 256, rel=0.35)


def test_what_a_sample_can_support() -> None:
    """p99 needs 368 independent values: so many requests, or gaps that do not all come from a few of them."""
    assert {name: needed(share) for name, share in PERCENTILES.items()}["p99"] == 368
    values = np.repeat(np.arange(100.0), 50)
    assert effective_size(values, np.full(100, 50), 89.0) == pytest.approx(100, rel=0.05)
    assert effective_size(values, None, 89.0) == 5000
    assert by_requests(5) is None
    assert by_blocks(np.zeros(500), np.zeros(500)) is None


def test_standard_deviation_is_numpys() -> None:
    """In parts or whole, the standard deviation is the same."""
    values = np.random.default_rng(8).normal(3.0, 2.0, 5000)
    assert standard_deviation(values) == pytest.approx(values.std(ddof=1))
