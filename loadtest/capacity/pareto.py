"""Cost, latency and accuracy of deployments with fewer or more replicas of each candidate, and the Pareto frontier."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from engines.files import Strict
from loadtest.capacity.candidates import Basis
from loadtest.capacity.decision import Market, Row, priced
from loadtest.capacity.inputs import Demand
from loadtest.capacity.replica_count import size_for
from loadtest.capacity.simulation import RateProbe


class Point(Strict):
    """A deployment that meets every objective at the peak.

    Attributes:
        accuracy_loss: Against the demand's baseline, of the task that loses most; None if it was not measured.
        is_on_frontier: No other point is at most as expensive, at least as fast, and loses at most as much accuracy.
    """

    name: str
    basis: Basis
    rate_per_s: float
    replicas: int
    usd_per_month: float
    ttft_p95_s: float
    itl_mean_s: float
    worst_ratio: float
    accuracy_loss: float | None = None
    is_on_frontier: bool

    @property
    def axes(self) -> tuple[float, float, float]:
        """Cost, latency and accuracy loss, each better when lower; an unknown loss counts as the largest."""
        return self.usd_per_month, self.ttft_p95_s, math.inf if self.accuracy_loss is None else self.accuracy_loss


def frontier_of(
    demand: Demand, market: Market, rows: Sequence[Row], swept: dict[str, tuple[RateProbe, ...]]
) -> list[Point]:
    """Return every deployment that met the objectives, simulated or measured, by increasing cost.

    Of the loads that need the same number of replicas, the lowest is used: it is closest to each replica's actual load
    and not below it.

    Args:
        swept: Further loads by row, in addition to those of its search.
    """
    best: dict[tuple[str, int], Point] = {}
    for row in rows:
        own = _sized_point(row)
        if own is not None:
            best[row.name, own.replicas] = own
        for tried in () if row.found is None else (*row.found.tried, *swept.get(row.name, ())):
            point = _point(demand, market, row, tried)
            if point is None:
                continue
            known = best.get((row.name, point.replicas))
            if row.replicas is not None and row.verdict is not None and point.replicas <= row.replicas:
                continue  # the smallest fleet was simulated: fewer replicas miss an objective
            if known is None or point.rate_per_s < known.rate_per_s:
                best[row.name, point.replicas] = point
    return sorted(on_frontier(list(best.values())), key=lambda each: (each.usd_per_month, each.ttft_p95_s))


def on_frontier(points: Sequence[Point]) -> list[Point]:
    """Return the points, each with whether it is on the frontier."""
    return [each.model_copy(update={"is_on_frontier": _is_on_frontier(each, points)}) for each in points]


def _sized_point(row: Row) -> Point | None:
    """Return the smallest fleet of a row as simulated behind its router."""
    tried = None if row.verdict is None or not row.verdict.met else row.verdict.tried
    if tried is None or row.usd_per_month is None or row.replicas is None:
        return None
    if tried.ttft_p95_s is None or tried.itl_mean_s is None:
        return None
    return Point(
        name=row.name,
        basis=row.basis,
        rate_per_s=tried.rate_per_s / (row.needed or 1),
        replicas=row.replicas,
        usd_per_month=row.usd_per_month,
        ttft_p95_s=tried.ttft_p95_s,
        itl_mean_s=tried.itl_mean_s,
        worst_ratio=tried.worst_ratio,
        accuracy_loss=None if row.accuracy is None else row.accuracy.loss,
        is_on_frontier=False,
    )


def _point(demand: Demand, market: Market, row: Row, tried: RateProbe) -> Point | None:
    if not tried.met or tried.ttft_p95_s is None or tried.itl_mean_s is None:
        return None
    if row.rate_per_s is None or tried.rate_per_s > row.rate_per_s:
        return None
    size = size_for(market.peak_per_s, tried.rate_per_s, demand.availability)
    made = priced(row, demand, market, needed=size.needed, replicas=size.total)
    if made.usd_per_month is None or made.status != "possible":
        return None
    return Point(
        name=row.name,
        basis=row.basis,
        rate_per_s=tried.rate_per_s,
        replicas=size.total,
        usd_per_month=made.usd_per_month,
        ttft_p95_s=tried.ttft_p95_s,
        itl_mean_s=tried.itl_mean_s,
        worst_ratio=tried.worst_ratio,
        accuracy_loss=None if row.accuracy is None else row.accuracy.loss,
        is_on_frontier=False,
    )


def _is_on_frontier(point: Point, points: Iterable[Point]) -> bool:
    return not any(
        other.axes != point.axes and all(one <= two for one, two in zip(other.axes, point.axes, strict=True))
        for other in points
    )
