"""Simulates loads of one replica, each once and only until its verdict is clear."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import NamedTuple

from engines.files import sha256_of
from engines.manifest import EngineManifest
from engines.planning import Outlook, Workload, engine_of, outlook
from engines.steptime import PowerModel, Slowdown, StepCost, power_model_for
from engines.units import SECONDS_PER_H
from loadtest.capacity.inputs import Demand, Described
from loadtest.capacity.replica_count import needed_for
from loadtest.capacity.simulation.length_profile import LengthProfile
from loadtest.capacity.simulation.observations import Observations
from loadtest.capacity.simulation.rate_result import RateResult
from loadtest.capacity.simulation.replica import evened, saturated_per_s, simulate
from loadtest.capacity.simulation.traffic_sample import SampleSpec, TrafficSample, requests_needed, window_of
from loadtest.knee import CLEAR_Z
from loadtest.scenario import Objectives, Trace

WINDOWS = 4  # windows of a load near its limit, each with its own draws
# A simulation starts empty and has to fill: after three mean request durations the batch has turned over.
LEAD_LIVES = 3.0
TAIL_LIVES = 4.0  # mean request durations for which the load continues, so that nearly all measured requests end in it
# Near saturation a queue takes hundreds of services to reach its steady length (the relaxation time of M/M/1 is about
# 1 / (1 - utilization)^2 services: 400 at 95 %); a shorter window underestimates the queue.
MIN_IN_WINDOW = 800
# Share of a saturated replica's throughput that it sustains: above it, a queue takes longer than any window to settle.
LASTING_USE = 0.98
IDLE_REQUESTS = 200  # each alone on the engine: enough for a p95 within about one percent of requests
RELIEF_WINDOWS = 2
GLIMPSE = 0.25  # of a window: ranks the objectives of a load whose figures nobody reads
# Of a window: where nothing is missed, its verdict is clear (z^2 / 50 exceedances * 4 windows = 0.53, and some room).
SURE = 0.6
KEPT_WINDOWS = 24  # of small loads: the search of each candidate simulates one that its sweep needs again
SMALL_USE = 0.1  # of the closed form's capacity of a full batch: hardly a request waits for another


class Interval(NamedTuple):
    """Both ends of the prediction interval, as ratios of actual to predicted duration.

    Attributes:
        slow: The unfavourable end, exceeded one time in twenty; `fast` is the favourable end.
    """

    slow: Slowdown = Slowdown()
    fast: Slowdown = Slowdown()


class Task(NamedTuple):
    """The complete input of a search, which can be sent to another process or machine.

    Attributes:
        folder: Where the demand's relative paths start.
        is_brief: Search only the promised end of the interval.
        enough_per_s: The search stops here: no replica needs to carry more.
        start_per_s: Start of the search. None: from the closed form.
        min_per_s: The search stops if the promised rate is below this, because the candidate cannot win.
        counted_per_s: Only how many replicas this load needs is asked: the search stops once that is known.
    """

    name: str
    manifest: EngineManifest
    demand: Demand
    folder: Path
    shape: LengthProfile
    interval: Interval = Interval()
    is_brief: bool = False
    enough_per_s: float | None = None
    min_per_s: float | None = None
    start_per_s: float | None = None
    counted_per_s: float | None = None

    def counting(self, load_per_s: float) -> Task:
        """Return the brief search that ends once it is known how many replicas a load needs."""
        enough_per_s = load_per_s if self.enough_per_s is None else min(self.enough_per_s, load_per_s)
        return self._replace(is_brief=True, counted_per_s=load_per_s, enough_per_s=enough_per_s)

    def is_counted(self, low_per_s: float, high_per_s: float) -> bool:
        """Whether only a number of replicas is asked, and all rates from one to below another need the same."""
        load_per_s, below_per_s = self.counted_per_s, high_per_s * (1 - 1e-6)
        return load_per_s is not None and needed_for(load_per_s, low_per_s) == needed_for(load_per_s, below_per_s)

    @property
    def key(self) -> str:
        """Everything that the result depends on, as text: engine, content of the traffic, objectives."""
        traffic = self.demand.traffic
        parts = (
            self.manifest.model_dump_json(include={"model", "gpu", "precision", "parallel", "limits", "kv_cache"}),
            self.manifest.model_dump_json(include={"runtime", "step_time", "speculative"}),
            self.demand.model_dump_json(
                include={"model", "peak_window_s", "max_tokens", "objectives", "seed"},
                exclude={"objectives": {"max_accuracy_loss"}},
            ),
            # The search sets each replica's rate.
            traffic.model_dump_json(exclude={"rate_by_hour_per_s", "rate_per_s"}),
            repr((self.demand.scale.isl, self.demand.scale.osl)),
            sha256_of(self.folder / traffic.path) if isinstance(traffic, Trace) else "",
            repr((self.interval, self.is_brief, self.enough_per_s, self.min_per_s, self.start_per_s)),
            repr(self.counted_per_s),
        )
        return "\n".join(parts)


@dataclass(slots=True)
class _Load:
    observations: Observations = field(default_factory=Observations)
    result: dict[float, RateResult] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Window:
    """A window of a load on a bench; benches of one key simulate it alike."""

    key: str
    rate_per_s: float
    slowdown: Slowdown
    number: int
    bench: LoadBench = field(compare=False)


@lru_cache(maxsize=KEPT_WINDOWS)
def _metered(window: _Window) -> Observations:
    """Return the observations of one window, with its energy: what is searched is swept later."""
    return window.bench.simulate(window, Observations(), is_metered=True)


class LoadBench:
    """Loads of one replica.

    If the traffic has no time scale of its own, one simulation of a load serves every uniform slowdown.

    Args:
        is_metered: Whether to add up the energy, which takes time.
    """

    def __init__(self, task: Task, *, is_metered: bool = False) -> None:
        self.task = task
        self.is_metered = is_metered
        self.objectives: Mapping[str, Objectives] = task.demand.all_objectives
        self._loads: dict[tuple[float, Slowdown], _Load] = {}
        self._saturated: dict[Slowdown, float] = {}

    @cached_property
    def _power(self) -> PowerModel | None:
        return power_model_for(self.task.manifest)

    @cached_property
    def steady(self) -> Outlook:
        """The engine's steady state with every slot occupied, in closed form."""
        return steady_state(self.task.manifest, self.task.shape)

    @cached_property
    def bound_per_s(self) -> float:
        """Requests per second of that steady state, at the middle of the prediction."""
        return max(1e-6, self.steady.tokens_per_s / max(1.0, self.task.shape.mean_osl))

    def life_s(self, rate_per_s: float) -> float:
        """Return the approximate duration of a mean request at a load, at the middle of the prediction.

        The time between tokens is interpolated linearly in the number of requests in flight, between a request alone
        and a full batch; the number in flight is rate times duration (Little's law).
        """
        state, osl = self.steady, max(1.0, self.task.shape.mean_osl)
        if not state.sequences:
            return 1.0
        growth_s = (state.itl_s - state.single_itl_s) / state.sequences
        alone_s = state.ttft_s + osl * state.single_itl_s
        share = 1 - rate_per_s * osl * growth_s
        full_s = state.ttft_s + osl * state.itl_s
        return min(full_s, alone_s / share if share > 0 else full_s)

    @property
    def is_scale_free(self) -> bool:
        """Whether the traffic has no time scale except its interarrival times."""
        traffic = self.task.demand.traffic
        return isinstance(traffic, Described) and all(kind.conversation is None for kind in traffic.scenario(0).kinds)

    def requests(self, rate_per_s: float) -> int:
        """Return the number of measured requests that a load's percentiles need."""
        return requests_needed(self.task.demand, self.in_flight(rate_per_s))

    def in_flight(self, rate_per_s: float) -> int:
        """Return the approximate number of requests in flight at a load."""
        return max(1, min(math.ceil(rate_per_s * self.life_s(rate_per_s)), self.steady.sequences or 1))

    def sample(self, rate_per_s: float, window: int, *, slower: float = 1.0, share: float = 1.0) -> TrafficSample:
        """Return one window of a load, or only the first `share` of its measured part."""
        manifest = self.task.manifest
        life_s = min(self.life_s(rate_per_s * slower) * slower, (self.steady.sequences or 1) / rate_per_s)
        use = min(1.0, rate_per_s * slower / self.bound_per_s)
        needed = share * max(self.requests(rate_per_s * slower) / WINDOWS, MIN_IN_WINDOW * use)
        spec = SampleSpec(
            rate_per_s,
            measure_s=needed / rate_per_s,
            lead_s=LEAD_LIVES * life_s,
            tail_s=TAIL_LIVES * life_s,
            tokens_per_block=manifest.kv_cache.tokens_per_block if manifest.runtime.kv_reuse else None,
            kv_tokens=manifest.kv_cache.blocks * manifest.kv_cache.tokens_per_block,
            window=window,
            windows=WINDOWS,
        )
        return window_of(self.task.demand, self.task.folder, spec)

    def windows_for(self, rate_per_s: float) -> int:
        """Return the number of windows that the percentiles need: more if a trace's own window is short."""
        traffic = self.task.demand.traffic
        if isinstance(traffic, Described):
            return WINDOWS
        in_one = rate_per_s * self.task.demand.peak_window_s
        return max(WINDOWS, min(64, math.ceil(self.requests(rate_per_s) / max(1.0, in_one))))

    def verdict(self, rate_per_s: float, slowdown: Slowdown, *, min_windows: int = 1) -> RateResult:
        """Simulate a load until its verdict is clear or its percentiles are supported."""
        base, slow, stretch = self._resolved(rate_per_s, slowdown)
        load = self._loads.setdefault((base, slow), _Load())
        most_per_s = self.most_per_s(rate_per_s, slowdown)
        largest = self.windows_for(rate_per_s) if rate_per_s <= most_per_s else min_windows
        if not isinstance(self.task.demand.traffic, Described):
            min_windows = WINDOWS  # each is another part of the trace's busiest window
        while load.observations.windows < largest:
            if load.observations.windows >= min_windows:
                known = load.observations.confidence(self.objectives, z=CLEAR_Z, stretch=stretch)
                if known.met is not None:
                    break
            window = _Window(self._key, base, slow, load.observations.windows, self)
            if self.is_small(rate_per_s, slowdown):
                load.observations.join(_metered(window))
            else:
                self.simulate(window, load.observations, is_metered=self.is_metered)
            load.result.clear()
        if stretch not in load.result:
            found = load.observations.result(self.objectives, rate_per_s=rate_per_s, stretch=stretch)
            found = found.under(most_per_s)
            load.result[stretch] = found if self.is_metered else found._replace(power_w=None)
        return load.result[stretch]

    @cached_property
    def _key(self) -> str:
        """Everything that a window depends on beside its load."""
        task = Task(self.task.name, self.task.manifest, self.task.demand, self.task.folder, self.task.shape)
        return task.key

    def simulate(self, window: _Window, into: Observations, *, is_metered: bool) -> Observations:
        """Add a window of a load to observations, and return them."""
        sample = self.sample(window.rate_per_s, window.number, slower=window.slowdown.step)
        power = self._power if is_metered else None
        return simulate(self.task.manifest, [sample], slowdown=window.slowdown, into=into, power=power)

    def most_per_s(self, rate_per_s: float, slowdown: Slowdown) -> float:
        """Return the highest load that a replica sustains, regardless of objectives; inf for a small load.

        A longer queue does not make the engine faster, so the throughput of a saturated replica bounds every load.
        """
        if self.is_small(rate_per_s, slowdown):
            return math.inf
        _, slow, stretch = self._resolved(rate_per_s, slowdown)
        if slow not in self._saturated:
            sample = self.sample(self.bound_per_s / slow.step, 0, slower=slow.step)
            self._saturated[slow] = saturated_per_s(self.task.manifest, sample, self.steady.sequences or 1, slow)
        return LASTING_USE * self._saturated[slow] / stretch

    def glimpse(self, rate_per_s: float, slowdown: Slowdown) -> RateResult:
        """Simulate a load briefly: its objectives are ranked, but one near its limit is not decided."""
        found, stretch = self._begun(rate_per_s, slowdown, GLIMPSE)
        result = found.result(self.objectives, rate_per_s=rate_per_s, stretch=stretch)
        return result.under(self.most_per_s(rate_per_s, slowdown))

    def clearly_met(self, rate_per_s: float, slowdown: Slowdown) -> RateResult | None:
        """Return the result of a shorter simulation if that decides, by the interval of `verdict`, that a load is met.

        None without simulating if the load is not small, or the traffic varies with time: a short window shows less.
        """
        if not self.is_scale_free or not self.is_small(rate_per_s, slowdown):
            return None
        found, stretch = self._begun(rate_per_s, slowdown, SURE)
        if not found.confidence(self.objectives, z=CLEAR_Z, stretch=stretch).met:
            return None
        return found.result(self.objectives, rate_per_s=rate_per_s, stretch=stretch)

    def is_small(self, rate_per_s: float, slowdown: Slowdown) -> bool:
        """Whether a replica carries a load at low utilization."""
        return rate_per_s <= SMALL_USE * self.bound_per_s / slowdown.step

    def _begun(self, rate_per_s: float, slowdown: Slowdown, share: float) -> tuple[Observations, float]:
        """Return the observations of the first share of a load's window, and the stretch of their figures."""
        base, slow, stretch = self._resolved(rate_per_s, slowdown)
        sample = self.sample(base, 0, slower=slow.step, share=share)
        return simulate(self.task.manifest, [sample], slowdown=slow), stretch

    def idle(self, slowdown: Slowdown) -> RateResult:
        """Return the result of requests that are alone on the engine."""
        base, slow, stretch = self._resolved(0.0, slowdown)
        load = self._loads.setdefault((base, slow), _Load())
        if not load.observations.windows:
            simulate(self.task.manifest, [self._alone(slow.step)], slowdown=slow, into=load.observations)
        return load.observations.result(self.objectives, rate_per_s=0.0, stretch=stretch)

    def eased(
        self,
        rate_per_s: float,
        slowdown: Slowdown,
        *,
        manifest: EngineManifest | None = None,
        ratios: StepCost | None = None,
        evenness: float = 0.0,
    ) -> RateResult:
        """Simulate a load with one constraint relaxed: another engine, faster steps, or more even arrivals."""
        base, slow, stretch = self._resolved(rate_per_s, slowdown)
        samples = [self.sample(base, window, slower=slow.step) for window in range(RELIEF_WINDOWS)]
        if evenness:
            samples = [evened(each, evenness) for each in samples]
        found = simulate(manifest or self.task.manifest, samples, slowdown=slow, ratios=ratios)
        return found.result(self.objectives, rate_per_s=rate_per_s, stretch=stretch)

    def _resolved(self, rate_per_s: float, slowdown: Slowdown) -> tuple[float, Slowdown, float]:
        """Return the rate and the slowdown to simulate, and the stretch of the resulting figures."""
        if slowdown.is_uniform and self.is_scale_free:
            return rate_per_s * slowdown.step, Slowdown(), slowdown.step
        return rate_per_s, slowdown, 1.0

    def _alone(self, slower: float) -> TrafficSample:
        shape = self.task.shape
        longest_s = (self.steady.ttft_s + max(1, shape.longest_osl) * self.steady.single_itl_s) * slower
        gap_s = 2 * longest_s if math.isfinite(longest_s) else SECONDS_PER_H
        found = self.sample(max(1e-6, self.bound_per_s / slower), 0, slower=slower)
        requests = tuple(each._replace(at_s=place * gap_s) for place, each in enumerate(found.requests[:IDLE_REQUESTS]))
        return replace(found, requests=requests, measure_s=0.0, end_s=len(requests) * gap_s)


def steady_state(manifest: EngineManifest, shape: LengthProfile) -> Outlook:
    """Return the closed form of an engine filled with the demand's mean requests."""
    workload = Workload(
        isl=max(1, round(shape.mean_isl)),
        osl=max(1, round(shape.mean_osl)),
        longest_isl=shape.longest_isl,
        longest_osl=shape.longest_osl,
    )
    limits, cache, engine = manifest.limits, manifest.kv_cache, engine_of(manifest)
    if manifest.runtime.scheduler_policy != "max_utilization":  # each running request holds its whole reservation
        reserved = max(1.0, shape.mean_isl + min(shape.max_tokens, limits.max_seq_len))
        room = max(1, int(cache.blocks * cache.tokens_per_block / reserved))
        engine = engine.limited(max_batch_size=min(limits.max_batch_size, room))
    return outlook(engine, workload)
