"""Fluid replicas under a control law: late arrivals, draining, what signals show."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from engines.autoscaling import ColdStart, ScalingLaw
from loadtest.capacity.autoscaling.fluid import Followed, follow, step_s_of
from loadtest.capacity.autoscaling.response import ReplicaResponse

# A replica whose requests take 5 s at any load below a full batch of 100, which completes 20 a second.
RESPONSE = ReplicaResponse(
    rates_per_s=(0.0, 20.0), in_flight=(0.0, 100.0), ttft_p95_s=(0.1, 0.1), kv_ratio=(0.0, 0.5), slots=100,
    carried_per_s=19.0, ttft_limit_s=1.0, drain_s=60.0,
)  # fmt: skip
STEP_S = 15.0
COLD = ColdStart(pending_s=120.0, loading_s=60.0, source="assumed")


def _law(**changed: Any) -> ScalingLaw:
    values: dict[str, Any] = {"controller": "hpa", "signal": "in_flight", "target": 50.0}
    return ScalingLaw.model_validate(values | {"min_replicas": 1, "max_replicas": 10} | changed)


def _follow(rates: list[float], *laws: ScalingLaw, begin_with: int = 1) -> list[Followed]:
    return follow(laws, np.array(rates), RESPONSE, COLD, begin_with=begin_with)


def test_a_constant_load_settles_where_the_target_says() -> None:
    """30 requests/s of 5 s are 150 in flight (Little's law): 3 replicas at 50 each, and no minute is missed."""
    for controller in ("hpa", "keda"):
        [found] = _follow([30.0] * 240, _law(controller=controller), begin_with=3)
        assert set(found.up) == {3}
        assert found.missed_minutes == 0
        assert found.replica_hours == pytest.approx(3 * 240 * STEP_S / 3600)


def test_a_replica_arrives_after_its_cold_start_and_is_paid_for_before() -> None:
    """A jump at step 8: requested within two evaluations of the minute-long rate, up 180 s later, missed until then."""
    [found] = _follow([9.0] * 8 + [36.0] * 80, _law())
    requested = next(step for step, paid in enumerate(found.paid) if paid > 1)
    ready = next(step for step, up in enumerate(found.up) if up > 1)
    assert ready - requested == COLD.total_s / STEP_S
    assert 8 < requested <= 8 + 4
    assert found.missed[3 : ready // 4] == (True,) * (ready // 4 - 3)


def test_a_removed_replica_is_paid_for_while_it_drains() -> None:
    """One of two replicas goes: 60 s longer paid for than it takes requests."""
    [found] = _follow([2.0] * 80, _law(), begin_with=2)
    removed = next(step for step, up in enumerate(found.up) if up == 1)
    gone = next(step for step, paid in enumerate(found.paid) if paid == 1)
    assert (gone - removed) * STEP_S == RESPONSE.drain_s
    assert removed * STEP_S >= 300  # the stabilization window of scaling down


def test_requests_in_flight_are_seen_late() -> None:
    """The metric counts requests when they end: behind a queue it rises later than the KV cache use does."""
    rates = [9.0] * 40 + [40.0] * 20
    late, early = _follow(rates, _law(target=90.0), _law(signal="kv_used", target=0.45))
    first = [next(step for step, paid in enumerate(found.paid) if paid > 1) for found in (late, early)]
    assert first[1] < first[0]


@pytest.mark.parametrize("sync_s", [5.0, 20.0, 60.0])
def test_a_law_is_evaluated_as_often_as_it_says(sync_s: float) -> None:
    """A rising load: replicas are requested at multiples of `sync_s` only, and nothing else about the load changes."""
    law = _law(signal="kv_used", target=0.2, sync_s=sync_s)
    step_s = step_s_of(law)
    steps = round(60 / step_s)
    rates = np.repeat(np.linspace(1.0, 90.0, 60), steps).tolist()
    [found] = _follow(rates, law)
    requested_s = step_s * np.flatnonzero(np.diff(found.paid) > 0) + step_s
    assert len(requested_s) > 3
    assert not np.any(requested_s % sync_s)
    assert len(found.missed) == len(found.up_by_minute) == 60
    assert found.replica_hours == pytest.approx(sum(found.paid) * step_s / 3600)


def test_laws_of_one_simulation_are_evaluated_together() -> None:
    """Another `sync_s` needs a simulation of its own."""
    with pytest.raises(ValueError, match="same sync_s"):
        _follow([1.0] * 4, _law(), _law(sync_s=30.0))
