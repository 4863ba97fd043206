"""Control laws over fluid replicas against the same laws over virtual servers, request by request."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from engines.autoscaling import ColdStart, ScalingLaw, Signal
from engines.files import Document, MadeBy
from engines.planning import emulated_manifest
from engines.planning.plan import make_plan
from engines.planning.recipe import resolve_recipe
from engines.steptime import NONE
from loadtest.capacity.autoscaling.comparison import ScalingInput, compare_laws
from loadtest.capacity.autoscaling.fluid import follow, step_s_of
from loadtest.capacity.autoscaling.replay import ReplayTask, replay
from loadtest.capacity.autoscaling.response import ReplicaResponse
from loadtest.capacity.inputs import Demand
from loadtest.capacity.simulation import (
    Interval,
    LoadBench,
    Task,
    max_rate_of,
    shape_of,
    sweep_rates,
)

HEAD = Document(made_by=MadeBy(command="test", version="0"))
COLD = ColdStart(pending_s=60.0, loading_s=60.0, source="assumed")
SHARES = (0.25, 0.5, 0.75, 0.9, 1.0)


class Small(NamedTuple):
    """A small engine, and what the planner finds of one replica."""

    task: Task
    carried_per_s: float
    response: ReplicaResponse


@pytest.fixture(scope="module")
def small() -> Small:
    """Plan a small engine and simulate one replica at a few loads."""
    task = _task()
    found = max_rate_of(task)
    assert found.rate_per_s is not None
    probes = sweep_rates(task, tuple(found.rate_per_s * share for share in SHARES))
    response = ReplicaResponse.of(
        probes, full_per_s=LoadBench(task).bound_per_s, slots=32, carried_per_s=found.rate_per_s, ttft_limit_s=0.5,
        drain_before_s=10.0,
    )  # fmt: skip
    return Small(task, found.rate_per_s, response)


def _task() -> Task:
    # 16-bit weights on an L40S: as many requests in flight as in FP8 on an H100, in a sixth of the iterations.
    flags = {
        "model": "llama-3-8b", "gpu": "l40s-48gb", "precision": "bf16",
        "limits.max_batch_size": 32, "limits.max_num_tokens": 2048,
    }  # fmt: skip
    asked = resolve_recipe(None, flags)
    manifest = emulated_manifest(make_plan(asked, head=HEAD), asked.recipe)
    demand = Demand.model_validate({
        "name": "small", "model": "llama-3-8b",
        "traffic": {"process": "described", "rate_by_hour_per_s": [20.0], "minute_variation": 0.0,
                    "lengths": {"isl": 256, "osl": 128}},
        "objectives": {"ttft_s": {"p90": 0.5}},
    })  # fmt: skip
    return Task("small", manifest, demand, Path(), shape_of(demand, Path()), Interval(NONE, NONE))


@pytest.mark.parametrize(
    ("signal", "target_share", "sync_s"),
    [("in_flight", 0.5, 15.0), ("kv_used", 0.5, 15.0), ("in_flight", 0.5, 60.0)],
)
def test_fluid_replicas_scale_as_virtual_servers_do(
    small: Small, signal: Signal, target_share: float, sync_s: float
) -> None:
    """A rise to three times the load and back: within one replica in nine minutes of ten, and as many in the mean."""
    task, carried_per_s, response = small
    at = response.in_flight_at(np.array(carried_per_s))
    full = {"in_flight": float(at), "kv_used": float(response.kv_at(at)), "ttft_p95": 0.5}[signal]
    law = ScalingLaw(controller="hpa", signal=signal, target=round(full * target_share, 3), min_replicas=1,
                     max_replicas=6, sync_s=sync_s)  # fmt: skip
    rates = tuple(carried_per_s * factor for factor in [0.8] * 4 + [2.4] * 14 + [0.8] * 12)
    arrivals = np.repeat(rates, round(60 / step_s_of(law)))
    [fluid] = follow([law], arrivals, response, COLD, begin_with=1)
    replayed = replay(
        ReplayTask(task, NONE, "least_outstanding", law, COLD, rates, lead_slots=0, begin_with=1, max_queue_size=0)
    )
    ups = fluid.up_by_minute[:, -1]
    apart = np.abs(ups - np.array(replayed.up))
    assert np.mean(apart <= 1) >= 0.9
    assert abs(ups.mean() - np.mean(replayed.up)) <= 0.5
    assert abs(sum(fluid.missed) - sum(replayed.missed)) <= 3


# A replica whose requests take 5 s at any load below a full batch of 100, which completes 20 a second.
LINEAR = ReplicaResponse(
    rates_per_s=(0.0, 20.0), in_flight=(0.0, 100.0), ttft_p95_s=(0.1, 0.1), kv_ratio=(0.0, 0.5), slots=100,
    carried_per_s=19.0, ttft_limit_s=1.0, drain_s=60.0,
)  # fmt: skip


def test_the_same_seed_gives_the_same_comparison() -> None:
    """Laws are compared under the same arrivals; the fixed fleet is never scaled; the winner misses least."""
    rates = tuple(10 + 15 * np.sin(np.linspace(0, np.pi, 120)) ** 2)
    of = ScalingInput(rates, 30.0, LINEAR, COLD, replicas=3, min_replicas=1, max_replicas=8, gpus=2, seed=4)
    found, _ = compare_laws(of)
    assert found == compare_laws(of)[0]
    assert found.fixed.gpu_hours == 3 * 2 * 2.0
    assert found.fixed.max_replicas == 3
    assert found.chosen.missed_minutes <= min(each.missed_minutes for each in found.laws) + 1
    assert {each.law.signal for each in found.laws} == {"in_flight", "queue", "kv_used", "ttft_p95"}
    assert max(each.law.max_replicas for each in found.laws) == 6
