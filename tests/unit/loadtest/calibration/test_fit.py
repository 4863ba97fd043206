"""What a fit simulates: each load once, and no structure that cannot win."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from engines.calibration import LoadGenerator
from engines.emulator import BatcherSettings
from engines.spec import PlacedModel, gpu_named, model_named
from engines.steptime.roofline import Roofline
from loadtest.calibration import fit as fitting
from loadtest.calibration.measured_points import Point
from loadtest.calibration.parameters import PLACE, Array
from loadtest.calibration.trial import FitContext, Observed, observe, observe_smoothed

LOADS = [Point("made up", "concurrency", 64, 8, users, 100.0 * users, 0.01, 0.02) for users in (1, 2, 4)]


@pytest.fixture
def context() -> FitContext:
    """Serve a Llama-3-8B by the data sheet to users of one round."""
    settings = BatcherSettings(
        max_batch_size=8,
        max_num_tokens=1024,
        max_input_len=256,
        max_seq_len=512,
        kv_blocks=1000,
        tokens_per_block=64,
    )
    source = Roofline(PlacedModel(model_named("llama-3-8b"), gpu_named("h100-sxm-80gb"), "fp8", "fp8"))
    return FitContext(settings, source, LoadGenerator(window_s=0.0, rounds=1))


@pytest.fixture
def simulated(monkeypatch: pytest.MonkeyPatch) -> Counter[int]:
    """Count the simulations of whole parameter vectors by users."""
    seen: Counter[int] = Counter()

    def counted(context: FitContext, point: Point, logs: Array) -> Observed:
        seen[point.concurrency] += 1
        return observe_smoothed(context, point, logs)

    monkeypatch.setattr(fitting, "observe_smoothed", counted)
    return seen


def test_a_repeated_load_counts_twice_and_is_simulated_once(context: FitContext, simulated: Counter[int]) -> None:
    """A second measurement of a load costs no simulation, and still weighs in the fit."""
    again = LOADS[0]._replace(where="an hour later", tokens_per_s=150.0)
    found = fitting.fit(context, [*LOADS, again], trials=2)
    assert found.seen.shape == (4, 3)
    assert found.seen[3] == pytest.approx(found.seen[0])
    assert simulated[1] == simulated[2] == simulated[4]
    assert found.cost > fitting.fit(context, LOADS, trials=2).cost


def test_a_fit_that_cannot_win_takes_no_step(context: FitContext, simulated: Counter[int]) -> None:
    """Where even half the expected cost stays above the cost to beat, the start is all that is simulated."""
    found = fitting.fit(context, LOADS, trials=9, cost_to_beat=0.0)
    assert simulated == {1: 1, 2: 1, 4: 1}
    assert found.logs == pytest.approx(context.prior.expected)


def test_a_fit_to_more_points_starts_from_what_is_known(context: FitContext, simulated: Counter[int]) -> None:
    """Points of the fit before are not simulated again with its result; what is fitted is the same."""
    before = fitting.fit(context, LOADS[:2], trials=3)
    simulated.clear()
    plain = fitting.fit(context, LOADS, trials=3, start=before.logs)
    without = Counter(simulated)
    simulated.clear()
    found = fitting.fit(context, LOADS, trials=3, start=before.logs, known=fitting.Known(LOADS[:2], before))
    assert without - simulated == {1: 1, 2: 1}
    assert all(np.array_equal(one, other) for one, other in zip(found, plain, strict=True))


def test_a_fit_ends_where_the_points_say_wherever_it_starts(context: FitContext) -> None:
    """From either side of a host time whose logarithm says little: from nearly none, and from all of an iteration."""
    truth = context.prior.expected.copy()
    truth[PLACE["iteration_s"]] = np.log(2e-3)
    points = [
        Point("made up", "concurrency", 64, 8, users, *np.exp(observe(context, LOADS[place], truth)).tolist())
        for place, users in enumerate((1, 2, 4))
    ]
    ends = []
    for iteration_s in (2e-5, 1e-2):
        start = context.prior.expected.copy()
        start[PLACE["iteration_s"]] = np.log(iteration_s)
        ends.append(fitting.fit(context, points, start=start))
    deviations = np.sqrt(np.diag(ends[0].covariance))
    assert ends[0].cost == pytest.approx(ends[1].cost, abs=fitting.NEGLIGIBLE_GAIN)
    assert np.all(np.abs(ends[0].logs - ends[1].logs) < deviations / 3)
    assert ends[0].seen == pytest.approx(np.array([point.logs for point in points]), abs=0.03)


def test_points_of_one_shape_count_as_fewer() -> None:
    """Their mean is known no better than the error that they share."""
    points = [*LOADS, LOADS[0]._replace(isl=128)]
    noise = fitting.noise_of(points)
    assert noise[3] == pytest.approx(fitting.SIGMA)
    counts = np.sum((np.array(fitting.SIGMA) / noise[:3]) ** 2, axis=0)
    assert counts == pytest.approx([3 / (1 + 2 * shared) for shared in fitting.SHARED])
