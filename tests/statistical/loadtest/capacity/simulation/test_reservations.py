"""A server that never evicts reserves KV cache for `max_tokens`: held to a small simulation written apart from ours."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Sequence

import numpy as np
import pytest

from engines.manifest import EngineManifest
from engines.steptime import StepShape, StepTime, step_time_for
from loadtest.capacity.candidates import candidates_of
from loadtest.capacity.inputs.demand import Demand
from loadtest.capacity.simulation.demand_requests import SimRequest
from loadtest.capacity.simulation.length_profile import shape_of
from loadtest.capacity.simulation.load_bench import Task
from loadtest.capacity.simulation.max_rate import max_rate_of
from loadtest.capacity.simulation.replica import simulate
from loadtest.capacity.simulation.traffic_sample import SampleSpec, TrafficSample, window_of
from tests.unit.loadtest.capacity.made import HEAD, HERE, demand, engine

ISL, MAX_TOKENS = 500, 24_000
STRIDE = 64  # decode steps that the simulation apart takes at once


def thinking(**changed: object) -> Demand:
    """Return reasoning traffic: replies of 6,000 tokens on average, at most 24,000 asked for."""
    osl = "lognormal(mean=6000, cv=0.8, max=24000)"
    lengths = {"isl": ISL, "osl": osl, "max_tokens": MAX_TOKENS, **changed}
    return demand(
        model="deepseek-r1-0528-qwen3-8b",
        traffic={"process": "described", "rate_per_s": 1.0, "lengths": lengths},
        objectives={"ttft_s": {"p95": 5.0}},
    )


@pytest.fixture(scope="module")
def manifest() -> EngineManifest:
    """Plan an engine with room for many true replies and few reserved ones; nothing above it."""
    flags = {"limits.max_batch_size": 128, "limits.max_num_tokens": 8192, "limits.max_seq_len": ISL + MAX_TOKENS}
    made = engine(model="deepseek-r1-0528-qwen3-8b", step_time="roofline", **flags)
    cache = made.kv_cache.model_copy(update={"blocks": 300_000 // made.kv_cache.tokens_per_block})
    choice = made.step_time.model_copy(update={"host": None})
    return made.model_copy(update={"kv_cache": cache, "step_time": choice})


def ttft_apart_s(asks: Sequence[SimRequest], step: StepTime, slots: int) -> list[float]:
    """Return when each request's first token comes, in a server that lets so many run at once, first come first served.

    Nothing of the batcher is used: a clock, a queue, and a list of running replies that all get a token a step.
    """
    now_s, begun, coming, queue = 0.0, 0, deque(enumerate(asks)), deque[tuple[int, SimRequest]]()
    running: list[tuple[int, int]] = []  # heap of (step at which it ends, prompt tokens)
    done_steps, context, first_s = 0, 0, [0.0] * len(asks)
    while begun < len(asks):
        while coming and coming[0][1].at_s <= now_s:
            queue.append(coming.popleft())
        while queue and len(running) < slots:
            number, ask = queue.popleft()
            prompt = StepShape(len(running), context, 1, ask.isl, ask.isl * (ask.isl + 1) // 2)
            now_s += step.seconds(prompt)
            done_steps += 1
            context += len(running) + ask.isl
            first_s[number] = now_s
            begun += 1
            heapq.heappush(running, (done_steps + ask.osl - 1, ask.isl + ask.osl - 1))
        if not running:
            now_s = coming[0][1].at_s
            continue
        steps = max(1, min(STRIDE, running[0][0] - done_steps))
        now_s += steps * step.seconds(StepShape(len(running), context + len(running) * steps // 2))
        done_steps += steps
        context += len(running) * steps
        while running and running[0][0] <= done_steps:
            context -= heapq.heappop(running)[1]
    return [first - ask.at_s for first, ask in zip(first_s, asks, strict=True)]


def asks_at(rate_per_s: float, requests: int = 1200) -> TrafficSample:
    """Draw traffic, all of it measured."""
    wanted = SampleSpec(rate_per_s, requests / rate_per_s, 0.0, 0.0)
    return window_of(thinking(), HERE, wanted)


def test_reservations_make_a_queue_that_true_lengths_do_not(manifest: EngineManifest) -> None:
    """By true lengths the first token comes at once; reserved, as a server does, minutes later; ours says so too."""
    sample = asks_at(0.35)
    step = step_time_for(manifest)
    blocks = manifest.kv_cache.blocks // -(-(ISL + MAX_TOKENS) // manifest.kv_cache.tokens_per_block)
    apart_s = float(np.quantile(ttft_apart_s(sample.requests, step, blocks), 0.95))
    reserved = simulate(manifest, [sample]).level("", None, rate_per_s=0.35).ttft_s
    true = tuple(ask._replace(max_tokens=None) for ask in sample.requests)
    naive = simulate(manifest, [TrafficSample(true, sample.measure_s, sample.end_s)]).level("", None, rate_per_s=0.35)
    assert reserved is not None
    assert naive.ttft_s is not None
    assert naive.ttft_s.p95 < 0.3
    assert apart_s > 100
    assert reserved.p95 == pytest.approx(apart_s, rel=0.1)


def test_what_is_promised_a_server_that_reserves_keeps(manifest: EngineManifest) -> None:
    """At the promised load the simulation apart keeps the limit on the first token; a third above it, it does not."""
    asked = thinking()
    found = max_rate_of(Task("test", manifest, asked, HERE, shape_of(asked, HERE), is_brief=True))
    assert found.rate_per_s is not None
    step = step_time_for(manifest)
    blocks = manifest.kv_cache.blocks // -(-(ISL + MAX_TOKENS) // manifest.kv_cache.tokens_per_block)
    kept, missed = (
        float(np.quantile(ttft_apart_s(asks_at(ratio * found.rate_per_s, 4000).requests, step, blocks), 0.95))
        for ratio in (0.9, 1.33)
    )
    assert kept < 5.0 < missed


def test_evicting_instead_of_reserving_carries_more(manifest: EngineManifest) -> None:
    """Both policies are candidates where reservations bind, and the one that evicts carries more of this traffic."""
    asked = thinking()
    wide = asked.candidates.model_copy(update={"max_batch_size": (128,)})
    asked = asked.model_copy(update={"candidates": wide})
    names = [each.name for each in candidates_of(asked, HERE, shape_of(asked, HERE), made_by=HEAD.made_by)]
    assert len(names) == 2
    assert names[1] == f"{names[0]} evicting"
    rates = []
    for policy in ("guaranteed_no_evict", "max_utilization"):
        runtime = manifest.runtime.model_copy(update={"scheduler_policy": policy})
        task = Task("test", manifest.model_copy(update={"runtime": runtime}), asked, HERE, shape_of(asked, HERE))
        rates.append(max_rate_of(task._replace(is_brief=True)).rate_per_s or 0.0)
    assert rates[1] > 1.5 * rates[0]


@pytest.mark.parametrize(("model", "expected"), [("llama-3-8b", 1500), ("deepseek-r1-0528-qwen3-8b", 32_768)])
def test_a_reasoning_model_is_asked_for_more_than_it_says(model: str, expected: int) -> None:
    """Where nobody states `max_tokens`, it is the longest reply; of a model that reasons, what its card recommends."""
    lengths = {"isl": 100, "osl": "lognormal(mean=220, cv=0.9, max=1500)"}
    asked = demand(model=model, traffic={"process": "described", "rate_per_s": 1.0, "lengths": lengths})
    assert shape_of(asked, HERE).max_tokens == expected
    (first, *_) = window_of(asked, HERE, SampleSpec(5.0, 10.0, 0.0, 0.0)).requests
    assert first.max_tokens == expected
