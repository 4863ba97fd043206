"""Offset between two machines' monotonic clocks, from message round trips."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from engines.errors import UserError


@dataclass(frozen=True, slots=True)
class RoundTrip:
    """A clock query: when it left and returned on our clock, and the other clock's value in between."""

    left_s: float
    other_s: float
    back_s: float


@dataclass(frozen=True, slots=True)
class Offset:
    """The other clock's difference from ours.

    Attributes:
        uncertainty_s: Maximum error: half the round trip.
    """

    offset_s: float
    uncertainty_s: float

    @property
    def applied_s(self) -> float:
        """The offset, or 0 if the clocks agree within the uncertainty: on one machine they are the same clock."""
        return 0.0 if abs(self.offset_s) <= self.uncertainty_s else self.offset_s


def offset_of(trips: Iterable[RoundTrip]) -> Offset:
    """Return the offset from the shortest round trip, which has the smallest uncertainty.

    Raises:
        UserError: There were no round trips.

    Source:
        Cristian, "Probabilistic clock synchronization", Distributed Computing 3, 1989.

    >>> offset_of([RoundTrip(1.0, 101.4, 1.2), RoundTrip(2.0, 102.01, 2.02)])
    Offset(offset_s=100.0, uncertainty_s=0.01)
    """
    best = min(trips, key=lambda trip: trip.back_s - trip.left_s, default=None)
    if best is None:
        raise UserError("a worker did not answer the clock query", hint="check the network between the machines")
    middle_s = (best.left_s + best.back_s) / 2
    return Offset(round(best.other_s - middle_s, 9), round((best.back_s - best.left_s) / 2, 9))
