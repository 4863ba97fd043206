"""The planned day: rates, and the replicas that they need."""

from __future__ import annotations

import numpy as np
import pytest

from loadtest.capacity.day import REPORT_SLOTS, day_of
from loadtest.capacity.inputs import Availability
from loadtest.capacity.simulation import RateCurve


def test_every_few_minutes_need_the_replicas_of_their_busiest() -> None:
    """Replicas of 10/s at 10 % headroom carry 9/s each: 18/s need two, 19/s three; at night one is up."""
    rates = np.zeros(2 * REPORT_SLOTS + 1)
    rates[:REPORT_SLOTS] = 4.5
    rates[1] = 9.0
    rates[REPORT_SLOTS] = 9.5
    day = day_of(RateCurve(rates, peak_per_s=9.5, hour_per_s=9.5), 2.0, 10.0, Availability(n_plus=3, headroom=0.1))
    assert not day.is_day
    assert [each.needed for each in day.points] == [2, 3, 1]
    assert [each.rate_per_s for each in day.points] == [18.0, 19.0, 0.0]
    assert [each.at_h for each in day.points] == pytest.approx([0.0, 5 / 60, 10 / 60])
