"""Figures and verdicts of simulated servers' measured requests, as arrays, at any slowdown.

Latencies are defined as in `loadtest.metrics` but computed from the batcher's spans instead of records: a simulation
that resolves a p99 produces tens of millions of tokens, and a record stores the time of each. A test checks that both
agree.

If nothing outside the engine has its own time scale, an engine whose iterations take `s` times as long at `r`
requests/s has the latencies of the original engine at `s r` requests/s, times `s`. One simulation therefore serves
every slowdown; `stretch` is that factor.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from loadtest.capacity.simulation.traffic_sample import TrafficSample
from loadtest.knee import share_interval
from loadtest.metrics import LevelSummary, Spread, verdicts_of
from loadtest.scenario import Goodput, Objectives, Verdict
from loadtest.simulate import Ended, EnergyMeter, VirtualServer

GROWTH_RATIO = 0.03  # of the measured requests: a queue that grows by more than this, beyond chance, is unstable
CHANCE = 3.0  # standard deviations of the number in flight
QUEUE = "growing queue"
QUANTILES = {"p50": 0.50, "p90": 0.90, "p95": 0.95, "p99": 0.99, "p999": 0.999}
BLOCKS = 8  # blocks of consecutive requests per window, to estimate the correlation of neighbours

_Floats = npt.NDArray[np.float64]
_Counts = npt.NDArray[np.int64]
_Bools = npt.NDArray[np.bool_]


class _Requests(NamedTuple):
    """Measured requests of one server in one window, or of all windows, in send order within each window.

    Attributes:
        window: The window in which each request was sent; like `names` to `is_ok`, one entry per request.
        deltas_s: Time from each iteration's predecessor's tokens to its own; within a span, a gap between
            responses: one token each, or with speculation several.
        span_row: The request of each span of uninterrupted iterations, from `span_first` to `span_last`.
        cross_row: The request of each pause between two spans; `cross_s` is its duration.
    """

    window: _Counts
    names: npt.NDArray[np.str_]
    sent_s: _Floats
    first_s: _Floats
    last_s: _Floats
    tokens: _Counts
    is_ok: _Bools
    deltas_s: _Floats
    span_row: _Counts
    span_first: _Counts
    span_last: _Counts
    cross_row: _Counts
    cross_s: _Floats


@dataclass(slots=True)
class Observations:
    """Measured requests over windows and replicas.

    Attributes:
        refused: Number of failed requests by outcome.
        kv_ratio: Share of the KV cache in use when a request ended.
        waiting: Requests in no iteration when a request ended.
        cached_tokens: Prompt tokens found in the KV cache, of `prompt_tokens`.
    """

    refused: dict[str, int] = field(default_factory=dict)
    kv_ratio: list[float] = field(default_factory=list)
    waiting: list[int] = field(default_factory=list)
    cached_tokens: int = 0
    prompt_tokens: int = 0
    _energy_j: float = 0.0
    _metered_s: float = 0.0
    _base_w: float = 0.0
    _parts: list[_Requests] = field(default_factory=list)
    _lead: list[tuple[int, _Floats, _Floats]] = field(default_factory=list)
    _windows: list[tuple[float, float]] = field(default_factory=list)
    _table: _Requests | None = None

    @property
    def windows(self) -> int:
        """Number of simulated windows."""
        return len(self._windows)

    @property
    def requests(self) -> int:
        """Number of measured requests."""
        return sum(len(part.sent_s) for part in self._parts)

    @property
    def window_s(self) -> float:
        """Total length of all windows, in seconds."""
        return sum(end_s - begin_s for begin_s, end_s in self._windows)

    def begin_window(self, sample: TrafficSample) -> None:
        """Start the next window."""
        self._windows.append((sample.measure_s, sample.end_s))

    def note_state(self, server: VirtualServer) -> None:
        """Record the batcher's state when a request ends."""
        state = server.batcher.snapshot()
        self.kv_ratio.append(state.kv_used_blocks / state.kv_max_blocks)
        self.waiting.append(state.queued + state.active - state.generation_requests)

    def add(self, server: VirtualServer, ended: Sequence[Ended], lead: Sequence[Ended] = ()) -> None:
        """Add the measured requests of the latest window from a server.

        Args:
            lead: Requests sent before them that shared the engine.
        """
        self._table = None
        done = [each for each in lead if each.outcome == "ok"]
        sent_s = np.array([each.sent.sent_s for each in done])
        done_s = server.left_s[[each.spans[-1][1] for each in done]] if done else np.array([])
        self._lead.append((len(self._windows) - 1, sent_s, done_s))
        for each in ended:
            if each.outcome != "ok":
                self.refused[each.outcome] = self.refused.get(each.outcome, 0) + 1
        self._parts.append(_part(len(self._windows) - 1, server.left_s, ended))
        self.cached_tokens += sum(each.cached_tokens or 0 for each in ended)
        self.prompt_tokens += sum(each.sent.prompt_tokens for each in ended)
        if server.meter is not None:
            self._add_energy(server.meter)

    def _add_energy(self, meter: EnergyMeter) -> None:
        """Add a replica's energy of the latest window, up to its last iteration."""
        begin_s, end_s = self._windows[-1]
        end_s = min(end_s, meter.ends_s[-1] if meter.ends_s else begin_s)
        if end_s > begin_s:
            begin_j, end_j = meter.read(np.array([begin_s, end_s]))
            self._energy_j += float(end_j - begin_j)
            self._metered_s += end_s - begin_s
            self._base_w = meter.model.base_w

    def power_w(self, stretch: float = 1.0) -> float | None:
        """Return the mean watts of a replica; None if nothing was metered.

        Slower iterations do the same work in more time: what they draw above the base power falls accordingly.
        """
        if not self._metered_s:
            return None
        return self._base_w + (self._energy_j / self._metered_s - self._base_w) / stretch

    def join(self, other: Observations) -> None:
        """Add all windows of other observations."""
        first = len(self._windows)
        self._windows += other._windows
        self._parts += [part._replace(window=part.window + first) for part in other._parts]
        self._lead += [(window + first, sent_s, done_s) for window, sent_s, done_s in other._lead]
        self.kv_ratio += other.kv_ratio
        self.waiting += other.waiting
        self.cached_tokens += other.cached_tokens
        self.prompt_tokens += other.prompt_tokens
        self._energy_j += other._energy_j
        self._metered_s += other._metered_s
        self._base_w = self._base_w or other._base_w
        for outcome, count in other.refused.items():
            self.refused[outcome] = self.refused.get(outcome, 0) + count
        self._table = None

    def level(self, name: str, spec: Objectives | None, *, rate_per_s: float, stretch: float = 1.0) -> LevelSummary:
        """Return the figures of a class; the empty name is all requests."""
        table = self._whole()
        chosen = _of_class(table, name)
        ok = chosen & table.is_ok
        sent, good = int(chosen.sum()), int(ok.sum())
        window_s = self.window_s * stretch
        gaps, counts = _gaps(table, ok)
        goodput = None
        if spec is not None and spec.goodput is not None and sent:
            goodput = float(_meets_goodput(table, spec.goodput, stretch)[chosen].sum()) / sent
        return LevelSummary(
            concurrency=None,
            rate_per_s=rate_per_s,
            isl=0,
            osl=0,
            complete=True,
            requests=sent,
            errors=sent - good,
            errors_by_outcome=dict(sorted(self.refused.items())) if not name else {},
            ttft_s=_plain((table.first_s - table.sent_s)[ok] * stretch),
            itl_s=weighted_spread(gaps * stretch, counts),
            tpot_s=_plain(_tpot_s(table)[ok & (table.tokens > 1)] * stretch),
            e2e_s=_plain((table.last_s - table.sent_s)[ok] * stretch),
            window="steady",
            window_s=window_s,
            output_tokens_per_s=float(table.tokens[ok].sum()) / window_s if window_s else None,
            requests_per_s=good / window_s if window_s else None,
            batch_size=None,
            batch_size_client=None,
            kv_blocks_used=None,
            waiting=float(np.mean(self.waiting)) if self.waiting else None,
            goodput=goodput,
        )

    def in_flight(self) -> float:
        """Return the mean number of requests in flight, by Little's law."""
        table = self._whole()
        return float((table.last_s - table.sent_s)[table.is_ok].sum()) / self.window_s if self.window_s else 0.0

    def result(
        self, objectives: Mapping[str, Objectives], *, rate_per_s: float, stretch: float = 1.0, is_steady: bool = True
    ) -> RateResult:
        """Return figures and verdicts.

        Args:
            objectives: By class; the empty name is all requests together.
            rate_per_s: Offered rate, after the stretch.
            is_steady: Whether the number of requests in flight should be stationary; not if replicas come or go.
        """
        present = ["", *sorted(set(self._whole().names.tolist()) - {""})]
        levels = {
            name: self.level(name, objectives.get(name), rate_per_s=rate_per_s, stretch=stretch) for name in present
        }
        verdicts = [
            verdict._replace(objective=_named(name, verdict.objective))
            for name, spec in objectives.items()
            if name in levels
            for verdict in verdicts_of(spec, levels[name])
        ]
        if is_steady:
            verdicts.append(self._stability())
        return RateResult(
            rate_per_s,
            levels[""],
            tuple(verdicts),
            max(_ratio(each) for each in verdicts),
            float(np.mean(self.kv_ratio or [0.0])),
            max(self.kv_ratio, default=0.0),
            self.in_flight(),
            self.power_w(stretch),
            self.cached_tokens / self.prompt_tokens if self.prompt_tokens else None,
        )

    def confidence(self, objectives: Mapping[str, Objectives], *, z: float, stretch: float = 1.0) -> Confidence:
        """Return which objectives are met, missed and undecided, at `z` standard deviations."""
        missed: list[str] = []
        undecided: list[str] = []
        table = self._whole()
        for name, spec in objectives.items():
            chosen = _of_class(table, name)
            if not chosen.any():
                continue
            for objective, share, good, count in _shares(table, spec, chosen, stretch):
                low, high = share_interval(good, count, _block_edges(table.window[chosen]), z=z)
                if high < share:
                    missed.append(_named(name, objective))
                elif low < share:
                    undecided.append(_named(name, objective))
            undecided += [
                _named(name, f"{quantity} mean")
                for quantity in ("ttft_s", "itl_s", "tpot_s", "e2e_s")
                if "mean" in getattr(spec, quantity)
            ]
        if not self._stability().met:
            missed.append(QUEUE)
        return Confidence(tuple(missed), tuple(undecided))

    def _stability(self) -> Verdict:
        table = self._whole()
        growth = 0.0
        for place, (begin_s, end_s) in enumerate(self._windows):
            rows = (table.window == place) & table.is_ok
            lead = [each for each in self._lead if each[0] == place]
            sent_s = np.concatenate([table.sent_s[rows], *(each[1] for each in lead)])
            done_s = np.concatenate([table.last_s[rows], *(each[2] for each in lead)])
            growth += _growth(sent_s, done_s, begin_s, end_s)
        ratio = growth / max(len(table.sent_s), 1)
        return Verdict(QUEUE, GROWTH_RATIO, ratio, ratio <= GROWTH_RATIO)

    def _whole(self) -> _Requests:
        if self._table is None:
            self._table = _joined(self._parts)
        return self._table


class Confidence(NamedTuple):
    """What the simulation so far implies for the objectives.

    Attributes:
        missed: Objectives whose interval lies entirely beyond the limit.
        undecided: Objectives whose interval contains the limit.
    """

    missed: tuple[str, ...]
    undecided: tuple[str, ...]

    @property
    def met(self) -> bool | None:
        """Whether every objective is met; None while undecided."""
        return False if self.missed else None if self.undecided else True


class RateResult(NamedTuple):
    """One simulated load: its figures, and each objective's verdict.

    Attributes:
        worst_ratio: Largest ratio of value to limit; above 1, an objective is missed.
        kv_ratio: Mean share of the KV cache in use when requests ended; `kv_most` is the largest.
        power_w: Watts of a replica's GPUs, mean; None if it was not metered.
        cached_ratio: Share of prompt tokens found in the KV cache.
    """

    rate_per_s: float
    level: LevelSummary
    verdicts: tuple[Verdict, ...]
    worst_ratio: float
    kv_ratio: float
    kv_most: float
    in_flight: float
    power_w: float | None = None
    cached_ratio: float | None = None

    @property
    def met(self) -> bool:
        """Whether every objective is met and the queue is stable."""
        return all(each.met for each in self.verdicts)

    @property
    def missed(self) -> tuple[str, ...]:
        """Objectives that were missed, furthest beyond the limit first."""
        return tuple(each.objective for each in sorted(self.verdicts, key=_ratio, reverse=True) if not each.met)

    @property
    def tightest(self) -> str:
        """The objective nearest to its limit, or furthest beyond it."""
        return max(self.verdicts, key=_ratio).objective


def _part(window: int, left_s: _Floats, ended: Sequence[Ended]) -> _Requests:
    ordered = sorted(ended, key=lambda each: each.sent.sent_s)
    spans = [(row, first, last) for row, each in enumerate(ordered) for first, last in each.spans]
    row, first, last = (np.array(column, dtype=np.int64) for column in zip(*spans, strict=True)) if spans else _NO_SPANS
    crossings = [
        (place, before[1], after[0])
        for place, each in enumerate(ordered)
        if len(each.spans) > 1
        for before, after in pairwise(each.spans)
    ]
    is_ok = np.array([each.outcome == "ok" for each in ordered], dtype=bool)
    first_s, last_s = np.full(len(ordered), math.nan), np.full(len(ordered), math.nan)
    tokens = np.zeros(len(ordered), dtype=np.int64)
    if len(row):
        first_s[row[::-1]] = left_s[first[::-1]]  # for several spans: the first one's start and the last one's end
        last_s[row] = left_s[last]
        np.add.at(tokens, row, last - first + 1)
    for place, each in enumerate(ordered):
        if each.counts:
            tokens[place] = sum(each.counts)
    return _Requests(
        np.full(len(ordered), window, dtype=np.int64),
        np.array([each.sent.turn.class_name or "" for each in ordered], dtype=np.str_),
        np.array([each.sent.sent_s for each in ordered]),
        first_s,
        last_s,
        tokens,
        is_ok,
        np.diff(left_s, prepend=0.0),
        row,
        first,
        last,
        np.array([place for place, _, _ in crossings], dtype=np.int64),
        np.array([left_s[begin] - left_s[end] for _, end, begin in crossings]),
    )


_NO_SPANS = (np.array([], dtype=np.int64),) * 3


def _joined(parts: Sequence[_Requests]) -> _Requests:
    rows = np.cumsum([0, *(len(part.sent_s) for part in parts)])
    steps = np.cumsum([0, *(len(part.deltas_s) for part in parts)])
    places = list(enumerate(parts))

    columns = {name: np.concatenate([getattr(part, name) for part in parts]) for name in _Requests._fields}
    table = _Requests(**columns)._replace(
        span_row=np.concatenate([part.span_row + rows[place] for place, part in places]),
        span_first=np.concatenate([part.span_first + steps[place] for place, part in places]),
        span_last=np.concatenate([part.span_last + steps[place] for place, part in places]),
        cross_row=np.concatenate([part.cross_row + rows[place] for place, part in places]),
    )
    order = np.lexsort((table.sent_s, table.window))
    if (order[1:] > order[:-1]).all():
        return table
    back = np.empty_like(order)
    back[order] = np.arange(len(order))
    return table._replace(
        **{name: getattr(table, name)[order] for name in _Requests._fields[:7]},
        span_row=back[table.span_row],
        cross_row=back[table.cross_row],
    )


def _of_class(table: _Requests, name: str) -> _Bools:
    return np.asarray(table.names == name) if name else np.ones(len(table.sent_s), dtype=bool)


def _tpot_s(table: _Requests) -> _Floats:
    return np.asarray((table.last_s - table.first_s) / np.maximum(table.tokens - 1, 1))


def _gaps(table: _Requests, chosen: _Bools) -> tuple[_Floats, _Counts]:
    """Return the gaps between tokens of some requests, and the number of requests that share each iteration's gap."""
    spans = chosen[table.span_row]
    size = len(table.deltas_s) + 2
    marks = np.bincount(table.span_first[spans] + 1, minlength=size)
    marks = marks - np.bincount(table.span_last[spans] + 1, minlength=size)
    counts = np.cumsum(marks)[: len(table.deltas_s)]
    some = counts > 0
    across = table.cross_s[chosen[table.cross_row]] if len(table.cross_row) else table.cross_s
    return (
        np.concatenate([table.deltas_s[some], across]),
        np.concatenate([counts[some], np.ones(len(across), dtype=np.int64)]),
    )


def _gaps_within(table: _Requests, limit_s: float) -> tuple[_Counts, _Counts]:
    """Return each request's number of gaps within a limit, and its total number of gaps."""
    upto = np.concatenate([[0], np.cumsum(table.deltas_s <= limit_s)])
    within, gaps = np.zeros(len(table.sent_s), dtype=np.int64), np.zeros(len(table.sent_s), dtype=np.int64)
    np.add.at(within, table.span_row, upto[table.span_last + 1] - upto[table.span_first + 1])
    np.add.at(gaps, table.span_row, table.span_last - table.span_first)
    np.add.at(within, table.cross_row, table.cross_s <= limit_s)
    np.add.at(gaps, table.cross_row, 1)
    return within, gaps


def _meets_goodput(table: _Requests, spec: Goodput, stretch: float) -> _Bools:
    """Return which requests met every limit of a goodput objective; failed requests did not."""
    longest_s = np.zeros(len(table.sent_s))
    if spec.itl_s is not None:  # a gap beyond the limit stands for the longest gap
        within, gaps = _gaps_within(table, spec.itl_s / stretch)
        longest_s[within < gaps] = math.inf
    met = spec.is_met_by(
        ttft_s=(table.first_s - table.sent_s) * stretch,
        tpot_s=np.where(table.tokens > 1, _tpot_s(table), 0.0) * stretch,
        longest_gap_s=longest_s,
        e2e_s=(table.last_s - table.sent_s) * stretch,
    )
    return np.asarray(table.is_ok & met)


def _shares(
    table: _Requests, spec: Objectives, chosen: _Bools, stretch: float
) -> list[tuple[str, float, _Floats, _Floats]]:
    """Return each objective as a share: name, required share, and per request the good and the total count."""
    ones = np.ones(int(chosen.sum()))
    ok = table.is_ok
    found: list[tuple[str, float, _Floats, _Floats]] = []
    values = {
        "ttft_s": table.first_s - table.sent_s,
        "tpot_s": np.where(table.tokens > 1, _tpot_s(table), math.nan),
        "e2e_s": table.last_s - table.sent_s,
    }
    for quantity, of_request in values.items():
        limits = getattr(spec, quantity)
        rows = chosen & ok & ~np.isnan(of_request)
        for statistic, limit_s in limits.items():
            if statistic in QUANTILES:
                good = ((of_request * stretch <= limit_s) & rows)[chosen].astype(float)
                found.append((f"{quantity} {statistic}", QUANTILES[statistic], good, rows[chosen].astype(float)))
    for statistic, limit_s in spec.itl_s.items():
        if statistic in QUANTILES:
            within, gaps = _gaps_within(table, limit_s / stretch)
            good, all_ = (np.where(ok, each, 0)[chosen].astype(float) for each in (within, gaps))
            found.append((f"itl_s {statistic}", QUANTILES[statistic], good, all_))
    if spec.goodput is not None:
        meets = _meets_goodput(table, spec.goodput, stretch)[chosen].astype(float)
        found.append(("goodput", spec.goodput.share, meets, ones))
    if not ok[chosen].all():
        found.append(("errors_ratio", 1 - spec.errors_ratio, ok[chosen].astype(float), ones))
    return found


def _block_edges(window: _Counts) -> _Counts:
    """Return the start of each block of consecutive requests; no block spans two windows."""
    begins = np.flatnonzero(np.diff(window, prepend=-1))
    ends = [*begins[1:].tolist(), len(window)]
    edges = [
        np.linspace(begin, end, min(BLOCKS, end - begin) + 1).astype(np.int64)[:-1]
        for begin, end in zip(begins.tolist(), ends, strict=True)
    ]
    return np.concatenate(edges)


def _growth(sent_s: _Floats, done_s: _Floats, begin_s: float, end_s: float) -> float:
    """Return the growth of requests in flight from a window's middle to its end, beyond chance."""

    def in_flight(at_s: float) -> int:
        return int(((sent_s <= at_s) & (done_s > at_s)).sum())

    before, after = in_flight((begin_s + end_s) / 2), in_flight(end_s)
    return max(0.0, after - before - CHANCE * math.sqrt(before + after))


def _named(name: str, objective: str) -> str:
    return f"{name}: {objective}" if name else objective


def _ratio(verdict: Verdict) -> float:
    """Return an objective's ratio of value to limit; for goodput, the missed share over the allowed share."""
    if verdict.found is None:
        return math.inf
    if verdict.objective.endswith("goodput"):
        return (1 - verdict.found) / (1 - verdict.limit)
    if verdict.limit == 0:
        return 0.0 if verdict.met else math.inf
    return verdict.found / verdict.limit


def _plain(values: _Floats) -> Spread | None:
    return weighted_spread(values, np.ones(len(values), dtype=np.int64))


def weighted_spread(values: _Floats, counts: _Counts) -> Spread | None:
    """Return the spread of values with multiplicities; equals `metrics.spread` of the expanded values.

    >>> weighted_spread(np.array([1.0, 2.0, 4.0]), np.array([2, 1, 1])).p50
    1.5
    """
    total = int(counts.sum())
    if not total:
        return None
    order = np.argsort(values)
    ordered, upto = values[order], np.cumsum(counts[order])
    places = np.array(list(QUANTILES.values())) * (total - 1)
    below, above = np.floor(places), np.ceil(places)
    low = ordered[np.searchsorted(upto, below, side="right")]
    high = ordered[np.searchsorted(upto, above, side="right")]
    p50, p90, p95, p99, p999 = (float(value) for value in low + (high - low) * (places - below))
    return Spread(
        count=total,
        mean=float((values * counts).sum() / total),
        p50=p50,
        p90=p90,
        p95=p95,
        p99=p99,
        p999=p999,
        max=float(ordered[np.flatnonzero(counts[order])[-1]]),
    )
