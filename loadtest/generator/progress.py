"""What a person watching sees while a level runs: figures of the last seconds, from the records as they end.

They are for watching only. What a report says is computed from the whole records, by `metrics.py`.
"""

from __future__ import annotations

from collections import deque

import numpy as np

from engines.files import Strict
from loadtest.results import LogHistogram, RequestRecord

WINDOW_S = 10


MOST_POINTS = 1800


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


class LiveStats:
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
