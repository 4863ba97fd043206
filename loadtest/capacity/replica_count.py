"""The number of replicas for a peak, with headroom and spares."""

from __future__ import annotations

import math
from typing import NamedTuple

from loadtest.capacity.inputs import Availability

_ROUNDING = 1e-9  # tolerance for rounding errors: exactly ten replicas' load needs ten replicas


class Size(NamedTuple):
    """Size of a deployment.

    Attributes:
        needed: Replicas that must be up at the peak.
        total: Including spares.
    """

    needed: int
    total: int


def size_for(peak_per_s: float, replica_per_s: float, availability: Availability) -> Size:
    """Return the number of replicas of a deployment.

    Spares cover the loss of `n_plus` replicas or, with more than one zone, of a whole zone, whichever needs more. The
    remaining replicas carry the peak with the headroom.

    >>> size_for(100.0, 11.0, Availability(n_plus=1, zones=3, headroom=0.0))
    Size(needed=10, total=15)
    """
    needed = needed_for(peak_per_s, replica_per_s * (1 - availability.headroom))
    return Size(needed, total_for(needed, availability))


def replicas_text(count: int | None) -> str:
    """Return a number of replicas in words.

    >>> replicas_text(1), replicas_text(2)
    ('1 replica', '2 replicas')
    """
    return "1 replica" if count == 1 else f"{count} replicas"


def needed_for(load_per_s: float, replica_per_s: float) -> int:
    """Return how many replicas carry a load.

    >>> needed_for(100.0, 12.5), needed_for(100.0, 12.4), needed_for(100.0, math.inf)
    (8, 9, 1)
    """
    return max(1, math.ceil(load_per_s / replica_per_s - _ROUNDING))


def total_for(needed: int, availability: Availability) -> int:
    """Return the smallest total of which `needed` replicas remain after the worst planned loss."""
    total = needed + availability.n_plus
    while availability.zones > 1 and total - lost_with_zone(total, availability.zones) < needed:
        total += 1
    return total


def lost_with_zone(total: int, zones: int) -> int:
    """Return the number of replicas in the fullest zone."""
    return math.ceil(total / zones)


def worst_loss(total: int, availability: Availability) -> int:
    """Return the number of replicas lost in the worst planned loss."""
    zone = lost_with_zone(total, availability.zones) if availability.zones > 1 else 0
    return max(availability.n_plus, zone)
