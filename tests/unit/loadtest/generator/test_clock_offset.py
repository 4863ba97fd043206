"""One clock for several machines."""

from __future__ import annotations

import random

import pytest

from engines.errors import UserError
from loadtest.generator.distributed.clock_offset import Offset, RoundTrip, offset_of


def _trip(rng: random.Random, ahead_s: float, at_s: float) -> RoundTrip:
    there_s, back_s = rng.expovariate(1 / 0.002) + 1e-4, rng.expovariate(1 / 0.002) + 1e-4
    return RoundTrip(at_s, at_s + there_s + ahead_s, at_s + there_s + back_s)


@pytest.mark.parametrize("ahead_s", [0.0, 1234.5, -98_765.4321])
def test_the_truth_lies_within_the_stated_uncertainty(ahead_s: float) -> None:
    """However uneven the ways there and back are, half the shortest round trip bounds the error."""
    rng = random.Random(5)
    for _ in range(200):
        found = offset_of(_trip(rng, ahead_s, float(at_s)) for at_s in range(25))
        assert abs(found.offset_s - ahead_s) <= found.uncertainty_s + 1e-9
        assert found.uncertainty_s < 0.002


def test_clocks_that_agree_are_left_alone() -> None:
    """On one machine the clock is one: what is measured of it is noise, and is not added to any time."""
    assert Offset(3e-5, 6e-5).applied_s == 0.0
    assert Offset(-3e-5, 6e-5).applied_s == 0.0
    assert Offset(2.0, 6e-5).applied_s == 2.0


def test_no_answer_is_an_error() -> None:
    """Nothing is assumed of a clock nobody has heard of."""
    with pytest.raises(UserError, match="did not answer"):
        offset_of([])
