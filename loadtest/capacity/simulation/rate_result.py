"""The figures and verdicts of one simulated load."""

from __future__ import annotations

import math
from typing import NamedTuple

from loadtest.metrics import LevelSummary
from loadtest.scenario import Verdict

QUEUE = "growing queue"


class RateResult(NamedTuple):
    """One simulated load: its figures, and each objective's verdict.

    Attributes:
        worst_ratio: Largest ratio of value to limit; above 1, an objective is missed.
        kv_ratio: Mean share of the KV cache in use when requests ended; `kv_max` is the largest.
        power_w: Watts of a replica's GPUs, mean; None if it was not metered.
        cached_ratio: Share of prompt tokens found in the KV cache.
    """

    rate_per_s: float
    level: LevelSummary
    verdicts: tuple[Verdict, ...]
    worst_ratio: float
    kv_ratio: float
    kv_max: float
    in_flight: float
    power_w: float | None = None
    cached_ratio: float | None = None

    def under(self, most_per_s: float) -> RateResult:
        """Return the result with a growing queue if the load is above the rate that its replicas sustain.

        A window may be too short to show it.
        """
        use = self.rate_per_s / most_per_s
        if use <= 1:
            return self
        others = [each for each in self.verdicts if each.objective != QUEUE]
        verdicts = (*others, Verdict(QUEUE, 1.0, use, met=False))
        return self._replace(verdicts=verdicts, worst_ratio=max(map(ratio_of, verdicts)))

    @property
    def met(self) -> bool:
        """Whether every objective is met and the queue is stable."""
        return all(each.met for each in self.verdicts)

    @property
    def missed(self) -> tuple[str, ...]:
        """Objectives that were missed, furthest beyond the limit first."""
        return tuple(each.objective for each in sorted(self.verdicts, key=ratio_of, reverse=True) if not each.met)

    @property
    def tightest(self) -> str:
        """The objective nearest to its limit, or furthest beyond it."""
        return max(self.verdicts, key=ratio_of).objective


def objective_of(name: str, objective: str) -> str:
    """Return how an objective of a class is called; the empty name is all requests together."""
    return f"{name}: {objective}" if name else objective


def ratio_of(verdict: Verdict) -> float:
    """Return an objective's ratio of value to limit; for goodput, the missed share over the allowed share."""
    if verdict.found is None:
        return math.inf
    if verdict.objective.endswith("goodput"):
        return (1 - verdict.found) / (1 - verdict.limit)
    if verdict.limit == 0:
        return 0.0 if verdict.met else math.inf
    return verdict.found / verdict.limit
