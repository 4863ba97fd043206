"""How one replica responds to its load: a curve through the loads that the planner simulated request by request."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import numpy as np
import numpy.typing as npt

from engines.files import Strict
from loadtest.capacity.simulation import RateProbe

Floats = npt.NDArray[np.float64]


class ReplicaResponse(Strict):
    """One replica's figures against its load, by increasing load; the last point is a full batch.

    Attributes:
        ttft_p95_s: Without the wait for a place in the batch, which follows from the queue.
        slots: Requests in a full batch.
        carried_per_s: Highest load that meets every objective.
        ttft_limit_s: The smallest limit on TTFT; None: the demand has none.
        drain_s: Time a removed replica needs for its requests in flight.
    """

    rates_per_s: tuple[float, ...]
    in_flight: tuple[float, ...]
    ttft_p95_s: tuple[float, ...]
    kv_ratio: tuple[float, ...]
    slots: int
    carried_per_s: float
    ttft_limit_s: float | None
    drain_s: float

    @classmethod
    def of(
        cls,
        probes: Sequence[RateProbe],
        *,
        full_per_s: float,
        slots: int,
        carried_per_s: float,
        ttft_limit_s: float | None,
        drain_before_s: float,
    ) -> Self:
        """Return the curve through an idle replica, the loads below a full batch, and the full batch.

        Args:
            probes: At least one load of one replica.
            full_per_s: Requests per second of a full batch, in closed form.
            drain_before_s: Time a removed replica still serves before it drains.
        """
        below = sorted((each for each in probes if each.in_flight < slots), key=lambda each: each.rate_per_s)
        below = below or [min(probes, key=lambda each: each.rate_per_s)]
        largest = below[-1]
        full_per_s = max(full_per_s, largest.rate_per_s * (1 + 1e-6))
        kv_full = min(1.0, largest.kv_ratio * slots / max(1.0, largest.in_flight))
        ttft = [each.ttft_p95_s or 0.0 for each in below]
        return cls(
            rates_per_s=(0.0, *(each.rate_per_s for each in below), full_per_s),
            in_flight=(0.0, *(min(each.in_flight, slots) for each in below), float(slots)),
            ttft_p95_s=(ttft[0], *ttft, ttft[-1]),
            kv_ratio=(0.0, *(each.kv_ratio for each in below), kv_full),
            slots=slots,
            carried_per_s=carried_per_s,
            ttft_limit_s=ttft_limit_s,
            drain_s=drain_before_s + max(each.e2e_p95_s or 0.0 for each in below),
        )

    @property
    def full_per_s(self) -> float:
        """Requests per second of a full batch."""
        return self.rates_per_s[-1]

    def in_flight_at(self, rate_per_s: Floats) -> Floats:
        """Return the mean requests in flight at a load; past a full batch, the batch alone."""
        return np.interp(rate_per_s, self.rates_per_s, self.in_flight)

    def kv_at(self, in_flight: Floats) -> Floats:
        """Return the share of the KV blocks in use with this many requests in flight."""
        return np.interp(in_flight, self.in_flight, self.kv_ratio)

    def ttft_at(self, in_flight: Floats) -> Floats:
        """Return the 95th percentile of TTFT with this many in flight, the wait for a place in the batch included."""
        waiting = np.maximum(0.0, in_flight - self.slots)
        return np.interp(in_flight, self.in_flight, self.ttft_p95_s) + waiting / self.full_per_s
