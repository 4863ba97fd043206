"""The model of a fit's steps: durations that are linear in the factors, as long as the iterations stay the same."""

from __future__ import annotations

import numpy as np
import pytest

from loadtest.calibration.parameters import PLACE, PRIOR, Array
from loadtest.calibration.same_iterations import SameIterations

SIGMA = np.array([[0.03, 0.03, 0.12]])
PLACES = [PLACE[name] for name in ("weights_ratio", "iteration_s", "sequence_s", "prompt_s", "latency_s")]
PER_STEP = np.array([3e-3, 1.0, 20.0, 0.0, 0.0])  # weights, and a step of 20 sequences
TO_FIRST = np.array([3e-3, 1.0, 20.0, 1.0, 1.0])  # the first token takes a step with a prompt, and the latency


def _figures(logs: Array) -> Array:
    itl_s, ttft_s = np.exp(logs[PLACES]) @ PER_STEP, np.exp(logs[PLACES]) @ TO_FIRST
    return np.log([20 / itl_s, itl_s, ttft_s])


def _slopes(logs: Array) -> Array:
    slopes, times_s = np.zeros((1, 3, len(logs))), np.exp(logs[PLACES])
    slopes[0, 1, PLACES] = times_s * PER_STEP / (times_s @ PER_STEP)
    slopes[0, 2, PLACES] = times_s * TO_FIRST / (times_s @ TO_FIRST)
    slopes[0, 0] = -slopes[0, 1]
    return slopes


def _model(at: Array, measured: Array) -> SameIterations:
    return SameIterations(at, (_figures(at) - measured) / SIGMA, _slopes(at) / SIGMA[:, :, None], SIGMA, PRIOR)


def test_a_step_is_as_long_as_linear_durations_say() -> None:
    """The best parameters from one simulation, a factor of 20 away, are those from a simulation of these."""
    truth, far = PRIOR.expected.copy(), PRIOR.expected.copy()
    truth[PLACE["iteration_s"]], far[PLACE["iteration_s"]] = np.log(4e-3), np.log(2e-4)
    lower, upper = PRIOR.expected - 4 * PRIOR.spread, PRIOR.expected + 4 * PRIOR.spread
    cost, found = _model(far, _figures(truth)).minimum(lower, upper)
    again, same = _model(found, _figures(truth)).minimum(lower, upper)
    assert again == pytest.approx(cost, abs=1e-3)
    assert same == pytest.approx(found, abs=0.01)
    residuals = np.concatenate(
        [((_figures(found) - _figures(truth)) / SIGMA).ravel(), (found - PRIOR.expected) / PRIOR.spread]
    )
    assert cost == pytest.approx(np.sum(np.sqrt(1 + residuals**2) - 1))
    assert np.all(np.abs(_figures(found) - _figures(truth)) < 2 * SIGMA)


def test_a_step_stays_between_its_limits() -> None:
    """A fit that may go only so far from what it has simulated goes no farther."""
    truth = PRIOR.expected.copy()
    truth[PLACE["iteration_s"]] = np.log(4e-3)
    lower, upper = PRIOR.expected - 0.1 * PRIOR.spread, PRIOR.expected + 0.1 * PRIOR.spread
    _, found = _model(PRIOR.expected, _figures(truth)).minimum(lower, upper)
    assert found[PLACE["iteration_s"]] == pytest.approx(upper[PLACE["iteration_s"]], abs=1e-3)
    assert np.all((found >= lower) & (found <= upper))
