"""A control law over some minutes of the day, request by request: replicas are virtual servers behind a router."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from engines.autoscaling import ColdStart, ScalingLaw, Signal
from engines.files import Strict
from engines.steptime import Slowdown
from loadtest.capacity.autoscaling.fluid import desired_replicas
from loadtest.capacity.autoscaling.hpa import HpaController
from loadtest.capacity.inputs import Routing
from loadtest.capacity.simulation import (
    SLOT_S,
    Fleet,
    LoadBench,
    Observations,
    Replica,
    Router,
    Task,
    TrafficSample,
    hand_over,
    minutes_of,
    new_replica,
    sent_of,
)

RATE_S, TTFT_S = 60.0, 300.0  # windows of the queries: rate() over a minute, the histogram over five


class ReplayTask(NamedTuple):
    """Minutes of the day to replay.

    Attributes:
        task: The replica: its engine and the demand.
        rates_per_s: By slot; the first `lead_slots` fill the replicas and are not measured.
        begin_with: Replicas up at the start, as the fluid simulation has them.
        max_queue_size: Maximum queued requests per replica; 0: no limit.
    """

    task: Task
    slowdown: Slowdown
    routing: Routing
    law: ScalingLaw
    cold_start: ColdStart
    rates_per_s: tuple[float, ...]
    lead_slots: int
    begin_with: int
    max_queue_size: int

    @property
    def key(self) -> str:
        """Everything that the result depends on."""
        rest = self._replace(task=None, law=None, cold_start=None)  # type: ignore[arg-type]
        return f"{self.task.key}\n{self.law.model_dump_json()}{self.cold_start.model_dump_json()}\n{rest!r}"


class Replayed(Strict):
    """What a law did, request by request.

    Attributes:
        requests: Measured.
        missed: Whether an objective was missed by the requests sent in each minute.
        up: Replicas that took requests at the end of each minute.
    """

    requests: int
    missed: tuple[bool, ...]
    up: tuple[int, ...]


@dataclass(slots=True)
class _Watched:
    """A replica and what its metrics show."""

    replica: Replica
    read_lead: int = 0
    read: int = 0
    ended: deque[tuple[float, float, float]] = field(default_factory=deque)  # end, seconds since sent, TTFT
    active: deque[int] = field(default_factory=deque)  # at each evaluation of the latest minute


class _Autoscaled:
    """Replicas that follow a law."""

    def __init__(self, replay_task: ReplayTask) -> None:
        self.of = replay_task
        self.found = Observations()
        self.fleet = Fleet(
            replay_task.task.manifest, (), replay_task.routing, replay_task.slowdown,
            max_queue_size=replay_task.max_queue_size,
        )  # fmt: skip
        self.controller = HpaController(replay_task.law)
        self.watched = [self._new(0.0) for _ in range(replay_task.begin_with)]

    def _new(self, up_s: float) -> _Watched:
        of_minute = max(1, round(RATE_S / self.of.law.sync_s))
        return _Watched(new_replica(self.fleet, up_s, self.found), active=deque(maxlen=of_minute))

    def evaluate(self, now_s: float) -> int:
        """Evaluate the law once, and return how many replicas take requests."""
        law = self.of.law
        here = [each for each in self.watched if now_s < each.replica.down_s]
        up = [each for each in here if each.replica.up_s <= now_s]
        starting = [each for each in here if each.replica.up_s > now_s]
        values = [_signal(each, law.signal, now_s) for each in up]
        loading_s = self.of.cold_start.loading_s
        pending = [each.replica.up_s - loading_s > now_s for each in starting]
        desired = desired_replicas(law, values, pending)
        following = self.controller.decide(desired, len(here), now_s)
        ready_s = now_s + self.of.cold_start.total_s
        self.watched += [self._new(ready_s) for _ in range(following - len(here))]
        for _ in range(len(here) - following):
            if starting:  # a ReplicaSet ends pods that are not ready first, then the newest
                self.watched.remove(starting.pop())
            else:
                up.pop().replica.down_s = now_s
        return len(up)


def _signal(watched: _Watched, signal: Signal, now_s: float) -> float:
    """Return a replica's signal as its metrics show it: of requests that have ended, and the batcher's state."""
    replica = watched.replica
    replica.advance_to(now_s)
    fresh = [*replica.lead[watched.read_lead :], *replica.ended[watched.read :]]
    watched.read_lead, watched.read = len(replica.lead), len(replica.ended)
    if fresh:
        left_s = replica.server.left_s
        for each in fresh:
            if each.outcome == "ok":
                end_s, first_s = float(left_s[each.spans[-1][1]]), float(left_s[each.spans[0][0]])
                watched.ended.append((end_s, end_s - each.sent.sent_s, first_s - each.sent.sent_s))
    while watched.ended and watched.ended[0][0] <= now_s - TTFT_S:
        watched.ended.popleft()
    state = replica.server.batcher.snapshot()
    watched.active.append(state.active)
    if signal == "kv_used":
        return state.kv_used_blocks / state.kv_max_blocks
    recent = [each for each in watched.ended if now_s - TTFT_S < each[0] <= now_s]
    if signal == "ttft_p95":
        return float(np.quantile([each[2] for each in recent], 0.95)) if recent else 0.0
    in_flight = sum(each[1] for each in recent if each[0] > now_s - RATE_S) / RATE_S
    if signal == "in_flight":
        return in_flight
    return max(0.0, in_flight - sum(watched.active) / len(watched.active))


def replay(replay_task: ReplayTask) -> Replayed:
    """Simulate a law request by request: signals, decisions, late replicas, draining replicas."""
    bench = LoadBench(replay_task.task)
    largest = max(replay_task.begin_with, math.ceil(max(replay_task.rates_per_s) / max(1e-9, bench.bound_per_s)))
    sample = minutes_of(
        bench, replay_task.rates_per_s, replay_task.slowdown, replicas=largest, lead_slots=replay_task.lead_slots
    )
    scaled = _Autoscaled(replay_task)
    router = Router(replay_task.routing)
    sync_s, up_by_minute = replay_task.law.sync_s, [replay_task.begin_with] * len(replay_task.rates_per_s)
    next_s = sync_s
    for sent in sent_of(sample):
        while next_s <= sent.sent_s:
            up_by_minute[min(len(up_by_minute) - 1, int((next_s - 1e-9) // SLOT_S))] = scaled.evaluate(next_s)
            next_s += sync_s
        hand_over(router, [each.replica for each in scaled.watched], sent, sent.sent_s)
    for each in scaled.watched:
        each.replica.advance_to(math.inf)
    missed = [_missed(scaled, sample, minute) for minute in range(replay_task.lead_slots, len(replay_task.rates_per_s))]
    return Replayed(
        requests=sum(each.at_s >= sample.measure_s for each in sample.requests),
        missed=tuple(missed),
        up=tuple(up_by_minute[replay_task.lead_slots :]),
    )


def _missed(scaled: _Autoscaled, sample: TrafficSample, minute: int) -> bool:
    """Return whether the requests sent in a minute missed an objective together."""
    begin_s, end_s = minute * SLOT_S, (minute + 1) * SLOT_S
    found = Observations()
    found.begin_window(TrafficSample(sample.requests, begin_s, end_s))
    for each in scaled.watched:
        ended = [one for one in each.replica.ended if begin_s <= one.sent.sent_s < end_s]
        if ended:
            found.add(each.replica.server, ended)
    if not found.requests:
        return False
    objectives = scaled.of.task.demand.all_objectives
    rate_per_s = scaled.of.rates_per_s[minute]
    return not found.result(objectives, rate_per_s=rate_per_s, is_steady=False).met
