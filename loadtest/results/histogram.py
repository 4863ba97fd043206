"""A histogram of durations in bins of equal ratio."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

_LOW_S, _RATIO, _BINS = 1e-5, 1.02, 932  # to 1000 s


class LogHistogram:
    """Counts of durations in bins 2 % wide, from 10 microseconds to 1000 seconds: any quantile to 1 %, in 8 KiB.

    >>> histogram = LogHistogram()
    >>> histogram.add(np.array([0.010] * 99 + [0.200]))
    >>> round(histogram.quantile(0.5), 3), round(histogram.quantile(0.999), 2)
    (0.01, 0.2)
    """

    def __init__(self) -> None:
        self.counts: NDArray[np.int64] = np.zeros(_BINS, dtype=np.int64)

    def add(self, durations_s: NDArray[np.float64] | NDArray[np.float32]) -> None:
        """Count durations; shape (n,)."""
        places = np.log(np.maximum(durations_s, _LOW_S) / _LOW_S) / math.log(_RATIO)
        self.counts += np.bincount(np.minimum(places.astype(np.int64), _BINS - 1), minlength=_BINS)

    @property
    def mean(self) -> float | None:
        """Mean, to 1 %; None without values."""
        total = int(self.counts.sum())
        middles_s = _LOW_S * _RATIO ** (np.arange(_BINS) + 0.5)
        return float(self.counts @ middles_s / total) if total else None

    def quantile(self, share: float) -> float | None:
        """Return the middle of the bin that contains a quantile; None without values."""
        upto = np.cumsum(self.counts)
        if not upto[-1]:
            return None
        place = int(np.searchsorted(upto, share * upto[-1]))
        return float(_LOW_S * _RATIO ** (min(place, _BINS - 1) + 0.5))
