"""How many replicas a peak takes, with headroom and with what may fail."""

from __future__ import annotations

import math
from typing import NamedTuple

from loadtest.capacity.inputs import Availability

_ROUNDING = 1e-9  # ten replicas' worth is ten replicas, whatever a division made of it


class Size(NamedTuple):
    """Replicas of a deployment.

    Attributes:
        needed: That must be up at the peak.
        total: With those that may be lost.
    """

    needed: int
    total: int


def size_for(peak_per_s: float, replica_per_s: float, availability: Availability) -> Size:
    """Return the replicas of a deployment.

    `n_plus` of them may be lost, or with more than one zone a whole zone of replicas spread evenly, whichever takes
    more; what remains carries the peak with the headroom.

    >>> size_for(100.0, 11.0, Availability(n_plus=1, zones=3, headroom=0.0))
    Size(needed=10, total=15)
    """
    needed = max(1, math.ceil(peak_per_s / (replica_per_s * (1 - availability.headroom)) - _ROUNDING))
    return Size(needed, total_for(needed, availability))


def total_for(needed: int, availability: Availability) -> int:
    """Return the replicas of which `needed` remain after the worst loss that has to be survived."""
    total = needed + availability.n_plus
    while availability.zones > 1 and total - lost_with_zone(total, availability.zones) < needed:
        total += 1
    return total


def lost_with_zone(total: int, zones: int) -> int:
    """Return the replicas of the fullest zone."""
    return math.ceil(total / zones)


def worst_loss(total: int, availability: Availability) -> int:
    """Return the replicas that the worst loss planned for takes."""
    zone = lost_with_zone(total, availability.zones) if availability.zones > 1 else 0
    return max(availability.n_plus, zone)
