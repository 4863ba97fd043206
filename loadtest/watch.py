"""What a person watching sees while a level runs: figures of the last seconds, from the records as they end.

They are for watching only. What a report says is computed from the whole records, by `metrics.py`.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from typing import TextIO

import numpy as np
from numpy.typing import NDArray

from engines.files import Strict
from loadtest.records import RequestRecord

WINDOW_S = 10
PLAIN_EVERY_S = 5.0
MOST_POINTS = 1800
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

    def add(self, durations_s: NDArray[np.float64]) -> None:
        """Count durations; shape (n,)."""
        places = np.log(np.maximum(durations_s, _LOW_S) / _LOW_S) / math.log(_RATIO)
        self.counts += np.bincount(np.minimum(places.astype(np.int64), _BINS - 1), minlength=_BINS)

    def quantile(self, share: float) -> float | None:
        """Return the middle of the bin that holds a quantile; None where nothing was counted."""
        upto = np.cumsum(self.counts)
        if not upto[-1]:
            return None
        place = int(np.searchsorted(upto, share * upto[-1]))
        return float(_LOW_S * _RATIO ** (min(place, _BINS - 1) + 0.5))


class Progress(Strict):
    """One look at a level under way; latencies and rates in engine time, of requests ended in the last seconds.

    Attributes:
        t_s: Wall seconds since the run began.
        elapsed_s: Wall seconds since the level began.
        done: Requests of the level that ended well, measured or not.
        failed: Those that did not.
    """

    t_s: float
    load: str
    elapsed_s: float
    done: int
    failed: int
    in_flight: int
    measuring: bool = False
    requests_per_s: float
    tokens_per_s: float
    ttft_p50_s: float | None = None
    ttft_p99_s: float | None = None
    itl_p50_s: float | None = None
    itl_p99_s: float | None = None


class _Second:
    """What ended within one second."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.requests = self.tokens = 0
        self.ttft, self.itl = LogHistogram(), LogHistogram()


class Watch:
    """The level under way, from its records, in bounded memory.

    Args:
        time_scale: Wall seconds of one engine second.
    """

    def __init__(self, time_scale: float) -> None:
        self._scale = time_scale
        self._seconds: deque[_Second] = deque(maxlen=WINDOW_S + 1)
        self.begin("", 0.0)

    def begin(self, load: str, now_s: float) -> None:
        """Begin with a level."""
        self._load, self._began_s = load, now_s
        self._done = self._failed = 0
        self._seconds.clear()

    def note(self, record: RequestRecord) -> None:
        """Take a record that ended just now."""
        second = self._second(int(record.done_s))
        if record.outcome != "ok":
            self._failed += 1
        else:
            self._done += 1
            second.requests += 1
        second.tokens += record.output_tokens
        times_s = np.array(record.token_times_s)
        if len(times_s):
            second.ttft.add((times_s[:1] - record.sent_s) / self._scale)
            second.itl.add(np.diff(times_s) / self._scale)

    def look(self, now_s: float, in_flight: int, *, measuring: bool = False) -> Progress:
        """Return what the last seconds were."""
        recent = [second for second in self._seconds if second.number > now_s - WINDOW_S - 1]
        span_s = max(1e-3, min(float(WINDOW_S), now_s - self._began_s)) / self._scale
        ttft, itl = LogHistogram(), LogHistogram()
        for second in recent:
            ttft.counts += second.ttft.counts
            itl.counts += second.itl.counts
        return Progress(
            t_s=round(now_s, 3),
            load=self._load,
            elapsed_s=round(now_s - self._began_s, 3),
            done=self._done,
            failed=self._failed,
            in_flight=in_flight,
            measuring=measuring,
            requests_per_s=round(sum(second.requests for second in recent) / span_s, 3),
            tokens_per_s=round(sum(second.tokens for second in recent) / span_s, 1),
            ttft_p50_s=ttft.quantile(0.5),
            ttft_p99_s=ttft.quantile(0.99),
            itl_p50_s=itl.quantile(0.5),
            itl_p99_s=itl.quantile(0.99),
        )

    def _second(self, number: int) -> _Second:
        """Return the second of that number, or the latest: records come in the order they end."""
        if not self._seconds or self._seconds[-1].number < number:
            self._seconds.append(_Second(number))
        return self._seconds[-1]


class History:
    """A run's looks for a chart over its whole time: every look at first, then ever fewer, never more than so many."""

    def __init__(self) -> None:
        self.points: list[Progress] = []
        self.has_ended = False
        self._every = 1
        self._seen = 0

    def add(self, look: Progress) -> None:
        """Keep a look, or pass over it where fewer are kept."""
        if self._seen % self._every == 0:
            self.points.append(look)
        self._seen += 1
        if len(self.points) > MOST_POINTS:
            self.points = self.points[::2]
            self._every *= 2


def progress_text(look: Progress) -> str:
    """Return a look as one line, what matters most before the eightieth column."""
    parts = [
        look.load,
        f"{look.elapsed_s:.0f} s" + ("" if look.measuring else ", warming up"),
        f"{look.done} done" + (f", {look.failed} failed" if look.failed else ""),
        f"{look.in_flight} in flight",
        _latencies_text(look),
        f"{look.tokens_per_s:.0f} tokens/s",
        f"{look.requests_per_s:.3g} req/s",
    ]
    return " | ".join(part for part in parts if part)


def _latencies_text(look: Progress) -> str:
    pairs = {"TTFT": (look.ttft_p50_s, look.ttft_p99_s), "ITL": (look.itl_p50_s, look.itl_p99_s)}
    parts = [
        f"{name} {_ms(p50_s)}/{_ms(p99_s)}"
        for name, (p50_s, p99_s) in pairs.items()
        if p50_s is not None and p99_s is not None
    ]
    return " ".join([*parts, "ms p50/p99"]) if parts else ""


def _ms(seconds: float) -> str:
    """Return milliseconds in three digits, never as a power of ten."""
    value = seconds * 1e3
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"  # noqa: PLR2004 (where three digits end)


class Terminal:
    """Progress on stderr: one line that changes where a person watches, a line now and then in a log.

    Args:
        columns: Width of the terminal; None where there is none.
        clock: Seconds, for how often a plain line is due.
    """

    def __init__(self, stream: TextIO, *, columns: int | None, clock: Callable[[], float]) -> None:
        self._stream = stream
        self._columns = columns
        self._clock = clock
        self._due_s = clock() + PLAIN_EVERY_S
        self._shown = False

    def look(self, look: Progress) -> None:
        """Show how it stands."""
        if self._columns is not None:
            text = progress_text(look)[: self._columns - 1]
            self._stream.write(f"\r\033[K{text}")
            self._shown = True
        elif self._clock() >= self._due_s:
            self._due_s = self._clock() + PLAIN_EVERY_S
            self._stream.write(progress_text(look) + "\n")
        self._stream.flush()

    def line(self, text: str) -> None:
        """Write a line that stays."""
        self._stream.write(("\r\033[K" if self._shown else "") + text + "\n")
        self._shown = False
        self._stream.flush()

    def clear(self) -> None:
        """Take the changing line away."""
        if self._shown:
            self._stream.write("\r\033[K")
            self._stream.flush()
            self._shown = False
