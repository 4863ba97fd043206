"""A point's figures: what they contain of the wave with which a closed loop starts."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from engines.calibration import LoadGenerator
from engines.emulator import BatcherSettings
from engines.spec import PlacedModel, Waves, gpu_named, model_named
from engines.steptime.roofline import Roofline
from loadtest.calibration.first_wave import unfinished_s
from loadtest.calibration.measured_points import Point
from loadtest.calibration.parameters import PLACE, PRIOR, Array
from loadtest.calibration.trial import STAIRS, FitContext, Trial, observe, observe_smoothed

CROWD = Point("made up", "concurrency", 256, 64, 8, 1.0, 1.0, 1.0)


@pytest.fixture
def context() -> FitContext:
    """Serve a Llama-3-8B by the data sheet, one prompt an iteration, to users who start together."""
    settings = BatcherSettings(
        max_batch_size=8,
        max_num_tokens=272,
        max_input_len=256,
        max_seq_len=512,
        kv_blocks=1000,
        tokens_per_block=64,
    )
    source = Roofline(PlacedModel(model_named("llama-3-8b"), gpu_named("h100-sxm-80gb"), "fp8", "fp8"))
    return FitContext(settings, source, LoadGenerator(window_s=0.0, rounds=2))


def _logs(rounds: float) -> Array:
    logs = PRIOR.expected.copy()
    logs[PLACE["measured_rounds"]] = math.log(rounds)
    return logs


def _ttft_s(context: FitContext, rounds: float) -> float:
    return math.exp(observe(context, CROWD, _logs(rounds))[2])


def test_a_mean_over_rounds_holds_the_first_wave_once(context: FitContext) -> None:
    """One round is the first wave alone, endless ones the steady state, and four are a quarter of the one."""
    first_s, steady_s = _ttft_s(context, 1.0), _ttft_s(context, 1e9)
    assert first_s > 1.1 * steady_s  # eight prompts wait for each other
    assert _ttft_s(context, 4.0) == pytest.approx(0.25 * first_s + 0.75 * steady_s)
    trial = Trial(context, CROWD, _logs(1.0))
    sent, first, _ = trial.times
    assert first_s == pytest.approx((first - sent)[sent == 0.0].mean())


def test_users_who_start_staggered_have_no_first_wave(context: FitContext) -> None:
    """A run of run-load is its steady state, however long it was."""
    own = replace(context, generator=LoadGenerator(start="staggered", window_s=0.0, rounds=2))
    assert observe(own, CROWD, _logs(1.0)).tolist() == observe(own, CROWD, _logs(1e9)).tolist()


def test_replies_under_way_at_the_end_cost_tokens_per_second(context: FitContext) -> None:
    """Users times reply length over tokens/s exceeds the time of a request by its unfinished part."""
    trial = Trial(context, CROWD, _logs(4.0))
    sent, _, last = trial.times
    request_s = float(trial.weights @ (last - sent))
    assert 0 < trial.unfinished_s < request_s / 4
    assert CROWD.concurrency * CROWD.osl / trial.figures[0] == pytest.approx(request_s + trial.unfinished_s, rel=0.02)


def test_every_reply_after_the_first_counts_at_the_end(context: FitContext) -> None:
    """Of two users in step, T between their replies and d apart, a reply is in progress for d (T - d) / T on average.

    The one who begins a second reply while the other warms up has that reply counted, too: each pair of ends has both.
    """
    trial = Trial(context, CROWD._replace(concurrency=2), _logs(4.0))
    gaps_s = np.diff(trial.later_ends_s)
    apart_s, pause_s = gaps_s[0], gaps_s[1]
    assert 0 < apart_s < 0.02 * pause_s
    assert gaps_s == pytest.approx([apart_s, pause_s, apart_s, pause_s], rel=1e-6)
    mean_s = apart_s * pause_s / (apart_s + pause_s)
    assert unfinished_s(trial.later_ends_s[1:], 2) == pytest.approx(mean_s)  # over a whole cycle
    assert trial.unfinished_s == pytest.approx(mean_s / 4, rel=0.3)


@pytest.mark.parametrize("users", [1, 2, 8])
def test_slopes_by_factors_are_those_of_the_figures(context: FitContext, users: int) -> None:
    """What is unfinished at the end grows with the replies: so say the derivatives, and so does moving the factors."""
    logs, point = _logs(4.0), CROWD._replace(concurrency=users)
    slopes = Trial(context, point, logs, keep_steps=True).slopes()
    for name in ("weights_ratio", "kv_ratio", "iteration_s", "sequence_s"):
        step = np.zeros_like(logs)
        step[PLACE[name]] = 0.02
        moved = (observe(context, point, logs + step) - observe(context, point, logs - step)) / 0.04
        assert slopes[:, PLACE[name]] == pytest.approx(moved, abs=0.005), name
        assert abs(moved[0]) > 5e-4, name


def test_slopes_by_rounds_are_those_of_the_figures(context: FitContext) -> None:
    """The derivatives by the number of rounds are what moving it does."""
    place, logs = PLACE["measured_rounds"], _logs(4.0)
    slopes = Trial(context, CROWD, logs, keep_steps=True).slopes()[:, place]
    more, less = (observe(context, CROWD, _logs(4.0 * math.exp(step))) for step in (1e-3, -1e-3))
    assert slopes == pytest.approx((more - less) / 2e-3, abs=1e-5)
    assert np.all(np.abs(slopes[[0, 2]]) > 1e-3)


def test_a_fit_sees_the_mean_over_the_stairs_of_a_serial_host_time(context: FitContext) -> None:
    """Three simulations give a figure and its derivative; both exceed the steps in which groups of prompts change."""
    place, logs = PLACE["request_s"], _logs(4.0)
    step = np.zeros_like(logs)
    step[place] = STAIRS
    less, here, more = (observe(context, CROWD, logs + times * step) for times in (-1, 0, 1))
    seen = observe_smoothed(context, CROWD, logs)
    assert seen.logs == pytest.approx((less + here + more) / 3)
    assert seen.slopes[:, place] == pytest.approx((more - less) / (2 * STAIRS))
    assert seen.slopes[2, place] > 0.01


def test_the_slope_by_the_tail_is_that_of_both_sides(context: FitContext) -> None:
    """At half a tail blocks begin to share bandwidth: steps of few sequences change below it, and not above."""
    waves, logs, lone = Waves(4.0, 4.0), _logs(4.0), CROWD._replace(concurrency=1)
    in_waves = replace(context, waves=waves)
    assert np.exp(logs[PLACE["wave_tail"]]) == pytest.approx(0.5)
    step = np.zeros_like(logs)
    step[PLACE["wave_tail"]] = 1e-3
    less, here, more = (observe(in_waves, lone, logs + times * step)[1] for times in (-1, 0, 1))
    assert more == pytest.approx(here, abs=1e-9)
    slope = Trial(in_waves, lone, logs, keep_steps=True).slopes()[1, PLACE["wave_tail"]]
    assert slope == pytest.approx((more - less) / 2e-3, rel=0.05)
    assert slope > 1e-3
