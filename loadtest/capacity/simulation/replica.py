"""One replica under the demand's traffic in virtual time: its figures at a load, and the most it carries.

Figures here are those of `metrics.py`, from the batcher's spans instead of from records: a simulation that finds a p99
makes tens of millions of tokens, and a record keeps the time of each. A test holds the two equal.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from engines.emulator import Batcher, settings_of
from engines.manifest import EngineManifest, StepTimeChoice
from engines.spec import GpuSpec, Host, KvFormat, ModelSpec
from engines.steptime import StepCost, StepTime, scaled, step_time_of, uniform
from loadtest.capacity.simulation.traffic_sample import SimRequest, TrafficSample
from loadtest.metrics import LevelSummary, Spread, verdicts_of
from loadtest.results import Phase
from loadtest.scenario import Goodput, Objectives, Verdict
from loadtest.simulate import Arrivals, Ended, Sent, VirtualServer
from loadtest.traffic import Turn

GROWTH_RATIO = 0.03  # of the measured requests: a queue that grows by more, and by more than chance, is not stable
CHANCE = 3.0  # standard deviations of the number in flight

_Floats = npt.NDArray[np.float64]
_Counts = npt.NDArray[np.int64]


class Pessimism(NamedTuple):
    """How much worse than the middle of a prediction a replica is taken to be; 1 for neither.

    Attributes:
        slower: Every iteration, and the host's share, take so many times as long: queues grow with it.
        ttft: TTFT is so many times longer beside that.
    """

    slower: float = 1.0
    ttft: float = 1.0


NONE = Pessimism()


@dataclass(slots=True)
class Totals:
    """What is collected of simulated requests, over stretches and replicas."""

    sent: int = 0
    failed: dict[str, int] = field(default_factory=dict)
    ttft_s: list[float] = field(default_factory=list)
    tpot_s: list[float] = field(default_factory=list)
    e2e_s: list[float] = field(default_factory=list)
    gaps_s: list[_Floats] = field(default_factory=list)
    gap_counts: list[_Counts] = field(default_factory=list)
    good: int = 0
    tokens: int = 0
    window_s: float = 0.0
    growth: float = 0.0
    kv_ratio: list[float] = field(default_factory=list)
    waiting: list[int] = field(default_factory=list)
    batch: list[int] = field(default_factory=list)


class RateResult(NamedTuple):
    """One load simulated: its figures, by class where there are classes, and each objective's verdict.

    Attributes:
        worst_ratio: The largest of what was found over its limit; above 1, an objective was missed.
        kv_ratio: Mean share of the KV cache in use, as ending requests found it; `kv_most` the largest.
    """

    rate_per_s: float
    level: LevelSummary
    by_class: dict[str, LevelSummary]
    verdicts: tuple[Verdict, ...]
    worst_ratio: float
    kv_ratio: float
    kv_most: float
    in_flight: float

    @property
    def met(self) -> bool:
        """Whether every objective was kept, and the queue stood still."""
        return all(each.met for each in self.verdicts)

    @property
    def missed(self) -> tuple[str, ...]:
        """Objectives that were not kept."""
        return tuple(each.objective for each in self.verdicts if not each.met)


def batcher_of(manifest: EngineManifest, ratios: StepCost) -> Batcher:
    """Return an idle batcher of an engine, each part of its steps times a ratio."""
    priced = (manifest.step_time, manifest.model, manifest.gpu)
    source = _step_time(
        *(each.model_dump_json() for each in priced),
        manifest.precision.name,
        manifest.precision.kv_cache,
        manifest.parallel.tensor,
        ratios,
    )
    return Batcher(settings_of(manifest), source)


@cache
def _step_time(
    choice: str, model: str, gpu: str, precision: str, kv_format: KvFormat, tensor_parallel: int, ratios: StepCost
) -> StepTime:
    """Make a step-time source once for all the batchers it prices: reading measured tables takes seconds."""
    source = step_time_of(
        StepTimeChoice.model_validate_json(choice),
        ModelSpec.model_validate_json(model),
        GpuSpec.model_validate_json(gpu),
        precision,
        kv_format,
        tensor_parallel=tensor_parallel,
    )
    return scaled(source, ratios)


def host_of(manifest: EngineManifest, slower: float = 1.0) -> Host:
    """Return the host above an engine, where a calibration found one."""
    return (manifest.step_time.host or Host()).slowed(slower)


def sent_of(stretch: TrafficSample) -> list[Sent]:
    """Return a stretch's requests as the virtual server takes them."""
    return [_sent(place, ask, stretch) for place, ask in enumerate(stretch.asks)]


def _sent(number: int, ask: SimRequest, stretch: TrafficSample) -> Sent:
    phase: Phase = "warmup" if ask.at_s < stretch.measure_s else "measure" if ask.at_s < stretch.end_s else "fill"
    turn = Turn(number, phase, ask.osl, ask.class_name or None)
    return Sent(turn, ask.at_s, ask.isl, prefix_hashes=ask.prefix_hashes)


def simulate(
    manifest: EngineManifest,
    stretches: Iterable[TrafficSample],
    objectives: dict[str, Objectives],
    *,
    rate_per_s: float,
    pessimism: Pessimism = NONE,
    ratios: StepCost | None = None,
) -> RateResult:
    """Return what one replica shows under stretches of traffic, each from an idle start.

    Args:
        objectives: By class; those of all requests under an empty name.
        ratios: On the parts of a step's cost, beside the pessimism.
    """
    slower = StepCost._make(part * pessimism.slower for part in (ratios or uniform(1.0)))
    totals: dict[str, Totals] = {}
    for stretch in stretches:
        batcher = batcher_of(manifest, slower)
        server = VirtualServer(batcher, Arrivals(sent_of(stretch)), host_of(manifest, pessimism.slower))
        collect(server, stretch, totals, objectives, pessimism)
    return seen_of(totals, objectives, rate_per_s=rate_per_s)


def collect(
    server: VirtualServer,
    stretch: TrafficSample,
    totals: dict[str, Totals],
    objectives: dict[str, Objectives],
    pessimism: Pessimism,
) -> None:
    """Run a server to its end and add what its measured requests were."""
    every = totals.setdefault("", Totals())
    ended: list[Ended] = []
    for each in server.run():
        if each.sent.turn.phase == "measure":
            ended.append(each)
        if each.sent.turn.phase != "warmup":
            note_state(server.batcher, every)
    add(server, stretch, ended, totals, objectives, pessimism)


def note_state(batcher: Batcher, totals: Totals) -> None:
    """Take a look at the batcher, as an ending request finds it."""
    state = batcher.snapshot()
    totals.kv_ratio.append(state.kv_used_blocks / state.kv_max_blocks)
    totals.waiting.append(state.queued + state.active - state.generation_requests)
    totals.batch.append(state.generation_requests)


def add(
    server: VirtualServer,
    stretch: TrafficSample,
    ended: Sequence[Ended],
    totals: dict[str, Totals],
    objectives: dict[str, Objectives],
    pessimism: Pessimism,
) -> None:
    """Add a server's ended measured requests to the totals, of all and of each class."""
    left_s = server.left_s
    deltas_s = np.diff(left_s, prepend=0.0)
    groups: dict[str, list[Ended]] = {"": list(ended)}
    for each in ended:
        if each.sent.turn.class_name:
            groups.setdefault(each.sent.turn.class_name, []).append(each)
    for name, group in groups.items():
        into = totals.setdefault(name, Totals())
        wanted = objectives[name].goodput if name in objectives else None
        _add_group(into, left_s, deltas_s, group, wanted, pessimism)
        into.window_s += stretch.end_s - stretch.measure_s
        into.growth += _growth(left_s, group, stretch)


def _add_group(
    into: Totals, left_s: _Floats, deltas_s: _Floats, ended: Sequence[Ended], wanted: Goodput | None, worse: Pessimism
) -> None:
    marks = np.zeros(len(left_s) + 1, dtype=np.int64)
    across_s: list[float] = []
    for each in ended:
        into.sent += 1
        if each.outcome != "ok":
            into.failed[each.outcome] = into.failed.get(each.outcome, 0) + 1
            continue
        first, last = each.spans[0][0], each.spans[-1][1]
        tokens = sum(end - begin + 1 for begin, end in each.spans)
        ttft_s = (float(left_s[first]) - each.sent.sent_s) * worse.ttft
        decoding_s = float(left_s[last] - left_s[first])
        into.ttft_s.append(ttft_s)
        into.e2e_s.append(ttft_s + decoding_s)
        into.tokens += tokens
        if tokens > 1:
            into.tpot_s.append(decoding_s / (tokens - 1))
        for begin, end in each.spans:
            marks[begin + 1] += 1
            marks[end + 1] -= 1
        across_s += [float(left_s[after[0]] - left_s[before[1]]) for before, after in pairwise(each.spans)]
        if wanted is not None:
            into.good += _is_good(wanted, deltas_s, each, ttft_s, decoding_s, tokens)
    counts = np.cumsum(marks)[:-1]
    some = counts > 0
    into.gaps_s.append(np.concatenate([deltas_s[some], across_s]))
    into.gap_counts.append(np.concatenate([counts[some], np.ones(len(across_s), dtype=np.int64)]))


def _is_good(wanted: Goodput, deltas_s: _Floats, each: Ended, ttft_s: float, decoding_s: float, tokens: int) -> bool:
    longest_s = 0.0
    if wanted.itl_s is not None:
        longest_s = max((float(deltas_s[first + 1 : last + 1].max(initial=0.0)) for first, last in each.spans))
    tpot_s = decoding_s / (tokens - 1) if tokens > 1 else 0.0
    return bool(wanted.is_met_by(ttft_s=ttft_s, tpot_s=tpot_s, longest_gap_s=longest_s, e2e_s=ttft_s + decoding_s))


def _growth(left_s: _Floats, ended: Sequence[Ended], stretch: TrafficSample) -> float:
    """Return by how many requests the system was fuller at the end of the measurement than it chances to be.

    All that was sent in the later half, less what ended in it of all that was measured before.
    """
    middle_s = (stretch.measure_s + stretch.end_s) / 2
    done_s = np.array([left_s[each.spans[-1][1]] for each in ended if each.outcome == "ok"])
    sent_s = np.array([each.sent.sent_s for each in ended if each.outcome == "ok"])

    def in_flight(at_s: float) -> int:
        return int(((sent_s <= at_s) & (done_s > at_s)).sum())

    before, after = in_flight(middle_s), in_flight(stretch.end_s)
    return max(0.0, after - before - CHANCE * math.sqrt(before + after))


def seen_of(totals: dict[str, Totals], objectives: dict[str, Objectives], *, rate_per_s: float) -> RateResult:
    """Return figures and verdicts of what was collected."""
    levels = {name: _level(found, objectives.get(name), rate_per_s) for name, found in totals.items()}
    verdicts = [
        verdict._replace(objective=f"{name}: {verdict.objective}" if name else verdict.objective)
        for name, wanted in objectives.items()
        if name in levels
        for verdict in verdicts_of(wanted, levels[name])
    ]
    every = totals[""]
    verdicts.append(_stability(every))
    return RateResult(
        rate_per_s,
        levels[""],
        {name: level for name, level in levels.items() if name},
        tuple(verdicts),
        max(_ratio(each) for each in verdicts),
        float(np.mean(every.kv_ratio or [0.0])),
        max(every.kv_ratio, default=0.0),
        float(np.mean(every.batch or [0])) + float(np.mean(every.waiting or [0])),
    )


def _stability(found: Totals) -> Verdict:
    growth = found.growth / max(found.sent, 1)
    return Verdict("growing queue", GROWTH_RATIO, growth, growth <= GROWTH_RATIO)


def _ratio(verdict: Verdict) -> float:
    """Return how far an objective is from its limit: found over limit; for goodput, missed over what may be missed."""
    if verdict.found is None:
        return math.inf
    if verdict.objective.endswith("goodput"):
        return (1 - verdict.found) / (1 - verdict.limit)
    if verdict.limit == 0:
        return 0.0 if verdict.met else math.inf
    return verdict.found / verdict.limit


def _level(found: Totals, wanted: Objectives | None, rate_per_s: float) -> LevelSummary:
    ok = len(found.ttft_s)
    gaps = np.concatenate(found.gaps_s) if found.gaps_s else np.array([])
    counts = np.concatenate(found.gap_counts) if found.gap_counts else np.array([], dtype=np.int64)
    return LevelSummary(
        concurrency=None,
        rate_per_s=rate_per_s,
        isl=0,
        osl=0,
        complete=True,
        requests=found.sent,
        errors=found.sent - ok,
        errors_by_outcome=dict(sorted(found.failed.items())),
        ttft_s=_plain(found.ttft_s),
        itl_s=weighted_spread(gaps, counts),
        tpot_s=_plain(found.tpot_s),
        e2e_s=_plain(found.e2e_s),
        window="steady",
        window_s=found.window_s,
        output_tokens_per_s=found.tokens / found.window_s if found.window_s else None,
        requests_per_s=ok / found.window_s if found.window_s else None,
        batch_size=None,
        batch_size_client=None,
        kv_blocks_used=None,
        waiting=float(np.mean(found.waiting)) if found.waiting else None,
        goodput=None if wanted is None or wanted.goodput is None or not found.sent else found.good / found.sent,
    )


def _plain(values: Sequence[float]) -> Spread | None:
    return weighted_spread(np.asarray(values), np.ones(len(values), dtype=np.int64))


def weighted_spread(values: _Floats, counts: _Counts) -> Spread | None:
    """Return how values are spread, each there so many times: as `metrics.spread` of all of them written out.

    >>> weighted_spread(np.array([1.0, 2.0, 4.0]), np.array([2, 1, 1])).p50
    1.5
    """
    total = int(counts.sum())
    if not total:
        return None
    order = np.argsort(values)
    ordered, upto = values[order], np.cumsum(counts[order])
    places = np.array([0.50, 0.90, 0.95, 0.99, 0.999]) * (total - 1)
    below, above = np.floor(places), np.ceil(places)
    low = ordered[np.searchsorted(upto, below, side="right")]
    high = ordered[np.searchsorted(upto, above, side="right")]
    p50, p90, p95, p99, p999 = (float(value) for value in low + (high - low) * (places - below))
    return Spread(
        count=total,
        mean=float((values * counts).sum() / total),
        p50=p50,
        p90=p90,
        p95=p95,
        p99=p99,
        p999=p999,
        max=float(ordered[np.flatnonzero(counts[order])[-1]]),
    )
