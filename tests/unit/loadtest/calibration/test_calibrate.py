"""The spread between measurements of the same load, as a calibration takes it."""

from __future__ import annotations

import math

import numpy as np
import pytest

from loadtest.calibration.calibrate import drift_between_repeats
from loadtest.calibration.measured_points import Point


def _point(users: int, tokens_per_s: float, itl_s: float | None = 0.01, *, osl: int = 32) -> Point:
    return Point("made up", "concurrency", 64, osl, users, tokens_per_s, itl_s, None)


def test_loads_that_were_not_repeated_tell_nothing_of_drift() -> None:
    """Other users or other lengths are another load."""
    assert drift_between_repeats([_point(1, 50.0), _point(2, 60.0), _point(1, 70.0, osl=16)]) == {}


def test_one_repeat_is_its_difference() -> None:
    """A machine 10 % faster at the end: the next measurement may be as far away; TTFT, not measured, has no drift."""
    drift = drift_between_repeats([_point(1, 50.0, 0.020), _point(4, 150.0), _point(1, 55.0, 0.018)])
    assert drift == {"tokens_per_s": pytest.approx(math.log(1.1)), "itl_s": pytest.approx(math.log(1 / 0.9))}


def test_a_quantity_measured_once_has_no_drift() -> None:
    """A gap in one of two measurements leaves nothing to compare."""
    assert drift_between_repeats([_point(1, 50.0, None), _point(1, 50.0)]) == {"tokens_per_s": 0.0}


def test_drift_is_the_spread_of_the_difference_of_two_measurements() -> None:
    """Of measurements with a known spread, pooled over loads: the square root of two times it."""
    rng = np.random.default_rng(1)
    points = [
        _point(users, math.exp(users + 0.04 * rng.standard_normal()), None) for users in range(1, 200) for _ in range(2)
    ]
    assert drift_between_repeats(points)["tokens_per_s"] == pytest.approx(0.04 * math.sqrt(2), rel=0.1)
