"""A fleet of one is the prediction itself; routing, loss and late replicas do what they must."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import pytest

from engines.files import Document, MadeBy
from engines.manifest import EngineManifest
from engines.planning import emulated_manifest
from engines.planning.plan import make_plan
from engines.planning.recipe import resolve_recipe
from loadtest.capacity.simulation.demand_requests import SimRequest
from loadtest.capacity.simulation.fleet import Fleet, Loss, serve
from loadtest.capacity.simulation.rate_result import RateResult
from loadtest.capacity.simulation.replica import simulate
from loadtest.capacity.simulation.traffic_sample import TrafficSample
from loadtest.scenario.slo import Objectives

HEAD = Document(made_by=MadeBy(command="test", version="0"))
WANTED = {"": Objectives(ttft_s={"p95": 10.0}, itl_s={"p99": 10.0})}


@pytest.fixture(scope="module")
def manifest() -> EngineManifest:
    """Plan a small engine."""
    asked = resolve_recipe(None, {"model": "llama-3-8b", "limits.max_batch_size": 32, "limits.max_num_tokens": 2048})
    return emulated_manifest(make_plan(asked, head=HEAD), asked.recipe)


class Served(NamedTuple):
    """What a fleet showed, and how many requests were sent again."""

    seen: RateResult
    retried: int


def served(fleet: Fleet, sample: TrafficSample, rate_per_s: float) -> Served:
    """Simulate a fleet."""
    found, retried = serve(fleet, [sample])
    return Served(found.result(WANTED, rate_per_s=rate_per_s), retried)


def poisson(rate_per_s: float, requests: int, *, prefixes: int = 0) -> TrafficSample:
    """Draw a stretch; each prompt begins with one of some long prefixes."""
    rng = np.random.default_rng(3)
    times_s = np.cumsum(rng.exponential(1 / rate_per_s, requests))
    asks = []
    for place, at_s in enumerate(times_s.tolist()):
        which = int(rng.integers(prefixes)) if prefixes else 0
        shared = tuple(-(which * 1000 + block + 1) for block in range(48)) if prefixes else ()
        own = tuple(place * 1000 + block for block in range(10)) if prefixes else ()
        asks.append(SimRequest(at_s, 58 * 32, int(rng.integers(20, 200)), "", shared + own))
    return TrafficSample(tuple(asks), float(times_s[requests // 10]), float(times_s[-1]) + 1e-9)


@pytest.mark.parametrize("routing", ["round_robin", "least_outstanding", "least_kv", "prefix_aware"])
def test_a_fleet_of_one_is_a_replica(manifest: EngineManifest, routing: str) -> None:
    """Whatever the router, a single replica shows what a prediction shows."""
    stretch = poisson(6.0, 400)
    alone = simulate(manifest, [stretch]).result(WANTED, rate_per_s=6.0)
    fleet = served(Fleet(manifest, (0.0,), routing), stretch, 6.0)  # type: ignore[arg-type]
    for name in ("ttft_s", "itl_s", "tpot_s", "e2e_s"):
        one, other = getattr(alone.level, name), getattr(fleet.seen.level, name)
        for statistic in ("count", "mean", "p50", "p95", "p99", "max"):
            assert getattr(other, statistic) == pytest.approx(getattr(one, statistic), rel=1e-6)


def test_round_robin_deals_requests_out(manifest: EngineManifest) -> None:
    """Two replicas that take turns are two predictions, each of every other request."""
    stretch = poisson(12.0, 400)
    fleet = served(Fleet(manifest, (0.0, 0.0), "round_robin"), stretch, 12.0)
    found = []
    for half in (0, 1):
        part = TrafficSample(stretch.requests[half::2], stretch.measure_s, stretch.end_s)
        seen = simulate(manifest, [part]).result(WANTED, rate_per_s=6.0)
        assert seen.level.ttft_s is not None
        found.append((seen.level.ttft_s.count, seen.level.ttft_s.mean))
    assert fleet.seen.level.ttft_s is not None
    mean = sum(count * value for count, value in found) / sum(count for count, _ in found)
    assert fleet.seen.level.ttft_s.mean == pytest.approx(mean, rel=1e-9)


def test_looking_at_queues_beats_taking_turns_where_slots_bind(manifest: EngineManifest) -> None:
    """With few slots and replies of very different lengths, least outstanding waits less than round robin."""
    limits = manifest.limits.model_copy(update={"max_batch_size": 2})
    narrow = manifest.model_copy(update={"limits": limits})
    rng = np.random.default_rng(5)
    times_s = np.cumsum(rng.exponential(1 / 6.0, 1200)).tolist()
    asks = tuple(SimRequest(at_s, 64, 10 if rng.random() < 0.8 else 600) for at_s in times_s)
    stretch = TrafficSample(asks, times_s[100], times_s[-1] + 1e-9)
    waits = {}
    for routing in ("round_robin", "least_outstanding"):
        seen = served(Fleet(narrow, (0.0,) * 4, routing), stretch, 6.0).seen  # type: ignore[arg-type]
        assert seen.level.ttft_s is not None
        waits[routing] = seen.level.ttft_s.p95
    assert waits["least_outstanding"] < 0.7 * waits["round_robin"]


def test_looking_at_queues_can_bunch_prompts(manifest: EngineManifest) -> None:
    """Where slots are plenty, counting requests sends prompts one after another to whoever just ended some."""
    stretch = poisson(50.0, 1500)
    waits = {}
    for routing in ("round_robin", "least_outstanding"):
        seen = served(Fleet(manifest, (0.0,) * 4, routing), stretch, 50.0).seen  # type: ignore[arg-type]
        assert seen.level.ttft_s is not None
        waits[routing] = seen.level.ttft_s.p95
    assert waits["round_robin"] < waits["least_outstanding"]


def test_a_prefix_aware_router_computes_less(manifest: EngineManifest) -> None:
    """Where prompts share long beginnings and the cache holds few, sending them where those are shortens TTFT."""
    small = manifest.model_copy(update={"kv_cache": manifest.kv_cache.model_copy(update={"blocks": 700})})
    stretch = poisson(24.0, 1200, prefixes=24)
    waits = {}
    for routing in ("least_outstanding", "prefix_aware"):
        seen = served(Fleet(small, (0.0,) * 4, routing), stretch, 24.0).seen  # type: ignore[arg-type]
        assert seen.level.ttft_s is not None
        waits[routing] = seen.level.ttft_s.mean
    assert waits["prefix_aware"] < waits["least_outstanding"]


def test_no_request_is_lost_with_a_replica(manifest: EngineManifest) -> None:
    """What a lost replica had under way ends elsewhere, once, and its users have waited since they first sent it."""
    stretch = poisson(20.0, 600)
    loss = Loss(stretch.requests[300].at_s, 1)
    whole = served(Fleet(manifest, (0.0,) * 3, "least_outstanding"), stretch, 20.0)
    lossy = served(Fleet(manifest, (0.0,) * 3, "least_outstanding", loss=loss), stretch, 20.0)
    assert lossy.retried > 0
    assert lossy.seen.level.requests == whole.seen.level.requests
    assert lossy.seen.level.errors == 0
    assert whole.seen.level.e2e_s is not None
    assert lossy.seen.level.e2e_s is not None
    assert lossy.seen.level.e2e_s.max > whole.seen.level.e2e_s.max


def test_a_replica_that_is_not_up_gets_nothing(manifest: EngineManifest) -> None:
    """Until it is up, a fleet of two is a fleet of one."""
    stretch = poisson(6.0, 300)
    one = served(Fleet(manifest, (0.0,), "least_outstanding"), stretch, 6.0)
    never = served(Fleet(manifest, (0.0, math.inf), "least_outstanding"), stretch, 6.0)
    assert never.seen.level.ttft_s == one.seen.level.ttft_s


def test_a_notice_lets_a_replica_finish_and_a_replacement_takes_over(manifest: EngineManifest) -> None:
    """Withdrawn at a notice longer than any request, nothing is sent again; back cold, the fleet is as before."""
    stretch = poisson(20.0, 1200)
    middle_s = stretch.requests[600].at_s
    abrupt = served(Fleet(manifest, (0.0,) * 2, "least_outstanding", loss=Loss(middle_s, 1)), stretch, 20.0)
    noticed = Loss(middle_s, 1, notice_s=20.0)
    drained = served(Fleet(manifest, (0.0,) * 2, "least_outstanding", loss=noticed), stretch, 20.0)
    replaced = noticed._replace(restart_s=0.0)
    whole = served(Fleet(manifest, (0.0,) * 2, "least_outstanding", loss=replaced), stretch, 20.0)
    assert abrupt.retried > drained.retried == whole.retried == 0
    assert drained.seen.level.requests == whole.seen.level.requests == abrupt.seen.level.requests
    assert whole.seen.level.ttft_s is not None
    assert drained.seen.level.ttft_s is not None
    assert whole.seen.level.ttft_s.p95 < drained.seen.level.ttft_s.p95
