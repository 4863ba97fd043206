"""Open-loop arrivals: when each request is to be sent, drawn from a seed or read from a trace before the run begins.

Times are seconds from the beginning of the run. Nothing a server does moves them.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from itertools import chain, islice
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from engines.errors import MissingError, UserError
from engines.files import Strict

MOST_ARRIVALS = 5_000_000  # at some 200 bytes each, what a load generator's machine can be expected to hold
HASH_BLOCK_TOKENS = 512  # tokens behind one of Mooncake's hashes

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
TraceFormat = Literal["azure", "burstgpt", "mooncake", "csv"]
Floats: TypeAlias = NDArray[np.float64]

_BLOCK = 4096  # gaps drawn at once; fixed, so that a longer run begins as a shorter one does
_BISECTIONS = 60  # from a bracket at most 2 radians wide to below a float's spacing
_EPOCH = datetime(2020, 1, 1, tzinfo=UTC)  # near the traces: a float of seconds since then still holds a microsecond


class Constant(Strict):
    """Evenly spaced, the first at zero."""

    process: Literal["constant"] = "constant"
    rate_per_s: Positive
    duration_s: Positive


class Poisson(Strict):
    """Independent users, very many of them: exponential gaps."""

    process: Literal["poisson"] = "poisson"
    rate_per_s: Positive
    duration_s: Positive


class Gamma(Strict):
    """Gamma-distributed gaps, already under way when the run begins, so that the rate holds from the start.

    Attributes:
        burstiness: Coefficient of variation of the gaps: 1 is Poisson, above it bursts, below it regular. vLLM's
            benchmark gives the same name to the gamma's shape, which is this one's square upside down.
    """

    process: Literal["gamma"] = "gamma"
    rate_per_s: Positive
    burstiness: Annotated[float, Field(ge=0.01, le=10)]
    duration_s: Positive


class Steps(Strict):
    """Poisson at one rate after the other, each for `step_s`; a rate of zero is a pause."""

    process: Literal["steps"] = "steps"
    rates_per_s: Annotated[tuple[NotNegative, ...], Field(min_length=1)]
    step_s: Positive

    @property
    def duration_s(self) -> float:
        """How long all steps take."""
        return len(self.rates_per_s) * self.step_s


class Ramp(Strict):
    """Poisson, its rate changing evenly from the first to the last moment."""

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
        if self.at_s + self.spike_s > self.duration_s:
            raise ValueError(f"the spike ends at {self.at_s + self.spike_s:g} s, the run at {self.duration_s:g} s")
        return self


class Sine(Strict):
    """Poisson under a day's swing: `mean_per_s * (1 + swing_ratio * sin(2 pi t / period_s))`."""

    process: Literal["sine"] = "sine"
    mean_per_s: Positive
    swing_ratio: Annotated[float, Field(ge=0, le=1)]
    period_s: Positive = 86_400.0
    duration_s: Positive


class Trace(Strict):
    """Requests as they once came, with their lengths.

    Attributes:
        path: The trace; from the scenario's folder where it is relative.
        format: What its columns are called; `auto` goes by its first line.
        speed_up: How many trace seconds pass in one second of the run.
        from_s: Beginning of the slice to play, in trace seconds; it becomes the run's zero. Traces on a calendar
            (azure, burstgpt) count from their first row, the others as they state.
        to_s: End of the slice, not itself in it.
    """

    process: Literal["trace"] = "trace"
    path: Annotated[str, Field(min_length=1)]
    format: TraceFormat | Literal["auto"] = "auto"
    speed_up: Positive = 1.0
    from_s: NotNegative = 0.0
    to_s: Positive | Literal["end"] = "end"

    @property
    def end_s(self) -> float:
        """End of the slice as a number."""
        return math.inf if self.to_s == "end" else self.to_s

    @model_validator(mode="after")
    def _some_slice(self) -> Self:
        if self.from_s >= self.end_s:
            raise ValueError(f"to_s must be past from_s, which is {self.from_s:g}")
        return self


Process: TypeAlias = Constant | Poisson | Gamma | Steps | Ramp | Spike | Sine
Arrivals = Annotated[Process | Trace, Field(discriminator="process")]


class Arrival(NamedTuple):
    """One request to be sent.

    Attributes:
        at_s: When, in seconds from the beginning of the run.
        isl: Prompt tokens; None where the process says nothing of lengths.
        osl: Reply tokens; None likewise.
        prefix_hashes: One for each `HASH_BLOCK_TOKENS` of the prompt; requests that begin with the same ones begin
            with the same tokens.
    """

    at_s: float
    isl: int | None = None
    osl: int | None = None
    prefix_hashes: tuple[int, ...] = ()


class Schedule(NamedTuple):
    """All arrivals of a run.

    Attributes:
        arrivals: By time.
        failed_rows: Rows of a trace's slice left out because they have no prompt or no reply.
    """

    arrivals: tuple[Arrival, ...]
    failed_rows: int = 0


def arrivals_of(arrivals: Process | Trace, *, rng: np.random.Generator, folder: Path) -> Schedule:
    """Return the arrivals of a process, drawn, or of a trace, read.

    Args:
        folder: Where a trace's relative path begins.

    Raises:
        MissingError: There is no such trace.
        UserError: No arrival, more than `MOST_ARRIVALS`, or a damaged trace.
    """
    if isinstance(arrivals, Trace):
        return read_trace(arrivals, folder=folder)
    times_s = draw_times_s(arrivals, rng).tolist()
    if not times_s:
        raise UserError(
            f"arrivals: {arrivals.process}: no request in {arrivals.duration_s:g} s, where "
            f"{expected_requests(arrivals):.3g} were expected",
            hint="a higher rate or a longer duration",
        )
    return Schedule(tuple(Arrival(at_s) for at_s in times_s))


def share_of(arrivals: Sequence[Arrival], worker: int, workers: int) -> Sequence[Arrival]:
    """Return what one of several load generators sends: every `workers`-th arrival; together they send each once.

    Raises:
        ValueError: There is no such worker.

    >>> [arrival.at_s for arrival in share_of([Arrival(0.1), Arrival(0.2), Arrival(0.3)], worker=0, workers=2)]
    [0.1, 0.3]
    """
    if not 0 <= worker < workers:
        raise ValueError(f"no worker {worker} of {workers}, counted from 0")
    return arrivals[worker::workers]


def expected_requests(process: Process) -> float:
    """Return how many arrivals a process has on average: its rate, integrated over its duration."""
    if isinstance(process, Sine):
        turn_per_s = 2 * math.pi / process.period_s
        swing_s = process.swing_ratio * (1 - math.cos(process.duration_s * turn_per_s)) / turn_per_s
        return process.mean_per_s * (process.duration_s + swing_s)
    return float(_requests_by_end(_pieces(process))[-1])


def draw_times_s(process: Process, rng: np.random.Generator) -> Floats:
    """Return a process's arrival times in [0, duration), ascending; shape (arrivals,).

    Arrivals at one per unit of an even clock are carried through the inverse of the integrated rate: exact for any
    rate, with no bound to guess as thinning needs.

    Raises:
        UserError: `MOST_ARRIVALS` are passed.

    Source:
        Cinlar, "Introduction to Stochastic Processes", 1975, chapter 4.7 (time change of a Poisson process).
    """
    expected = expected_requests(process)
    if expected > MOST_ARRIVALS:
        raise UserError(
            f"arrivals: {process.process}: about {expected:.3g} requests, more than {MOST_ARRIVALS:,}",
            hint="a lower rate or a shorter duration",
        )
    if isinstance(process, Constant):
        counts = np.arange(math.ceil(expected), dtype=np.float64)
    else:
        counts = _renewals(rng, process.burstiness if isinstance(process, Gamma) else 1.0, until=expected)
    times_s = _sine_times_s(process, counts) if isinstance(process, Sine) else _times_s(_pieces(process), counts)
    return np.sort(times_s[times_s < process.duration_s])  # rounding may have swapped neighbours


def read_trace(trace: Trace, *, folder: Path) -> Schedule:
    """Return a trace's slice as arrivals; rows are read one by one, and only the slice's are kept.

    Raises:
        MissingError: There is no such trace.
        UserError: A damaged row, an empty slice, or more than `MOST_ARRIVALS` in it.
    """
    path = folder / trace.path
    kept: list[Arrival] = []
    failed_rows = 0
    for at_s, isl, osl, prefix_hashes in _requests(path, trace.format):
        if not trace.from_s <= at_s < trace.end_s:
            continue
        if not isl or not osl:
            failed_rows += 1
            continue
        if len(kept) == MOST_ARRIVALS:
            raise UserError(f"{path}: more than {MOST_ARRIVALS:,} requests", hint="play a slice: from_s, to_s")
        kept.append(Arrival((at_s - trace.from_s) / trace.speed_up, isl, osl, prefix_hashes))
    if not kept:
        raise UserError(
            f"{path}: no request from {trace.from_s:g} s to {trace.to_s}, and {failed_rows} failed ones",
            hint="is the slice past the trace's end? from_s and to_s count from the trace's beginning",
        )
    return Schedule(tuple(sorted(kept, key=lambda arrival: arrival.at_s)), failed_rows)


def _pieces(process: Constant | Poisson | Gamma | Steps | Ramp | Spike) -> Floats:
    """Return the stretches over which the rate changes evenly: length_s, begin_per_s, end_per_s; shape (pieces, 3)."""
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
    index = np.searchsorted(by_end, counts, side="right")  # passes over pieces without arrivals
    length_s, begin_per_s, end_per_s = pieces[index].T
    inside = counts - np.concatenate(([0.0], by_end))[index]
    rate_per_s = np.sqrt(np.maximum(begin_per_s**2 + 2 * inside * (end_per_s - begin_per_s) / length_s, 0.0))
    begins_s = np.cumsum(pieces[:, 0]) - pieces[:, 0]
    elapsed_s = 2 * inside / np.maximum(begin_per_s + rate_per_s, np.finfo(np.float64).tiny)
    return np.asarray(begins_s[index] + elapsed_s)


def _sine_times_s(process: Sine, counts: Floats) -> Floats:
    """Return when the integrated rate reaches each count: `x + swing * (1 - cos x)` never falls, so by bisection."""
    turn_per_s = 2 * math.pi / process.period_s
    target = counts * turn_per_s / process.mean_per_s
    low, high = target - 2 * process.swing_ratio, target
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        is_early = middle + process.swing_ratio * (1 - np.cos(middle)) < target
        low, high = np.where(is_early, middle, low), np.where(is_early, high, middle)
    return high / turn_per_s


def _renewals(rng: np.random.Generator, burstiness: float, *, until: float) -> Floats:
    """Return arrivals at a mean of one per unit, with gamma gaps.

    The process has been going on for ever: the first arrival ends a gap that zero fell into, which is longer than
    most (its shape is one more), at an even place. Without that, bursts would gather at zero and add to the mean.
    """
    shape = burstiness**-2
    blocks = [np.array([rng.random() * rng.standard_gamma(shape + 1) / shape])]
    while blocks[-1][-1] < until:
        blocks.append(blocks[-1][-1] + np.cumsum(rng.standard_gamma(shape, _BLOCK)) / shape)
    counts = np.concatenate(blocks)
    return counts[counts < until]


class _Layout(NamedTuple):
    """How a trace format says when and how long.

    Attributes:
        from_first: Whether its times count from some date, so that the trace begins at its first row.
    """

    at: str
    isl: str
    osl: str
    seconds: Callable[[Any], float]
    wanted: str
    from_first: bool


def _seconds(value: Any) -> float:
    number_s = float(str(value))
    if not 0 <= number_s < math.inf:
        raise ValueError
    return number_s


def _milliseconds(value: Any) -> float:
    return _seconds(value) / 1000


def _date(value: Any) -> float:
    moment = datetime.fromisoformat(str(value))
    return ((moment if moment.tzinfo else moment.replace(tzinfo=UTC)) - _EPOCH).total_seconds()


def _tokens(value: Any) -> int:
    number = int(str(value))
    if number < 0:
        raise ValueError
    return number


def _hashes(value: Any) -> tuple[int, ...]:
    if not isinstance(value, list) or not all(type(hash_id) is int for hash_id in value):
        raise ValueError
    return tuple(value)


# Sources: https://github.com/Azure/AzurePublicDataset (AzureLLMInferenceDataset2023.md and 2024.md; a date has seven
# decimals or fewer, the seventh is cut), https://github.com/HPMLL/BurstGPT (a reply of 0 tokens is a failure),
# https://github.com/kvcache-ai/Mooncake (FAST25-release/README.md).
_LAYOUTS = {
    "azure": _Layout("TIMESTAMP", "ContextTokens", "GeneratedTokens", _date, "a date and time", True),
    "burstgpt": _Layout("Timestamp", "Request tokens", "Response tokens", _seconds, "seconds from zero up", True),
    "mooncake": _Layout("timestamp", "input_length", "output_length", _milliseconds, "ms from zero up", False),
    "csv": _Layout("at_s", "isl", "osl", _seconds, "seconds from zero up", False),
}


def _requests(path: Path, asked: str) -> Iterator[Arrival]:
    """Yield a trace's rows in its order, each at its time from the trace's beginning."""
    if not path.is_file():
        raise MissingError(f"{path}: no such trace", hint="a relative path begins at the scenario's folder")
    # A byte that is not UTF-8 shows as \xff in the value, and is refused with its line where the value counts.
    with path.open(encoding="utf-8-sig", errors="backslashreplace") as file:
        head = file.readline()
        columns = None if head.lstrip().startswith("{") else [name.strip('" \n') for name in head.split(",")]
        layout = _layout_of(path, asked, head, columns)
        begin_s = None if layout.from_first else 0.0
        lines = enumerate(chain([head], file), start=1)
        for number, line in islice(lines, 0 if columns is None else 1, None):
            try:
                if not line.strip():
                    continue
                arrival = _arrival(_row(line, columns), layout)
                begin_s = arrival.at_s if begin_s is None else begin_s
                if arrival.at_s < begin_s:
                    raise ValueError(f"{line.rstrip()!r:.60} is earlier than the first row")
            except (ValueError, csv.Error) as error:
                raise UserError(
                    f"{path}: line {number}: {error}", hint="mend or remove that line; was the file cut short?"
                ) from error
            yield arrival._replace(at_s=arrival.at_s - begin_s)


def _layout_of(path: Path, asked: str, head: str, columns: list[str] | None) -> _Layout:
    tables = (name for name, layout in _LAYOUTS.items() if set(layout[:3]) <= set(columns or ()))
    found = "mooncake" if columns is None else next(tables, "none")
    if found == "none" or asked not in ("auto", found):
        wanted = "any trace known" if asked == "auto" else f"a trace of format {asked}"
        raise UserError(
            f"{path}: line 1 is {head.rstrip()!r:.60}, not the head of {wanted}",
            hint="known: " + "; ".join(f"{name}: {', '.join(layout[:3])}" for name, layout in _LAYOUTS.items()),
        )
    return _LAYOUTS[found]


def _row(line: str, columns: list[str] | None) -> dict[str, Any]:
    """Return one line's values by column, or where there are none, as JSON names them."""
    if columns is None:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{line.rstrip()!r:.60} is not JSON") from error
        if not isinstance(row, dict):
            raise ValueError(f"{row!r:.60} is not a JSON object")
        return row
    values = next(csv.reader([line]))
    if len(values) != len(columns):
        raise ValueError(f"{line.rstrip()!r:.60} has {len(values)} values for {len(columns)} columns")
    return dict(zip(columns, values, strict=True))


def _arrival(row: dict[str, Any], layout: _Layout) -> Arrival:
    return Arrival(
        _cell(row, layout.at, layout.seconds, layout.wanted),
        _cell(row, layout.isl, _tokens, "a whole number of tokens"),
        _cell(row, layout.osl, _tokens, "a whole number of tokens"),
        _cell(row, "hash_ids", _hashes, "a list of whole numbers") if "hash_ids" in row else (),
    )


def _cell(row: dict[str, Any], column: str, read: Callable[[Any], Any], wanted: str) -> Any:
    if column not in row:
        raise ValueError(f"no '{column}'")
    try:
        return read(row[column])
    except ValueError as error:
        raise ValueError(f"'{column}' is {row[column]!r:.60}, not {wanted}") from error
