"""The building blocks of Prometheus rules for a server."""

from __future__ import annotations

from dataclasses import dataclass

from triton_repo.deploy.plan import BUSY_RATIO

BUSY = f"{BUSY_RATIO * 1000:.0f}m"  # as Kubernetes writes a ratio
POD = 'pod!="",namespace!=""}'


@dataclass(frozen=True, slots=True)
class Recorded:
    """A recording rule: the series and what it is, per server unless it says more."""

    name: str
    expr: str
    meaning: str


@dataclass(frozen=True, slots=True)
class Alert:
    """An alert; `minutes` is how long it must hold."""

    name: str
    expr: str
    minutes: int
    severity: str
    summary: str
    todo: str


@dataclass(frozen=True, slots=True)
class Scaling:
    """A metric of the autoscaler's, per pod, and the mean over the pods past which it adds one.

    Attributes:
        series: That Prometheus must have of a pod, as the adapter finds it.
        query: Of a pod's value; the adapter puts its names in between << and >>.
    """

    name: str
    series: str
    query: str
    target: str
    meaning: str
