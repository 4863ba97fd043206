"""Kubernetes' HorizontalPodAutoscaler: its replica calculator and its controller, in virtual time.

The algorithm of kubernetes/pkg/controller/podautoscaler (replica_calculator.go and horizontal.go, autoscaling/v2) for
metrics of pods and external metrics. Metrics are integers in thousandths, as the metrics APIs return them. Utilization
of CPU or memory is not included: its rules for pods that are not ready differ.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from engines.autoscaling import ScalingLaw, ScalingRules

MILLI = 1000
LONGEST_PERIOD_S = 1800  # of a policy; the API allows no longer one


class Pod(NamedTuple):
    """A pod of the target as the autoscaler sees it; terminating and failed pods are not counted.

    Attributes:
        value_milli: Its metric; None if there is none.
        is_pending: Not scheduled, or its image is being pulled.
    """

    value_milli: int | None = None
    is_pending: bool = False


def replicas_of_pods(pods: Sequence[Pod], current: int, target_milli: int, *, tolerance: float) -> int:
    """Return the replicas that a metric of pods requires (`type: Pods`, `AverageValue`).

    A pending pod counts as 0 when scaling up. A running pod without a metric counts as 0 when scaling up and as the
    target when scaling down. If that reverses the direction, nothing changes.

    Raises:
        ValueError: No pod has a metric; the controller then changes nothing.
    """
    values = [pod.value_milli for pod in pods if not pod.is_pending and pod.value_milli is not None]
    pending = sum(pod.is_pending for pod in pods)
    missing = sum(not pod.is_pending and pod.value_milli is None for pod in pods)
    return replicas_of_metrics(values, current, target_milli, pending=pending, missing=missing, tolerance=tolerance)


def replicas_of_metrics(
    values: Sequence[int], current: int, target_milli: int, *, pending: int, missing: int, tolerance: float
) -> int:
    """Return what `replicas_of_pods` does, by the metrics of running pods and the numbers of the others.

    Args:
        missing: Running pods without a metric.

    Raises:
        ValueError: No pod has a metric; the controller then changes nothing.
    """
    if not values:
        raise ValueError("no running pod has a metric")
    ratio = sum(values) // len(values) / target_milli
    is_rising = ratio > 1
    if not missing and not (pending and is_rising):
        return current if abs(1 - ratio) <= tolerance else math.ceil(ratio * len(values))
    total = sum(values) + (target_milli * missing if ratio < 1 else 0)
    count = len(values) + missing + (pending if is_rising else 0)
    again = total // count / target_milli
    if abs(1 - again) <= tolerance or (ratio < 1 < again) or (again < 1 < ratio):
        return current
    replicas = math.ceil(again * count)
    if (again < 1 and replicas > current) or (again > 1 and replicas < current):
        return current
    return replicas


def replicas_of_sum(total_milli: int, current: int, target_milli: int, *, tolerance: float) -> int:
    """Return the replicas that an external metric requires (`AverageValue`): its sum divided by the target.

    Args:
        current: Pods of the target, ready or not.
    """
    if abs(1 - total_milli / (target_milli * current)) <= tolerance:
        return current
    return math.ceil(total_milli / target_milli)


def replicas_of_value(value_milli: int, current: int, ready: int, target_milli: int, *, tolerance: float) -> int:
    """Return the replicas that an external metric requires (`Value`): its ratio to the target times the ready pods."""
    ratio = value_milli / target_milli
    return current if abs(1 - ratio) <= tolerance else math.ceil(ratio * ready)


class Change(NamedTuple):
    """A number of replicas and its time: a recommendation, or the size of a change."""

    at_s: float
    replicas: int


@dataclass(slots=True)
class HpaController:
    """The controller's memory, and its limits: stabilization windows, policies, minimum and maximum."""

    law: ScalingLaw
    recommended: list[Change] = field(default_factory=list)
    added: list[Change] = field(default_factory=list)
    removed: list[Change] = field(default_factory=list)

    def decide(self, desired: int, current: int, now_s: float) -> int:
        """Return the replicas to scale to, and remember the recommendation and the change.

        Args:
            desired: What the metric requires, before any limit.
            current: The target's replicas.
        """
        law = self.law
        if not self.recommended:  # the first recommendation of a target is its present size
            self.recommended.append(Change(now_s, current))
        if law.min_replicas <= current <= law.max_replicas:
            following = self.limited(self.stabilized(desired, current, now_s), current, now_s)
        else:
            following = min(max(current, law.min_replicas), law.max_replicas)
        if following > current:
            self.added = [*_recent(self.added, now_s), Change(now_s, following - current)]
        elif following < current:
            self.removed = [*_recent(self.removed, now_s), Change(now_s, current - following)]
        return following

    def stabilized(self, desired: int, current: int, now_s: float) -> int:
        """Return a recommendation that no window contradicts, and remember the unstabilized one."""
        up_s, down_s = self.law.up.stabilization_s, self.law.down.stabilization_s
        smallest = min([desired, *_replicas_within(self.recommended, up_s, now_s)])
        largest = max([desired, *_replicas_within(self.recommended, down_s, now_s)])
        while self.recommended and self.recommended[0].at_s < now_s - max(up_s, down_s):
            self.recommended.pop(0)
        self.recommended.append(Change(now_s, desired))
        return min(max(current, smallest), largest)

    def limited(self, desired: int, current: int, now_s: float) -> int:
        """Return a recommendation within the policies, the minimum and the maximum."""
        law = self.law
        if desired > current:
            return min(desired, law.max_replicas, max(current, self._limit(law.up, current, now_s, sign=1)))
        if desired < current:
            return max(desired, law.min_replicas, min(current, self._limit(law.down, current, now_s, sign=-1)))
        return desired

    def _limit(self, rules: ScalingRules, current: int, now_s: float, *, sign: int) -> int:
        """Return the furthest number of replicas that the policies of one direction (`sign`) allow."""
        if rules.select == "Disabled":
            return current
        proposals = []
        for policy in rules.policies:
            begin_s = now_s - policy.period_s
            start = current - _changed(self.added, begin_s) + _changed(self.removed, begin_s)
            if policy.type == "Pods":
                proposals.append(start + sign * policy.value)
            else:
                share = start * (1 + sign * policy.value / 100)
                proposals.append(math.ceil(share) if sign > 0 else math.trunc(share))
        furthest: Callable[[list[int]], int] = max if (rules.select == "Max") == (sign > 0) else min
        return furthest(proposals)


def _replicas_within(changes: Sequence[Change], window_s: float, now_s: float) -> list[int]:
    """Return the replicas of all changes within a window up to now."""
    since_s = now_s - window_s
    return [replicas for at_s, replicas in changes if at_s > since_s] if window_s else []


def _changed(changes: Sequence[Change], since_s: float) -> int:
    return sum(each.replicas for each in changes if each.at_s > since_s)


def _recent(changes: list[Change], now_s: float) -> list[Change]:
    """Return the changes that a policy may still count."""
    return [each for each in changes if each.at_s >= now_s - LONGEST_PERIOD_S]
