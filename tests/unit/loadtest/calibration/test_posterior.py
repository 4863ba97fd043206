"""What a calibration states of factors that its points leave open."""

from __future__ import annotations

import numpy as np
import pytest

from loadtest.calibration.parameters import PLACE, PRIOR, Array
from loadtest.calibration.posterior import FACTORS, mean_logs

SIGMA = np.array([0.03, 0.03, 0.12])
NAMES = ("iteration_s", "sequence_s", "prompt_s", "latency_s")
PLACES = [PLACE[name] for name in NAMES]
PER_STEP = np.array([1.0, 20.0, 0.0, 0.0])  # a step of 20 sequences
TO_FIRST = np.array([1.0, 20.0, 1.0, 1.0])  # the first token takes a step with a prompt, and the latency


def _durations_s(logs: Array) -> tuple[Array, Array]:
    """Return the time between tokens and to the first one; logs of shape (..., P)."""
    times_s = np.exp(logs[..., PLACES])
    return times_s @ PER_STEP, times_s @ TO_FIRST


def _stated(sigma: Array = SIGMA) -> Array:
    """Return what is stated where one point is measured exactly as expected."""
    logs = PRIOR.expected
    slopes, times_s = np.zeros((3, len(logs))), np.exp(logs[PLACES])
    itl_s, ttft_s = _durations_s(logs)
    slopes[1, PLACES], slopes[2, PLACES] = times_s * PER_STEP / itl_s, times_s * TO_FIRST / ttft_s
    slopes[0] = -slopes[1]  # tokens/s
    jacobian = np.concatenate([slopes / sigma[:, None], np.diag(1 / PRIOR.spread)])
    return mean_logs(logs, np.zeros(len(jacobian)), jacobian, sigma)


def test_without_points_the_prior_is_stated() -> None:
    """The mean of a factor whose logarithm is normal; what is no factor stays at its most probable value."""
    stated = mean_logs(PRIOR.expected, np.zeros(len(PRIOR.expected)), np.diag(1 / PRIOR.spread), np.zeros(0))
    means = PRIOR.expected + PRIOR.spread**2 / 2
    assert stated[FACTORS] == pytest.approx(means[FACTORS])
    assert stated[~FACTORS] == pytest.approx(PRIOR.expected[~FACTORS])


def test_means_are_those_of_all_factors_that_explain_the_points() -> None:
    """Host times of which only sums are measured: as samples of the prior, weighted by how they explain the figures."""
    stated = _stated()
    latency = np.where(np.arange(len(stated)) == PLACE["latency_s"], 0.0, 1.0)  # a mean by the most probable latency
    drawn = PRIOR.expected + latency * PRIOR.spread * np.random.default_rng(1).standard_normal((400_000, len(stated)))
    itl_off, ttft_off = (
        np.log(each / measured)
        for each, measured in zip(_durations_s(drawn), _durations_s(PRIOR.expected), strict=True)
    )
    off = np.stack([itl_off, itl_off, ttft_off], axis=1) / SIGMA
    weights = np.exp(np.sum(1 - np.sqrt(1 + off**2), axis=1))
    for name in ("iteration_s", "sequence_s", "prompt_s"):
        place = PLACE[name]
        mean = weights @ np.exp(drawn[:, place]) / weights.sum()
        assert np.exp(stated[place]) == pytest.approx(mean, rel=0.15), name
    assert _durations_s(stated)[0] == pytest.approx(_durations_s(PRIOR.expected)[0], rel=0.03)


def test_the_path_of_a_request_gives_way_to_longer_prompts() -> None:
    """A prompt's mean time exceeds its most probable one; a measured TTFT then leaves less for the latency."""
    stated, measured_s = _stated(np.array([0.03, 0.03, 0.5])), _durations_s(PRIOR.expected)[1]
    kept = stated.copy()
    kept[PLACE["latency_s"]] = PRIOR.expected[PLACE["latency_s"]]
    assert stated[PLACE["prompt_s"]] > PRIOR.expected[PLACE["prompt_s"]]
    assert stated[PLACE["latency_s"]] < PRIOR.expected[PLACE["latency_s"]]
    assert measured_s < _durations_s(stated)[1] < _durations_s(kept)[1]
