"""What one replica carries, and how many are needed, against brute force; what binds, against what was made scarce."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from engines.manifest import EngineManifest
from engines.steptime import NONE, Slowdown
from engines.steptime.scaled import Scaled, uniform
from engines.steptime.shape import StepCost, StepShape
from engines.steptime.source import step_time_for
from loadtest.capacity.inputs.demand import Availability, Demand
from loadtest.capacity.replica_count import needed_for, total_for, worst_loss
from loadtest.capacity.simulation.fleet_checks import SizeTask, smallest_fleet
from loadtest.capacity.simulation.length_profile import shape_of
from loadtest.capacity.simulation.load_bench import Interval, LoadBench, Task, _metered
from loadtest.capacity.simulation.max_rate import ReplicaCapacity, max_rate_of, relieved, sweep_rates
from loadtest.capacity.simulation.replica import evened, simulate
from loadtest.capacity.simulation.traffic_sample import SampleSpec, window_of
from tests.unit.loadtest.capacity.made import HERE, demand, engine, window


def task_of(asked: Demand, manifest: EngineManifest, slow: Slowdown = NONE, *, is_brief: bool = True) -> Task:
    """Return a search of an engine."""
    return Task("test", manifest, asked, HERE, shape_of(asked, HERE), Interval(slow), is_brief)


def searched(asked: Demand, slow: Slowdown = NONE, *, is_brief: bool = True, **flags: Any) -> ReplicaCapacity:
    """Search one engine."""
    flags = {"limits.max_batch_size": 32, "limits.max_num_tokens": 2048, "limits.max_seq_len": 2048, **flags}
    return max_rate_of(task_of(asked, engine(**flags), slow, is_brief=is_brief))


def test_the_search_finds_what_trying_every_load_finds() -> None:
    """The promised load is within the search's tolerance of the last load of a fine grid that keeps everything."""
    asked = demand()
    manifest = engine(**{"limits.max_batch_size": 16, "limits.max_num_tokens": 2048, "limits.max_seq_len": 512})
    bench = LoadBench(task_of(asked, manifest))
    found = max_rate_of(bench.task)
    assert found.rate_per_s is not None
    grid = [found.rate_per_s * (0.6 + 0.04 * place) for place in range(16)]
    kept = [rate for rate in grid if bench.verdict(rate, NONE, min_windows=4).met]
    first_missed = min(rate for rate in grid if rate not in kept)
    last_kept = max(rate for rate in kept if rate < first_missed)
    assert last_kept / 1.06 <= found.rate_per_s <= first_missed * 1.06


def waits_of(bench: LoadBench, rate_per_s: float) -> tuple[float, float]:
    """Return the mean TTFT of both halves of four minutes of a load."""
    sample = window_of(bench.task.demand, HERE, SampleSpec(rate_per_s, 240.0, 10.0, 5.0))
    table = simulate(bench.task.manifest, [sample])._whole()
    first, second = np.array_split(table.ttft_s[np.argsort(table.sent_s)], 2)
    return float(first.mean()), float(second.mean())


def test_a_load_above_what_the_engine_processes_is_not_promised_for_a_patient_objective() -> None:
    """With 10 s for a first token, a queue that grows misses nothing within a window, but after minutes it does."""
    asked = demand(
        traffic={"process": "described", "rate_by_hour_per_s": [20.0], "lengths": {"isl": 863, "osl": 128}},
        objectives={"ttft_s": {"p99": 10.0}},
    )
    manifest = engine(**{"limits.max_batch_size": 384, "limits.max_num_tokens": 1024, "limits.max_seq_len": 2048})
    bench = LoadBench(task_of(asked, manifest))
    promised_per_s = max_rate_of(bench.task).rate_per_s
    assert promised_per_s is not None
    assert max(waits_of(bench, promised_per_s)) < 2.0
    first_s, second_s = waits_of(bench, 1.05 * bench.most_per_s(promised_per_s, NONE))
    assert second_s > 2 * first_s


def test_one_simulation_serves_every_slowdown() -> None:
    """An engine half as fast at half the load shows twice the latencies, simulated or worked out from the fast one."""
    asked, manifest = demand(), engine(**{"limits.max_batch_size": 32, "limits.max_num_tokens": 2048})
    shared = LoadBench(task_of(asked, manifest)).verdict(15.0, Slowdown(2.0, 2.0), min_windows=2).level
    alone = LoadBench(task_of(asked, manifest)).verdict(30.0, NONE, min_windows=2).level
    assert shared.ttft_s is not None
    assert alone.ttft_s is not None
    assert shared.itl_s is not None
    assert alone.itl_s is not None
    assert shared.ttft_s.p95 == pytest.approx(2 * alone.ttft_s.p95)
    assert shared.itl_s.p99 == pytest.approx(2 * alone.itl_s.p99)


def test_a_fleet_is_as_small_as_trying_every_number_finds() -> None:
    """Begun too large or too small, the search ends at the smallest fleet that keeps every objective."""
    asked = demand(availability={"n_plus": 0, "headroom": 0.0})
    manifest = engine(**{"limits.max_batch_size": 8, "limits.max_num_tokens": 2048, "limits.max_seq_len": 512})
    task = task_of(asked, manifest)
    found = max_rate_of(task)
    assert found.rate_per_s is not None
    sizes = [
        smallest_fleet(SizeTask(task, NONE, 3.3 * found.rate_per_s, start, "least_outstanding")) for start in (1, 4, 8)
    ]
    assert len({size.needed for size in sizes}) == 1
    best = sizes[0]
    assert best.needed in (3, 4, 5)
    assert best.chosen is not None
    assert best.smaller is not None
    assert (best.smaller.replicas, best.smaller.met) == (best.needed - 1, False)
    assert best.smaller.tried.missed


def test_other_seeds_are_other_traffic_and_other_answers() -> None:
    """Two seeds draw other arrivals, and the search ends at another load: within noise, but never the very same."""
    assert window(20.0).requests != window(20.0, seed=1).requests
    lengths = {"isl": "uniform(128, 384)", "osl": "uniform(16, 48)"}
    traffic = {"process": "described", "rate_by_hour_per_s": [20.0], "lengths": lengths}
    rates = {searched(demand(seed=seed, traffic=traffic)).rate_per_s for seed in (0, 1, 2)}
    assert len(rates) == 3
    assert max(rate or 0.0 for rate in rates) < 1.15 * min(rate or 0.0 for rate in rates)


def test_one_idle_request_decides_what_no_load_can_keep() -> None:
    """A first token sooner than an idle engine's is refused from idle requests alone, with the objective named."""
    found = searched(demand(objectives={"ttft_s": {"p90": 0.001}}))
    assert found.rate_per_s is None
    assert found.tried == ()
    assert found.promised.limited_by == "ttft_s p90"


@pytest.mark.parametrize(
    "objectives",
    [{"ttft_s": {"p90": 0.5}, "itl_s": {"p99": 0.015}}, {"ttft_s": {"p90": 0.5}}, {"tpot_s": {"p90": 0.1}}],
)
def test_what_fails_first_is_named_beyond_what_is_needed(objectives: dict[str, Any]) -> None:
    """An engine that carries far more than is needed names the objective that a search to its limit ends at."""
    task = task_of(
        demand(objectives=objectives),
        engine(**{"limits.max_batch_size": 32, "limits.max_num_tokens": 2048}),
        is_brief=False,
    )
    limit, needed = max_rate_of(task), max_rate_of(task._replace(enough_per_s=0.5))
    assert needed.rate_per_s == 0.5
    assert limit.promised.limited_by is not None
    assert needed.promised.limited_by == limit.promised.limited_by


@pytest.mark.parametrize(
    ("limit_s", "is_carried", "is_clear"),
    [(0.5, True, True), (0.02, True, False), (0.001, False, False)],
)
def test_a_small_load_is_decided_as_by_whole_windows(limit_s: float, is_carried: bool, is_clear: bool) -> None:
    """Far below its limit it is carried after fewer requests; near it, or beyond, the search is the whole one."""
    asked = demand(objectives={"ttft_s": {"p99": limit_s}})
    task = task_of(asked, engine(**{"limits.max_num_tokens": 2048}))._replace(enough_per_s=0.5)
    brief, whole = max_rate_of(task), max_rate_of(task._replace(is_brief=False))
    assert (whole.rate_per_s == 0.5) is is_carried
    assert brief.rate_per_s == whole.rate_per_s
    assert (LoadBench(task).clearly_met(0.5, NONE) is not None) is is_clear


@pytest.mark.parametrize("load", [0.4, 1.5, 2.3, 3.7])
def test_a_search_for_a_number_of_replicas_ends_once_that_is_known(load: float) -> None:
    """It finds as many as the search for the rate does, with fewer loads."""
    manifest = engine(**{"limits.max_batch_size": 16, "limits.max_num_tokens": 2048, "limits.max_seq_len": 512})
    task = task_of(demand(), manifest)
    whole = max_rate_of(task)
    assert whole.rate_per_s is not None
    counted = max_rate_of(task.counting(load * whole.rate_per_s))
    assert counted.rate_per_s is not None
    assert needed_for(load * whole.rate_per_s, counted.rate_per_s) == math.ceil(load)
    assert len(counted.tried) < len(whole.tried)


def test_a_window_that_the_search_simulated_is_swept_without_simulating_it_again() -> None:
    """The sweep of a small load takes it from the search, with the power that the search does not state."""
    asked, manifest = demand(), engine(**{"limits.max_batch_size": 32, "limits.max_num_tokens": 2048})
    task = task_of(asked, manifest, is_brief=False)._replace(enough_per_s=1.0)
    _metered.cache_clear()
    (alone,) = sweep_rates(task, (1.0,))
    _metered.cache_clear()
    tried = max_rate_of(task).tried[-1]
    (after,) = sweep_rates(task, (1.0,))
    assert _metered.cache_info().hits == 1
    assert after == alone
    assert after.rate_per_s == tried.rate_per_s == 1.0
    assert after.power_w is not None
    assert tried.power_w is None
    sweep_rates(task._replace(demand=demand(seed=2)), (1.0,))
    assert _metered.cache_info().hits == 1


def test_an_idle_engine_within_the_limit_carries_something() -> None:
    """TTFT p95 150 ms at 1,000 tokens: an engine that takes a fifth of that when idle carries something."""
    lengths = {"isl": 1000, "osl": 100}
    wanted = demand(
        objectives={"ttft_s": {"p95": 0.15}},
        traffic={"process": "described", "rate_per_s": 5.0, "lengths": lengths},
    )
    found = searched(wanted, Slowdown(1.2, 2.0), **{"limits.max_num_tokens": 8192})
    assert found.idle is not None
    assert found.idle.ttft_p95_s is not None
    assert found.idle.ttft_p95_s < 0.06
    assert found.rate_per_s is not None
    assert found.rate_per_s > 1.0


def test_a_worse_engine_is_promised_less() -> None:
    """The unfavourable end of a prediction carries less than its middle, and both are said."""
    found = searched(demand(), Slowdown(1.5, 1.5), is_brief=False)
    assert found.rate_per_s is not None
    assert found.middle is not None
    assert found.middle.rate_per_s is not None
    assert found.rate_per_s < 0.8 * found.middle.rate_per_s


@pytest.mark.parametrize(
    ("expected", "lengths", "changed"),
    [
        ("batch limit", {"isl": 64, "osl": 64}, {"limits": {"max_batch_size": 8}}),
        ("KV memory", {"isl": 192, "osl": 64}, {"kv_cache": {"blocks": 64}}),
        ("arithmetic", {"isl": 1900, "osl": 2}, {}),
    ],
)
def test_what_is_made_scarce_binds(expected: str, lengths: dict[str, int], changed: dict[str, Any]) -> None:
    """Eight slots bind by the batch limit, blocks for eight by KV memory, prompts with hardly a reply by arithmetic."""
    wanted = demand(
        objectives={"ttft_s": {"p90": 0.5}},
        traffic={"process": "described", "rate_by_hour_per_s": [9.0], "lengths": lengths},
    )
    manifest = engine(**{"limits.max_batch_size": 64, "limits.max_num_tokens": 2048, "limits.max_seq_len": 2048})
    for part, values in changed.items():
        manifest = manifest.model_copy(update={part: getattr(manifest, part).model_copy(update=values)})
    task = task_of(wanted, manifest)
    found = relieved(task, max_rate_of(task))
    assert found.binding == expected, found.reliefs


@pytest.mark.parametrize("needed", [1, 2, 5, 9])
@pytest.mark.parametrize(("n_plus", "zones"), [(0, 1), (1, 1), (2, 3), (0, 2), (1, 3), (0, 5)])
def test_what_is_left_after_a_loss_is_enough(needed: int, n_plus: int, zones: int) -> None:
    """Whatever may be lost, the replicas that remain are enough, and one replica fewer would not be."""
    of = Availability(n_plus=n_plus, zones=zones)
    total = total_for(needed, of)
    assert total - worst_loss(total, of) >= needed
    fewer = total - 1
    lost = max(n_plus, math.ceil(fewer / zones) if zones > 1 else 0)
    assert fewer - lost < needed


def test_scaled_steps_agree_with_themselves() -> None:
    """A step with its parts scaled costs the parts' sum, and its decode line goes through it."""
    source = step_time_for(engine())
    scaled = Scaled(source, uniform(1.0)._replace(kv_read_s=2.0, weights_s=0.5))
    shape = StepShape(decode_sequences=7, decode_context_tokens=7000)
    line = scaled.decode_line(7, 7000)
    assert scaled.seconds(shape) == pytest.approx(line.base_s + line.per_context_token_s * 7000, rel=1e-9)
    parts = source.cost(shape)
    expected = sum(parts) + parts.kv_read_s - parts.weights_s / 2
    assert scaled.seconds(shape) == pytest.approx(expected, rel=1e-9)
    assert StepCost._fields == uniform(1.0)._fields


def test_evening_out_keeps_requests_and_rate() -> None:
    """Requests moved all the way are evenly spaced; moved by nothing, they stay."""
    stretch = window(10.0)
    even = evened(stretch, 1.0)
    gaps = np.diff([each.at_s for each in even.requests])
    assert gaps.std() < 1e-9
    assert [each[1:] for each in even.requests] == [each[1:] for each in stretch.requests]
    assert evened(stretch, 0.0).requests == stretch.requests
