"""Live statistics of the last 10 s of a level, from finished records.

For display only, accurate to 1 %. Reports are computed from the complete records by `loadtest.metrics`; objectives are
evaluated by the same function.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from itertools import chain, groupby
from typing import cast

import numpy as np

from engines.files import Strict
from loadtest.results import Floats, LogHistogram, RequestRecord, response_times_s
from loadtest.scenario import QUANTITIES, Objectives, Quantity, clock_start_s, evaluate, share_of

WINDOW_S = 10
MAX_POINTS = 1800
COUNTED_AT_ONCE = 32  # records: one after another, each takes a quarter of the time that it takes between requests


class Progress(Strict):
    """A snapshot of a running level; latencies and rates of recently ended requests, in engine time.

    Attributes:
        t_s: Wall seconds since the start of the run.
        elapsed_s: Wall seconds since the start of the level.
        done: Successful requests of the level, measured or not.
        failed: Failed requests.
        missed: Objectives for all requests that are missed in the last seconds; None without objectives, or if nothing
            ended.
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
    missed: tuple[str, ...] | None = None


class _Second:
    """Requests that ended within one second."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.requests = self.failed = self.tokens = self.within = 0
        self.spread: dict[Quantity, LogHistogram] = {quantity: LogHistogram() for quantity in QUANTITIES}


class LiveStats:
    """Live statistics of the last seconds of a running level, in bounded memory.

    Args:
        time_scale: Wall seconds per engine second.
        objectives: For all requests; None if there are none.
    """

    def __init__(self, time_scale: float, objectives: Objectives | None = None) -> None:
        self._scale, self._objectives = time_scale, objectives
        self._seconds: deque[_Second] = deque(maxlen=WINDOW_S + 1)
        self._waiting: list[RequestRecord] = []
        self.begin("", 0.0)

    def begin(self, load: str, now_s: float, *, is_open: bool = False) -> None:
        """Start a level.

        Args:
            is_open: Whether it is an open loop; see `clock_start_s`.
        """
        self._load, self._began_s, self._is_open = load, now_s, is_open
        self._done = self._failed = 0
        self._seconds.clear()
        self._waiting.clear()

    def note(self, record: RequestRecord) -> None:
        """Add a record of a request that has just ended."""
        self._waiting.append(record)
        if len(self._waiting) >= COUNTED_AT_ONCE:
            self._count_waiting()

    def _count_waiting(self) -> None:
        for number, records in groupby(self._waiting, lambda record: int(record.done_s)):
            self._count(self._second(number), list(records))
        self._waiting.clear()

    def _count(self, second: _Second, records: Sequence[RequestRecord]) -> None:
        second.tokens += sum(record.output_tokens for record in records)
        good = sum(record.outcome == "ok" for record in records)
        self._done += good
        self._failed += len(records) - good
        second.requests += good
        second.failed += len(records) - good
        answered = [record for record in records if record.token_times_s]
        if answered:
            self._note_latencies(second, answered)

    def _note_latencies(self, second: _Second, records: Sequence[RequestRecord]) -> None:
        """Count the latencies of records with tokens; those used only by objectives, only if there are objectives."""
        each_s = [response_times_s(record.token_times_s, bundled=bool(record.bundled_tokens)) for record in records]
        times_s = np.fromiter(chain.from_iterable(each_s), dtype=np.float64)
        ends = np.cumsum([len(own) for own in each_s])
        is_first = np.zeros(len(times_s), dtype=bool)
        is_first[np.concatenate([[0], ends[:-1]])] = True
        begins_s = np.array([clock_start_s(record, is_open=self._is_open) for record in records])
        ttft_s = (times_s[is_first] - begins_s) / self._scale
        steps_s = np.diff(times_s, prepend=0.0) / self._scale
        second.spread["ttft_s"].add(ttft_s)
        second.spread["itl_s"].add(steps_s[~is_first])
        if self._objectives is None:
            return
        for place, (record, own_s) in enumerate(zip(records, np.split(steps_s, ends[:-1]), strict=True)):
            if record.outcome == "ok":
                self._note_objectives(second, record, begins_s[place], ttft_s[place : place + 1], own_s[1:])

    def _note_objectives(
        self, second: _Second, record: RequestRecord, begin_s: float, ttft_s: Floats, gaps_s: Floats
    ) -> None:
        """Count what only objectives use of a successful record."""
        e2e_s = np.array([(record.done_s - begin_s) / self._scale])
        second.spread["e2e_s"].add(e2e_s)
        if len(gaps_s):
            second.spread["tpot_s"].add(gaps_s.sum(keepdims=True) / (len(record.token_times_s) - 1))
        if self._objectives is not None and self._objectives.goodput is not None:
            tokens = len(record.token_times_s)
            tpot_s, longest_s = (float(gaps_s.sum() / (tokens - 1)), float(gaps_s.max())) if len(gaps_s) else (0.0, 0.0)
            within = self._objectives.goodput.is_met_by(
                ttft_s=ttft_s, tpot_s=tpot_s, longest_gap_s=longest_s, e2e_s=e2e_s
            )
            second.within += int(within[0])

    def statistics(self, now_s: float, in_flight: int, *, measuring: bool = False) -> Progress:
        """Return the statistics of the last seconds."""
        self._count_waiting()
        recent = [second for second in self._seconds if second.number > now_s - WINDOW_S - 1]
        span_s = max(1e-3, min(float(WINDOW_S), now_s - self._began_s)) / self._scale
        spread = {quantity: LogHistogram() for quantity in QUANTITIES}
        for second in recent:
            for quantity, histogram in spread.items():
                histogram.counts += second.spread[quantity].counts
        ttft, itl = spread["ttft_s"], spread["itl_s"]
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
            missed=self._missed(recent, spread),
        )

    def _missed(self, recent: Sequence[_Second], spread: dict[Quantity, LogHistogram]) -> tuple[str, ...] | None:
        """Return the objectives that the last seconds miss."""
        ended = sum(second.requests + second.failed for second in recent)
        if self._objectives is None or not ended:
            return None
        ratios = {
            "goodput": sum(second.within for second in recent) / ended,
            "errors_ratio": sum(second.failed for second in recent) / ended,
        }

        def figure(name: str) -> float | None:
            quantity, _, statistic = name.partition(" ")
            if not statistic:
                return ratios[name]
            histogram = spread[cast("Quantity", quantity)]
            if statistic == "mean":
                return histogram.mean
            share = share_of(statistic)
            return histogram.quantile(1.0 if share is None else share)

        return tuple(each.objective for each in evaluate(self._objectives, figure) if not each.met)

    def _second(self, number: int) -> _Second:
        """Return the given second, or the latest: records arrive in the order in which they end."""
        if not self._seconds or self._seconds[-1].number < number:
            self._seconds.append(_Second(number))
        return self._seconds[-1]


class History:
    """Snapshots of a run for a chart: all at first, then increasingly thinned to a maximum number."""

    def __init__(self) -> None:
        self.points: list[Progress] = []
        self.has_ended = False
        self._every = 1
        self._count = 0

    def add(self, progress: Progress) -> None:
        """Add a snapshot, or skip it if the history is thinned."""
        if self._count % self._every == 0:
            self.points.append(progress)
        self._count += 1
        if len(self.points) > MAX_POINTS:
            self.points = self.points[::2]
            self._every *= 2
