"""From a demand to requests: the day's curve, its peak, and stretches of the peak at any rate for a simulation."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from engines.errors import UserError
from loadtest.capacity.inputs import Demand, Described, Scale, least_tail
from loadtest.scenario import HASH_BLOCK_TOKENS, Gamma, Kind, Scenario, Trace, draw_times_s, read_trace
from loadtest.traffic import ConversationSampler, ConversationState

# So many requests beyond a limit are enough to tell its share to about one part in seven (one standard deviation of a
# Poisson count of 50): a p99 then lies between what the p98.8 and the p99.2 of endless traffic would be.
EXCEEDANCES = 50
LEAST_REQUESTS = 1000
# A simulation starts empty and has to fill; by Little's law a stable engine never holds more requests than it has
# slots, so three times as many have turned the batch over, and ten times as many are ten lives of a full batch.
WARMUP_TURNOVERS, MEASURED_TURNOVERS = 3, 10
CHANCE = 3.0  # standard deviations
LEAD_RATIO = 0.2  # of a trace's window: what is replayed before it, unmeasured
SAMPLED = 4096  # conversations that means are taken of
SLOT_S = 60.0  # resolution of a day's curve
DAY_S = 86_400.0
NOMINAL_ITL_S = 0.02  # how fast a reply is taken to come when the time of a conversation's next turn is drawn
HOUR_S = 3600.0

_Floats = npt.NDArray[np.float64]


class SimRequest(NamedTuple):
    """One request: when, how long, of which class, and what its prompt begins with."""

    at_s: float
    isl: int
    osl: int
    class_name: str = ""
    prefix_hashes: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class TrafficSample:
    """Requests to simulate from an empty start; those sent from `measure_s` to `end_s` are measured."""

    asks: tuple[SimRequest, ...]
    measure_s: float
    end_s: float


@dataclass(frozen=True, slots=True)
class RateCurve:
    """Requests a second over a day, or over as much of it as a trace has; today's, before growth.

    Attributes:
        rates_per_s: By slot of `SLOT_S`.
        peak_per_s: Mean over the busiest hour of a described day, or the busiest `peak_window_s` of a trace.
    """

    rates_per_s: _Floats
    peak_per_s: float

    @property
    def mean_per_s(self) -> float:
        """Over the whole curve."""
        return float(self.rates_per_s.mean())

    @property
    def is_day(self) -> bool:
        """Whether it covers a whole day, so that what is summed over it can be multiplied to a month."""
        return len(self.rates_per_s) * SLOT_S >= DAY_S


class LengthProfile(NamedTuple):
    """Lengths of a demand's requests, in tokens."""

    mean_isl: float
    mean_osl: float
    longest_isl: int
    longest_osl: int


def requests_needed(demand: Demand, slots: int) -> int:
    """Return how many measured requests a simulation takes for its percentiles to be supported.

    The rarest class decides: its own objectives need as many of its own requests.
    """
    total = sum(each.weight for each in demand.classes) or 1.0
    shares = {"": 1.0} | {each.name: each.weight / total for each in demand.classes}
    needed = max(EXCEEDANCES / least_tail(of) / shares[name] for name, of in demand.all_objectives.items())
    return math.ceil(max(needed, LEAST_REQUESTS, MEASURED_TURNOVERS * slots) - 1e-6)


def curve_of(demand: Demand, folder: Path) -> RateCurve:
    """Return the day's curve of a demand."""
    if isinstance(demand.traffic, Described):
        return _described_curve(demand.traffic)
    times_s = _trace_times_s(demand, folder)
    begin_s, window_s = busiest_window(demand, folder)
    peak = float(((times_s >= begin_s) & (times_s < begin_s + window_s)).sum() / window_s)
    slots = max(1, math.floor(times_s[-1] / SLOT_S))
    counts, _ = np.histogram(times_s, bins=np.arange(slots + 1) * SLOT_S)
    return RateCurve(counts / SLOT_S, peak)


def shape_of(demand: Demand, folder: Path) -> LengthProfile:
    """Return mean and longest lengths of a demand's requests.

    Raises:
        UserError: A length has no upper bound: no engine is built for that.
    """
    if isinstance(demand.traffic, Trace):
        asks = _trace(demand.traffic.model_dump_json(), str(folder))
        isl, osl = (np.array(values) for values in zip(*((each.isl, each.osl) for each in asks), strict=True))
        return _scaled_shape(
            LengthProfile(float(isl.mean()), float(osl.mean()), int(isl.max()), int(osl.max())), demand.scale
        )
    scenario = _scenario(demand.traffic, demand.seed, folder)
    mix = _mix(scenario.model_dump_json())
    drawn = [ask for number in range(SAMPLED) for ask in _turns(mix.begin(number), 0.0, None)]
    isl, osl = np.array([each.isl for each in drawn]), np.array([each.osl for each in drawn])
    bounds = [_bounds(kind, int(isl.max()), int(osl.max())) for kind in scenario.kinds]
    longest_isl, longest_osl = (max(values) for values in zip(*bounds, strict=True))
    return _scaled_shape(LengthProfile(float(isl.mean()), float(osl.mean()), longest_isl, longest_osl), demand.scale)


def _scaled_shape(shape: LengthProfile, scale: Scale) -> LengthProfile:
    return LengthProfile(
        shape.mean_isl * scale.isl,
        shape.mean_osl * scale.osl,
        _times(shape.longest_isl, scale.isl),
        _times(shape.longest_osl, scale.osl),
    )


def _times(tokens: int, ratio: float) -> int:
    return max(1, round(tokens * ratio))


def _bounds(kind: Kind, drawn_isl: int, drawn_osl: int) -> tuple[int, int]:
    """Return the longest prompt and reply of a class; what is drawn from a file, or grows by turns, as it was seen."""
    prefix = kind.prefixes.tokens if kind.prefixes else 0
    found = []
    for name, spread, added, drawn in (
        ("isl", kind.isl, prefix, drawn_isl),
        ("osl", kind.osl, 0, drawn_osl),
    ):
        if kind.lengths.pairs is not None or spread is None or (name == "isl" and kind.conversation):
            found.append(drawn)
        elif spread.longest is None:
            raise UserError(
                f"traffic: {kind.name or 'lengths'}: {name} has no upper bound, and an engine has a longest sequence",
                hint="lognormal(mean=1024, cv=0.8, max=8192)",
            )
        else:
            found.append(spread.longest + added)
    return found[0], found[1]


@cache
def _mix(scenario_json: str) -> ConversationSampler:
    return ConversationSampler(Scenario.model_validate_json(scenario_json))


def _scenario(traffic: Described, seed: int, folder: Path) -> Scenario:
    return traffic.scenario(seed).moved(lambda path: str(folder / path))


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a simulation asks of the traffic.

    Attributes:
        rate_per_s: Requests a second at the peak.
        requests: Measured requests, at least; a trace's window may hold fewer where all of its traffic is replayed.
        slots: Requests that are in flight at most while the system is stable.
        tokens_per_block: Of the engine, where it finds KV blocks again; None: what prompts share is of no use to it.
    """

    rate_per_s: float
    requests: int
    slots: int
    tokens_per_block: int | None = None


def stretches_at(demand: Demand, folder: Path, wanted: Wanted) -> list[TrafficSample]:
    """Return the demand's peak at a rate, in as many stretches as its measured requests take.

    A described demand is one long stretch of its arrival process. Of a trace, it is the busiest window: thinned at
    random where less than all of its traffic goes to one replica, replayed faster where more does; several thinnings
    are what several replicas would each see.
    """
    rng = np.random.default_rng(demand.seed)
    if isinstance(demand.traffic, Described):
        found = [_drawn(demand.traffic, _scenario(demand.traffic, demand.seed, folder), wanted, rng)]
    else:
        found = _thinned(demand, folder, wanted, rng)
    return [_longer(each, demand.scale) for each in found]


def _longer(stretch: TrafficSample, scale: Scale) -> TrafficSample:
    if scale.isl == scale.osl == 1.0:
        return stretch
    asks = tuple(
        each._replace(isl=_times(each.isl, scale.isl), osl=_times(each.osl, scale.osl)) for each in stretch.asks
    )
    return replace(stretch, asks=asks)


def _described_curve(traffic: Described) -> RateCurve:
    """Return the hours' rates joined at the middle of each hour, round the clock."""
    hours = np.array(
        traffic.rate_by_hour_per_s if len(traffic.rate_by_hour_per_s) > 1 else [*traffic.rate_by_hour_per_s] * 24
    )
    middles_s = (np.arange(-1, 25) + 0.5) * HOUR_S
    rates = np.interp((np.arange(int(DAY_S / SLOT_S)) + 0.5) * SLOT_S, middles_s, [hours[-1], *hours, hours[0]])
    return RateCurve(rates, float(hours.max()))


def _drawn(traffic: Described, scenario: Scenario, wanted: Wanted, rng: np.random.Generator) -> TrafficSample:
    """Draw one long stretch; a conversation's next turn comes a nominal reply and its pause after the one before."""
    rate = wanted.rate_per_s
    warmup_s = max(WARMUP_TURNOVERS * wanted.slots, wanted.requests // 10) / rate
    chance = CHANCE * max(1.0, traffic.burstiness) * math.sqrt(wanted.requests)  # a draw may bring that many fewer
    end_s = warmup_s + (wanted.requests + chance) / rate
    fill_s = wanted.slots / rate  # the load stays up until the last measured request has ended
    mix = _mix(scenario.model_dump_json())
    turns = _turns_of(mix)
    process = Gamma(rate_per_s=rate / turns, burstiness=traffic.burstiness, duration_s=end_s + fill_s)
    asks = [
        ask
        for number, at_s in enumerate(draw_times_s(process, rng).tolist())
        for ask in _turns(mix.begin(number), at_s, wanted.tokens_per_block)
        if ask.at_s < end_s + fill_s
    ]
    return TrafficSample(tuple(sorted(asks, key=lambda each: each.at_s)), warmup_s, end_s)


def mean_turns(traffic: Described, seed: int, folder: Path) -> float:
    """Return how many requests one arrival brings: the turns of a conversation, 1 without."""
    return _turns_of(_mix(_scenario(traffic, seed, folder).model_dump_json()))


def _turns_of(mix: ConversationSampler) -> float:
    return sum(len(mix.draw(number).exchanges) for number in range(SAMPLED)) / SAMPLED


def _turns(talk: ConversationState, at_s: float, tokens_per_block: int | None) -> Iterator[SimRequest]:
    while not talk.is_over:
        exchange = talk.exchange
        hashes = () if tokens_per_block is None else talk.block_hashes(tokens_per_block)
        yield SimRequest(at_s, talk.prompt_tokens, exchange.reply_tokens, talk.kind.name or "", hashes)
        at_s += exchange.reply_tokens * NOMINAL_ITL_S
        talk.go_on(exchange.reply_tokens)
        at_s += 0.0 if talk.is_over else talk.exchange.think_s


def _thinned(demand: Demand, folder: Path, wanted: Wanted, rng: np.random.Generator) -> list[TrafficSample]:
    assert isinstance(demand.traffic, Trace)
    asks = _trace(demand.traffic.model_dump_json(), str(folder))
    begin_s, window_s = busiest_window(demand, folder)
    lead_s = min(begin_s, LEAD_RATIO * window_s)
    inside = [each for each in asks if begin_s - lead_s <= each.at_s < begin_s + window_s]
    whole_per_s = sum(each.at_s >= begin_s for each in inside) / window_s
    faster = max(1.0, wanted.rate_per_s / whole_per_s)
    kept = min(1.0, wanted.rate_per_s / whole_per_s)
    moved = [
        each._replace(
            at_s=(each.at_s - begin_s + lead_s) / faster,
            prefix_hashes=_block_hashes(each.prefix_hashes, wanted.tokens_per_block),
        )
        for each in inside
    ]
    count = 1 if kept == 1.0 else max(1, math.ceil(wanted.requests / (wanted.rate_per_s * window_s)))
    return [
        TrafficSample(
            tuple(each for each, draw in zip(moved, rng.random(len(moved)), strict=True) if draw < kept),
            lead_s / faster,
            (lead_s + window_s) / faster,
        )
        for _ in range(count)
    ]


def _block_hashes(hashes: tuple[int, ...], tokens_per_block: int | None) -> tuple[int, ...]:
    """Return a trace's hashes as hashes of the engine's smaller blocks; none where it never looks for them."""
    if tokens_per_block is None:
        return ()
    each = HASH_BLOCK_TOKENS // tokens_per_block
    return tuple(content * each + place for content in hashes for place in range(each))


def busiest_window(demand: Demand, folder: Path) -> tuple[float, float]:
    """Return when a trace's window with most arrivals begins, from its slice's beginning, and how long it is."""
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
        SimRequest(each.at_s, each.isl or 1, each.osl or 1, "", each.prefix_hashes) for each in schedule.arrivals
    )
