"""What one replica carries, and how many are needed, against brute force; what binds, against what was made scarce."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from engines.manifest import EngineManifest
from engines.steptime.scaled import Scaled, uniform
from engines.steptime.shape import StepCost, StepShape
from engines.steptime.source import step_time_for
from loadtest.capacity.inputs.demand import Availability, Demand
from loadtest.capacity.replica_count import size_for, total_for, worst_loss
from loadtest.capacity.simulation.fleet import Fleet, serve
from loadtest.capacity.simulation.max_rate import Bench, ReplicaCapacity, Task, evened, most_of, wanted_of
from loadtest.capacity.simulation.replica import NONE, Pessimism
from loadtest.capacity.simulation.traffic_sample import requests_needed, shape_of, stretches_at
from tests.unit.loadtest.capacity.made import HERE, demand, engine


def task_of(asked: Demand, manifest: EngineManifest, pessimism: Pessimism = NONE, *, is_brief: bool = True) -> Task:
    """Return a search of an engine."""
    return Task("test", manifest, asked, HERE, shape_of(asked, HERE), pessimism, is_brief)


def searched(asked: Demand, pessimism: Pessimism = NONE, *, is_brief: bool = True, **flags: Any) -> ReplicaCapacity:
    """Search one engine."""
    flags = {"limits.max_batch_size": 32, "limits.max_num_tokens": 2048, "limits.max_seq_len": 2048, **flags}
    return most_of(task_of(asked, engine(**flags), pessimism, is_brief=is_brief))


def test_the_search_finds_what_trying_every_load_finds() -> None:
    """The promised load is within the search's tolerance of the last load of a fine grid that keeps everything."""
    asked = demand()
    manifest = engine(**{"limits.max_batch_size": 16, "limits.max_num_tokens": 2048, "limits.max_seq_len": 512})
    bench = Bench(task_of(asked, manifest))
    found = most_of(bench.task)
    assert found.rate_per_s is not None
    grid = [found.rate_per_s * (0.6 + 0.04 * place) for place in range(16)]
    kept = [rate for rate in grid if bench.see(rate, NONE).met]
    first_missed = min(rate for rate in grid if rate not in kept)
    last_kept = max(rate for rate in kept if rate < first_missed)
    assert last_kept / 1.05 <= found.rate_per_s <= first_missed * 1.05


def test_replicas_are_as_few_as_trying_every_number_finds() -> None:
    """Without headroom and spares, the plan's number is that of brute force over fleets, or one more."""
    asked = demand(availability={"n_plus": 0, "headroom": 0.0})
    manifest = engine(**{"limits.max_batch_size": 8, "limits.max_num_tokens": 2048, "limits.max_seq_len": 512})
    found = most_of(task_of(asked, manifest))
    assert found.rate_per_s is not None
    peak_per_s = 3.3 * found.rate_per_s
    wanted = wanted_of(manifest, peak_per_s, requests_needed(asked, 8))
    stretches = stretches_at(asked, HERE, wanted)
    fewest = next(
        count
        for count in range(1, 9)
        if serve(
            Fleet(manifest, (0.0,) * count, "least_outstanding"),
            stretches,
            asked.all_objectives,
            rate_per_s=peak_per_s,
        ).seen.met
    )
    assert size_for(peak_per_s, found.rate_per_s, asked.availability).needed in (fewest, fewest + 1)


def test_a_worse_engine_is_promised_less() -> None:
    """The unfavourable end of a prediction carries less than its middle, and both are said."""
    found = searched(demand(), Pessimism(1.5, 1.2), is_brief=False)
    assert found.rate_per_s is not None
    assert found.middle_rate_per_s is not None
    assert found.rate_per_s < 0.8 * found.middle_rate_per_s


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
    found = most_of(task_of(wanted, manifest, is_brief=False))
    assert found.binding == expected, found.reliefs


def test_percentiles_decide_how_long_a_simulation_is() -> None:
    """Fifty requests lie beyond the rarest limit, of the rarest class too; a full batch turns over ten times."""
    assert requests_needed(demand(objectives={"ttft_s": {"p99": 1.0}}), 16) == 5000
    assert requests_needed(demand(objectives={"ttft_s": {"p999": 1.0}}), 16) == 50_000
    assert requests_needed(demand(objectives={"ttft_s": {"p50": 1.0}}), 256) == 2560
    rare = demand(
        traffic={
            "process": "described",
            "rate_by_hour_per_s": [1.0],
            "classes": [
                {"name": "many", "weight": 9},
                {"name": "few", "weight": 1, "objectives": {"ttft_s": {"p95": 1.0}}},
            ],
        },
        objectives={"ttft_s": {"p95": 1.0}},
    )
    assert requests_needed(rare, 16) == 10_000


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
    asked = demand()
    (stretch,) = stretches_at(asked, HERE, wanted_of(engine(), 10.0, 1000))
    even = evened(stretch, 1.0)
    gaps = np.diff([each.at_s for each in even.asks])
    assert gaps.std() < 1e-9
    assert [each[1:] for each in even.asks] == [each[1:] for each in stretch.asks]
    assert evened(stretch, 0.0).asks == stretch.asks
