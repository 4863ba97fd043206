"""Many control laws over the same day at once, with replicas as fluid queues.

A replica holds a number of requests; its curve (`ReplicaResponse`) says how many it completes. New requests go to the
replicas with the fewest. A new replica takes requests after its cold start, and what waits elsewhere does not move to
it; a removed one gets no more and is paid for until it has finished its own.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from engines.autoscaling import ColdStart, ScalingLaw
from engines.units import SECONDS_PER_H
from loadtest.capacity.autoscaling.hpa import (
    MILLI,
    HpaController,
    replicas_of_metrics,
    replicas_of_sum,
    replicas_of_value,
)
from loadtest.capacity.autoscaling.response import Floats, ReplicaResponse
from loadtest.capacity.simulation.rate_curve import MINUTE_S

LONGEST_STEP_S, SHORTEST_STEP_S = 15.0, 5.0
TTFT_S = 300.0  # the histogram's percentile is over five minutes
HISTORY_S = 1200.0  # a request that waited longer than twenty minutes is counted as having waited that long


class Followed(NamedTuple):
    """What one law did.

    Attributes:
        step_s: Length of a step.
        up: Replicas that take requests, by step.
        paid: Those, the starting and the draining, by step.
        missed: Whether an objective was missed, by minute.
    """

    step_s: float
    up: tuple[int, ...]
    paid: tuple[int, ...]
    missed: tuple[bool, ...]

    @property
    def up_by_minute(self) -> np.ndarray:
        """Replicas that take requests; shape (minutes, steps of a minute)."""
        return np.reshape(self.up, (len(self.missed), -1))

    @property
    def missed_minutes(self) -> int:
        """Minutes in which an objective was missed."""
        return sum(self.missed)

    @property
    def replica_hours(self) -> float:
        """Paid: from a replica's request to the end of its last request."""
        return sum(self.paid) * self.step_s / SECONDS_PER_H

    @property
    def largest(self) -> int:
        """Largest number of replicas paid for at one time."""
        return max(self.paid)


@dataclass(slots=True)
class _Target:
    """One law's replicas: those up, those starting, those draining."""

    law: ScalingLaw
    controller: HpaController
    up: int
    starting: list[float] = field(default_factory=list)  # when each began
    draining: list[float] = field(default_factory=list)  # when each is gone

    def paid(self, now_s: float) -> int:
        """Return the replicas that are paid for."""
        return self.up + len(self.starting) + sum([gone_s > now_s for gone_s in self.draining])


def step_s_of(law: ScalingLaw) -> float:
    """Return the step to simulate a law with: whole steps between two evaluations, whole steps of a minute.

    >>> [step_s_of(ScalingLaw.model_construct(sync_s=sync_s)) for sync_s in (15.0, 60.0, 20.0, 5.0)]
    [15.0, 15.0, 5.0, 5.0]
    """
    return LONGEST_STEP_S if law.sync_s % LONGEST_STEP_S == 0 else SHORTEST_STEP_S


def follow(
    laws: Sequence[ScalingLaw],
    arrivals_per_s: Floats,
    response: ReplicaResponse,
    cold_start: ColdStart,
    *,
    begin_with: int,
) -> list[Followed]:
    """Return what each law does with the same arrivals.

    Args:
        laws: All with the same `sync_s`.
        arrivals_per_s: By step of `step_s_of` these laws, whole minutes.
        begin_with: Replicas up at the start, brought within each law's limits.

    Raises:
        ValueError: The laws are not all evaluated at the same times.
    """
    if len({law.sync_s for law in laws}) != 1:
        raise ValueError("laws of one simulation have the same sync_s")
    step_s = step_s_of(laws[0])
    steps_of_sync = round(laws[0].sync_s / step_s)
    targets = [
        _Target(law, HpaController(law), min(max(begin_with, law.min_replicas), law.max_replicas)) for law in laws
    ]
    plant = _Plant(response, len(laws), max(law.max_replicas for law in laws), step_s)
    ups, paid = np.zeros((len(arrivals_per_s), len(laws)), int), np.zeros((len(arrivals_per_s), len(laws)), int)
    bad = np.zeros((len(arrivals_per_s), len(laws)), dtype=np.bool_)
    for step, rate_per_s in enumerate(arrivals_per_s.tolist()):
        now_s = step * step_s
        for target in targets:
            _start(target, now_s, cold_start)
        ups[step] = [target.up for target in targets]
        paid[step] = [target.paid(now_s) for target in targets]
        bad[step] = plant.advance(rate_per_s, ups[step])
        if (step + 1) % steps_of_sync == 0:
            signals = plant.signals()
            for place, target in enumerate(targets):
                _evaluate(target, signals[target.law.signal][place], now_s + step_s, cold_start, plant, place)
    minutes: np.ndarray = np.any(bad.reshape(-1, round(MINUTE_S / step_s), len(laws)), axis=1)
    return [
        Followed(
            step_s,
            tuple(ups[:, place].tolist()),
            tuple(paid[:, place].tolist()),
            tuple(minutes[:, place].tolist()),
        )
        for place in range(len(laws))
    ]


def _start(target: _Target, now_s: float, cold_start: ColdStart) -> None:
    if not target.starting:
        return
    ready = sum(now_s >= begun_s + cold_start.total_s for begun_s in target.starting)
    target.up += ready
    target.starting = target.starting[ready:]


def desired_replicas(law: ScalingLaw, values: Sequence[float], starting: Sequence[bool]) -> int:
    """Return what a law's signal requires, before any window or policy.

    Args:
        values: Of each replica that is up.
        starting: Of each replica that is starting, whether its pod is pending.
    """
    current, target_milli = len(values) + len(starting), round(law.target * MILLI)
    milli = [round(value * MILLI) for value in values]
    if law.controller == "hpa":
        pending = sum(starting)
        missing = len(starting) - pending
        return replicas_of_metrics(
            milli, current, target_milli, pending=pending, missing=missing, tolerance=law.tolerance
        )
    if law.signal == "ttft_p95":
        return replicas_of_value(max(milli), current, len(values), target_milli, tolerance=law.tolerance)
    return replicas_of_sum(sum(milli), current, target_milli, tolerance=law.tolerance)


def _evaluate(target: _Target, values: Floats, now_s: float, cold_start: ColdStart, plant: _Plant, place: int) -> None:
    pending = [now_s < begun_s + cold_start.pending_s for begun_s in target.starting]
    current = target.up + len(target.starting)
    desired = desired_replicas(target.law, values[: target.up].tolist(), pending)
    following = target.controller.decide(desired, current, now_s)
    target.starting += [now_s] * max(0, following - current)
    for _ in range(current - following):
        if target.starting:
            target.starting.pop()  # a ReplicaSet ends pods that are not ready first, then the newest
        else:
            target.up -= 1
            target.draining = [gone_s for gone_s in target.draining if gone_s > now_s]
            target.draining.append(now_s + plant.drain_s(place, target.up))


class _Plant:
    """Requests in every replica of every law; arrays of shape (laws, replicas)."""

    def __init__(self, response: ReplicaResponse, laws: int, replicas: int, step_s: float) -> None:
        self.response = response
        self._step_s = step_s
        minute_steps = round(MINUTE_S / step_s)
        self.held = np.zeros((laws, replicas))
        self.taken = np.zeros((laws, replicas))  # per second, in the latest step
        self._arrived = _History(self.held, round(HISTORY_S / step_s))
        self._places = np.indices(self.held.shape)
        self._ended: deque[Floats] = deque(maxlen=minute_steps)
        self._active: deque[Floats] = deque(maxlen=minute_steps)
        self._ttft: deque[Floats] = deque(maxlen=round(TTFT_S / step_s))
        self._minute: deque[Floats] = deque(maxlen=minute_steps)

    def advance(self, rate_per_s: float, up: np.ndarray) -> np.ndarray:
        """Simulate one step, and return for each law whether an objective is missed in it."""
        of, step_s = self.response, self._step_s
        there = np.arange(self.held.shape[1]) < up[:, None]
        self.held = np.where(there, self.held, 0.0)
        self.taken = _fewest_first(np.where(there, self.held, np.inf), rate_per_s * step_s) / step_s
        steady = of.in_flight_at(self.taken)
        life_s = steady / np.maximum(self.taken, 1e-9)
        relaxed = steady + (self.held - steady) * np.exp(-step_s / np.maximum(life_s, 1e-3))
        before = self.held
        self.held = np.where(there, np.maximum(relaxed, before + (self.taken - of.full_per_s) * step_s), 0.0)
        done_per_s = np.maximum(0.0, self.taken - (self.held - before) / step_s)
        self._note(done_per_s)
        self._minute.append(np.where(there, self.taken, 0.0))
        is_over = _mean(self._minute).max(axis=1) > of.carried_per_s
        if of.ttft_limit_s is None:
            return np.asarray(is_over)
        waited = np.where((self.taken > 0) & there, np.maximum(0.0, self.held - of.slots) / of.full_per_s, 0.0)
        return np.asarray(is_over | (waited.max(axis=1) > of.ttft_limit_s))

    def _note(self, done_per_s: Floats) -> None:
        """Note what the metrics see: the requests that ended, with their time since arrival."""
        self._arrived.append(self._arrived.rows[-1] + self.taken * self._step_s)
        self._ended.append(done_per_s * self._sojourn_s())
        self._active.append(np.minimum(self.held, self.response.slots))
        self._ttft.append(self.response.ttft_at(self.held))

    def _sojourn_s(self) -> Floats:
        """Return how long ago the requests that now end arrived: in order, where arrivals equal those completed."""
        arrived = self._arrived.rows
        completed = arrived[-1] - self.held
        later = np.minimum((arrived > completed + 1e-9).sum(axis=0), len(arrived) - 1)
        rows = len(arrived) - later
        after = arrived[np.minimum(rows, len(arrived) - 1), *self._places]
        before = arrived[rows - 1, *self._places]
        share = np.clip((after - completed) / np.maximum(after - before, 1e-9), 0.0, 1.0)
        return np.where(later > 0, (later - 1 + share) * self._step_s, 0.0)

    def signals(self) -> dict[str, Floats]:
        """Return every signal of every replica, as the servers' metrics show it."""
        in_flight = _mean(self._ended)
        place = max(0, math.ceil(0.95 * len(self._ttft)) - 1)
        return {
            "in_flight": in_flight,
            "queue": np.maximum(0.0, in_flight - _mean(self._active)),
            "kv_used": self.response.kv_at(self.held),
            "ttft_p95": np.partition(np.stack(self._ttft), place, axis=0)[place],
        }

    def drain_s(self, law: int, replica: int) -> float:
        """Return how long a removed replica is still paid for."""
        queue = max(0.0, float(self.held[law, replica]) - self.response.slots)
        return self.response.drain_s + queue / self.response.full_per_s


class _History:
    """The latest arrays, oldest first, in one array: reading them copies nothing."""

    def __init__(self, first: Floats, longest: int) -> None:
        self._longest = longest
        self._rows = np.empty((2 * longest, *first.shape))
        self._rows[0] = first
        self._end = 1

    @property
    def rows(self) -> Floats:
        """Return the latest arrays, at most `longest`; shape (arrays, laws, replicas)."""
        return self._rows[max(0, self._end - self._longest) : self._end]

    def append(self, latest: Floats) -> None:
        """Add an array, and forget the oldest one past `longest`."""
        if self._end == len(self._rows):
            kept = self.rows[1:].copy()
            self._rows[: len(kept)], self._end = kept, len(kept)
        self._rows[self._end] = latest
        self._end += 1


def _mean(arrays: Sequence[Floats]) -> Floats:
    """Return the mean of a few arrays; their own sum is faster than an array of them."""
    return np.asarray(sum(arrays) / len(arrays))


def _fewest_first(held: Floats, arrivals: float) -> Floats:
    """Return the arrivals of each replica if each goes to the one with the fewest requests; shape as `held`.

    >>> _fewest_first(np.array([[10.0, 0.0, np.inf]]), 20.0).tolist()
    [[5.0, 15.0, 0.0]]
    """
    ordered = np.sort(held, axis=1)
    is_there = np.isfinite(ordered)
    total = np.cumsum(np.where(is_there, ordered, 0.0), axis=1)
    levels = (total + arrivals) / np.arange(1, held.shape[1] + 1)
    following = np.concatenate([ordered[:, 1:], np.full((len(held), 1), np.inf)], axis=1)
    level = np.take_along_axis(levels, np.argmax(levels <= following, axis=1)[:, None], axis=1)
    return np.where(np.isfinite(held), np.maximum(0.0, level - held), 0.0)
