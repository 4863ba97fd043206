"""What had settled, and what is left out."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from made import level, record

from loadtest.columns import columns_of
from loadtest.windows import Window, cut_of, is_growing, mean_count, mser, settled_after


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
