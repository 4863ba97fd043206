"""Observations of simulated servers over windows of traffic: their figures and verdicts at any slowdown.

If nothing outside the engine has its own time scale, an engine whose iterations take `s` times as long at `r`
requests/s has the latencies of the original engine at `s r` requests/s, times `s`. One simulation therefore serves
every slowdown; `stretch` is that factor.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from loadtest.capacity.simulation.confidence import Confidence, confidence_of
from loadtest.capacity.simulation.rate_result import QUEUE, RateResult, objective_of, ratio_of
from loadtest.capacity.simulation.request_table import (
    RequestTable,
    gaps_of,
    joined,
    meets_goodput,
    of_class,
    spread_of,
    table_of,
    weighted_spread,
)
from loadtest.capacity.simulation.traffic_sample import TrafficSample
from loadtest.metrics import LevelSummary, verdicts_of
from loadtest.results import Floats
from loadtest.scenario import Objectives, Verdict
from loadtest.simulate import Ended, EnergyMeter, VirtualServer

GROWTH_RATIO = 0.03  # of the measured requests: a queue that grows by more than this, beyond chance, is unstable
CHANCE = 3.0  # standard deviations of the number in flight


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
    _parts: list[RequestTable] = field(default_factory=list)
    _lead: list[tuple[int, Floats, Floats]] = field(default_factory=list)
    _windows: list[tuple[float, float]] = field(default_factory=list)
    _table: RequestTable | None = None

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
        left_s = server.left_s
        done_s = left_s[[each.spans[-1][1] for each in done]] if done else np.array([])
        self._lead.append((len(self._windows) - 1, sent_s, done_s))
        for each in ended:
            if each.outcome != "ok":
                self.refused[each.outcome] = self.refused.get(each.outcome, 0) + 1
        self._parts.append(table_of(len(self._windows) - 1, left_s, ended))
        self.cached_tokens += sum(each.cached_tokens or 0 for each in ended)
        self.prompt_tokens += sum(each.sent.prompt_tokens for each in ended)
        if server.meter is not None:
            self._add_energy(server.meter)

    def _add_energy(self, meter: EnergyMeter) -> None:
        """Add a replica's energy of the latest window, up to its last iteration."""
        begin_s, end_s = self._windows[-1]
        end_s = min(end_s, meter.latest_s)
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
        chosen = of_class(table, name)
        ok = chosen & table.is_ok
        sent, good = int(chosen.sum()), int(ok.sum())
        window_s = self.window_s * stretch
        gaps, counts = gaps_of(table, ok)
        goodput = None
        if spec is not None and spec.goodput is not None and sent:
            goodput = float(meets_goodput(table, spec.goodput, stretch)[chosen].sum()) / sent
        return LevelSummary(
            concurrency=None,
            rate_per_s=rate_per_s,
            isl=0,
            osl=0,
            complete=True,
            requests=sent,
            errors=sent - good,
            errors_by_outcome=dict(sorted(self.refused.items())) if not name else {},
            ttft_s=spread_of(table.ttft_s[ok] * stretch),
            itl_s=weighted_spread(gaps * stretch, counts),
            tpot_s=spread_of(table.tpot_s[ok & (table.tokens > 1)] * stretch),
            e2e_s=spread_of(table.e2e_s[ok] * stretch),
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
        return float(table.e2e_s[table.is_ok].sum()) / self.window_s if self.window_s else 0.0

    def result(
        self, objectives: Mapping[str, Objectives], *, rate_per_s: float, stretch: float = 1.0, is_steady: bool = True
    ) -> RateResult:
        """Return figures and verdicts.

        Args:
            objectives: By class; the empty name is all requests together.
            rate_per_s: Offered rate, after the stretch.
            is_steady: Whether the number of requests in flight should be stationary; not if replicas come or go.
        """
        present = set(self._whole().names.tolist()) & set(objectives)
        levels = {
            name: self.level(name, objectives.get(name), rate_per_s=rate_per_s, stretch=stretch)
            for name in ["", *sorted(present - {""})]
        }
        verdicts = [
            verdict._replace(objective=objective_of(name, verdict.objective))
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
            max(ratio_of(each) for each in verdicts),
            float(np.mean(self.kv_ratio or [0.0])),
            max(self.kv_ratio, default=0.0),
            self.in_flight(),
            self.power_w(stretch),
            self.cached_tokens / self.prompt_tokens if self.prompt_tokens else None,
        )

    def confidence(self, objectives: Mapping[str, Objectives], *, z: float, stretch: float = 1.0) -> Confidence:
        """Return which objectives are met, missed and undecided, at `z` standard deviations.

        A single window may end in a burst: its growing queue decides nothing.
        """
        found = confidence_of(self._whole(), objectives, z=z, stretch=stretch)
        if self._stability().met:
            return found
        if self.windows == 1:
            return found._replace(undecided=(*found.undecided, QUEUE))
        return found._replace(missed=(*found.missed, QUEUE))

    def _stability(self) -> Verdict:
        table = self._whole()
        life_s = float(np.mean(table.e2e_s[table.is_ok])) if table.is_ok.any() else 0.0
        growth = 0.0
        for place, (begin_s, end_s) in enumerate(self._windows):
            rows = (table.window == place) & table.is_ok
            lead = [each for each in self._lead if each[0] == place]
            sent_s = np.concatenate([table.sent_s[rows], *(each[1] for each in lead)])
            done_s = np.concatenate([table.last_s[rows], *(each[2] for each in lead)])
            growth += _growth(sent_s, done_s, begin_s, end_s, life_s=life_s)
        ratio = growth / max(len(table.sent_s), 1)
        return Verdict(QUEUE, GROWTH_RATIO, ratio, ratio <= GROWTH_RATIO)

    def _whole(self) -> RequestTable:
        if self._table is None:
            self._table = joined(self._parts)
        return self._table


def _growth(sent_s: Floats, done_s: Floats, begin_s: float, end_s: float, *, life_s: float) -> float:
    """Return the growth of requests in flight from a window's middle to its end, beyond that of the load and chance.

    Bursts bring requests, and no queue keeps them: what was sent within a mean request's duration is not growth.

    Args:
        life_s: Mean duration of a request.
    """
    middle_s = (begin_s + end_s) / 2
    life_s = min(life_s, middle_s - begin_s)

    def in_flight(at_s: float) -> int:
        return int(((sent_s <= at_s) & (done_s > at_s)).sum())

    def sent_before(at_s: float) -> int:
        return int(((sent_s <= at_s) & (sent_s > at_s - life_s)).sum())

    before, after = in_flight(middle_s), in_flight(end_s)
    more_sent = max(0, sent_before(end_s) - sent_before(middle_s))
    return max(0.0, after - before - more_sent - CHANCE * math.sqrt(before + after))
