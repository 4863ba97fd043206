"""Spot machines over many months: how many replicas are up, and how many must be rented so that enough are."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from loadtest.capacity.inputs import SECONDS_PER_MONTH, Spot

MONTHS = 1000  # simulated for each size
MAX_RATIO = 3  # times the replicas needed: beyond it, spot machines are not a choice


class SpotMonths(NamedTuple):
    """A fleet of spot machines over simulated months.

    Attributes:
        short_ratio: Share of the time with fewer replicas up than needed.
        interruptions_per_month: Replicas withdrawn in a month, mean.
    """

    total: int
    short_ratio: float
    interruptions_per_month: float


def smallest_spot_fleet(needed: int, spot: Spot, *, start_up_s: float, seed: int) -> SpotMonths | None:
    """Return the smallest fleet that is short of replicas no more than accepted; None if `MAX_RATIO` is not enough."""
    for total in range(needed, MAX_RATIO * needed + spot.at_once + 1):
        found = spot_months(total, needed, spot, start_up_s=start_up_s, rng=np.random.default_rng(seed))
        if found.short_ratio <= spot.max_short_ratio:
            return found
    return None


def spot_months(total: int, needed: int, spot: Spot, *, start_up_s: float, rng: np.random.Generator) -> SpotMonths:
    """Simulate a fleet: groups of `at_once` replicas serve, are withdrawn together, and come back cold.

    A replica counts as down from the notice on: it takes no more requests. Each is replaced by a machine of the same
    kind after `wait_s` and the start-up.
    """
    length_s = MONTHS * SECONDS_PER_MONTH
    down_s = spot.wait_s + start_up_s
    changes: list[tuple[np.ndarray, np.ndarray]] = []
    withdrawn = 0
    for group in range(math.ceil(total / spot.at_once)):
        size = min(spot.at_once, total - group * spot.at_once)
        begins_s = _withdrawals(spot.interruptions_per_month, down_s, length_s, rng)
        withdrawn += size * len(begins_s)
        ends_s = np.minimum(begins_s + down_s, length_s)
        times_s = np.concatenate([begins_s, ends_s])
        changes.append((times_s, np.concatenate([np.full(len(begins_s), -size), np.full(len(begins_s), size)])))
    times_s = np.concatenate([each for each, _ in changes])
    order = np.argsort(times_s, kind="stable")
    edges_s = np.concatenate([[0.0], times_s[order], [length_s]])
    up = total + np.concatenate([[0], np.cumsum(np.concatenate([each for _, each in changes])[order])])
    lasted_s = np.diff(edges_s)
    return SpotMonths(
        total=total,
        short_ratio=float(lasted_s[up < needed].sum() / length_s),
        interruptions_per_month=withdrawn / MONTHS,
    )


def _withdrawals(per_month: float, down_s: float, length_s: float, rng: np.random.Generator) -> np.ndarray:
    """Return when a group is given notice: after exponential times in service, each followed by its absence."""
    mean_s = SECONDS_PER_MONTH / per_month
    count = math.ceil(1.5 * length_s / (mean_s + down_s)) + 20
    served_s = rng.exponential(mean_s, count)
    begins_s: np.ndarray = np.cumsum(served_s) + down_s * np.arange(count)
    return begins_s[begins_s < length_s]
