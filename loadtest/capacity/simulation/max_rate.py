"""The most one replica carries with every objective kept, and what binds it there: one task for a process."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from engines.files import Strict, sha256_of
from engines.manifest import EngineManifest
from engines.planning import Engine, Workload, outlook
from engines.spec import Sizing
from engines.steptime import StepCost, uniform
from loadtest.capacity.inputs import Demand
from loadtest.capacity.simulation.replica import NONE, Pessimism, RateResult, simulate
from loadtest.capacity.simulation.traffic_sample import (
    LengthProfile,
    TrafficSample,
    Wanted,
    requests_needed,
    stretches_at,
)
from loadtest.knee import Knee, Probe, find_knee
from loadtest.metrics import LevelSummary
from loadtest.scenario import Trace

TOLERANCE = 0.05
MIDDLE_TOLERANCE = 0.12  # the middle of a prediction is shown for comparison, and nothing is bought by it
SPAN = 4096.0  # between the highest and the lowest load of interest
RELIEF = 1.25  # how much faster a resource is made to see whether it binds; bursts are made a fifth smaller

Constraint = Literal["KV memory", "bandwidth", "arithmetic", "host", "queueing", "batch limit", "token budget"]
_FASTER = 1 / RELIEF
_KEEP = uniform(1.0)
# Which parts of a step's cost each resource is behind.
_PARTS: dict[Constraint, StepCost] = {
    "bandwidth": _KEEP._replace(weights_s=_FASTER, kv_read_s=_FASTER, activations_s=_FASTER),
    "arithmetic": _KEEP._replace(gemm_s=_FASTER, attention_s=_FASTER),
    "host": _KEEP._replace(host_s=_FASTER, sampling_s=_FASTER),
}


class Task(NamedTuple):
    """All that a search needs, to be sent to a process or a machine of its own.

    Attributes:
        folder: Where the demand's relative paths begin.
        is_brief: Only what is promised is wanted, neither the middle of the prediction nor what binds.
    """

    name: str
    manifest: EngineManifest
    demand: Demand
    folder: Path
    shape: LengthProfile
    pessimism: Pessimism
    is_brief: bool = False

    @property
    def key(self) -> str:
        """All that the result depends on, as text: the engine, the traffic by its content, and what is to be kept."""
        traffic = self.demand.traffic
        parts = (
            self.manifest.model_dump_json(include={"model", "gpu", "precision", "parallel", "limits", "kv_cache"}),
            self.manifest.model_dump_json(include={"runtime", "step_time"}),
            self.demand.model_dump_json(include={"peak_window_s", "objectives", "seed"}),
            traffic.model_dump_json(exclude={"rate_by_hour_per_s"}),  # what a replica gets of it is the search's own
            repr((self.demand.scale.isl, self.demand.scale.osl)),
            sha256_of(self.folder / traffic.path) if isinstance(traffic, Trace) else "",
            repr((self.pessimism, self.is_brief)),
        )
        return "\n".join(parts)


class RateProbe(Strict):
    """One load tried on one replica; latencies at the unfavourable end of the prediction."""

    rate_per_s: float
    met: bool
    missed: tuple[str, ...]
    worst_ratio: float
    requests: int
    ttft_p50_s: float | None
    ttft_p95_s: float | None
    ttft_p99_s: float | None
    itl_mean_s: float | None
    itl_p99_s: float | None
    e2e_p95_s: float | None
    goodput: float | None
    output_tokens_per_s: float | None
    in_flight: float
    kv_ratio: float
    kv_most: float


class Relief(Strict):
    """What making one resource easier by a quarter did to the load that missed.

    Attributes:
        worst_ratio: Of what was found over its limit, the largest, with the relief; without it, the row's `strain`.
        gain: Share of the strain that the relief took away.
    """

    constraint: Constraint
    worst_ratio: float
    gain: float


class ReplicaCapacity(Strict):
    """What one replica carries.

    Attributes:
        rate_per_s: At the unfavourable end of the prediction: what is promised. None where even the least load missed.
        middle_rate_per_s: At the middle of the prediction, for comparison.
        requests_needed: Measured requests of each probe for its percentiles to be supported.
        supported: Whether the deciding probe had as many.
        strain: Worst ratio at the load the reliefs were tried at.
        binding: The relief that helped most; None where nothing missed.
    """

    rate_per_s: float | None
    above_per_s: float | None
    middle_rate_per_s: float | None
    missed: tuple[str, ...]
    requests_needed: int
    supported: bool
    tried: tuple[RateProbe, ...]
    strain: float | None = None
    reliefs: tuple[Relief, ...] = ()

    @property
    def binding(self) -> Constraint | None:
        """The constraint whose relief took away the largest share of the strain."""
        best = max(self.reliefs, key=lambda each: each.gain, default=None)
        return None if best is None or best.gain <= 0 else best.constraint

    @property
    def at_knee(self) -> RateProbe | None:
        """The figures at the promised load."""
        return next((each for each in self.tried if each.rate_per_s == self.rate_per_s), None)


class Bench:
    """One replica's loads, each simulated once."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.slots = task.manifest.limits.max_batch_size
        self.requests = requests_needed(task.demand, self.slots)

    def stretches(self, rate_per_s: float) -> list[TrafficSample]:
        """Return the demand's traffic at a rate."""
        task = self.task
        return stretches_at(task.demand, task.folder, wanted_of(task.manifest, rate_per_s, self.requests))

    def see(self, rate_per_s: float, pessimism: Pessimism, **changes: StepCost) -> RateResult:
        """Simulate one load."""
        return simulate(
            self.task.manifest,
            self.stretches(rate_per_s),
            self.task.demand.all_objectives,
            rate_per_s=rate_per_s,
            pessimism=pessimism,
            **changes,
        )

    def knee(
        self, pessimism: Pessimism, start_per_s: float, tolerance: float = TOLERANCE
    ) -> tuple[Knee, dict[float, RateResult]]:
        """Bracket the highest load that keeps every objective."""
        seen: dict[float, RateResult] = {}

        def probe(rate_per_s: float) -> Probe:
            found = seen[rate_per_s] = self.see(rate_per_s, pessimism)
            return Probe(rate_per_s, found.met, found.missed, found.level.requests)

        knee = find_knee(
            probe, start=start_per_s, least=start_per_s / SPAN, most=start_per_s * SPAN, tolerance=tolerance
        )
        return knee, seen


def wanted_of(manifest: EngineManifest, rate_per_s: float, requests: int) -> Wanted:
    """Return what a simulation of an engine asks of the traffic."""
    block = manifest.kv_cache.tokens_per_block if manifest.runtime.kv_reuse else None
    return Wanted(rate_per_s, requests, manifest.limits.max_batch_size, block)


def most_of(task: Task) -> ReplicaCapacity:
    """Return the most one replica carries, and what binds it."""
    bench = Bench(task)
    start_per_s = steady_rate_per_s(task.manifest, task.shape)
    knee, seen = bench.knee(task.pessimism, start_per_s)
    middle = knee
    if task.pessimism != NONE and not task.is_brief:
        middle, _ = bench.knee(NONE, knee.load or start_per_s, MIDDLE_TOLERANCE)
    decisive = seen.get(knee.above or -1.0) or seen.get(knee.load or -1.0)
    reliefs = () if knee.above is None or task.is_brief else _reliefs(bench, knee.above, seen[knee.above])
    return ReplicaCapacity(
        rate_per_s=knee.load,
        above_per_s=knee.above,
        middle_rate_per_s=middle.load,
        missed=knee.missed,
        requests_needed=bench.requests,
        supported=decisive is not None and decisive.level.requests >= bench.requests,
        tried=tuple(tried_of(each) for _, each in sorted(seen.items())),
        strain=None if knee.above is None else seen[knee.above].worst_ratio,
        reliefs=reliefs,
    )


def swept(task: Task, rates_per_s: Sequence[float]) -> tuple[RateProbe, ...]:
    """Return what a replica shows at each of some loads."""
    bench = Bench(task)
    return tuple(tried_of(bench.see(rate_per_s, task.pessimism)) for rate_per_s in rates_per_s)


def steady_rate_per_s(manifest: EngineManifest, shape: LengthProfile) -> float:
    """Return where to begin: half of what the engine's steady state makes of full slots."""
    workload = Workload(
        input_tokens=max(1, round(shape.mean_isl)),
        output_tokens=max(1, round(shape.mean_osl)),
        longest_input_tokens=shape.longest_isl,
        longest_output_tokens=shape.longest_osl,
    )
    limits, cache = manifest.limits, manifest.kv_cache
    sizing = Sizing(
        max_batch_size=limits.max_batch_size,
        max_num_tokens=limits.max_num_tokens,
        max_seq_len=limits.max_seq_len,
        tokens_per_block=cache.tokens_per_block,
        kv_fraction=cache.free_gpu_mem_fraction,
        tensor_parallel=manifest.parallel.tensor,
        pipeline_parallel=manifest.parallel.pipeline,
    )
    engine = Engine(
        manifest.model,
        manifest.gpu,
        manifest.precision.name,
        manifest.precision.kv_cache,
        sizing,
        manifest.runtime.chunked_context,
        manifest.step_time,
    )
    return max(1e-3, outlook(engine, workload).tokens_per_s / workload.output_tokens / 2)


def tried_of(seen: RateResult) -> RateProbe:
    """Return a load's figures as they are kept."""
    return RateProbe(
        rate_per_s=seen.rate_per_s,
        met=seen.met,
        missed=seen.missed,
        worst_ratio=min(seen.worst_ratio, 1e9),
        **figures_of(seen.level),
        in_flight=seen.in_flight,
        kv_ratio=seen.kv_ratio,
        kv_most=seen.kv_most,
    )


def figures_of(level: LevelSummary) -> dict[str, Any]:
    """Return what is kept of a level, whether it was measured or simulated."""
    ttft, itl, e2e = level.ttft_s, level.itl_s, level.e2e_s
    return {
        "requests": level.requests,
        "ttft_p50_s": None if ttft is None else ttft.p50,
        "ttft_p95_s": None if ttft is None else ttft.p95,
        "ttft_p99_s": None if ttft is None else ttft.p99,
        "itl_mean_s": None if itl is None else itl.mean,
        "itl_p99_s": None if itl is None else itl.p99,
        "e2e_p95_s": None if e2e is None else e2e.p95,
        "goodput": level.goodput,
        "output_tokens_per_s": level.output_tokens_per_s,
    }


def _reliefs(bench: Bench, rate_per_s: float, strained: RateResult) -> tuple[Relief, ...]:
    """Simulate the load that missed again and again, each time with one resource a quarter easier."""
    task = bench.task
    eased: dict[Constraint, RateResult] = {
        name: bench.see(rate_per_s, task.pessimism, ratios=ratios) for name, ratios in _PARTS.items()
    }
    manifest = task.manifest
    for name, changed in _eased_limits(manifest).items():
        eased[name] = simulate(
            changed,
            bench.stretches(rate_per_s),
            task.demand.all_objectives,
            rate_per_s=rate_per_s,
            pessimism=task.pessimism,
        )
    eased["queueing"] = simulate(
        manifest,
        [evened(each, 1 - _FASTER) for each in bench.stretches(rate_per_s)],
        task.demand.all_objectives,
        rate_per_s=rate_per_s,
        pessimism=task.pessimism,
    )
    strain = min(strained.worst_ratio, 1e9)
    return tuple(
        Relief(constraint=name, worst_ratio=min(seen.worst_ratio, 1e9), gain=1 - min(seen.worst_ratio, 1e9) / strain)
        for name, seen in eased.items()
    )


def _eased_limits(manifest: EngineManifest) -> dict[Constraint, EngineManifest]:
    limits, cache = manifest.limits, manifest.kv_cache
    more_blocks = cache.model_copy(update={"blocks": math.ceil(cache.blocks * RELIEF)})
    more_slots = limits.model_copy(update={"max_batch_size": math.ceil(limits.max_batch_size * RELIEF)})
    budget = limits.model_copy(update={"max_num_tokens": math.ceil(limits.max_num_tokens * RELIEF)})
    return {
        "KV memory": manifest.model_copy(update={"kv_cache": more_blocks}),
        "batch limit": manifest.model_copy(update={"limits": more_slots}),
        "token budget": manifest.model_copy(update={"limits": budget}),
    }


def evened(stretch: TrafficSample, share: float) -> TrafficSample:
    """Return the same requests in the same order, moved a share of the way to even spacing."""
    asks = stretch.asks
    begin_s, gap_s = asks[0].at_s, (asks[-1].at_s - asks[0].at_s) / max(1, len(asks) - 1)
    moved = (
        each._replace(at_s=each.at_s + share * (begin_s + place * gap_s - each.at_s)) for place, each in enumerate(asks)
    )
    return TrafficSample(tuple(moved), stretch.measure_s, stretch.end_s)
