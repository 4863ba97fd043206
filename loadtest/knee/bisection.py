"""The highest load that meets every objective, by bracketing and bisection; the probe is passed in."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from engines.errors import UserError

MOST_PROBES = 24
GROWTH = 2.0  # from one probe to the next while the bracket is open


class Probe(NamedTuple):
    """One load tried.

    Attributes:
        load: Requests a second, or users.
        met: Whether every objective was kept.
        missed: The objectives that were not.
        requests: Measured requests the verdict rests on.
    """

    load: float
    met: bool
    missed: tuple[str, ...] = ()
    requests: int = 0


@dataclass(frozen=True, slots=True)
class Knee:
    """The result of a search.

    Attributes:
        load: The highest load tried that kept every objective; None where none did.
        above: The lowest load tried above it that did not; None where the limit `most` was reached.
        probes: In the order they were tried.
    """

    load: float | None
    above: float | None
    probes: tuple[Probe, ...]

    @property
    def missed(self) -> tuple[str, ...]:
        """The objectives that the load just above the knee missed: what binds."""
        return next((probe.missed for probe in self.probes if probe.load == self.above and not probe.met), ())


@dataclass(slots=True)
class _Search:
    probe: Callable[[float], Probe]
    is_whole: bool
    tried: dict[float, Probe] = field(default_factory=dict)

    def try_load(self, load: float) -> bool:
        if load not in self.tried:
            self.tried[load] = self.probe(load)
        return self.tried[load].met

    def between(self, low: float, high: float) -> float | None:
        """Return the geometric middle; None where no whole number lies between."""
        middle = math.sqrt(low * high)
        if not self.is_whole:
            return middle
        whole = round(middle)
        inside = min(max(whole, math.floor(low) + 1), math.ceil(high) - 1)
        return inside if low < inside < high else None


def find_knee(
    probe: Callable[[float], Probe],
    *,
    start: float,
    least: float,
    most: float,
    tolerance: float = 0.05,
    is_whole: bool = False,
) -> Knee:
    """Bracket the highest load that a probe says is met, then halve the bracket on a logarithmic scale.

    Latency under load is taken to grow with the load; where noise makes a lower load miss what a higher one met, the
    answer is the highest load below which nothing tried was missed.

    Args:
        least: Where a lower load is of no interest; `load` is None if even this is missed.
        most: Where a higher load is of no interest; `above` is None if even this is met.
        tolerance: The bracket is narrow enough when its ends are this far apart, relative to the lower.
        is_whole: Whether loads are whole numbers, as users are.

    Raises:
        UserError: The limits are not in order.

    >>> found = find_knee(lambda load: Probe(load, load <= 50), start=1, least=1, most=1000, is_whole=True)
    >>> found.load, found.above, len(found.probes)
    (49, 51, 11)
    """
    if not 0 < least <= start <= most:
        raise UserError(
            f"a search from {least:g} to {most:g} cannot start at {start:g}", hint="0 < least <= start <= most"
        )
    search = _Search(probe, is_whole)
    low, high = _bracket(search, start, least, most)
    if low is not None and high is not None:
        low, high = _narrow(search, low, high, tolerance)
    missed = [load for load, tried in search.tried.items() if not tried.met]
    if low is not None and missed and min(missed) < low:  # noise: believe the lower miss
        high = min(missed)
        low = max((load for load, tried in search.tried.items() if tried.met and load < high), default=None)
    return Knee(low, high, tuple(search.tried.values()))


def _bracket(search: _Search, start: float, least: float, most: float) -> tuple[float | None, float | None]:
    """Return a load that is met and one above it that is not; None for the end that was not found."""
    if search.try_load(start):
        low = start
        while low < most:
            high = min(low * GROWTH, most)
            if not search.try_load(high):
                return low, high
            low = high
        return low, None
    high = start
    while high > least:
        low = max(high / GROWTH, least) if not search.is_whole else max(math.floor(high / GROWTH), least)
        if search.try_load(low):
            return low, high
        high = low
    return None, high


def _narrow(search: _Search, low: float, high: float, tolerance: float) -> tuple[float, float]:
    while high / low > 1 + tolerance and len(search.tried) < MOST_PROBES:
        middle = search.between(low, high)
        if middle is None:
            break
        if search.try_load(middle):
            low = middle
        else:
            high = middle
    return low, high
