"""Confidence intervals by the bootstrap, seeded and vectorized.

Whole units are resampled: in a closed loop, a request with all its gaps, since the gaps of one request are correlated;
in an open loop, a block of time with all requests sent in it, since requests in the same queue are correlated. Rates
are resampled by blocks of time in both. Intervals are the middle 95 % of the replicates (Efron and Tibshirani, "An
Introduction to the Bootstrap", 1993, chapters 8 and 13).

Blocks of time are long enough that the means of neighbours are uncorrelated, but there are at least MIN_BLOCKS (batch
means: Schmeiser, "Batch Size Effects in the Analysis of Simulation Output", Operations Research 30(3), 1982: 10 to 30
suffice). More than MAX_UNITS units are assigned to MAX_UNITS groups at random, and the groups are resampled: equally
good, and a hundred times faster.

A percentile is supported by a sample if a distribution-free interval for it fits inside: if that many independent
values exceed it at least once with the stated confidence. p99 needs 368 of them, p99.9 needs 3,688.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from loadtest.metrics.summary import PERCENTILES
from loadtest.results import Floats, Ints, Weighted

CONFIDENCE = 0.95
REPLICATES = 1000
MAX_UNITS = 1000
MIN_UNITS = 10
MAX_BLOCKS, MIN_BLOCKS = 64, 16
MIN_PER_BLOCK = 4
SEED = 20_261_124

_GRID = 48  # thresholds around each percentile
_GRID_ERRORS = 6.0  # reach of the thresholds on either side of the percentile, in standard errors
_EXACT_BELOW = 500  # up to this many values, every value is a threshold
_CHUNK = 2_000_000
Values: TypeAlias = npt.NDArray[np.floating]
Range: TypeAlias = tuple[float, float]


def needed(share: float) -> int:
    """Return the number of independent values that a percentile needs for its interval to fit inside them.

    >>> [needed(share) for share in PERCENTILES.values()]
    [6, 36, 72, 368, 3688]
    """
    return math.ceil(math.log((1 - CONFIDENCE) / 2) / math.log(share))


def quantiles_of_sorted(ordered: Values, shares: list[float]) -> list[float]:
    """Return quantiles by linear interpolation between order statistics; `ordered` is sorted and not empty.

    >>> quantiles_of_sorted(np.array([1.0, 2.0, 3.0, 4.0]), [0.5, 1.0])
    [2.5, 4.0]
    """
    found = []
    for share in shares:
        place = share * (len(ordered) - 1)
        low = int(place)
        below, above = float(ordered[low]), float(ordered[min(low + 1, len(ordered) - 1)])
        found.append(below + (place - low) * (above - below))
    return found


def quantiles_of(values: Values, shares: list[float]) -> list[float]:
    """Return the same for values in any order, without sorting them all."""
    last = len(values) - 1
    low = [int(share * last) for share in shares]
    return quantiles_of_sorted(np.partition(values, sorted({*low, *(min(place + 1, last) for place in low)})), shares)


def quantiles_of_weighted(ordered: Weighted, shares: list[float]) -> list[float]:
    """Return the same for sorted values with multiplicities.

    >>> quantiles_of_weighted(Weighted(np.array([1.0, 2.0]), np.array([1, 3])), [0.5, 0.25])
    [2.0, 1.75]
    """
    upto = np.cumsum(ordered.weights)
    last = int(upto[-1]) - 1
    found = []
    for share in shares:
        place = share * last
        low = int(place)
        below, above = ordered.values[np.searchsorted(upto, [low, min(low + 1, last)], side="right")].tolist()
        found.append(below + (place - low) * (above - below))
    return found


def standard_deviation(values: Values) -> float:
    """Return the sample standard deviation, in double precision and without copying all values."""
    mean = float(values.mean(dtype=np.float64))
    left = sum(float(np.square(values[part] - mean).sum(dtype=np.float64)) for part, _ in _chunks(len(values), None))
    return math.sqrt(left / (len(values) - 1))


def effective_size(values: Values, counts: Ints | None, quantile: float) -> float:
    """Return the effective sample size at a quantile, for values that come in units.

    From the variance of the share above the quantile, with units as clusters: with one value per unit it is their
    number; if the values of a unit are all equal it is the number of units.

    Args:
        counts: Number of values of each unit, which are adjacent; None: one each.
    """
    if counts is None:
        return float(len(values))
    has_above = values.max() > quantile
    passed = _per_owner(values, counts, lambda part: part > quantile if has_above else part >= quantile)
    return effective_size_of(passed, counts)


def effective_size_of(passed: Floats, counts: Ints) -> float:
    """Return the same from each unit's number of values above the quantile."""
    total = int(counts.sum())
    mean = float(passed.sum()) / total
    left = passed - counts * mean
    variance = float(np.square(left).sum()) / total**2
    return min(mean * (1 - mean) / variance, float(total)) if variance > 0 else float(total)


def _per_owner(values: Values, counts: Ints, is_counted: Callable[[Values], npt.NDArray[np.bool_]]) -> Floats:
    """Return the number of each owner's values that are wanted; shape (owners,)."""
    found = np.zeros(len(counts))
    for part, owner in _chunks(len(values), counts):
        found += np.bincount(owner[is_counted(values[part])], minlength=len(counts))
    return found


def _chunks(count: int, counts: Ints | None) -> Iterator[tuple[slice, Ints]]:
    """Yield parts of the values, each with the owner of every value; an owner's values are never split."""
    if counts is None:
        for begin in range(0, count, _CHUNK):
            end = min(count, begin + _CHUNK)
            yield slice(begin, end), np.arange(begin, end)
        return
    ends = np.cumsum(counts)
    first, begin = 0, 0
    while first < len(counts):
        last = max(first + 1, int(np.searchsorted(ends, begin + _CHUNK, side="right")))
        end = int(ends[last - 1])
        yield slice(begin, end), np.repeat(np.arange(first, last), counts[first:last])
        first, begin = last, end


@dataclass(frozen=True)
class Resampler:
    """Draws bootstrap resamples.

    Attributes:
        unit: The unit of each request.
        weights: Multiplicity of each unit in each replicate; shape (REPLICATES, units).
    """

    unit: Ints
    weights: npt.NDArray[np.float32]

    def replicates(
        self,
        values: Values,
        counts: Ints | None = None,
        *,
        ordered: Values | None = None,
        percentiles: Mapping[str, float] = PERCENTILES,
    ) -> dict[str, Floats]:
        """Return the mean and some percentiles of each replicate; each of shape (REPLICATES,).

        Args:
            values: Not empty.
            counts: Number of values of each request, which are adjacent; None: one each.
            ordered: The sorted values, if available.
            percentiles: Their shares, by name.
        """
        sizes, sums = np.zeros(self._units), np.zeros(self._units)
        for part, owner in _chunks(len(values), counts):
            sizes += np.bincount(self.unit[owner], minlength=self._units)
            sums += np.bincount(self.unit[owner], weights=values[part], minlength=self._units)
        total = np.maximum(self.weights @ sizes.astype(np.float32), 1.0).astype(np.float64)
        found = {"mean": (self._precise_weights @ sums) / total}
        if not percentiles:
            return found
        ordered = np.sort(values) if ordered is None else ordered
        thresholds = self._thresholds(ordered, values, counts, sizes, list(percentiles.values()))
        ranks = _ranks(self.weights @ self._counts_below(values, counts, thresholds))
        for name, share in percentiles.items():
            found[name] = _inverted(ranks, thresholds, share * (total - 1) + 1)
        return found

    @cached_property
    def _precise_weights(self) -> Floats:
        return self.weights.astype(np.float64)

    @property
    def _units(self) -> int:
        return int(self.weights.shape[1])

    def _thresholds(
        self, ordered: Values, values: Values, counts: Ints | None, sizes: Floats, shares: list[float]
    ) -> Values:
        """Return the values at which replicates are counted: all if there are few, else some around each percentile."""
        last = len(ordered) - 1
        if last < _EXACT_BELOW:
            return np.unique(ordered)
        places = [np.linspace(0, last, _GRID)]
        for share, quantile in zip(shares, quantiles_of_sorted(ordered, shares), strict=True):
            below = np.zeros(self._units)
            for part, owner in _chunks(len(values), counts):
                below += np.bincount(self.unit[owner[values[part] <= quantile]], minlength=self._units)
            error = max(math.sqrt(float(np.square(below - share * sizes).sum())), 1.0) * _GRID_ERRORS
            places.append(np.linspace(share * last - error, share * last + error, _GRID).clip(0, last))
        return np.unique(ordered[np.unique(np.concatenate(places).round().astype(np.int64))])

    def _counts_below(self, values: Values, counts: Ints | None, thresholds: Values) -> npt.NDArray[np.float32]:
        """Return each unit's number of values below, and at or below, each threshold; (units, 2 thresholds)."""
        columns = 2 * len(thresholds)
        found = np.zeros(self._units * columns, dtype=np.int64)
        for part, owner in _chunks(len(values), counts):
            place = np.searchsorted(thresholds, values[part], side="left").clip(0, len(thresholds) - 1)
            place = 2 * place + (values[part] >= thresholds[place])
            found += np.bincount(self.unit[owner] * columns + place, minlength=len(found))
        return np.cumsum(found.reshape(self._units, columns), axis=1, dtype=np.float32)


def by_requests(count: int, *, seed: int = SEED) -> Resampler | None:
    """Return a resampler of requests; None if there are too few."""
    if count < MIN_UNITS:
        return None
    rng = np.random.default_rng(seed)
    units = min(count, MAX_UNITS)
    dealt = np.arange(count, dtype=np.int64) % units
    return Resampler(rng.permutation(dealt) if count > units else dealt, _weights(units, rng))


def by_blocks(at_s: Floats, values: Floats, *, seed: int = SEED) -> Resampler | None:
    """Return a resampler of blocks of time; None if there are too few requests for MIN_UNITS blocks.

    Args:
        at_s: When each request was due.
        values: Latencies, which show how long requests remain correlated.
    """
    largest = min(MAX_BLOCKS, len(at_s) // MIN_PER_BLOCK)
    span_s = float(np.ptp(at_s)) if len(at_s) else 0.0
    if largest < MIN_UNITS or span_s <= 0:
        return None
    bins = ((at_s - at_s.min()) / span_s * largest).astype(np.int64).clip(0, largest - 1)
    sums, sizes = np.bincount(bins, weights=values, minlength=largest), np.bincount(bins, minlength=largest)
    blocks = _block_count(sums, sizes)
    unit = bins * blocks // largest
    return Resampler(unit, _weights(blocks, np.random.default_rng(seed)))


def rate_replicates(counts: Floats, *, seed: int = SEED) -> Floats | None:
    """Return the mean count per bin in each replicate, by resampling blocks of bins; None if there are too few.

    Args:
        counts: Number of events in consecutive bins of equal length.
    """
    largest = min(MAX_BLOCKS, len(counts))
    if largest < MIN_UNITS or counts.sum() <= 0:
        return None
    bins = np.arange(len(counts)) * largest // len(counts)
    sums, sizes = np.bincount(bins, weights=counts, minlength=largest), np.bincount(bins, minlength=largest)
    blocks = _block_count(sums, sizes)
    block = np.arange(largest) * blocks // largest
    weights = _weights(blocks, np.random.default_rng(seed)).astype(np.float64)
    found: Floats = (weights @ np.bincount(block, weights=sums)) / (weights @ np.bincount(block, weights=sizes))
    return found


def middle(replicates: Floats) -> Range:
    """Return the interval that contains the middle share of the replicates."""
    edge = (1 - CONFIDENCE) / 2
    low, high = quantiles_of(replicates, [edge, 1 - edge])
    return low, high


def wilson(good: int, count: int) -> Range:
    """Return the score interval of a share (Wilson, JASA 22, 1927): within 0 to 1, never of zero width.

    >>> tuple(round(end, 4) for end in wilson(10, 10))
    (0.7225, 1.0)
    """
    z = 1.959963984540054
    share = good / count
    centre = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z / (1 + z**2 / count) * math.sqrt(share * (1 - share) / count + z**2 / (4 * count**2))
    return max(0.0, centre - half), min(1.0, centre + half)


def _weights(units: int, rng: np.random.Generator) -> npt.NDArray[np.float32]:
    drawn = rng.integers(0, units, size=(REPLICATES, units)) + np.arange(REPLICATES)[:, None] * units
    counts = np.bincount(drawn.ravel(), minlength=REPLICATES * units)
    return counts.reshape(REPLICATES, units).astype(np.float32)


def _block_count(sums: Values | Ints, sizes: Ints) -> int:
    """Return the number of blocks into which to merge the finest ones, so that neighbouring means are uncorrelated."""
    blocks = len(sums)
    while blocks // 2 >= MIN_BLOCKS:
        block = np.arange(len(sums)) * blocks // len(sums)
        filled = np.bincount(block, weights=sizes)
        means = np.bincount(block, weights=sums)[filled > 0] / filled[filled > 0]
        if abs(_lag_one(means)) < 2 / math.sqrt(len(means)):
            break
        blocks //= 2
    return blocks


def _lag_one(values: Floats) -> float:
    """Return the lag-1 autocorrelation."""
    left = values - values.mean()
    total = float(np.square(left).sum())
    return float((left[:-1] * left[1:]).sum()) / total if total > 0 else 0.0


def _ranks(below: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return the first and the last rank, from 1, of the values equal to each threshold; in place.

    Args:
        below: Numbers of values below, and at or below, each threshold; shape (REPLICATES, 2 thresholds).
    """
    below[:, 0::2] = np.minimum(below[:, 0::2] + 1, below[:, 1::2])
    return below


def _inverted(ranks: npt.NDArray[np.float32], thresholds: Values, target: Floats) -> Floats:
    """Return the value at each replicate's rank, from 1: a threshold, or between two of them.

    A threshold equal to several values covers all their ranks.
    """
    ends = np.repeat(thresholds, 2).astype(np.float64)
    rows = np.arange(len(target))
    place = (ranks < target[:, None].astype(np.float32)).sum(axis=1).clip(1, ranks.shape[1] - 1)
    low, high = ranks[rows, place - 1].astype(np.float64), ranks[rows, place].astype(np.float64)
    part = np.where(high > low, (target - low) / np.maximum(high - low, 1e-9), 1.0).clip(0.0, 1.0)
    found: Floats = ends[place - 1] + part * (ends[place] - ends[place - 1])
    return found
