"""Fleets against a simulation written apart, which has nothing of the planner's but the duration of a step."""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest

from engines.manifest import EngineManifest
from engines.steptime import NONE, StepShape, StepTime, step_time_for
from loadtest.capacity.inputs import Demand, Routing
from loadtest.capacity.simulation.demand_requests import SimRequest
from loadtest.capacity.simulation.fleet import Fleet, serve
from loadtest.capacity.simulation.fleet_checks import SizeTask, smallest_fleet
from loadtest.capacity.simulation.length_profile import shape_of
from loadtest.capacity.simulation.load_bench import Task
from loadtest.capacity.simulation.traffic_sample import SampleSpec, TrafficSample, window_of
from tests.unit.loadtest.capacity.made import HERE, demand, engine

ISL, SLOTS, BUDGET = 256, 32, 2048
TTFT_S = 0.5


@dataclass
class Server:
    """Slots, and a queue before them: a step computes whole prompts of those in front, and a token of each reply."""

    step: StepTime
    now_s: float = 0.0
    steps: int = 0
    context: int = 0
    waiting: deque[SimRequest] = field(default_factory=deque)
    running: list[tuple[int, int]] = field(default_factory=list)  # heap: the step of its last token, its context then
    ends_s: list[float] = field(default_factory=list)  # heap
    unfinished: int = 0
    first_s: list[tuple[float, float]] = field(default_factory=list)  # when sent, and from then to its first token

    def take(self, ask: SimRequest) -> None:
        """Queue a request."""
        self.waiting.append(ask)
        self.unfinished += 1

    def load(self, now_s: float) -> int:
        """Return the number of unfinished requests."""
        while self.ends_s and self.ends_s[0] <= now_s:
            heapq.heappop(self.ends_s)
            self.unfinished -= 1
        return self.unfinished

    def run(self, until_s: float) -> None:
        """Do every step that begins before a time."""
        while self.running or self.waiting:
            if not self.running:
                self.now_s = max(self.now_s, self.waiting[0].at_s)
            if self.now_s >= until_s:
                return
            self._do_step()

    def _do_step(self) -> None:
        decoding = len(self.running)
        prompts = min(len(self.waiting), SLOTS - decoding, (BUDGET - decoding) // ISL)
        shape = StepShape(decoding, self.context, prompts, prompts * ISL, prompts * ISL * (ISL + 1) // 2)
        self.now_s += self.step.cost(shape).seconds
        self.steps += 1
        self.context += decoding
        for ask in [self.waiting.popleft() for _ in range(prompts)]:
            self.first_s.append((ask.at_s, self.now_s - ask.at_s))
            self.context += ISL
            heapq.heappush(self.running, (self.steps + ask.osl - 1, ISL + ask.osl - 1))
        while self.running and self.running[0][0] <= self.steps:
            self.context -= heapq.heappop(self.running)[1]
            heapq.heappush(self.ends_s, self.now_s)


def ttft_apart_s(samples: Sequence[TrafficSample], step: StepTime, replicas: int, routing: Routing) -> list[float]:
    """Return how long each measured request waits for its first token."""
    found = []
    for sample in samples:
        servers = [Server(step) for _ in range(replicas)]
        for number, ask in enumerate(sample.requests):
            turn = [servers[(number + place) % replicas] for place in range(replicas)]
            for server in servers:
                server.run(ask.at_s)
            loads = [each.load(ask.at_s) for each in turn]
            turn[loads.index(min(loads)) if routing == "least_outstanding" else 0].take(ask)
        for server in servers:
            server.run(math.inf)
        all_of = [each for server in servers for each in server.first_s]
        found += [first_s for sent_s, first_s in all_of if sample.measure_s <= sent_s < sample.end_s]
    return found


@pytest.fixture(scope="module")
def manifest() -> EngineManifest:
    """Plan an engine of few slots, with whole prompts; nothing above it."""
    limits = {"limits.max_batch_size": SLOTS, "limits.max_num_tokens": BUDGET}
    made = engine(gpu="l40s-48gb", precision="bf16", **limits)
    runtime = made.runtime.model_copy(update={"chunked_context": False})
    choice = made.step_time.model_copy(update={"host": None})
    return made.model_copy(update={"runtime": runtime, "step_time": choice})


def asked(rate_per_s: float, seed: int = 0) -> Demand:
    """Return traffic with replies of very different lengths; the first token of nine in ten within half a second."""
    lengths = {"isl": ISL, "osl": "lognormal(mean=128, cv=0.7, max=640)"}
    traffic = {"process": "described", "rate_per_s": rate_per_s, "lengths": lengths}
    return demand(traffic=traffic, objectives={"ttft_s": {"p90": TTFT_S}}, seed=seed)


def whole_peak(rate_per_s: float, seed: int) -> TrafficSample:
    """Draw the busiest ten minutes of an hour."""
    return window_of(asked(rate_per_s, seed), HERE, SampleSpec(rate_per_s, 600.0, 60.0, 60.0, is_varying=True))


@pytest.mark.parametrize(("routing", "tolerance"), [("round_robin", 1e-6), ("least_outstanding", 0.03)])
def test_a_fleet_waits_as_it_does_in_a_simulation_apart(
    manifest: EngineManifest, routing: Routing, tolerance: float
) -> None:
    """Three replicas near their limit: the same waits for the first token, up to the router's ties."""
    sample = whole_peak(19.0, 1)
    found, _ = serve(Fleet(manifest, (0.0,) * 3, routing), [sample])
    seen = found.result(asked(19.0).all_objectives, rate_per_s=19.0).level.ttft_s
    apart_s = ttft_apart_s([sample], step_time_for(manifest), 3, routing)
    assert seen is not None
    assert seen.count == len(apart_s)
    assert seen.mean == pytest.approx(np.mean(apart_s), rel=tolerance)
    assert seen.p95 == pytest.approx(np.quantile(apart_s, 0.95), rel=tolerance)


def test_a_fleet_is_sized_for_minutes_that_follow_each_other(manifest: EngineManifest) -> None:
    """Three replicas keep the limit for seconds of the peak, and not for its ten minutes, apart: four are needed."""
    rate_per_s, step = 22.5, step_time_for(manifest)
    demanded = asked(rate_per_s)
    task = Task("test", manifest, demanded, HERE, shape_of(demanded, HERE))
    found = smallest_fleet(SizeTask(task, NONE, rate_per_s, 3, "least_outstanding"))
    peaks = [whole_peak(rate_per_s, seed) for seed in (11, 12)]
    too_few_s, enough_s = (
        float(np.quantile(ttft_apart_s(peaks, step, replicas, "least_outstanding"), 0.9)) for replicas in (3, 4)
    )
    assert enough_s < TTFT_S < too_few_s
    assert found.needed == 4
