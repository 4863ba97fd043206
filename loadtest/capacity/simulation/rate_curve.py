"""A demand's requests per second over the day, and its busiest window."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from engines.units import SECONDS_PER_H
from loadtest.capacity.inputs import Demand, Described
from loadtest.capacity.simulation.demand_requests import requests_of_trace
from loadtest.scenario import Trace

SLOT_S = 60.0  # resolution of a day's curve
DAY_S = 24 * SECONDS_PER_H
MINUTE_S = 60.0
MINUTES_PER_H = 60
# Correlation of the rates of neighbouring minutes about their trend, in Azure's conversation trace of 2023-11-16.
MINUTE_CORRELATION = 0.66
SAMPLED_HOURS = 2000  # samples for the ratio of the busiest window to its hour
CURVE_STREAM = 1 << 20  # of random numbers: that of a window's draws has the window's index

_Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class RateCurve:
    """Requests per second over a day, or over the length of a trace; today's, before growth.

    Attributes:
        rates_per_s: By slot of `SLOT_S`.
        peak_per_s: Mean over the busiest `peak_window_s`; for a described day, its expected value in the busiest hour.
        hour_per_s: For a described day, the busiest hour's mean; for a trace, the peak.
    """

    rates_per_s: _Floats
    peak_per_s: float
    hour_per_s: float

    @property
    def mean_per_s(self) -> float:
        """Mean over the whole curve."""
        return float(self.rates_per_s.mean())

    @property
    def is_day(self) -> bool:
        """Whether the curve covers a whole day, so that its sums can be extrapolated to a month."""
        return len(self.rates_per_s) * SLOT_S >= DAY_S


def curve_of(demand: Demand, folder: Path) -> RateCurve:
    """Return the day's curve of a demand."""
    if isinstance(demand.traffic, Described):
        return _described_curve(demand, demand.traffic)
    times_s = _times_s(demand.traffic, folder)
    begin_s, window_s = busiest_window(demand, folder)
    peak = float(((times_s >= begin_s) & (times_s < begin_s + window_s)).sum() / window_s)
    since_s = times_s - times_s[0]
    slot_s = min(SLOT_S, float(since_s[-1]))
    counts, _ = np.histogram(since_s, bins=np.arange(math.floor(since_s[-1] / slot_s) + 1) * slot_s)
    return RateCurve(counts / slot_s, peak, peak)


def _described_curve(demand: Demand, traffic: Described) -> RateCurve:
    """Return the hourly rates, interpolated between the middles of hours, with per-minute variation."""
    stated = traffic.hours
    hours = np.array(stated if len(stated) > 1 else [*stated] * 24)
    middles_s = (np.arange(-1, 25) + 0.5) * SECONDS_PER_H
    slots = int(DAY_S / SLOT_S)
    rates = np.interp((np.arange(slots) + 0.5) * SLOT_S, middles_s, [hours[-1], *hours, hours[0]])
    minutes = minute_ratios(traffic.minute_variation, slots, np.random.default_rng([demand.seed, CURVE_STREAM]))
    hour_per_s = float(hours.max())
    ratio = busiest_ratio(traffic.minute_variation, demand.peak_window_s)
    return RateCurve(rates * minutes / minutes.mean(), hour_per_s * ratio, hour_per_s)


def minute_ratios(variation: float, count: int, rng: np.random.Generator) -> _Floats:
    """Return each minute's rate over its trend: lognormal, with correlated neighbours; shape (count,)."""
    if not variation:
        return np.ones(count)
    spread = math.sqrt(math.log1p(variation**2))
    fresh = rng.standard_normal(count) * math.sqrt(1 - MINUTE_CORRELATION**2)
    state, found = float(rng.standard_normal()), np.empty(count)
    for place, step in enumerate(fresh.tolist()):
        state = MINUTE_CORRELATION * state + step
        found[place] = state
    return np.asarray(np.exp(spread * found - spread**2 / 2))


def busiest_minutes(minutes: _Floats, window_s: float) -> tuple[int, int, float]:
    """Return the first minute, the number of minutes and the mean of the busiest window."""
    count = min(len(minutes), max(1, round(window_s / MINUTE_S)))
    means = np.convolve(minutes, np.full(count, 1 / count), "valid")
    first = int(np.argmax(means))
    return first, count, float(means[first])


@cache
def busiest_ratio(variation: float, window_s: float) -> float:
    """Return the expected ratio of an hour's busiest window to the hour's mean.

    >>> round(busiest_ratio(0.0, 600.0), 9), round(busiest_ratio(0.13, 600.0), 1), round(busiest_ratio(0.13, 60.0), 1)
    (1.0, 1.1, 1.3)
    """
    rng = np.random.default_rng(0)
    hours = minute_ratios(variation, MINUTES_PER_H * SAMPLED_HOURS, rng).reshape(SAMPLED_HOURS, MINUTES_PER_H)
    return float(np.mean([busiest_minutes(hour, window_s)[2] / hour.mean() for hour in hours]))


def busiest_window(demand: Demand, folder: Path) -> tuple[float, float]:
    """Return the start of a trace's busiest window, relative to the trace's slice, and its length.

    A trace lasts from its first request to its last; its clock may have begun long before.
    """
    assert isinstance(demand.traffic, Trace)
    times_s = _times_s(demand.traffic, folder)
    window_s = min(demand.peak_window_s, float(times_s[-1] - times_s[0]))
    inside = np.searchsorted(times_s, times_s + window_s) - np.arange(len(times_s))
    latest = times_s <= max(float(times_s[0]), float(times_s[-1]) - window_s)
    return float(times_s[int(np.argmax(np.where(latest, inside, -1)))]), window_s


def _times_s(trace: Trace, folder: Path) -> _Floats:
    return np.array([each.at_s for each in requests_of_trace(trace, folder)])
