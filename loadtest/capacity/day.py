"""The planned day: its rate, and the replicas that carry it."""

from __future__ import annotations

from engines.files import Strict
from engines.units import SECONDS_PER_H
from loadtest.capacity.inputs import Availability
from loadtest.capacity.replica_count import size_for
from loadtest.capacity.simulation import SLOT_S, RateCurve

REPORT_SLOTS = 5  # slots of the curve per point of the report


class DayPoint(Strict):
    """A few minutes of the day.

    Attributes:
        at_h: Hours since midnight, or since the start of the trace.
        rate_per_s: Highest rate of these minutes, grown to the horizon.
        needed: Most replicas that the rate needs in these minutes, headroom included, without spares.
    """

    at_h: float
    rate_per_s: float
    needed: int


class Day(Strict):
    """The planned day, or the trace.

    Attributes:
        is_day: Whether it covers a whole day.
    """

    is_day: bool
    points: list[DayPoint]


def day_of(curve: RateCurve, growth: float, replica_per_s: float, availability: Availability) -> Day:
    """Return the day of replicas that carry `replica_per_s` each.

    Args:
        growth: Ratio of the planned traffic to the curve's.
    """
    rates = [rate_per_s * growth for rate_per_s in curve.rates_per_s.tolist()]
    slots = [rates[begin : begin + REPORT_SLOTS] for begin in range(0, len(rates), REPORT_SLOTS)]
    return Day(
        is_day=curve.is_day,
        points=[
            DayPoint(
                at_h=place * REPORT_SLOTS * SLOT_S / SECONDS_PER_H,
                rate_per_s=max(slot),
                needed=size_for(max(*slot, 1e-9), replica_per_s, availability).needed,
            )
            for place, slot in enumerate(slots)
        ],
    )
