"""The highest load that meets every objective, by bracketing and bisection; the probe is passed in."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from engines.errors import UserError

MAX_PROBES = 24
GROWTH = 2.0  # factor from one probe to the next while the bracket is open


class Probe(NamedTuple):
    """One load tried.

    Attributes:
        load: Requests per second, or users.
        met: Whether every objective was met.
        missed: Objectives that were missed.
        requests: Measured requests that the verdict is based on.
    """

    load: float
    met: bool
    missed: tuple[str, ...] = ()
    requests: int = 0


@dataclass(frozen=True, slots=True)
class Knee:
    """The result of a search.

    Attributes:
        load: The highest load tried that met every objective; None if none did.
        above: The lowest load tried above it that missed one; None if the limit `highest` was reached.
        probes: In the order in which they were tried.
    """

    load: float | None
    above: float | None
    probes: tuple[Probe, ...]

    @property
    def missed(self) -> tuple[str, ...]:
        """The objectives missed just above the knee, which limit it."""
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
        """Return the geometric mean; None if there is no whole number between."""
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
    lowest: float,
    highest: float,
    tolerance: float = 0.05,
    is_whole: bool = False,
) -> Knee:
    """Bracket the highest load that meets the objectives, then bisect on a logarithmic scale.

    Latency is assumed to grow with the load. If noise makes a lower load miss what a higher one meets, the result is
    the highest load below which no load tried missed.

    Args:
        lowest: Lowest load of interest; `load` is None if even this one misses.
        highest: Highest load of interest; `above` is None if even this one meets the objectives.
        tolerance: Relative width of the bracket at which the search ends.
        is_whole: Whether loads are integers, such as users.

    Raises:
        UserError: The limits are not in order.

    >>> found = find_knee(lambda load: Probe(load, load <= 50), start=1, lowest=1, highest=1000, is_whole=True)
    >>> found.load, found.above, len(found.probes)
    (49, 51, 11)
    """
    if not 0 < lowest <= start <= highest:
        raise UserError(
            f"a search from {lowest:g} to {highest:g} cannot start at {start:g}", hint="0 < lowest <= start <= highest"
        )
    search = _Search(probe, is_whole)
    low, high = _bracket(search, start, lowest, highest)
    if low is not None and high is not None:
        low, high = _narrow(search, low, high, tolerance)
    missed = [load for load, tried in search.tried.items() if not tried.met]
    if low is not None and missed and min(missed) < low:  # noise: the lower miss counts
        high = min(missed)
        low = max((load for load, tried in search.tried.items() if tried.met and load < high), default=None)
    return Knee(low, high, tuple(search.tried.values()))


def _bracket(search: _Search, start: float, lowest: float, highest: float) -> tuple[float | None, float | None]:
    """Return a load that meets the objectives and a higher one that misses; None for an end not found."""
    if search.try_load(start):
        low = start
        while low < highest:
            high = min(low * GROWTH, highest)
            if not search.try_load(high):
                return low, high
            low = high
        return low, None
    high = start
    while high > lowest:
        low = max(high / GROWTH, lowest) if not search.is_whole else max(math.floor(high / GROWTH), lowest)
        if search.try_load(low):
            return low, high
        high = low
    return None, high


def _narrow(search: _Search, low: float, high: float, tolerance: float) -> tuple[float, float]:
    while high / low > 1 + tolerance and len(search.tried) < MAX_PROBES:
        middle = search.between(low, high)
        if middle is None:
            break
        if search.try_load(middle):
            low = middle
        else:
            high = middle
    return low, high
