"""What had settled, and what is left out."""

from __future__ import annotations

import numpy as np
import pytest

from loadtest.metrics.latency import counted
from loadtest.metrics.steady_state import Window, cut_of, is_growing, mean_count, mser, settled_after, window_of
from loadtest.results.columns import columns_of
from tests.unit.loadtest.made import level, record


def test_mser_is_the_least_standard_error() -> None:
    """The place found is the one a search over all places finds."""
    values = np.concatenate([np.linspace(0, 9, 12), np.random.default_rng(1).normal(10, 1, 80)])
    errors = [np.var(values[place:]) / (len(values) - place) for place in range(len(values) // 2 + 1)]
    assert mser(values) == int(np.argmin(errors))


def test_a_warm_up_is_cut_and_noise_is_not() -> None:
    """A ramp at the beginning is dropped; plain noise keeps every value."""
    noise = np.random.default_rng(2).normal(10, 1, 200)
    ramp = np.concatenate([np.linspace(0, 9, 40), noise])
    assert 30 <= settled_after(ramp) <= 45
    assert settled_after(noise) == 0


def test_requests_in_flight_by_hand() -> None:
    """One span over all of the first bin and half of the second."""
    found = mean_count(np.array([0.0, 1.0, 2.0]), np.array([0.0]), np.array([1.5]))
    assert found.tolist() == pytest.approx([1.0, 0.5])


def test_cut_of_an_open_loop_that_fills_up() -> None:
    """Requests a second that last ten seconds each take ten seconds to fill the server: those are cut."""
    requests = [
        record(place, place * 0.25, np.linspace(place * 0.25 + 0.1, place * 0.25 + 10, 20).tolist())
        for place in range(600)
    ]
    found = cut_of(Window(0.0, 150.0, "steady"), columns_of(requests), is_open=True)
    assert found.is_cut
    assert 5.0 < found.warmup_s < 25.0
    assert not found.growing


def test_a_queue_that_grows_never_settles() -> None:
    """Where each request takes longer than the one before, nothing is cut and it is said why."""
    requests = [
        record(place, place * 0.25, [place * 0.25 + 1 + place * 0.1 + step for step in range(5)])
        for place in range(600)
    ]
    found = cut_of(Window(0.0, 150.0, "steady"), columns_of(requests), is_open=True)
    assert (found.growing, found.is_cut) == (True, False)
    assert not is_growing(np.full(100, 5.0))


def test_too_few_requests_are_left_alone() -> None:
    """Of a handful of requests nothing can be told, and nothing is cut."""
    requests = [record(place, float(place), [place + 0.5, place + 0.9]) for place in range(20)]
    assert not cut_of(Window(0.0, 20.0, "steady"), columns_of(requests), is_open=True).is_cut
    assert level(1, 0.0, 1.0).concurrency == 1


def test_a_cut_leaves_most_requests_or_is_not_made() -> None:
    """Where most requests were sent before the load settled, all of them stay: nothing is cut then."""
    sent_s = [*(0.0025 * number for number in range(400)), *(1.0 + 0.2 * number for number in range(100))]
    requests = [record(number, at_s, [at_s + 0.3, at_s + 0.4, at_s + 0.5]) for number, at_s in enumerate(sent_s)]
    asked = level(1, 0.0, 21.4).model_copy(update={"concurrency": None, "rate_per_s": 24.0})
    columns = columns_of(requests)
    would = cut_of(window_of(asked, columns), columns, is_open=True)
    assert sum(at_s >= would.window.begin_s for at_s in sent_s) < 250  # else this test would show nothing
    assert len(counted(asked, requests, time_scale=1.0, settles=True).good) == 500


def test_a_level_ended_early_is_not_cut() -> None:
    """What ended first of a level that was stopped is no settled load, and no part of it is another's warm-up."""
    requests = [
        record(place, place * 0.25, np.linspace(place * 0.25 + 0.1, place * 0.25 + 10, 20).tolist())
        for place in range(600)
    ]
    whole = level(1, 0.0, 160.0).model_copy(update={"concurrency": None, "rate_per_s": 4.0})
    assert counted(whole, requests, time_scale=1.0, settles=True).cut.is_cut
    early = whole.model_copy(update={"sufficed": True})
    assert len(counted(early, requests, time_scale=1.0, settles=True).good) == 600
