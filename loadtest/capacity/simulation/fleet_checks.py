"""Simulations of whole fleets: the smallest that meets every objective, other routings, a loss."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from engines.files import Strict
from engines.steptime import Z_95, Slowdown
from loadtest.capacity.inputs import Described, Routing
from loadtest.capacity.replica_count import replicas_text
from loadtest.capacity.simulation.fleet import Fleet, Loss, serve
from loadtest.capacity.simulation.load_bench import LEAD_LIVES, TAIL_LIVES, LoadBench, Task
from loadtest.capacity.simulation.max_rate import RateProbe, probe_of
from loadtest.capacity.simulation.observations import Observations
from loadtest.capacity.simulation.rate_curve import SLOT_S
from loadtest.capacity.simulation.traffic_sample import SampleSpec, TrafficSample, window_of
from loadtest.scenario import Steps, draw_times_s

MAX_REPLICAS = 12  # simulated together; a larger fleet is represented by this many with their share of the traffic
MAX_REQUESTS = 20_000  # of a window of minutes: of busier replicas, fewer are simulated together, two at least
TURNOVERS = 6.0  # measured time of a fleet's first windows together, in mean request durations
MIN_WINDOWS, MAX_WINDOWS = 3, 9  # each with its own random draws; three are as long as a whole peak
CHECK_WINDOWS = 2  # windows for the additional fleets shown with the recommendation
COARSE = 20  # replicas above which the search first changes a fleet by a twentieth at a time
MAX_TRIES = 14
What = Literal["peak", "loss", "spot"]


class FleetTask(NamedTuple):
    """One fleet to simulate.

    Attributes:
        task: The replica: its engine and the demand.
        slowdown: Slowdown of the replicas relative to the prediction.
        rate_per_s: Mean of the busiest `peak_window_s`.
        replicas: Number of running replicas (before a loss).
        lost: Replicas lost halfway through.
        max_queue_size: Maximum queued requests per replica; 0: no limit.
        notice_s: Of a loss, as `fleet.Loss`; likewise `restart_s`.
    """

    what: What
    task: Task
    slowdown: Slowdown
    rate_per_s: float
    replicas: int
    routing: Routing
    lost: int = 0
    max_queue_size: int = 0
    notice_s: float = 0.0
    restart_s: float = math.inf

    @property
    def name(self) -> str:
        """Description for progress."""
        return f"{replicas_text(self.replicas)}, {self.what}, {self.routing.replace('_', ' ')}"

    @property
    def key(self) -> str:
        """Everything that the result depends on."""
        return f"{self.task.key}\n{self._replace(task=None)!r}"  # type: ignore[arg-type]


class SizeTask(NamedTuple):
    """Search for the smallest fleet that meets every objective at a peak.

    Attributes:
        rate_per_s: Mean of the busiest `peak_window_s`, headroom included.
        start: Number of replicas to start with.
    """

    task: Task
    slowdown: Slowdown
    rate_per_s: float
    start: int
    routing: Routing

    @property
    def key(self) -> str:
        """Everything that the result depends on."""
        return f"{self.task.key}\n{self._replace(task=None)!r}"  # type: ignore[arg-type]


class Checked(Strict):
    """A fleet's figures at the simulated slowdown.

    Attributes:
        replicas: Size of the fleet; `simulated` of them were simulated, with their share of the traffic.
        retried: Requests sent again because their replica was lost.
        refused: Share of requests refused because a queue was full.
    """

    what: What
    routing: Routing
    rate_per_s: float
    replicas: int
    simulated: int
    lost: int
    retried: int
    refused: float = 0.0
    tried: RateProbe


class FleetVerdict(Strict):
    """Whether a fleet meets every objective, and how certain that is.

    Attributes:
        is_certain: Whether each objective's one-sided 95 % interval, over windows, lies on one side of its limit.
        windows: Simulated parts of the peak, each with its own draws; `kept_windows` alone met every objective.
        undecided: Objectives whose interval contains the limit.
    """

    replicas: int
    met: bool
    is_certain: bool
    windows: int
    kept_windows: int
    undecided: tuple[str, ...] = ()
    tried: RateProbe


class FleetSize(Strict):
    """The smallest fleet that meets every objective at the peak.

    Attributes:
        needed: Replicas; None if no fleet tried met them.
        verdicts: Results of all fleets tried, by size.
    """

    needed: int | None
    verdicts: tuple[FleetVerdict, ...]

    @property
    def smaller(self) -> FleetVerdict | None:
        """The largest fleet that is too small; its worst miss is what limits this size."""
        missed = [each for each in self.verdicts if not each.met and each.replicas < (self.needed or math.inf)]
        return missed[-1] if missed else None

    @property
    def chosen(self) -> FleetVerdict | None:
        """The verdict of the smallest sufficient fleet."""
        return next((each for each in self.verdicts if each.replicas == self.needed), None)


class _Peaks:
    """Fleets of different sizes under the same windows of a peak, with the same draws."""

    def __init__(self, size_task: SizeTask) -> None:
        self.size_task = size_task
        self.bench = LoadBench(size_task.task)
        self.known: dict[int, FleetVerdict] = {}

    def verdict(self, replicas: int) -> FleetVerdict:
        """Simulate a fleet until its verdict is certain or all windows are used.

        Where minutes above the mean follow each other, a queue outlasts them: windows have to be minutes long. Of
        described traffic, seconds are enough to find most of what is missed.
        """
        if replicas not in self.known:
            demand = self.size_task.task.demand
            is_described, least_s = isinstance(demand.traffic, Described), demand.peak_window_s / MIN_WINDOWS
            found = self._simulated(replicas, 0.0 if is_described else least_s)
            if is_described and found.met:
                found = self._simulated(replicas, least_s)
            self.known[replicas] = found
        return self.known[replicas]

    def _simulated(self, replicas: int, least_s: float) -> FleetVerdict:
        size_task = self.size_task
        each_in_window = size_task.rate_per_s / replicas * least_s
        together = max(2, int(MAX_REQUESTS / each_in_window)) if each_in_window else MAX_REPLICAS
        count = min(replicas, MAX_REPLICAS, together)
        rate_per_s = size_task.rate_per_s * count / replicas
        fleet = Fleet(size_task.task.manifest, (0.0,) * count, size_task.routing, size_task.slowdown)
        found, windows_met = Observations(), 0
        objectives = size_task.task.demand.all_objectives
        known = None
        for window in range(MAX_WINDOWS):
            sample = peak_sample(
                self.bench, rate_per_s, size_task.slowdown,
                replicas=count, window=window, windows=MIN_WINDOWS, least_s=least_s,
            )  # fmt: skip
            alone, _ = serve(fleet, [sample])
            windows_met += alone.result(objectives, rate_per_s=size_task.rate_per_s).met
            found.join(alone)
            if (window + 1) % MIN_WINDOWS == 0:
                known = found.confidence(objectives, z=Z_95)
                if known.met is not None:
                    break
        result = found.result(objectives, rate_per_s=size_task.rate_per_s)
        return FleetVerdict(
            replicas=replicas,
            met=result.met,
            is_certain=known is not None and known.met is not None,
            windows=found.windows,
            kept_windows=windows_met,
            undecided=() if known is None else known.undecided,
            tried=probe_of(result),
        )


def smallest_fleet(size_task: SizeTask) -> FleetSize:
    """Return the smallest fleet that meets every objective, searching both below and above the start."""
    peaks = _Peaks(size_task)
    largest = size_task.task.demand.limits.max_replicas
    at = min(max(1, size_task.start), largest)
    is_met = peaks.verdict(at).met
    while len(peaks.known) < MAX_TRIES:
        step = max(1, at // COARSE)
        following = at - step if is_met else at + step
        if not 1 <= following <= largest:
            break
        if peaks.verdict(following).met is not is_met:
            if step == 1:
                break
            low, high = sorted((at, following))
            _narrow(peaks, low, high)
            break
        at = following
    sufficient = [size for size, verdict in peaks.known.items() if verdict.met]
    missed = [size for size, verdict in peaks.known.items() if not verdict.met]
    above = [size for size in sufficient if size > max(missed, default=0)]
    return FleetSize(
        needed=min(above, default=None), verdicts=tuple(verdict for _, verdict in sorted(peaks.known.items()))
    )


def _narrow(peaks: _Peaks, low: int, high: int) -> None:
    """Bisect between a fleet that is too small and one that is sufficient."""
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if peaks.verdict(middle).met else (middle, high)


def peak_sample(
    bench: LoadBench,
    rate_per_s: float,
    slowdown: Slowdown,
    *,
    replicas: int,
    window: int,
    windows: int,
    least_s: float = 0.0,
) -> TrafficSample:
    """Return one window of a fleet's peak: a part of the busiest `peak_window_s`, with a varying rate.

    Args:
        least_s: Least length of its measured part.
    """
    demand, manifest = bench.task.demand, bench.task.manifest
    each_per_s = rate_per_s / replicas * slowdown.step  # of one replica, in engine time as predicted
    life_s = bench.life_s(each_per_s) * slowdown.step
    needed = max(bench.requests(each_per_s), math.ceil(TURNOVERS * rate_per_s * life_s)) / MIN_WINDOWS
    spec = SampleSpec(
        rate_per_s,
        measure_s=max(least_s, min(needed / rate_per_s, max(demand.peak_window_s, 2 * life_s))),
        lead_s=LEAD_LIVES * life_s,
        tail_s=TAIL_LIVES * life_s,
        tokens_per_block=manifest.kv_cache.tokens_per_block if manifest.runtime.kv_reuse else None,
        kv_tokens=manifest.kv_cache.blocks * manifest.kv_cache.tokens_per_block,
        window=window,
        windows=windows,
        is_varying=True,
    )
    return window_of(demand, bench.task.folder, spec)


def check(fleet_task: FleetTask) -> Checked:
    """Simulate one fleet and return its figures."""
    share = min(1.0, MAX_REPLICAS / fleet_task.replicas)
    bench = LoadBench(fleet_task.task)
    count = max(1, round(fleet_task.replicas * share))
    rate_per_s = fleet_task.rate_per_s * count / fleet_task.replicas
    samples = [
        peak_sample(
            bench, rate_per_s, fleet_task.slowdown,
            replicas=count, window=window, windows=CHECK_WINDOWS, least_s=SLOT_S,
        )
        for window in range(CHECK_WINDOWS)
    ]  # fmt: skip
    lost = min(count - 1, max(1, round(fleet_task.lost * share))) if fleet_task.lost else 0
    found, retried = Observations(), 0
    for sample in samples:
        middle_s = (sample.measure_s + sample.end_s) / 2
        loss = Loss(middle_s, lost, fleet_task.notice_s, fleet_task.restart_s) if lost else None
        fleet = Fleet(
            fleet_task.task.manifest,
            (0.0,) * count,
            fleet_task.routing,
            fleet_task.slowdown,
            loss,
            fleet_task.max_queue_size,
        )
        retried += serve(fleet, [sample], found)[1]
    objectives, is_steady = fleet_task.task.demand.all_objectives, fleet_task.what == "peak"
    result = found.result(objectives, rate_per_s=fleet_task.rate_per_s, is_steady=is_steady)
    return Checked(
        what=fleet_task.what,
        routing=fleet_task.routing,
        rate_per_s=fleet_task.rate_per_s,
        replicas=fleet_task.replicas,
        simulated=count,
        lost=fleet_task.lost,
        retried=retried,
        refused=found.refused.get("rejected", 0) / max(1, found.requests),
        tried=probe_of(result),
    )


def minutes_of(
    bench: LoadBench, rates_per_s: Sequence[float], slowdown: Slowdown, *, replicas: int, lead_slots: int
) -> TrafficSample:
    """Return requests of the demand at one rate after another, each for a slot; the first slots are not measured."""
    rng = np.random.default_rng(bench.task.demand.seed)
    times_s = draw_times_s(Steps(rates_per_s=tuple(rates_per_s), step_s=SLOT_S), rng).tolist()
    pattern = peak_sample(bench, max(rates_per_s), slowdown, replicas=replicas, window=0, windows=1).requests
    requests = tuple(pattern[place % len(pattern)]._replace(at_s=at_s) for place, at_s in enumerate(times_s))
    return TrafficSample(requests, lead_slots * SLOT_S, len(rates_per_s) * SLOT_S)
