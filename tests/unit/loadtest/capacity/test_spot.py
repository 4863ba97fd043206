"""Spot machines: simulated months against the closed form, and what a larger fleet changes."""

from __future__ import annotations

from math import comb

import numpy as np
import pytest

from loadtest.capacity.inputs import Spot
from loadtest.capacity.spot import SECONDS_PER_MONTH, smallest_spot_fleet, spot_months

SPOT = Spot(usd_per_gpu_h=1.0, interruptions_per_month=60, notice_s=30, wait_s=600, source="a test")
START_UP_S = 300.0


def _down_ratio(spot: Spot) -> float:
    down_s = spot.wait_s + START_UP_S
    return down_s / (down_s + SECONDS_PER_MONTH / spot.interruptions_per_month)


def test_the_time_short_of_replicas_is_the_binomial_s() -> None:
    """Independent machines, each up for its share of time: two of three are down with the binomial's probability."""
    found = spot_months(3, 2, SPOT, start_up_s=START_UP_S, rng=np.random.default_rng(1))
    down = _down_ratio(SPOT)
    exact = sum(comb(3, lost) * down**lost * (1 - down) ** (3 - lost) for lost in (2, 3))
    assert found.short_ratio == pytest.approx(exact, rel=0.1)
    assert found.interruptions_per_month == pytest.approx(3 * 60 * (1 - down), rel=0.02)


def test_machines_withdrawn_together_need_more_spares() -> None:
    """Two at once: a fleet with one spare is short whenever they leave."""
    alone = spot_months(3, 2, SPOT, start_up_s=START_UP_S, rng=np.random.default_rng(1))
    pairs = SPOT.model_copy(update={"at_once": 2})
    together = spot_months(3, 2, pairs, start_up_s=START_UP_S, rng=np.random.default_rng(1))
    assert together.short_ratio > 5 * alone.short_ratio


def test_the_smallest_fleet_is_short_no_more_than_accepted() -> None:
    """One replica fewer would be; where no fleet suffices, there is none."""
    found = smallest_spot_fleet(2, SPOT, start_up_s=START_UP_S, seed=0)
    assert found is not None
    fewer = spot_months(found.total - 1, 2, SPOT, start_up_s=START_UP_S, rng=np.random.default_rng(0))
    assert found.short_ratio <= SPOT.max_short_ratio < fewer.short_ratio
    assert smallest_spot_fleet(1, SPOT, start_up_s=10 * SECONDS_PER_MONTH, seed=0) is None
