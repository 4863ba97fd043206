"""The autoscaler's control law, held to the numbers of upstream's own tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from engines.autoscaling import DEFAULT_DOWN, DEFAULT_UP, Policy, ScalingLaw, ScalingRules
from loadtest.capacity.autoscaling.hpa import (
    Change,
    HpaController,
    Pod,
    replicas_of_pods,
    replicas_of_sum,
    replicas_of_value,
)
from tests.facts import read_facts

UPSTREAM = read_facts(Path(__file__).with_name("upstream_hpa.yaml"))
NOW_S = 100_000.0


def _law(**changed: Any) -> ScalingLaw:
    values: dict[str, Any] = {"controller": "hpa", "signal": "in_flight", "target": 10.0}
    return ScalingLaw.model_validate(values | {"min_replicas": 1, "max_replicas": 1000} | changed)


def _rules(of: list[int] | None, default: ScalingRules) -> ScalingRules:
    if of is None:
        return default
    pods, pods_s, percent, percent_s = of
    policies = [Policy(type="Pods", value=pods, period_s=pods_s)] if pods else []
    policies += [Policy(type="Percent", value=percent, period_s=percent_s)] if percent else []
    return ScalingRules(stabilization_s=default.stabilization_s, policies=tuple(policies))


@pytest.mark.parametrize("name", UPSTREAM["pods"])
def test_a_metric_of_pods_requires_what_upstream_requires(name: str) -> None:
    """Ready, pending and missing pods: the replicas of upstream's calculator."""
    row = UPSTREAM["pods"][name]
    pods = [Pod(is_pending=True) if value == "pending" else Pod(value) for value in row["pods"]]
    assert replicas_of_pods(pods, row["current"], row["target"], tolerance=0.1) == row["replicas"]


def test_without_any_metric_nothing_can_be_decided() -> None:
    """Upstream's TestReplicaCalcEmptyMetrics: an error, not a number."""
    with pytest.raises(ValueError, match="no running pod has a metric"):
        replicas_of_pods([Pod(), Pod(is_pending=True)], 2, 100, tolerance=0.1)


@pytest.mark.parametrize("name", UPSTREAM["sums"])
def test_an_external_sum_requires_what_upstream_requires(name: str) -> None:
    """AverageValue, as KEDA's triggers are by default."""
    row = UPSTREAM["sums"][name]
    assert replicas_of_sum(row["total"], row["current"], row["target"], tolerance=0.1) == row["replicas"]


@pytest.mark.parametrize("name", UPSTREAM["values"])
def test_an_external_value_requires_what_upstream_requires(name: str) -> None:
    """Value: the ratio multiplies the ready pods."""
    row = UPSTREAM["values"][name]
    found = replicas_of_value(row["value"], row["current"], row["ready"], row["target"], tolerance=0.1)
    assert found == row["replicas"]


@pytest.mark.parametrize("name", UPSTREAM["limits"])
def test_policies_limit_a_change_as_upstream_does(name: str) -> None:
    """Policies, earlier changes, minimum and maximum."""
    row = UPSTREAM["limits"][name]
    law = _law(min_replicas=row["min"], max_replicas=row["max"],
               up=_rules(row.get("up"), DEFAULT_UP), down=_rules(row.get("down"), DEFAULT_DOWN))  # fmt: skip
    controller = HpaController(law)
    for key, changes in (("up_events", controller.added), ("down_events", controller.removed)):
        events = row.get(key, [])
        changes += [
            Change(NOW_S - 120 * (place + 0.5) / len(events), replicas) for place, replicas in enumerate(events)
        ]
    assert controller.limited(row["desired"], row["current"], NOW_S) == row["replicas"]


@pytest.mark.parametrize("name", UPSTREAM["stabilization"])
def test_windows_stabilize_as_upstream_does(name: str) -> None:
    """The lowest recommendation of the window when scaling up, the highest when scaling down."""
    row = UPSTREAM["stabilization"][name]
    up = DEFAULT_UP.model_copy(update={"stabilization_s": row["up_s"]})
    down = DEFAULT_DOWN.model_copy(update={"stabilization_s": row["down_s"]})
    past = [Change(NOW_S - 60 * minutes, replicas) for replicas, minutes in row["past"]]
    controller = HpaController(_law(up=up, down=down), recommended=past)
    assert controller.stabilized(row["desired"], row["current"], NOW_S) == row["replicas"]


def test_a_change_is_remembered_and_limits_the_next() -> None:
    """Two pods a minute: after two, none before the minute is over."""
    up = ScalingRules(stabilization_s=0, policies=(Policy(type="Pods", value=2, period_s=60),))
    controller = HpaController(_law(up=up))
    found, current = [], 4
    for at_s in range(0, 90, 15):
        current = controller.decide(20, current, float(at_s))
        found.append(current)
    assert found == [6, 6, 6, 6, 8, 8]


def test_no_law_scales_to_zero() -> None:
    """With a minimum of one, KEDA's activation and cooldown never act (scale_scaledobjects.go: scaleToZero)."""
    for controller in ("hpa", "keda"):
        with pytest.raises(ValidationError, match="min_replicas"):
            _law(controller=controller, min_replicas=0)
        law = _law(controller=controller, max_replicas=5)
        assert HpaController(law).limited(0, 3, NOW_S) == 1


def test_a_target_outside_its_limits_is_brought_inside_at_once() -> None:
    """As upstream: no window and no policy delays it."""
    controller = HpaController(_law(min_replicas=5, max_replicas=9))
    assert (controller.decide(7, 2, 0.0), controller.decide(7, 12, 15.0)) == (5, 9)


def test_no_more_change_is_allowed_where_a_direction_is_disabled() -> None:
    """`selectPolicy: Disabled`; and `Min` takes the policy that allows the least."""
    disabled = DEFAULT_UP.model_copy(update={"select": "Disabled"})
    smallest = DEFAULT_UP.model_copy(update={"select": "Min"})
    assert HpaController(_law(up=disabled)).decide(50, 10, 0.0) == 10
    assert HpaController(_law(up=smallest)).decide(50, 10, 0.0) == 14
