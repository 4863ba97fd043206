"""Open-loop arrivals: send times drawn from a seed or read from a trace before the run starts.

Times are seconds from the start of the run and do not depend on the server.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Literal, Self, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from engines.errors import UserError
from engines.files import Strict
from loadtest.scenario.traces import MAX_ARRIVALS, Arrival, NotNegative, Positive, Schedule, Trace, read_trace

Floats: TypeAlias = NDArray[np.float64]

_TIMES = ("duration_s", "step_s", "at_s", "spike_s", "period_s")
_BLOCK = 4096  # gaps drawn per batch; fixed, so that a longer run starts like a shorter one
_BISECTIONS = 60  # from a bracket at most 2 radians wide to below a float's spacing


class Constant(Strict):
    """Evenly spaced, the first at zero."""

    process: Literal["constant"] = "constant"
    rate_per_s: Positive
    duration_s: Positive


class Poisson(Strict):
    """Many independent users: exponential gaps."""

    process: Literal["poisson"] = "poisson"
    rate_per_s: Positive
    duration_s: Positive


class Gamma(Strict):
    """Gamma-distributed gaps of a process already in progress at the start, so that the rate holds from the start.

    Attributes:
        burstiness: Coefficient of variation of the gaps: 1 is Poisson, above it bursty, below it regular. vLLM's
            benchmark uses the name for the gamma distribution's shape, which is 1 / burstiness^2.
    """

    process: Literal["gamma"] = "gamma"
    rate_per_s: Positive
    burstiness: Annotated[float, Field(ge=0.01, le=10)]
    duration_s: Positive


class Steps(Strict):
    """Poisson at one rate after another, each for `step_s`; a rate of zero is a pause."""

    process: Literal["steps"] = "steps"
    rates_per_s: Annotated[tuple[NotNegative, ...], Field(min_length=1)]
    step_s: Positive

    @property
    def duration_s(self) -> float:
        """Total duration of all steps."""
        return len(self.rates_per_s) * self.step_s


class Ramp(Strict):
    """Poisson with a rate that changes linearly over the duration."""

    process: Literal["ramp"] = "ramp"
    from_per_s: NotNegative
    to_per_s: NotNegative
    duration_s: Positive


class Spike(Strict):
    """Poisson at `base_per_s`, and at `peak_per_s` from `at_s` for `spike_s`."""

    process: Literal["spike"] = "spike"
    base_per_s: NotNegative
    peak_per_s: Positive
    at_s: NotNegative
    spike_s: Positive
    duration_s: Positive

    @model_validator(mode="after")
    def _spike_inside(self) -> Self:
        if self.at_s + self.spike_s > self.duration_s * (1 + 1e-9):
            raise ValueError(
                f"the spike ends at {self.at_s + self.spike_s:g} s, but the run ends at {self.duration_s:g} s"
            )
        return self


class Sine(Strict):
    """Poisson with a sinusoidal rate: `mean_per_s * (1 + swing_ratio * sin(2 pi t / period_s))`."""

    process: Literal["sine"] = "sine"
    mean_per_s: Positive
    swing_ratio: Annotated[float, Field(ge=0, le=1)]
    period_s: Positive = 86_400.0
    duration_s: Positive


Process: TypeAlias = Constant | Poisson | Gamma | Steps | Ramp | Spike | Sine
Arrivals = Annotated[Process | Trace, Field(discriminator="process")]


def arrivals_of(arrivals: Process | Trace, *, rng: np.random.Generator, folder: Path) -> Schedule:
    """Return the arrivals of a process, drawn, or of a trace, read.

    Args:
        folder: Where a trace's relative path starts.

    Raises:
        MissingError: The trace does not exist.
        UserError: There are no arrivals, or more than `MAX_ARRIVALS`, or the trace is damaged.
    """
    if isinstance(arrivals, Trace):
        return read_trace(arrivals, folder=folder)
    times_s = draw_times_s(arrivals, rng).tolist()
    if not times_s:
        raise UserError(
            f"arrivals: {arrivals.process}: no request was drawn in {arrivals.duration_s:g} s; "
            f"{expected_requests(arrivals):.3g} were expected",
            hint="use a higher rate or a longer duration",
        )
    return Schedule(tuple(Arrival(at_s) for at_s in times_s))


def with_duration(arrivals: Process | Trace, duration_s: float) -> Process | Trace:
    """Return the same shape with another duration and unchanged rates; for a trace, its beginning at unchanged speed.

    >>> with_duration(Spike(base_per_s=1, peak_per_s=9, at_s=300, spike_s=60, duration_s=600), 60.0).at_s
    30.0
    """
    if isinstance(arrivals, Trace):
        end_s = min(arrivals.end_s, arrivals.from_s + duration_s * arrivals.speed_up)
        return arrivals.model_copy(update={"to_s": end_s})
    ratio = duration_s / arrivals.duration_s
    times = {name: getattr(arrivals, name) * ratio for name in _TIMES if name in type(arrivals).model_fields}
    return arrivals.model_copy(update=times)


def expected_requests(process: Process) -> float:
    """Return the expected number of arrivals: the rate, integrated over the duration."""
    if isinstance(process, Sine):
        turn_per_s = 2 * math.pi / process.period_s
        swing_s = process.swing_ratio * (1 - math.cos(process.duration_s * turn_per_s)) / turn_per_s
        return process.mean_per_s * (process.duration_s + swing_s)
    return float(_requests_by_end(_pieces(process))[-1])


def draw_times_s(process: Process, rng: np.random.Generator) -> Floats:
    """Return a process's arrival times in [0, duration), ascending; shape (arrivals,).

    Arrivals with unit rate are transformed by the inverse of the integrated rate: exact for any rate, without the bound
    that thinning needs.

    Raises:
        UserError: There are more than `MAX_ARRIVALS`.

    Source:
        Cinlar, "Introduction to Stochastic Processes", 1975, chapter 4.7 (time change of a Poisson process).
    """
    expected = expected_requests(process)
    if expected > MAX_ARRIVALS:
        raise UserError(
            f"arrivals: {process.process}: about {expected:.3g} requests, more than {MAX_ARRIVALS:,}",
            hint="use a lower rate or a shorter duration",
        )
    if isinstance(process, Constant):
        counts = np.arange(math.ceil(expected), dtype=np.float64)
    else:
        counts = _renewals(rng, process.burstiness if isinstance(process, Gamma) else 1.0, until=expected)
    times_s = _sine_times_s(process, counts) if isinstance(process, Sine) else _times_s(_pieces(process), counts)
    return np.sort(times_s[times_s < process.duration_s])  # rounding may have swapped neighbours


def _pieces(process: Constant | Poisson | Gamma | Steps | Ramp | Spike) -> Floats:
    """Return pieces with a linear rate: length_s, begin_per_s, end_per_s; shape (pieces, 3)."""
    match process:
        case Steps():
            return np.array([(process.step_s, rate_per_s, rate_per_s) for rate_per_s in process.rates_per_s])
        case Ramp():
            return np.array([(process.duration_s, process.from_per_s, process.to_per_s)])
        case Spike(base_per_s=base, peak_per_s=peak):
            after_s = max(0.0, process.duration_s - process.at_s - process.spike_s)
            return np.array([(process.at_s, base, base), (process.spike_s, peak, peak), (after_s, base, base)])
        case _:
            return np.array([(process.duration_s, process.rate_per_s, process.rate_per_s)])


def _requests_by_end(pieces: Floats) -> Floats:
    """Return the integrated rate at the end of each piece; shape (pieces,)."""
    length_s, begin_per_s, end_per_s = pieces.T
    return np.asarray(np.cumsum(length_s * (begin_per_s + end_per_s) / 2))


def _times_s(pieces: Floats, counts: Floats) -> Floats:
    """Return when the integrated rate reaches each count: in each piece, the root of a quadratic."""
    by_end = _requests_by_end(pieces)
    index = np.searchsorted(by_end, counts, side="right")  # skips pieces without arrivals
    length_s, begin_per_s, end_per_s = pieces[index].T
    inside = counts - np.concatenate(([0.0], by_end))[index]
    rate_per_s = np.sqrt(np.maximum(begin_per_s**2 + 2 * inside * (end_per_s - begin_per_s) / length_s, 0.0))
    begins_s = np.cumsum(pieces[:, 0]) - pieces[:, 0]
    elapsed_s = 2 * inside / np.maximum(begin_per_s + rate_per_s, np.finfo(np.float64).tiny)
    return np.asarray(begins_s[index] + elapsed_s)


def _sine_times_s(process: Sine, counts: Floats) -> Floats:
    """Return when the integrated rate reaches each count: `x + swing * (1 - cos x)` is monotonic, so by bisection."""
    turn_per_s = 2 * math.pi / process.period_s
    target = counts * turn_per_s / process.mean_per_s
    low, high = target - 2 * process.swing_ratio, target
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        is_early = middle + process.swing_ratio * (1 - np.cos(middle)) < target
        low, high = np.where(is_early, middle, low), np.where(is_early, high, middle)
    return high / turn_per_s


def _renewals(rng: np.random.Generator, burstiness: float, *, until: float) -> Floats:
    """Return arrivals with gamma gaps at a mean rate of one per unit.

    The process is stationary: the first arrival ends a gap that contains zero, which is longer than average (its shape
    is one more), at a uniform position. Otherwise bursts would accumulate at zero and raise the mean.
    """
    shape = burstiness**-2
    blocks = [np.array([rng.random() * rng.standard_gamma(shape + 1) / shape])]
    while blocks[-1][-1] < until:
        blocks.append(blocks[-1][-1] + np.cumsum(rng.standard_gamma(shape, _BLOCK)) / shape)
    counts = np.concatenate(blocks)
    return counts[counts < until]
