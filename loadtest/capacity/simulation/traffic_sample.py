"""Traffic of a demand: the day's curve, its peak, and windows of the peak at any rate for simulation."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cache, lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from engines.errors import UserError
from loadtest.capacity.inputs import Demand, Described, Scale, least_tail
from loadtest.scenario import HASH_BLOCK_TOKENS, Kind, Scenario, Trace, read_trace
from loadtest.traffic import ConversationSampler, ConversationState

# 50 requests beyond a limit determine their share to about one part in seven (one standard deviation of a Poisson
# count): a p99 is then between the p98.8 and the p99.2 of infinite traffic.
EXCEEDANCES = 50
LEAST_REQUESTS = 1000
# Ten times as many requests as slots: a full batch turns over ten times.
MEASURED_TURNOVERS = 10
LEAD_RATIO = 0.2  # part of a trace's window that is replayed before the measured part
SAMPLED = 4096  # conversations that means are estimated from
SLOT_S = 60.0  # resolution of a day's curve
DAY_S = 86_400.0
NOMINAL_ITL_S = 0.02  # assumed ITL of replies when drawing the time of a conversation's next turn
HOUR_S = 3600.0
MINUTE_S = 60.0
MINUTES = 60
# Correlation of the rates of neighbouring minutes about their trend, in Azure's conversation trace of 2023-11-16.
MINUTE_CORRELATION = 0.66
SAMPLED_HOURS = 2000  # samples for the ratio of the busiest window to its hour
JITTER_S = 30.0  # copies of a trace's request are sent within this time of the original, as other users' requests
GOLDEN = (math.sqrt(5) - 1) / 2  # multiples of the golden ratio, modulo 1, fill an interval evenly
SMALL_SHARE = 0.1  # of the KV cache: shared prefixes up to this share are assumed never to be evicted
_ROOM = 1 << 20  # conversations per window

_Floats = npt.NDArray[np.float64]


class SimRequest(NamedTuple):
    """One request: send time, lengths, class and shared prefix.

    Attributes:
        osl: Tokens at which the model ends its reply.
        max_tokens: Requested maximum; None: the length of the reply.
    """

    at_s: float
    isl: int
    osl: int
    class_name: str = ""
    prefix_hashes: tuple[int, ...] = ()
    max_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class TrafficSample:
    """Requests to simulate from an idle start; those sent between `measure_s` and `end_s` are measured."""

    requests: tuple[SimRequest, ...]
    measure_s: float
    end_s: float


@dataclass(frozen=True, slots=True)
class RateCurve:
    """Requests per second over a day, or over the length of a trace; today's, before growth.

    Attributes:
        rates_per_s: By slot of `SLOT_S`.
        peak_per_s: Mean over the busiest `peak_window_s`; for a described day, its expected value in the busiest hour.
        hour_per_s: For a described day, the busiest hour's mean; for a trace, the peak.
    """

    rates_per_s: _Floats
    peak_per_s: float
    hour_per_s: float

    @property
    def mean_per_s(self) -> float:
        """Mean over the whole curve."""
        return float(self.rates_per_s.mean())

    @property
    def is_day(self) -> bool:
        """Whether the curve covers a whole day, so that its sums can be extrapolated to a month."""
        return len(self.rates_per_s) * SLOT_S >= DAY_S


class LengthProfile(NamedTuple):
    """Lengths of a demand's requests, in tokens.

    Attributes:
        max_tokens: The largest `max_tokens` of any request.
    """

    mean_isl: float
    mean_osl: float
    longest_isl: int
    longest_osl: int
    max_tokens: int


def requests_needed(demand: Demand, slots: int) -> int:
    """Return the number of measured requests that a simulation needs to support its percentiles.

    The rarest class decides: its own objectives need that many of its own requests.
    """
    total = sum(each.weight for each in demand.classes) or 1.0
    shares = {"": 1.0} | {each.name: each.weight / total for each in demand.classes}
    needed = max(EXCEEDANCES / least_tail(of) / shares[name] for name, of in demand.all_objectives.items())
    return math.ceil(max(needed, LEAST_REQUESTS, MEASURED_TURNOVERS * slots) - 1e-6)


def curve_of(demand: Demand, folder: Path) -> RateCurve:
    """Return the day's curve of a demand."""
    if isinstance(demand.traffic, Described):
        return _described_curve(demand, demand.traffic)
    times_s = _trace_times_s(demand, folder)
    begin_s, window_s = busiest_window(demand, folder)
    peak = float(((times_s >= begin_s) & (times_s < begin_s + window_s)).sum() / window_s)
    slots = max(1, math.floor(times_s[-1] / SLOT_S))
    counts, _ = np.histogram(times_s, bins=np.arange(slots + 1) * SLOT_S)
    return RateCurve(counts / SLOT_S, peak, peak)


def shape_of(demand: Demand, folder: Path) -> LengthProfile:
    """Return the mean and longest lengths of a demand's requests.

    Raises:
        UserError: A length has no upper bound, but an engine needs one.
    """
    if isinstance(demand.traffic, Trace):
        requests = _trace(demand.traffic.model_dump_json(), str(folder))
        isl, osl = (np.array(values) for values in zip(*((each.isl, each.osl) for each in requests), strict=True))
        longest = int(isl.max()), int(osl.max())
        most = demand.traffic.max_tokens or demand.most_tokens(longest[1])
        return _scaled_shape(LengthProfile(float(isl.mean()), float(osl.mean()), *longest, most), demand.scale)
    scenario = _scenario(demand.traffic, demand.seed, folder)
    sampler = _sampler(scenario.model_dump_json())
    drawn = [request for number in range(SAMPLED) for request in _turns(sampler.begin(number), 0.0, None)]
    isl, osl = np.array([each.isl for each in drawn]), np.array([each.osl for each in drawn])
    bounds = [_bounds(kind, int(isl.max()), int(osl.max())) for kind in scenario.kinds]
    longest_isl, longest_osl = (max(values) for values in zip(*bounds, strict=True))
    most = max(_max_tokens(kind, demand, bound[1]) for kind, bound in zip(scenario.kinds, bounds, strict=True))
    means = float(isl.mean()), float(osl.mean())
    return _scaled_shape(LengthProfile(*means, longest_isl, longest_osl, most), demand.scale)


def _max_tokens(kind: Kind, demand: Demand, longest_osl: int) -> int:
    """Return the `max_tokens` of a class's requests: its own, or the demand's default."""
    return kind.lengths.max_tokens or demand.most_tokens(longest_osl)


def _scaled_shape(shape: LengthProfile, scale: Scale) -> LengthProfile:
    return LengthProfile(
        shape.mean_isl * scale.isl,
        shape.mean_osl * scale.osl,
        _times(shape.longest_isl, scale.isl),
        _times(shape.longest_osl, scale.osl),
        _times(shape.max_tokens, max(1.0, scale.osl)),
    )


def _times(tokens: int, ratio: float) -> int:
    return max(1, round(tokens * ratio))


def _bounds(kind: Kind, drawn_isl: int, drawn_osl: int) -> tuple[int, int]:
    """Return the longest prompt and reply of a class; lengths that grow with turns are taken from the draws."""
    prefix = kind.prefixes.tokens if kind.prefixes else 0
    if kind.lengths.pairs is not None and not kind.conversation:
        longest_isl, longest_osl = (max(column) for column in zip(*kind.lengths.pairs.rows, strict=True))
        return longest_isl + prefix, longest_osl
    found = []
    for name, spread, added, drawn in (
        ("isl", kind.isl, prefix, drawn_isl),
        ("osl", kind.osl, 0, drawn_osl),
    ):
        if kind.lengths.pairs is not None or spread is None or (name == "isl" and kind.conversation):
            found.append(drawn)
        elif spread.longest is None:
            raise UserError(
                f"traffic: {kind.name or 'lengths'}: {name} has no upper bound, but the engine limits sequences",
                hint="lognormal(mean=1024, cv=0.8, max=8192)",
            )
        else:
            found.append(spread.longest + added)
    return found[0], found[1]


@cache
def _sampler(scenario_json: str) -> ConversationSampler:
    return ConversationSampler(Scenario.model_validate_json(scenario_json))


def _scenario(traffic: Described, seed: int, folder: Path) -> Scenario:
    return traffic.scenario(seed).moved(lambda path: str(folder / path))


@dataclass(frozen=True, slots=True)
class SampleSpec:
    """A window of traffic to sample for a simulation.

    Attributes:
        rate_per_s: Requests per second, mean of the busiest `peak_window_s`.
        measure_s: Length of the measured part; for a trace or varying traffic, at most the busiest window.
        lead_s: Unmeasured time before it, in which the batch fills and mixes.
        tail_s: Time after it, so that the last measured requests end under load.
        tokens_per_block: Of the engine, if it reuses KV blocks; None: shared prefixes have no effect.
        kv_tokens: Capacity of its KV cache; 0 if unknown.
        window: Index of the window; each is drawn from the seed and its index.
        windows: Number of windows; they are spread evenly over the busiest `peak_window_s`.
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
            isl=_times(each.isl, scale.isl),
            osl=_times(each.osl, scale.osl),
            max_tokens=None if each.max_tokens is None else _times(each.max_tokens, max(1.0, scale.osl)),
        )
        for each in sample.requests
    )
    return replace(sample, requests=requests)


def _described_curve(demand: Demand, traffic: Described) -> RateCurve:
    """Return the hourly rates, interpolated between the middles of hours, with per-minute variation."""
    stated = traffic.hours
    hours = np.array(stated if len(stated) > 1 else [*stated] * 24)
    middles_s = (np.arange(-1, 25) + 0.5) * HOUR_S
    slots = int(DAY_S / SLOT_S)
    rates = np.interp((np.arange(slots) + 0.5) * SLOT_S, middles_s, [hours[-1], *hours, hours[0]])
    minutes = _minutes(traffic.minute_variation, slots, np.random.default_rng([demand.seed, _ROOM]))
    hour_per_s = float(hours.max())
    ratio = busiest_ratio(traffic.minute_variation, demand.peak_window_s)
    return RateCurve(rates * minutes / minutes.mean(), hour_per_s * ratio, hour_per_s)


def _minutes(variation: float, count: int, rng: np.random.Generator) -> _Floats:
    """Return each minute's rate over its trend: lognormal, with correlated neighbours; shape (count,)."""
    if not variation:
        return np.ones(count)
    spread = math.sqrt(math.log1p(variation**2))
    fresh = rng.standard_normal(count) * math.sqrt(1 - MINUTE_CORRELATION**2)
    state, found = float(rng.standard_normal()), np.empty(count)
    for place, step in enumerate(fresh.tolist()):
        state = MINUTE_CORRELATION * state + step
        found[place] = state
    return np.asarray(np.exp(spread * found - spread**2 / 2))


def _busiest(minutes: _Floats, window_s: float) -> tuple[int, int, float]:
    """Return the first minute, the number of minutes and the mean of the busiest window."""
    count = min(len(minutes), max(1, round(window_s / MINUTE_S)))
    means = np.convolve(minutes, np.full(count, 1 / count), "valid")
    first = int(np.argmax(means))
    return first, count, float(means[first])


@cache
def busiest_ratio(variation: float, window_s: float) -> float:
    """Return the expected ratio of an hour's busiest window to the hour's mean.

    >>> round(busiest_ratio(0.0, 600.0), 9), round(busiest_ratio(0.13, 600.0), 1), round(busiest_ratio(0.13, 60.0), 1)
    (1.0, 1.1, 1.3)
    """
    rng = np.random.default_rng(0)
    hours = _minutes(variation, MINUTES * SAMPLED_HOURS, rng).reshape(SAMPLED_HOURS, MINUTES)
    return float(np.mean([_busiest(hour, window_s)[2] / hour.mean() for hour in hours]))


def _drawn(demand: Demand, folder: Path, spec: SampleSpec, rng: np.random.Generator) -> TrafficSample:
    """Draw a window. A conversation's next turn follows a reply of nominal duration and the think time."""
    traffic = demand.traffic
    assert isinstance(traffic, Described)
    scenario = _scenario(traffic, demand.seed, folder)
    sampler_json = scenario.model_dump_json()
    own_blocks = not _shares_little(scenario, spec.kv_tokens)
    drawn = _conversations(sampler_json, _most_by_class(demand, scenario), spec.tokens_per_block, own_blocks)
    upto_s = spec.lead_s + spec.measure_s + spec.tail_s
    rate_per_s = spec.rate_per_s / _turns_of(sampler_json)
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
    first = spec.window * _ROOM
    requests = [
        request._replace(at_s=begin_s + request.at_s)
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
    minutes = _minutes(traffic.minute_variation, MINUTES, rng)
    first, count, _ = _busiest(minutes, window_s)
    minutes = minutes / minutes.mean() / busiest_ratio(traffic.minute_variation, window_s)
    free_s = max(0.0, count * MINUTE_S - spec.measure_s)
    begin_s = first * MINUTE_S + free_s * _place(spec, rng)
    begin_s -= spec.lead_s
    inside = np.arange(math.floor(begin_s / MINUTE_S) + 1, math.ceil((begin_s + upto_s) / MINUTE_S))
    edges_s = np.concatenate([[0.0], inside * MINUTE_S - begin_s, [upto_s]])
    of_minute = np.floor((edges_s[:-1] + edges_s[1:]) / 2 / MINUTE_S + begin_s / MINUTE_S).astype(int)
    return edges_s, minutes[np.clip(of_minute, 0, MINUTES - 1)]


def _place(spec: SampleSpec, rng: np.random.Generator) -> float:
    """Return a window's position in the busiest period, 0 to 1; any first few windows are spread evenly."""
    return (spec.window * GOLDEN + rng.random() / spec.windows) % 1.0


@dataclass(slots=True)
class _Conversations:
    """Requests of a demand's conversations, drawn once for all loads."""

    sampler: ConversationSampler
    most: dict[str, int]
    tokens_per_block: int | None
    own_blocks: bool
    known: dict[int, tuple[SimRequest, ...]] = field(default_factory=dict)

    def of(self, number: int) -> tuple[SimRequest, ...]:
        """Return the requests of a conversation, from its start."""
        found = self.known.get(number)
        if found is None:
            drawn = _turns(self.sampler.begin(number), 0.0, self.tokens_per_block, own_blocks=self.own_blocks)
            found = self.known[number] = tuple(
                each._replace(osl=min(each.osl, most), max_tokens=most)
                for each in drawn
                for most in (self.most[each.class_name],)
            )
        return found


@lru_cache(maxsize=4)
def _conversations(
    scenario_json: str, most: tuple[tuple[str, int], ...], tokens_per_block: int | None, own_blocks: bool
) -> _Conversations:
    return _Conversations(_sampler(scenario_json), dict(most), tokens_per_block, own_blocks)


def _shares_little(scenario: Scenario, kv_tokens: int) -> bool:
    """Whether the only reused blocks are a few prefixes that are always in use.

    Other blocks are then irrelevant: they are evicted first, and prefixes that take a small share of the cache are used
    again long before they would be evicted.
    """
    kinds = scenario.kinds
    shared = sum(kind.prefixes.count * kind.prefixes.tokens for kind in kinds if kind.prefixes is not None)
    return all(kind.conversation is None for kind in kinds) and shared <= SMALL_SHARE * kv_tokens


def _most_by_class(demand: Demand, scenario: Scenario) -> tuple[tuple[str, int], ...]:
    """Return the `max_tokens` of each class's requests."""
    longest = _sampler(scenario.model_dump_json()).lengths_of(range(256)).longest_osl
    return tuple((kind.name or "", _max_tokens(kind, demand, _bounds(kind, 1, longest)[1])) for kind in scenario.kinds)


def mean_turns(traffic: Described, seed: int, folder: Path) -> float:
    """Return the mean number of requests per arrival: the turns of a conversation, 1 without conversations."""
    return _turns_of(_scenario(traffic, seed, folder).model_dump_json())


@cache
def _turns_of(scenario_json: str) -> float:
    sampler = _sampler(scenario_json)
    return sum(len(sampler.draw(number).exchanges) for number in range(SAMPLED)) / SAMPLED


def _turns(
    state: ConversationState, at_s: float, tokens_per_block: int | None, *, own_blocks: bool = True
) -> Iterator[SimRequest]:
    while not state.is_over:
        exchange = state.exchange
        hashes = () if tokens_per_block is None else state.block_hashes(tokens_per_block)
        if not own_blocks and tokens_per_block is not None:
            hashes = hashes[: state.conversation.prefix_tokens // tokens_per_block]
        yield SimRequest(at_s, state.prompt_tokens, exchange.reply_tokens, state.kind.name or "", hashes)
        at_s += exchange.reply_tokens * NOMINAL_ITL_S
        state.go_on(exchange.reply_tokens)
        at_s += 0.0 if state.is_over else state.exchange.think_s


def _replayed(demand: Demand, folder: Path, spec: SampleSpec, rng: np.random.Generator) -> TrafficSample:
    """Replay a part of a trace's busiest window at its original speed."""
    trace = demand.traffic
    assert isinstance(trace, Trace)
    requests = _trace(trace.model_dump_json(), str(folder))
    begin_s, window_s = busiest_window(demand, folder)
    inside = sum(begin_s <= each.at_s < begin_s + window_s for each in requests) / window_s
    measure_s = min(spec.measure_s, window_s)
    begin_s += (window_s - measure_s) * _place(spec, rng)
    begin_s -= min(spec.lead_s, begin_s)
    lead_s, upto_s = spec.lead_s, spec.lead_s + measure_s + spec.tail_s
    most = trace.max_tokens or demand.most_tokens(max(each.osl for each in requests))
    ratio = spec.rate_per_s / inside
    jitter_s = JITTER_S if ratio > 1 else 0.0
    found: list[SimRequest] = []
    for each in requests:
        at_s = each.at_s - begin_s
        if not -jitter_s <= at_s < upto_s + jitter_s:
            continue
        for copy in range(math.floor(ratio) + (rng.random() < ratio % 1)):
            moved_s = at_s + (rng.uniform(-jitter_s, jitter_s) if copy else 0.0)
            if 0 <= moved_s < upto_s:
                hashes = _block_hashes(each.prefix_hashes, spec.tokens_per_block)
                own = tuple(content + (copy << 80) for content in hashes) if copy else hashes
                limit = each.max_tokens or most
                found.append(SimRequest(moved_s, each.isl, min(each.osl, limit), "", own, limit))
    return TrafficSample(tuple(sorted(found, key=lambda each: each.at_s)), lead_s, lead_s + measure_s)


def _block_hashes(hashes: tuple[int, ...], tokens_per_block: int | None) -> tuple[int, ...]:
    """Return a trace's hashes as hashes of the engine's smaller blocks; none if the engine does not reuse blocks."""
    if tokens_per_block is None:
        return ()
    each = HASH_BLOCK_TOKENS // tokens_per_block
    return tuple(content * each + place for content in hashes for place in range(each))


def busiest_window(demand: Demand, folder: Path) -> tuple[float, float]:
    """Return the start of a trace's busiest window, relative to the trace's slice, and its length."""
    times_s = _trace_times_s(demand, folder)
    window_s = min(demand.peak_window_s, float(times_s[-1]))
    inside = np.searchsorted(times_s, times_s + window_s) - np.arange(len(times_s))
    latest = times_s <= max(0.0, float(times_s[-1]) - window_s)
    return float(times_s[int(np.argmax(np.where(latest, inside, -1)))]), window_s


def _trace_times_s(demand: Demand, folder: Path) -> _Floats:
    return np.array([each.at_s for each in _trace(demand.traffic.model_dump_json(), str(folder))])


@cache
def _trace(trace_json: str, folder: str) -> tuple[SimRequest, ...]:
    schedule = read_trace(Trace.model_validate_json(trace_json), folder=Path(folder))
    return tuple(
        SimRequest(each.at_s, each.isl or 1, each.osl or 1, "", each.prefix_hashes, each.max_tokens)
        for each in schedule.arrivals
    )
