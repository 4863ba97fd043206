"""The highest rate at which one replica meets every objective, and the binding constraint; one task per process."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

from engines.files import Strict
from engines.manifest import EngineManifest
from engines.steptime import NONE, Slowdown, StepCost, uniform
from loadtest.capacity.simulation.load_bench import LoadBench, Task
from loadtest.capacity.simulation.rate_result import QUEUE, RateResult
from loadtest.metrics import LevelSummary

TOLERANCE = 0.05
OTHER_TOLERANCE = 0.08  # relative width of the bracket for the sizes shown beside the promised one
SPAN = 4096.0  # largest ratio of a load tried to the start of its search, and of the start to a load tried
MAX_PROBES = 24
START_RATIO = 0.7  # of the closed form's throughput: start of a search
BEYOND = 1.2  # of the closed form's throughput: above it the queue grows, and any objective on TTFT is missed
GROWTH = 1.5  # factor between loads while all verdicts so far are equal
# The next load lies between these fractions of the bracket, even if interpolation points elsewhere.
NEAR, FAR = 0.2, 0.8
MAX_STRAIN = 20.0  # worst ratios above this are equivalent: the queue grows
RELIEF = 1.25  # how much a constraint is relaxed to see whether it binds; for bursts, a fifth

Constraint = Literal["KV memory", "bandwidth", "arithmetic", "host", "queueing", "batch limit", "token budget"]
_FASTER = 1 / RELIEF
_KEEP = uniform(1.0)
# The parts of a step's cost that each constraint affects.
_PARTS: dict[Constraint, StepCost] = {
    "bandwidth": _KEEP._replace(weights_s=_FASTER, kv_read_s=_FASTER, activations_s=_FASTER),
    "arithmetic": _KEEP._replace(gemm_s=_FASTER, attention_s=_FASTER),
    "host": _KEEP._replace(launch_s=_FASTER, host_s=_FASTER, sampling_s=_FASTER),
}


class RateProbe(Strict):
    """One load tried, with latencies at the slowdown of the attempt.

    Attributes:
        missed: Objectives missed, furthest beyond the limit first; `tightest` is the one nearest to its limit.
        power_w: Predicted watts of the replica's GPUs; None where they were not asked for, or are unknown.
        cached_ratio: Share of prompt tokens found in the KV cache.
    """

    rate_per_s: float
    met: bool
    missed: tuple[str, ...]
    tightest: str | None = None
    worst_ratio: float
    requests: int
    ttft_p50_s: float | None
    ttft_p95_s: float | None
    ttft_p99_s: float | None
    itl_mean_s: float | None
    itl_p99_s: float | None
    tpot_p99_s: float | None = None
    e2e_p95_s: float | None
    goodput: float | None
    output_tokens_per_s: float | None
    in_flight: float
    kv_ratio: float
    kv_max: float
    power_w: float | None = None
    cached_ratio: float | None = None


class Relief(Strict):
    """Effect of relaxing one constraint by a quarter at the load that just missed.

    Attributes:
        worst_ratio: Largest ratio of value to limit with the constraint relaxed; without, it is the result's `strain`.
        gain: Share of the strain that disappeared.
    """

    constraint: Constraint
    worst_ratio: float
    gain: float


class Carried(Strict):
    """Capacity of one replica at one end of the interval, or at its middle.

    Attributes:
        rate_per_s: Highest load tried that met every objective; None if none did.
        above_per_s: Lowest load above it at which the search missed one; None if no higher load was needed.
        limited_by: The objective that is missed first as the load grows, beyond the needed load too.
    """

    rate_per_s: float | None
    above_per_s: float | None = None
    limited_by: str | None = None


class ReplicaCapacity(Strict):
    """Capacity of one replica.

    Attributes:
        promised: At the unfavourable end of the prediction interval; `middle` and `optimistic` likewise.
        idle: Figures of requests that are alone on it, at the unfavourable end.
        given_up: The search stopped because the replica cannot win; `promised.above_per_s` then bounds it.
        requests_needed: Measured requests of each load that its percentiles need, unless the verdict is clear earlier.
        supported: Whether the deciding load had that many, or a clear verdict.
        strain: Worst ratio of value to limit at the load at which constraints were relaxed.
    """

    promised: Carried
    middle: Carried | None = None
    optimistic: Carried | None = None
    idle: RateProbe | None = None
    given_up: bool = False
    requests_needed: int
    supported: bool
    tried: tuple[RateProbe, ...]
    strain: float | None = None
    reliefs: tuple[Relief, ...] = ()

    @property
    def rate_per_s(self) -> float | None:
        """The promised rate."""
        return self.promised.rate_per_s

    @property
    def binding(self) -> Constraint | None:
        """The constraint whose relaxation removes the largest share of the strain; None if no load missed."""
        best = max(self.reliefs, key=lambda each: each.gain, default=None)
        return None if best is None or best.gain <= 0 else best.constraint

    @property
    def at_knee(self) -> RateProbe | None:
        """The figures at the promised load."""
        return next((each for each in self.tried if each.rate_per_s == self.rate_per_s), None)


class _Probes(NamedTuple):
    """Loads tried at one slowdown, by rate."""

    slowdown: Slowdown
    results: dict[float, RateResult]


def max_rate_of(task: Task, known: ReplicaCapacity | None = None) -> ReplicaCapacity:
    """Return the highest rate of one replica, at both ends and at the middle of the interval.

    Args:
        known: Result of the same search with a lower `min_per_s` or none, at which it was not given up: that is the
            result here too, unless this one is.
    """
    bench = LoadBench(task)
    slow, fast = task.interval
    if task.is_brief and task.enough_per_s is not None:
        met = bench.clearly_met(task.enough_per_s, slow)
        if met is not None:
            return _carries_all(bench, met)
    idle = bench.idle(slow)
    start_per_s = task.start_per_s or START_RATIO * bench.bound_per_s / slow.step
    if task.min_per_s is not None and not (at_least := bench.verdict(task.min_per_s, slow)).met:
        return _given_up(bench, at_least, idle)
    if known is not None:
        return known
    probes = _Probes(slow, {})
    promised = _search(bench, probes, min(start_per_s, task.enough_per_s or math.inf), TOLERANCE, idle)
    middle = optimistic = None
    if not task.is_brief:
        middle = optimistic = promised
        is_open = promised.rate_per_s is None or promised.above_per_s is not None
        if slow != NONE and is_open:
            middle = _beside(bench, NONE, promised, slow, start_per_s)
        if fast != NONE and is_open:  # noqa: SIM108 (read with the branch above)
            optimistic = _beside(bench, fast, middle, NONE, start_per_s)
        else:
            optimistic = middle
    above = promised.above_per_s
    decisive = probes.results.get(above or -1.0) or probes.results.get(promised.rate_per_s or -1.0)
    needed = bench.requests(promised.rate_per_s or start_per_s)
    return ReplicaCapacity(
        promised=promised,
        middle=middle,
        optimistic=optimistic,
        idle=probe_of(idle),
        requests_needed=needed,
        supported=decisive is not None,
        tried=tuple(probe_of(each) for _, each in sorted(probes.results.items())),
    )


def relieved(task: Task, found: ReplicaCapacity) -> ReplicaCapacity:
    """Return a replica's capacity with its binding constraint at the load that just missed."""
    above = found.promised.above_per_s
    if above is None:
        return found
    strain, reliefs = _reliefs(LoadBench(task), above, task.interval.slow)
    return found.model_copy(update={"strain": strain, "reliefs": reliefs})


def _carries_all(bench: LoadBench, met: RateResult) -> ReplicaCapacity:
    return ReplicaCapacity(
        promised=Carried(rate_per_s=met.rate_per_s),
        requests_needed=bench.requests(met.rate_per_s),
        supported=True,
        tried=(probe_of(met),),
    )


def _given_up(bench: LoadBench, missed: RateResult, idle: RateResult) -> ReplicaCapacity:
    return ReplicaCapacity(
        promised=Carried(rate_per_s=None, above_per_s=missed.rate_per_s, limited_by=_first(missed)),
        idle=probe_of(idle),
        given_up=idle.met,
        requests_needed=bench.requests(missed.rate_per_s),
        supported=True,
        tried=(probe_of(missed),),
    )


def _beside(bench: LoadBench, slowdown: Slowdown, known: Carried | None, of: Slowdown, start_per_s: float) -> Carried:
    """Search at another slowdown, starting from a known result scaled by the ratio of the slowdowns."""
    from_per_s = (known.rate_per_s if known is not None else None) or start_per_s
    begin_per_s = min(from_per_s * of.step / slowdown.step, bench.task.enough_per_s or math.inf)
    return _search(bench, _Probes(slowdown, {}), begin_per_s, OTHER_TOLERANCE, bench.idle(slowdown))


def _search(bench: LoadBench, probes: _Probes, start_per_s: float, tolerance: float, idle: RateResult) -> Carried:
    """Bracket the highest load that meets every objective, then narrow the bracket.

    Latency is assumed to grow with the load. If noise makes a lower load miss what a higher one meets, the result is
    the highest load below which no load missed.
    """
    if not idle.met:
        return Carried(rate_per_s=None, limited_by=_first(idle))
    enough = bench.task.enough_per_s
    low, high = _bracket(bench, probes, start_per_s, enough)
    while low is not None and high is not None and high / low > 1 + tolerance and len(probes.results) < MAX_PROBES:
        if bench.task.is_counted(low, high):
            break
        middle = low * (high / low) ** _share(probes.results[low], probes.results[high])
        low, high = (middle, high) if _holds(bench, probes, middle) else (low, middle)
    missed = [rate for rate, result in probes.results.items() if not result.met]
    if low is not None and missed and min(missed) < low:
        high = min(missed)
        low = max((rate for rate, result in probes.results.items() if result.met and rate < high), default=None)
    limited_by = _first(probes.results[high]) if high is not None else _first_beyond(bench, probes.slowdown, low)
    return Carried(rate_per_s=low, above_per_s=high, limited_by=limited_by)


def _first_beyond(bench: LoadBench, slowdown: Slowdown, rate_per_s: float | None) -> str | None:
    """Return what fails first above a load that meets every objective; None if there is no such load.

    The loads tried name it only; the replica's highest load stays unknown, because nobody needs it. Each is therefore
    simulated briefly, too briefly to see every queue grow: above the highest one it does.
    """
    if rate_per_s is None or bench.task.is_brief:
        return None
    max_per_s = BEYOND * bench.bound_per_s / slowdown.step
    rate = max(rate_per_s * GROWTH, START_RATIO * bench.bound_per_s / slowdown.step)
    while rate < max_per_s * GROWTH:
        result = bench.glimpse(rate, slowdown)
        if not result.met:
            return _first(result)
        rate *= GROWTH
    return QUEUE


def _bracket(
    bench: LoadBench, probes: _Probes, start_per_s: float, enough_per_s: float | None
) -> tuple[float | None, float | None]:
    """Return a load that meets the objectives and a higher one that misses; None for an end not found."""
    rate = start_per_s
    if _holds(bench, probes, rate):
        while rate < start_per_s * SPAN:
            if (enough_per_s is not None and rate >= enough_per_s) or bench.task.is_counted(rate, math.inf):
                return rate, None
            higher = min(rate * GROWTH, enough_per_s or math.inf)
            if not _holds(bench, probes, higher):
                return rate, higher
            rate = higher
        return rate, None
    while rate > start_per_s / SPAN:
        lower = rate / GROWTH
        if _holds(bench, probes, lower):
            return lower, rate
        rate = lower
    return None, rate


def _holds(bench: LoadBench, probes: _Probes, rate_per_s: float) -> bool:
    if rate_per_s not in probes.results:
        probes.results[rate_per_s] = bench.verdict(rate_per_s, probes.slowdown)
    return probes.results[rate_per_s].met


def _share(low: RateResult, high: RateResult) -> float:
    """Return the fraction of a bracket at which the worst ratio is expected to reach 1."""
    below = -math.log(max(low.worst_ratio, 1 / MAX_STRAIN))
    above = math.log(min(max(high.worst_ratio, 1.0), MAX_STRAIN))
    return min(FAR, max(NEAR, below / (below + above))) if below + above > 0 else 0.5


def _first(result: RateResult) -> str:
    """Return the objective that is missed first: furthest beyond its limit, or nearest to it."""
    return result.missed[0] if result.missed else result.tightest


def sweep_rates(task: Task, rates_per_s: Sequence[float]) -> tuple[RateProbe, ...]:
    """Return a replica's figures at each load with its power, at the unfavourable end of the interval."""
    bench = LoadBench(task, is_metered=True)
    return tuple(probe_of(bench.verdict(rate, task.interval.slow, min_windows=2)) for rate in rates_per_s)


def probe_of(probes: RateResult) -> RateProbe:
    """Return a load's figures in stored form."""
    return RateProbe(
        rate_per_s=probes.rate_per_s,
        met=probes.met,
        missed=probes.missed,
        tightest=probes.tightest,
        worst_ratio=min(probes.worst_ratio, 1e9),
        **figures_of(probes.level),
        in_flight=probes.in_flight,
        kv_ratio=probes.kv_ratio,
        kv_max=probes.kv_max,
        power_w=probes.power_w,
        cached_ratio=probes.cached_ratio,
    )


def figures_of(level: LevelSummary) -> dict[str, Any]:
    """Return the stored figures of a level, measured or simulated."""
    ttft, itl, tpot, e2e = level.ttft_s, level.itl_s, level.tpot_s, level.e2e_s
    return {
        "requests": level.requests,
        "ttft_p50_s": None if ttft is None else ttft.p50,
        "ttft_p95_s": None if ttft is None else ttft.p95,
        "ttft_p99_s": None if ttft is None else ttft.p99,
        "itl_mean_s": None if itl is None else itl.mean,
        "itl_p99_s": None if itl is None else itl.p99,
        "tpot_p99_s": None if tpot is None else tpot.p99,
        "e2e_p95_s": None if e2e is None else e2e.p95,
        "goodput": level.goodput,
        "output_tokens_per_s": level.output_tokens_per_s,
    }


def _reliefs(bench: LoadBench, rate_per_s: float, slowdown: Slowdown) -> tuple[float, tuple[Relief, ...]]:
    """Return the strain of the load that missed, and the effect of relaxing each constraint by a quarter."""
    eased: dict[Constraint, RateResult] = {
        name: bench.eased(rate_per_s, slowdown, ratios=ratios) for name, ratios in _PARTS.items()
    }
    for name, changed in _eased_limits(bench.task.manifest).items():
        eased[name] = bench.eased(rate_per_s, slowdown, manifest=changed)
    eased["queueing"] = bench.eased(rate_per_s, slowdown, evenness=1 - _FASTER)
    strain = min(bench.eased(rate_per_s, slowdown).worst_ratio, 1e9)
    return strain, tuple(
        Relief(constraint=name, worst_ratio=min(found.worst_ratio, 1e9), gain=1 - min(found.worst_ratio, 1e9) / strain)
        for name, found in eased.items()
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
