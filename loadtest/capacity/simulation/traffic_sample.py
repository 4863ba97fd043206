"""Windows of a demand's peak at any rate, to simulate."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from loadtest.capacity.inputs import Demand, Described, Scale, smallest_tail_share
from loadtest.capacity.simulation.demand_requests import (
    SimRequest,
    mean_turns_of,
    requests_of_trace,
    sampler_of,
    scenario_of,
    turns_of,
)
from loadtest.capacity.simulation.length_profile import max_tokens_by_class, scaled_tokens
from loadtest.capacity.simulation.rate_curve import (
    MINUTE_S,
    MINUTES_PER_H,
    busiest_minutes,
    busiest_ratio,
    busiest_window,
    minute_ratios,
)
from loadtest.scenario import HASH_BLOCK_TOKENS, Scenario, Trace
from loadtest.traffic import GOLDEN, ConversationSampler

# 50 requests beyond a limit determine their share to about one part in seven (one standard deviation of a Poisson
# count): a p99 is then between the p98.8 and the p99.2 of infinite traffic.
EXCEEDANCES = 50
MIN_REQUESTS = 1000
# Ten times as many requests as slots: a full batch turns over ten times.
MEASURED_TURNOVERS = 10
LEAD_RATIO = 0.2  # part of a trace's window that is replayed before the measured part
JITTER_S = 30.0  # copies of a trace's request are sent within this time of the original, as other users' requests
SMALL_SHARE = 0.1  # of the KV cache: shared prefixes up to this share are assumed never to be evicted
CONVERSATIONS_PER_WINDOW = 1 << 20  # each window has conversations of its own

_Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class TrafficSample:
    """Requests to simulate from an idle start; those sent between `measure_s` and `end_s` are measured."""

    requests: tuple[SimRequest, ...]
    measure_s: float
    end_s: float


@dataclass(frozen=True, slots=True)
class SampleSpec:
    """A window of traffic to sample for a simulation.

    Attributes:
        rate_per_s: Requests per second, mean of the busiest `peak_window_s`.
        measure_s: Length of the measured part. Of a trace, at least the window's part of the busiest `peak_window_s`,
            or else all of that; of varying traffic, at most that.
        lead_s: Unmeasured time before it, in which the batch fills and mixes.
        tail_s: Time after it, so that the last measured requests end under load.
        tokens_per_block: Of the engine, if it reuses KV blocks; None: shared prefixes have no effect.
        kv_tokens: Capacity of its KV cache; 0 if unknown.
        window: Index of the window; each is drawn from the seed and its index.
        windows: Number of windows; they are spread evenly over the busiest `peak_window_s`, and of a trace, whose
            bursts lie where they lie, each is one of as many equal parts of it.
        is_varying: Whether the rate varies per minute as in the busiest window; if not, it is constant.
    """

    rate_per_s: float
    measure_s: float
    lead_s: float
    tail_s: float
    tokens_per_block: int | None = None
    kv_tokens: int = 0
    window: int = 0
    windows: int = 1
    is_varying: bool = False


def requests_needed(demand: Demand, slots: int) -> int:
    """Return the number of measured requests that a simulation needs to support its percentiles.

    The rarest class decides: its own objectives need that many of its own requests.
    """
    total = sum(each.weight for each in demand.classes) or 1.0
    shares = {"": 1.0} | {each.name: each.weight / total for each in demand.classes}
    needed = max(EXCEEDANCES / smallest_tail_share(of) / shares[name] for name, of in demand.all_objectives.items())
    return math.ceil(max(needed, MIN_REQUESTS, MEASURED_TURNOVERS * slots) - 1e-6)


def window_of(demand: Demand, folder: Path, spec: SampleSpec) -> TrafficSample:
    """Return one window of the demand's peak at a rate.

    For a trace it is a part of the busiest window. To lower the rate, requests are dropped at random; to raise it,
    requests are copied, each copy as another user's request sent slightly earlier or later.
    """
    rng = np.random.default_rng([demand.seed, spec.window])
    if isinstance(demand.traffic, Described):
        found = _drawn(demand, folder, spec, rng)
    else:
        found = _replayed(demand, folder, spec, rng)
    return _longer(found, demand.scale)


def _longer(sample: TrafficSample, scale: Scale) -> TrafficSample:
    if scale.isl == scale.osl == 1.0:
        return sample
    requests = tuple(
        each._replace(
            isl=scaled_tokens(each.isl, scale.isl),
            osl=scaled_tokens(each.osl, scale.osl),
            max_tokens=None if each.max_tokens is None else scaled_tokens(each.max_tokens, max(1.0, scale.osl)),
        )
        for each in sample.requests
    )
    return replace(sample, requests=requests)


def _drawn(demand: Demand, folder: Path, spec: SampleSpec, rng: np.random.Generator) -> TrafficSample:
    """Draw a window. A conversation's next turn follows a reply of nominal duration and the think time."""
    traffic = demand.traffic
    assert isinstance(traffic, Described)
    scenario = scenario_of(traffic, demand.seed, folder)
    sampler_json = scenario.model_dump_json()
    has_own_blocks = not _shares_little(scenario, spec.kv_tokens)
    drawn = _conversations(sampler_json, max_tokens_by_class(demand, scenario), spec.tokens_per_block, has_own_blocks)
    upto_s = spec.lead_s + spec.measure_s + spec.tail_s
    rate_per_s = spec.rate_per_s / mean_turns_of(sampler_json)
    edges_s, per_s = _rates(traffic, demand.peak_window_s, spec, rng)
    sent = np.concatenate([[0.0], np.cumsum(np.diff(edges_s) * per_s)]) * rate_per_s  # expected arrivals by each edge
    shape = traffic.burstiness**-2
    times: list[_Floats] = []
    last = -rng.random() * rng.gamma(shape, 1 / shape)  # an arrival before the window: its next gap spans the start
    while last < sent[-1]:
        block = last + np.cumsum(rng.gamma(shape, 1 / shape, 4096))
        times.append(block)
        last = float(block[-1])
    at_s = np.interp(every := np.concatenate(times), sent, edges_s)[(every > 0) & (every < sent[-1])]
    first = spec.window * CONVERSATIONS_PER_WINDOW
    requests = [
        SimRequest(begin_s + request.at_s, *request[1:])  # three times as fast as _replace
        for number, begin_s in enumerate(at_s.tolist())
        for request in drawn.of(first + number)
        if begin_s + request.at_s < upto_s
    ]
    return TrafficSample(tuple(sorted(requests, key=lambda each: each.at_s)), spec.lead_s, spec.lead_s + spec.measure_s)


def _rates(traffic: Described, window_s: float, spec: SampleSpec, rng: np.random.Generator) -> tuple[_Floats, _Floats]:
    """Return the edges of minutes from the window's start, and the ratio of each one's rate to the planned rate."""
    upto_s = spec.lead_s + spec.measure_s + spec.tail_s
    if not spec.is_varying or not traffic.minute_variation:
        return np.array([0.0, upto_s]), np.ones(1)
    minutes = minute_ratios(traffic.minute_variation, MINUTES_PER_H, rng)
    first, count, _ = busiest_minutes(minutes, window_s)
    minutes = minutes / minutes.mean() / busiest_ratio(traffic.minute_variation, window_s)
    free_s = max(0.0, count * MINUTE_S - spec.measure_s)
    begin_s = first * MINUTE_S + free_s * _place(spec, rng)
    begin_s -= spec.lead_s
    inside = np.arange(math.floor(begin_s / MINUTE_S) + 1, math.ceil((begin_s + upto_s) / MINUTE_S))
    edges_s = np.concatenate([[0.0], inside * MINUTE_S - begin_s, [upto_s]])
    of_minute = np.floor((edges_s[:-1] + edges_s[1:]) / 2 / MINUTE_S + begin_s / MINUTE_S).astype(int)
    return edges_s, minutes[np.clip(of_minute, 0, MINUTES_PER_H - 1)]


def _place(spec: SampleSpec, rng: np.random.Generator) -> float:
    """Return a window's position in the busiest period, 0 to 1; any first few windows are spread evenly."""
    return (spec.window * GOLDEN + rng.random() / spec.windows) % 1.0


@dataclass(slots=True)
class _Conversations:
    """Requests of a demand's conversations, drawn once for all loads; `max_tokens` is by class."""

    sampler: ConversationSampler
    max_tokens: dict[str, int]
    tokens_per_block: int | None
    has_own_blocks: bool
    known: dict[int, tuple[SimRequest, ...]] = field(default_factory=dict)

    def of(self, number: int) -> tuple[SimRequest, ...]:
        """Return the requests of a conversation, from its start."""
        found = self.known.get(number)
        if found is None:
            drawn = turns_of(self.sampler.begin(number), self.tokens_per_block, has_own_blocks=self.has_own_blocks)
            found = self.known[number] = tuple(
                each._replace(osl=min(each.osl, max_tokens), max_tokens=max_tokens)
                for each in drawn
                for max_tokens in (self.max_tokens[each.class_name],)
            )
        return found


@lru_cache(maxsize=4)
def _conversations(
    scenario_json: str, max_tokens: tuple[tuple[str, int], ...], tokens_per_block: int | None, has_own_blocks: bool
) -> _Conversations:
    return _Conversations(sampler_of(scenario_json), dict(max_tokens), tokens_per_block, has_own_blocks)


def _shares_little(scenario: Scenario, kv_tokens: int) -> bool:
    """Whether the only reused blocks are a few prefixes that are always in use.

    Other blocks are then irrelevant: they are evicted first, and prefixes that take a small share of the cache are used
    again long before they would be evicted.
    """
    kinds = scenario.kinds
    shared = sum(kind.prefixes.count * kind.prefixes.tokens for kind in kinds if kind.prefixes is not None)
    return all(kind.conversation is None for kind in kinds) and shared <= SMALL_SHARE * kv_tokens


def _replayed(demand: Demand, folder: Path, spec: SampleSpec, rng: np.random.Generator) -> TrafficSample:
    """Replay a part of a trace's busiest window at its original speed.

    Where a trace has less before that part than fills the batch, the part's own beginning does: what is measured always
    has the window's traffic.
    """
    trace = demand.traffic
    assert isinstance(trace, Trace)
    requests = requests_of_trace(trace, folder)
    begin_s, window_s = busiest_window(demand, folder)
    inside = sum(begin_s <= each.at_s < begin_s + window_s for each in requests) / window_s
    part_s = window_s / spec.windows
    is_part = spec.measure_s <= part_s
    measure_s = part_s if is_part else window_s
    begin_s += spec.window % spec.windows * part_s if is_part else 0.0
    before_s = min(spec.lead_s, begin_s - requests[0].at_s)
    filling_s = min(spec.lead_s - before_s, measure_s / 2)
    begin_s -= before_s
    lead_s, measure_s = before_s + filling_s, measure_s - filling_s
    upto_s = lead_s + measure_s + spec.tail_s
    largest = trace.max_tokens or demand.max_tokens_for(max(each.osl for each in requests))
    ratio = spec.rate_per_s / inside
    jitter_s = JITTER_S if ratio > 1 else 0.0
    ends_s = (requests[0].at_s - begin_s, requests[-1].at_s - begin_s)
    found: list[SimRequest] = []
    for each in requests:
        at_s = each.at_s - begin_s
        if not -jitter_s <= at_s < upto_s + jitter_s:
            continue
        for copy in range(math.floor(ratio) + (rng.random() < ratio % 1)):
            moved_s = _folded(at_s + rng.uniform(-jitter_s, jitter_s), *ends_s) if copy else at_s
            if 0 <= moved_s < upto_s:
                hashes = _block_hashes(each.prefix_hashes, spec.tokens_per_block)
                own = tuple(content + (copy << 80) for content in hashes) if copy else hashes
                limit = each.max_tokens or largest
                found.append(SimRequest(moved_s, each.isl, min(each.osl, limit), "", own, limit))
    return TrafficSample(tuple(sorted(found, key=lambda each: each.at_s)), lead_s, lead_s + measure_s)


def _folded(at_s: float, first_s: float, last_s: float) -> float:
    """Return a time reflected at both ends of a trace, so that copies are as dense there as within it."""
    since_s = (at_s - first_s) % (2 * (last_s - first_s))
    return first_s + min(since_s, 2 * (last_s - first_s) - since_s)


def _block_hashes(hashes: tuple[int, ...], tokens_per_block: int | None) -> tuple[int, ...]:
    """Return a trace's hashes as hashes of the engine's smaller blocks; none if the engine does not reuse blocks."""
    if tokens_per_block is None:
        return ()
    each = HASH_BLOCK_TOKENS // tokens_per_block
    return tuple(content * each + place for content in hashes for place in range(each))
