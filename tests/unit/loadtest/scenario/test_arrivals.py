"""Open-loop arrivals, held to what probability says."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engines.errors import UserError
from engines.files import Strict, read_yaml, to_json, validate
from loadtest.scenario.arrivals import (
    Arrivals,
    Constant,
    Floats,
    Gamma,
    Poisson,
    Process,
    Ramp,
    Sine,
    Spike,
    Steps,
    arrivals_of,
    draw_times_s,
    expected_requests,
    with_duration,
)
from loadtest.scenario.traces import Trace

rates = st.floats(0.1, 50)
lengths_s = st.floats(0.5, 20)
processes = st.one_of(
    st.builds(Constant, rate_per_s=rates, duration_s=lengths_s),
    st.builds(Poisson, rate_per_s=rates, duration_s=lengths_s),
    st.builds(Gamma, rate_per_s=rates, burstiness=st.floats(0.05, 5), duration_s=lengths_s),
    st.builds(Steps, rates_per_s=st.lists(st.just(0.0) | rates, min_size=1, max_size=5), step_s=lengths_s),
    st.builds(Ramp, from_per_s=st.just(0.0) | rates, to_per_s=st.just(0.0) | rates, duration_s=lengths_s),
    st.builds(
        Spike,
        base_per_s=st.just(0.0) | rates,
        peak_per_s=rates,
        at_s=st.floats(0, 5),
        spike_s=st.floats(0.1, 5),
        duration_s=st.floats(10, 20),
    ),
    st.builds(Sine, mean_per_s=rates, swing_ratio=st.floats(0, 1), period_s=lengths_s, duration_s=lengths_s),
)


class Holder(Strict):
    """What a scenario will be to its arrivals."""

    arrivals: Arrivals


def _rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def _counts(process: Process, runs: int) -> Floats:
    return np.array([len(draw_times_s(process, _rng(seed))) for seed in range(runs)], dtype=np.float64)


@settings(max_examples=100, deadline=None)
@given(process=processes, seed=st.integers(0, 2**32))
def test_times_are_sorted_and_within_the_run(process: Process, seed: int) -> None:
    """Of any process, times ascend from zero and end before the duration does."""
    times_s = draw_times_s(process, _rng(seed))
    assert np.isfinite(times_s).all()
    assert (np.diff(times_s) >= 0).all()
    assert ((times_s >= 0) & (times_s < process.duration_s)).all()


@settings(max_examples=50, deadline=None)
@given(process=processes, seed=st.integers(0, 2**32))
def test_a_seed_names_the_times(process: Process, seed: int) -> None:
    """The same seed draws the same times."""
    assert np.array_equal(draw_times_s(process, _rng(seed)), draw_times_s(process, _rng(seed)))


def test_another_seed_draws_other_times() -> None:
    """Two seeds do not draw the same times."""
    process = Poisson(rate_per_s=10, duration_s=10)
    assert not np.array_equal(draw_times_s(process, _rng(0)), draw_times_s(process, _rng(1)))


def test_a_longer_run_begins_as_a_shorter_one() -> None:
    """A process drawn for longer has the shorter one's times first."""
    short_s = draw_times_s(Poisson(rate_per_s=100, duration_s=30), _rng())
    long_s = draw_times_s(Poisson(rate_per_s=100, duration_s=90), _rng())
    assert np.array_equal(short_s, long_s[: len(short_s)])


@pytest.mark.parametrize(
    ("rate_per_s", "duration_s", "requests"), [(1.1, 10, 11), (0.1, 30, 3), (3, 0.5, 2), (7, 1, 7)]
)
def test_constant_is_evenly_spaced_from_zero(rate_per_s: float, duration_s: float, requests: int) -> None:
    """A constant rate sends at 0, 1/rate, 2/rate and so on, and none at the end itself, however the product rounds."""
    times_s = draw_times_s(Constant(rate_per_s=rate_per_s, duration_s=duration_s), _rng())
    assert times_s == pytest.approx([number / rate_per_s for number in range(requests)])


@pytest.mark.parametrize("burstiness", [0.3, 1.0, 2.5])
def test_gamma_gaps_have_the_stated_mean_and_variation(burstiness: float) -> None:
    """Gaps of 200,000 arrivals vary as stated, to 2%, and their mean is the rate's inverse."""
    gaps_s = np.diff(draw_times_s(Gamma(rate_per_s=20, burstiness=burstiness, duration_s=10_000), _rng()))
    assert gaps_s.std() / gaps_s.mean() == pytest.approx(burstiness, rel=0.02)
    assert gaps_s.mean() == pytest.approx(1 / 20, abs=4 * burstiness / 20 / math.sqrt(len(gaps_s)))


def test_burstiness_one_is_poisson() -> None:
    """Gamma gaps of variation 1 are a Poisson process's, draw for draw."""
    gamma_s = draw_times_s(Gamma(rate_per_s=5, burstiness=1, duration_s=100), _rng())
    assert np.array_equal(gamma_s, draw_times_s(Poisson(rate_per_s=5, duration_s=100), _rng()))


def test_bursts_do_not_gather_at_zero() -> None:
    """A bursty process has its rate from the first second: one begun by a whole gap would have (3**2 - 1) / 2 more."""
    counts = _counts(Gamma(rate_per_s=2, burstiness=3, duration_s=5), 2000)
    assert counts.mean() == pytest.approx(10, abs=4 * counts.std() / math.sqrt(len(counts)))
    assert 4 * counts.std() / math.sqrt(len(counts)) < 1


@pytest.mark.parametrize(
    ("process", "integral"),
    [
        (Poisson(rate_per_s=4, duration_s=10), 40),
        (Steps(rates_per_s=(2, 0, 8), step_s=4), 40),
        (Ramp(from_per_s=1, to_per_s=7, duration_s=10), 40),
        (Ramp(from_per_s=8, to_per_s=0, duration_s=10), 40),
        (Spike(base_per_s=2, peak_per_s=12, at_s=5, spike_s=2, duration_s=10), 40),
        (Spike(base_per_s=0, peak_per_s=4, at_s=0, spike_s=10, duration_s=10), 40),
        (Sine(mean_per_s=4, swing_ratio=0.5, period_s=5, duration_s=10), 40),
        (Sine(mean_per_s=4, swing_ratio=1, period_s=20, duration_s=10), 40 * (1 + 2 / math.pi)),
    ],
    ids=lambda value: getattr(value, "process", ""),
)
def test_the_integral_of_the_rate_is_the_mean_count(process: Process, integral: float) -> None:
    """Five hundred runs' counts have the integrated rate as their mean, and as their variance, as Poisson counts do."""
    counts = _counts(process, 500)
    assert expected_requests(process) == pytest.approx(integral)
    assert counts.mean() == pytest.approx(integral, abs=4 * math.sqrt(integral / len(counts)))
    assert counts.var() == pytest.approx(integral, rel=4 * math.sqrt(2 / len(counts)))


def _steps_integral(t_s: Floats) -> Floats:
    return 200 * np.minimum(t_s, 10) + 900 * np.maximum(t_s - 30, 0)


def _spike_integral(t_s: Floats) -> Floats:
    return 100 * t_s + 1900 * np.clip(t_s - 20, 0, 5)


def _sine_integral(t_s: Floats) -> Floats:
    return 300 * (t_s + 0.9 * 8 / (2 * np.pi) * (1 - np.cos(2 * np.pi * t_s / 8)))


@pytest.mark.parametrize(
    ("process", "integral"),
    [
        (Poisson(rate_per_s=300, duration_s=40), lambda t_s: 300 * t_s),
        (Steps(rates_per_s=(200, 0, 0, 900), step_s=10), _steps_integral),
        (Ramp(from_per_s=0, to_per_s=600, duration_s=40), lambda t_s: 7.5 * t_s**2),
        (Ramp(from_per_s=600, to_per_s=0, duration_s=40), lambda t_s: 600 * t_s - 7.5 * t_s**2),
        (Spike(base_per_s=100, peak_per_s=2000, at_s=20, spike_s=5, duration_s=40), _spike_integral),
        (Sine(mean_per_s=300, swing_ratio=0.9, period_s=8, duration_s=40), _sine_integral),
    ],
    ids=lambda value: getattr(value, "process", ""),
)
def test_back_through_the_integrated_rate_gaps_are_exponential(
    process: Process, integral: Callable[[Floats], Floats]
) -> None:
    """By Kolmogorov and Smirnov at one in a thousand; the integrals are worked out by hand."""
    gaps = np.sort(np.diff(integral(draw_times_s(process, _rng()))))
    expected = 1 - np.exp(-gaps)
    ranks = np.arange(len(gaps) + 1) / len(gaps)
    furthest = max((ranks[1:] - expected).max(), (expected - ranks[:-1]).max())
    assert furthest < 1.95 / math.sqrt(len(gaps))


def test_a_pause_sends_nothing() -> None:
    """Between steps, a rate of zero is silence, and outside a spike on no base too."""
    times_s = draw_times_s(Steps(rates_per_s=(50, 0, 50), step_s=10), _rng())
    assert not ((times_s >= 10) & (times_s < 20)).any()
    times_s = draw_times_s(Spike(base_per_s=0, peak_per_s=50, at_s=3, spike_s=2, duration_s=10), _rng())
    assert times_s.min() >= 3
    assert times_s.max() < 5


def test_processes_say_nothing_of_lengths() -> None:
    """A drawn arrival is a time alone."""
    process = Poisson(rate_per_s=5, duration_s=10)
    schedule = arrivals_of(process, rng=_rng(), folder=Path("nowhere"))
    assert [arrival.at_s for arrival in schedule.arrivals] == draw_times_s(process, _rng()).tolist()
    assert {arrival[1:] for arrival in schedule.arrivals} == {(None, None, (), None)}
    assert schedule.failed_rows == 0


def test_too_many_arrivals_are_refused() -> None:
    """A rate per second that was meant per hour is stopped before it fills the memory."""
    with pytest.raises(UserError, match=r"poisson: about 8.64e\+07 requests, more than 5,000,000"):
        arrivals_of(Poisson(rate_per_s=1000, duration_s=86_400), rng=_rng(), folder=Path())


def test_a_process_that_draws_nothing_is_refused() -> None:
    """A run without a request would measure nothing."""
    with pytest.raises(UserError, match="ramp: no request was drawn in 10 s; 0 were expected"):
        arrivals_of(Ramp(from_per_s=0, to_per_s=0, duration_s=10), rng=_rng(), folder=Path())


def test_the_key_process_says_which(tmp_path: Path) -> None:
    """YAML's `process` chooses among the schemas, and JSON gives the same back."""
    path = tmp_path / "scenario.yaml"
    path.write_text("arrivals: {process: sine, mean_per_s: 2, swing_ratio: 0.5, duration_s: 60}\n")
    holder = read_yaml(path, Holder)
    assert holder.arrivals == Sine(mean_per_s=2, swing_ratio=0.5, period_s=86_400, duration_s=60)
    assert Holder.model_validate_json(to_json(holder)) == holder


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"process": "poison"}, "arrivals"),
        (
            {"process": "poisson", "rate_per_s": 1, "duration_s": 1, "burstiness": 2},
            "unknown key 'arrivals.*burstiness'",
        ),
        ({"process": "poisson", "rate_per_s": 0, "duration_s": 1}, "rate_per_s.*greater than 0"),
        ({"process": "constant", "rate_per_s": math.inf, "duration_s": 1}, "rate_per_s.*finite"),
        ({"process": "gamma", "rate_per_s": 1, "duration_s": 1}, "missing key 'arrivals.*burstiness'"),
        ({"process": "steps", "rates_per_s": [], "step_s": 1}, "rates_per_s"),
        (
            {"process": "sine", "mean_per_s": 1, "swing_ratio": 1.1, "duration_s": 1},
            "swing_ratio.*less than or equal to 1",
        ),
        (
            {"process": "spike", "base_per_s": 1, "peak_per_s": 2, "at_s": 8, "spike_s": 3, "duration_s": 10},
            "the spike ends at 11 s, but the run ends at 10 s",
        ),
        ({"process": "trace", "path": "a.csv", "speed_up": 0}, "speed_up.*greater than 0"),
        ({"process": "trace", "path": "a.csv", "from_s": 5, "to_s": 5}, "to_s must be greater than from_s, which is 5"),
    ],
)
def test_a_process_that_cannot_be_is_refused(keys: dict[str, object], told: str) -> None:
    """Misspelled, missing and impossible values are named."""
    with pytest.raises(UserError, match=told):
        validate({"arrivals": keys}, Holder, where="scenario.yaml")


@pytest.mark.parametrize(
    "process",
    [
        Poisson(rate_per_s=2, duration_s=100),
        Steps(rates_per_s=(1, 3), step_s=50),
        Ramp(from_per_s=0, to_per_s=4, duration_s=100),
        Spike(base_per_s=1, peak_per_s=9, at_s=50, spike_s=10, duration_s=100),
        Sine(mean_per_s=2, swing_ratio=0.5, period_s=40, duration_s=100),
    ],
)
def test_a_shape_in_less_time_keeps_its_rates(process: Process) -> None:
    """A tenth of the time gives a tenth of the requests, at every part of the shape."""
    short = with_duration(process, 10.0)
    assert not isinstance(short, Trace)
    assert short.duration_s == pytest.approx(10.0)
    assert expected_requests(short) == pytest.approx(expected_requests(process) / 10)
