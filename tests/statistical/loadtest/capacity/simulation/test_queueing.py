"""The degenerate batcher against queueing theory's closed forms, and figures against those of the records."""

from __future__ import annotations

import math

import numpy as np
import pytest

from engines.emulator import batcher_for
from engines.emulator.engine import Batcher
from engines.emulator.request import BatcherSettings
from engines.files import MadeBy
from engines.spec import Host
from engines.steptime.shape import DecodeLine, StepCost, StepShape
from loadtest.capacity.simulation.demand_requests import SimRequest
from loadtest.capacity.simulation.observations import QUEUE, Observations
from loadtest.capacity.simulation.rate_result import RateResult
from loadtest.capacity.simulation.replica import collect, sent_of
from loadtest.capacity.simulation.request_table import weighted_spread
from loadtest.capacity.simulation.traffic_sample import TrafficSample
from loadtest.metrics.summarize import spread, summarize_level
from loadtest.scenario.schema import Scenario
from loadtest.scenario.slo import Objectives
from loadtest.simulate.predict import predict
from loadtest.simulate.virtual_server import Arrivals, VirtualServer
from tests.unit.loadtest.capacity.made import engine

WANTED = {"": Objectives(ttft_s={"p95": 1e9})}
STEP_S = 0.001


class Flat:
    """A step of one length, whatever is in it."""

    def cost(self, shape: StepShape) -> StepCost:  # noqa: ARG002 (flat)
        """Return the step as host time."""
        return StepCost(host_s=STEP_S)

    def seconds(self, shape: StepShape) -> float:  # noqa: ARG002 (flat)
        """Return the step's length."""
        return STEP_S

    def decode_line(self, decode_sequences: int, decode_context_tokens: int) -> DecodeLine:  # noqa: ARG002 (flat)
        """Return a level line."""
        return DecodeLine(STEP_S, 0.0, math.inf)


def seen_of(slots: int, times_s: list[float], replies: list[int]) -> RateResult:
    """Return what a batcher of so many slots shows; the first twentieth of the requests is not measured."""
    limits = BatcherSettings(
        max_batch_size=slots, max_num_tokens=4096, max_seq_len=100_000, tokens_per_block=64, kv_blocks=100_000
    )
    asks = tuple(SimRequest(at_s, 1, osl) for at_s, osl in zip(times_s, replies, strict=True))
    stretch = TrafficSample(asks, times_s[len(times_s) // 20], times_s[-1] + 1e-9)
    found = Observations()
    collect(VirtualServer(Batcher(limits, Flat()), Arrivals(sent_of(stretch))), stretch, found)
    return found.result(WANTED, rate_per_s=1.0)


def mean_wait_s(slots: int, times_s: list[float], replies: list[int]) -> float:
    """Return the mean time a request waits for a slot in a batcher of so many."""
    seen = seen_of(slots, times_s, replies)
    assert seen.level.ttft_s is not None
    return seen.level.ttft_s.mean - STEP_S  # the first token comes a step after its slot


def erlang_c(servers: int, load: float) -> float:
    """Return the chance that all servers are taken, by Erlang's second formula."""
    below = sum(load**k / math.factorial(k) for k in range(servers))
    full = load**servers / math.factorial(servers) * servers / (servers - load)
    return full / (below + full)


@pytest.mark.parametrize("use", [0.4, 0.75])
def test_a_batch_of_one_with_equal_replies_is_m_d_1(use: float) -> None:
    """Mean wait = use x service / (2 (1 - use)), by Pollaczek and Khinchine, for one server and equal services."""
    tokens, requests = 50, 20_000
    service_s = tokens * STEP_S
    times_s = np.cumsum(np.random.default_rng(1).exponential(service_s / use, requests)).tolist()
    expected_s = use * service_s / (2 * (1 - use))
    # Who finds the engine idle starts at once; who does not, waits in whole steps, a fiftieth of a service.
    assert mean_wait_s(1, times_s, [tokens] * requests) == pytest.approx(expected_s, rel=0.08)


@pytest.mark.parametrize(("slots", "use"), [(2, 0.6), (4, 0.7)])
def test_slots_with_random_replies_are_erlang_c(slots: int, use: float) -> None:
    """Mean wait = C(slots, load) x service / (slots - load), for exponential services: geometric replies."""
    mean_tokens, requests = 200, 20_000
    rng = np.random.default_rng(2)
    service_s = mean_tokens * STEP_S
    times_s = np.cumsum(rng.exponential(service_s / (use * slots), requests)).tolist()
    replies = rng.geometric(1 / mean_tokens, requests).tolist()
    load = use * slots
    expected_s = erlang_c(slots, load) * service_s / (slots - load)
    found_s = mean_wait_s(slots, times_s, replies)
    # Who comes during a step waits it out: half a step on average, on top of what the continuous queue makes.
    assert found_s - STEP_S / 2 == pytest.approx(expected_s, rel=0.15)


def test_a_queue_grows_where_slots_are_short_and_not_where_a_burst_ends_the_window() -> None:
    """Of forty windows of bursty arrivals, none shows a growing queue with slots for all, most with half as many."""
    rate_per_s, tokens = 160.0, 200  # 32 in flight on average
    rng = np.random.default_rng(3)
    growing = {1000: 0, 16: 0}
    for _ in range(40):
        times_s = np.cumsum(rng.gamma(1 / 9, 9 / rate_per_s, 400)).tolist()  # gaps with a coefficient of variation of 3
        for slots in growing:
            growing[slots] += QUEUE in seen_of(slots, times_s, [tokens] * len(times_s)).missed
    assert growing[1000] == 0
    assert growing[16] > 20


def test_figures_are_those_of_the_records() -> None:
    """What is computed from spans equals what `metrics` computes from the records of the same prediction."""
    manifest = engine(**{"limits.max_batch_size": 16, "limits.max_num_tokens": 1024})
    scenario = Scenario.model_validate(
        {
            "rate_per_s": [14.0],
            "duration_s": 40.0,
            "lengths": {"isl": "uniform(100, 900)", "osl": "uniform(5, 120)"},
            "prompts": "random",
            "warmup_ratio": 0.2,
        }
    )
    found = predict(scenario, manifest, made_by=MadeBy(command="test", version="0"), made_from=[])
    level = summarize_level(found.run.levels[0], found.records, [], time_scale=1.0, settles=False)
    records = sorted(found.records, key=lambda each: each.sent_s)
    asks = tuple(SimRequest(each.sent_s, each.prompt_tokens, each.output_tokens) for each in records)
    begin_s = next(each.sent_s for each in records if each.phase == "measure")
    stretch = TrafficSample(asks, begin_s, records[-1].sent_s + 1e-9)
    whole = Observations()
    server = VirtualServer(batcher_for(manifest), Arrivals(sent_of(stretch)), manifest.step_time.host or Host())
    collect(server, stretch, whole)
    seen = whole.result(WANTED, rate_per_s=14.0).level
    for name in ("ttft_s", "itl_s", "tpot_s", "e2e_s"):
        mine, theirs = getattr(seen, name), getattr(level, name)
        assert mine.count == theirs.count
        for statistic in ("mean", "p50", "p90", "p95", "p99", "max"):
            assert getattr(mine, statistic) == pytest.approx(getattr(theirs, statistic), rel=1e-6)


@pytest.mark.parametrize("largest", [9, 90])
def test_weighted_percentiles_are_those_of_the_values_written_out(largest: int) -> None:
    """Percentiles of values with few or many counts equal those of every value repeated as often."""
    rng = np.random.default_rng(0)
    values, counts = rng.random(300), rng.integers(0, largest, 300)
    assert weighted_spread(values, counts) is not None
    mine, theirs = weighted_spread(values, counts), spread(np.repeat(values, counts).tolist())
    assert mine is not None
    assert theirs is not None
    for name in ("count", "mean", "p50", "p90", "p95", "p99", "p999", "max"):
        assert getattr(mine, name) == pytest.approx(getattr(theirs, name), rel=1e-12)
