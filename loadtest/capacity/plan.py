"""From a demand to a capacity plan: what is asked, searched, sized and answered, in one document."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import NamedTuple, get_args

from engines.files import Document, Strict
from engines.manifest import EngineManifest
from loadtest.capacity.autoscaler import Day, Ups, autoscaled
from loadtest.capacity.candidates import EVICTING, Candidate, candidates_of
from loadtest.capacity.decision import (
    Market,
    Row,
    Sized,
    costed,
    limit_of,
    market_of,
    nearest_possible,
    priced,
    ranked,
    recommended,
    resized,
    rows_of,
    sentence_of,
)
from loadtest.capacity.from_run import measured_capacity
from loadtest.capacity.inputs import HOURS_PER_MONTH, SMALL_GPUS, Demand, Price, Routing, old_prices, prices_for
from loadtest.capacity.parallel import ResultCache, Work, Workers, do
from loadtest.capacity.pareto import Point, frontier_of
from loadtest.capacity.replica_count import total_for, worst_loss
from loadtest.capacity.sensitivity import STEP, Case, Contender, again_of, cases_of, looks_for
from loadtest.capacity.simulation import (
    NONE,
    Checked,
    FleetSize,
    FleetTask,
    LengthProfile,
    LoadBench,
    RateCurve,
    RateProbe,
    ReplicaCapacity,
    SizeTask,
    Slowdown,
    Task,
    What,
    curve_of,
    ramp_of,
    shape_of,
)
from loadtest.capacity.tasks import CandidateTask, Reliefs, Sweep, TaskResult, run_task

CONTENDERS = 2  # rows that are looked into beyond their search
SWEEP = (0.25, 0.5, 0.75, 0.9, 1.0, 1.1)  # loads of a replica, of what it is promised to carry
BOUND_MARGIN = 1.3  # a simulation brings at most so many times what the closed form of a full batch says
NEAR_RATIO = 0.6  # of the requests that reservations leave room for: below it they keep nobody waiting
_ROUNDING = 1e-9  # as dear is as dear, whatever a multiplication made of it
MARGIN = 0.95  # a fleet may take a replica less than one replica alone points to
SIZED_AT_ONCE = 2
SMALL_USE = 0.1  # of what the closed form of a full batch carries
QUEUE_DOUBLINGS = 4  # of a queue's limit that refuses what could have been served in time

PLAN_NAME = "capacity.json"


class TrafficFacts(Strict):
    """What the demand's traffic is, in numbers.

    Attributes:
        peak_per_s: Today's, mean of the busiest `peak_window_s`; `planned_peak_per_s` grown to the horizon, and
            `hour_per_s` today's mean of the busiest hour.
        is_day: Whether the curve covers a whole day.
    """

    peak_per_s: float
    hour_per_s: float
    planned_peak_per_s: float
    mean_per_s: float
    growth: float
    is_day: bool
    mean_isl: float
    mean_osl: float
    longest_isl: int
    longest_osl: int
    max_tokens: int
    tokens_per_month: float


class CapacityPlan(Document):
    """`capacity.json`.

    Attributes:
        recommended: Name of a row; None where nothing possible was found, and `nearest` says what would be.
        fleets: The recommended replicas simulated together; empty where the row is a measured run.
        day: Replicas over the day by an autoscaler, of the recommended row.
        autoscaled_usd_per_month: What they cost; None where the traffic is no whole day.
        sweep: The recommended replica at lower and higher loads.
        max_queue_size: Requests that may wait on each replica, as deployed and as simulated; 0: no limit.
        warnings: Of prices that are old.
        max_tokens_note: What a lower `max_tokens` would buy; None where nothing.
        smaller_gpu: A cheaper GPU outside the demand's limits that would hold it; None where there is none.
        operating_per_s: What each replica has to carry at the peak with the spares lost; `operating` what it shows
            there at the unfavourable end of the prediction, `operating_middle` at its middle.
        engine: Manifest of the recommended engine; None of a measured run.
    """

    demand: Demand
    traffic: TrafficFacts
    rows: list[Row]
    recommended: str | None
    sentence: str | None
    nearest: str | None
    fleets: tuple[Checked, ...] = ()
    day: Day | None = None
    autoscaled_usd_per_month: float | None = None
    sweep: tuple[RateProbe, ...] = ()
    frontier: tuple[Point, ...] = ()
    sensitivity: tuple[Case, ...] = ()
    max_queue_size: int = 0
    warnings: tuple[str, ...] = ()
    max_tokens_note: str | None = None
    smaller_gpu: str | None = None
    operating_per_s: float | None = None
    operating: RateProbe | None = None
    operating_middle: RateProbe | None = None
    engine: EngineManifest | None = None

    @property
    def chosen(self) -> Row | None:
        """The recommended row."""
        return next((row for row in self.rows if row.name == self.recommended), None)


class SearchOptions(NamedTuple):
    """How the work is done, not what it is."""

    kept: ResultCache
    workers: Workers
    progress: Callable[[str], None]
    first_table: Callable[[Sequence[Row]], None] = lambda _: None


@dataclass(slots=True)
class Searched:
    """Everything that was found out of each candidate alone, and its rows."""

    demand: Demand
    folder: Path
    curve: RateCurve
    shape: LengthProfile
    market: Market
    found: list[tuple[Candidate, ReplicaCapacity | None]]
    rows: list[Row]

    def candidate(self, name: str) -> Candidate:
        """Return the candidate of a row."""
        return next(each for each, _ in self.found if each.name == name)

    @property
    def enough_per_s(self) -> float:
        """A load past which nobody asks what one replica carries: all of the demand, grown as the levers grow it."""
        return self.rate_per_s * (1 + STEP)

    @property
    def rate_per_s(self) -> float:
        """The planned peak with its headroom: what the smallest fleet has to carry."""
        return self.market.peak_per_s / (1 - self.demand.availability.headroom)

    def task(self, candidate: Candidate, demand: Demand) -> Task:
        """Return the search of a candidate that has an engine."""
        assert candidate.manifest is not None
        return Task(
            candidate.name,
            candidate.manifest,
            demand,
            self.folder,
            self.shape,
            candidate.interval,
            enough_per_s=self.enough_per_s,
        )

    def add(self, found: Sequence[tuple[Candidate, ReplicaCapacity | None]]) -> None:
        """Add what was found of candidates."""
        self.found += found
        known = {row.name: row for row in self.rows if row.verdict is not None}
        self.rows = ranked([known.get(row.name, row) for row in rows_of(self.demand, self.market, self.found)])

    def replace_row(self, changed: Row) -> None:
        """Put a changed row in the place of the one of its name."""
        self.rows = ranked([changed if row.name == changed.name else row for row in self.rows])


def make_capacity(
    demand: Demand, folder: Path, head: Document, means: SearchOptions, *, today: date, is_brief: bool = False
) -> CapacityPlan:
    """Return the plan of a demand; one without a possible row says what would be possible.

    Args:
        folder: Where the demand's relative paths begin.
        is_brief: Only the rows and the recommendation are wanted.
    """
    seen, means = search(demand, folder, head, means, today=today)
    if not is_brief:
        means.first_table(seen.rows)
    best = _sized_best(seen, means)
    smaller = (
        _smaller_gpu(seen, best, head, means)
        if best is not None and best.replicas == total_for(1, demand.availability)
        else None
    )
    if smaller is not None and demand.limits.is_any_gpu:
        best, smaller = smaller, None
    sources = [*head.made_from, *(source for candidate, _ in seen.found for source in candidate.sources)]
    plan = CapacityPlan(
        made_by=head.made_by,
        made_from=list({source.path: source for source in sources}.values()),
        demand=demand,
        traffic=_facts(demand, seen),
        rows=seen.rows,
        recommended=None if best is None else best.name,
        sentence=None,
        nearest=None if best is not None else nearest_possible(demand, seen.market, seen.rows),
        warnings=tuple(old_prices(_used_prices(seen), today)),
        smaller_gpu=None if smaller is None else _smaller_text(smaller),
    )
    if best is None:
        return plan
    if not is_brief:
        plan, best = _looked_into(plan, best, seen, means)
    lost = worst_loss(best.replicas or 0, demand.availability)
    return plan.model_copy(update={"sentence": sentence_of(demand, seen.market, best, lost), "rows": seen.rows})


def search(
    demand: Demand, folder: Path, head: Document, means: SearchOptions, *, today: date
) -> tuple[Searched, SearchOptions]:
    """Find what a replica of every candidate carries, as far as it may win, and return how to do the rest of the work.

    Args:
        folder: Where the demand's relative paths begin.
    """
    own = demand.own_accelerators
    prices = prices_for(demand.prices, folder, today=today, ratio=demand.scale.price, own=own)
    curve, shape = curve_of(demand, folder), shape_of(demand, folder)
    market = market_of(demand, curve, shape, prices, own)
    candidates = candidates_of(demand, folder, shape, made_by=head.made_by)
    seen = Searched(demand, folder, curve, shape, market, [], [])
    seen.add([measured_capacity(each, demand, shape) for each in candidates if each.run is not None])
    seen.add([(each, None) for each in candidates if each.run is None and each.refused is not None])
    open_ones = [each for each in candidates if each.run is None and each.refused is None]
    if any(_is_small(seen, each) for each in open_ones):
        means = means._replace(workers=Workers(1))  # done before other processes would have started
    _search_all(seen, open_ones, means)
    return seen, means


def _is_small(seen: Searched, candidate: Candidate) -> bool:
    """Whether one replica holds the whole demand and is hardly used by it."""
    bench = LoadBench(seen.task(candidate, seen.demand))
    return seen.enough_per_s <= SMALL_USE * bench.bound_per_s / candidate.interval.slow.step


def _search_all(seen: Searched, candidates: Sequence[Candidate], means: SearchOptions) -> None:
    """Search candidates, those that may be cheapest first; what cannot beat what was found is given up early."""
    waiting = sorted(candidates, key=lambda each: (each.evicts, _least_usd(seen, each)))
    while waiting:
        waiting = [each for each in waiting if not each.evicts or _reservations_bind(seen, each)]
        first, waiting = waiting[: max(2, means.workers.count)], waiting[max(2, means.workers.count) :]
        looks = [
            CandidateTask(
                each.name,
                search=seen.task(each, seen.demand)._replace(least_per_s=_least_per_s(seen, each)),
            )
            for each in first
        ]
        seen.add([(each, looked.found) for each, looked in zip(first, _look_all(looks, means), strict=True)])


def _reservations_bind(seen: Searched, candidate: Candidate) -> bool:
    """Whether the same engine with reservations came near what they leave room for; else evicting is the same."""
    manifest = candidate.manifest
    assert manifest is not None
    name = candidate.name.removesuffix(EVICTING)
    known = next((found for each, found in seen.found if each.name == name), None)
    if known is None:  # not searched yet
        return True
    reserved = min(seen.shape.mean_isl + seen.shape.max_tokens, manifest.limits.max_seq_len)
    slots = manifest.kv_cache.blocks * manifest.kv_cache.tokens_per_block / reserved
    return max((each.in_flight for each in known.tried), default=0.0) > NEAR_RATIO * slots


def _least_usd(seen: Searched, candidate: Candidate) -> float:
    """Return a bound on a candidate's cost a month, from the closed form of its full batch."""
    price = seen.market.prices.get(candidate.gpu)
    if price is None:
        return math.inf
    bench = LoadBench(seen.task(candidate, seen.demand))
    rate_per_s = BOUND_MARGIN * bench.bound_per_s / candidate.interval.slow.step
    needed = math.ceil(seen.rate_per_s / rate_per_s)
    return total_for(needed, seen.demand.availability) * price.usd_per_gpu_h * candidate.tensor_parallel


def _least_per_s(seen: Searched, candidate: Candidate) -> float | None:
    """Return what a replica must carry for its fleet to be cheaper than the best found so far; None: anything."""
    best, price = recommended(seen.rows), seen.market.prices.get(candidate.gpu)
    if best is None or best.usd_per_month is None or price is None:
        return None
    each_usd = price.usd_per_gpu_h * HOURS_PER_MONTH * candidate.tensor_parallel
    needed = 0
    while total_for(needed + 1, seen.demand.availability) * each_usd < best.usd_per_month * (1 - _ROUNDING):
        needed += 1
    if needed == 0:
        return seen.enough_per_s  # not even one is cheaper, whatever it carries
    return MARGIN * seen.rate_per_s / needed


def _look_all(looks: list[CandidateTask], means: SearchOptions) -> list[TaskResult]:
    work = Work(run_task, TaskResult, lambda asked: asked.key, lambda asked: asked.name)
    return do(work, looks, kept=means.kept, workers=means.workers, progress=means.progress)


def _sized_best(seen: Searched, means: SearchOptions) -> Row | None:
    """Return the recommended row: the cheapest once the smallest fleet of each that may be has been simulated."""
    while True:
        best = recommended(seen.rows)
        if best is None or best.verdict is not None or seen.candidate(best.name).manifest is None:
            return best
        open_rows = [row for row in seen.rows if row.is_possible and row.verdict is None]
        near = [row for row in open_rows if row.cost <= best.cost / MARGIN**2]
        chosen = [row for row in near if seen.candidate(row.name).manifest is not None][:SIZED_AT_ONCE]
        looks = [_size_look(seen, row, seen.candidate(row.name).interval.slow, row.needed or 1) for row in chosen]
        for row, looked in zip(chosen, _look_all(looks, means), strict=True):
            if looked.size is not None:
                seen.replace_row(_with_size(seen, row, looked.size))


def _with_size(seen: Searched, row: Row, found: FleetSize) -> Row:
    """Return a row with the size of the smallest fleet that was simulated."""
    if found.needed is None or found.chosen is None:
        missed = found.verdicts[-1]
        reason = f"{missed.replicas} replicas miss {', '.join(missed.tried.missed)} at the peak, and so did fewer"
        return row.model_copy(update={"status": "objectives missed", "reason": reason, "verdict": missed})
    changed = row.model_copy(
        update={
            "fleet_per_s": max(seen.rate_per_s, row.rate_per_s or 0.0)
            if found.needed == 1
            else seen.rate_per_s / found.needed,
            "verdict": found.chosen,
            "added": found.needed - (row.needed or 0),
            "limited_by": limit_of(found) or row.limited_by,
        }
    )
    total = total_for(found.needed, seen.demand.availability)
    return priced(changed, seen.demand, seen.market, needed=found.needed, replicas=total)


def _size_look(seen: Searched, row: Row, slowdown: Slowdown, start: int) -> CandidateTask:
    task = seen.task(seen.candidate(row.name), seen.demand)
    asked = SizeTask(task, slowdown, seen.rate_per_s, start, seen.demand.routing)
    return CandidateTask(f"{row.name}: fleets of {start} and its neighbours", size=asked)


def _smaller_gpu(seen: Searched, best: Row, head: Document, means: SearchOptions) -> Row | None:
    """Return the cheapest smaller GPU that holds a demand for which one replica is enough; None where none is."""
    known = {row.gpu for row in seen.rows}
    gpus = tuple(gpu for gpu in SMALL_GPUS if gpu in seen.market.prices and gpu not in known)
    if not gpus or best.usd_per_month is None:
        return None
    limits = seen.demand.limits.model_copy(update={"gpus": gpus})
    demand = seen.demand.model_copy(update={"limits": limits})
    open_ones = candidates_of(demand, seen.folder, seen.shape, made_by=head.made_by)
    other = (
        seen
        if seen.demand.limits.is_any_gpu
        else Searched(demand, seen.folder, seen.curve, seen.shape, seen.market, [], [])
    )
    other.add([(each, None) for each in open_ones if each.refused is not None and each.run is None])
    _search_all(other, [each for each in open_ones if each.refused is None and each.run is None], means)
    cheapest = _sized_best(other, means)
    if cheapest is None or cheapest.usd_per_month is None or cheapest.usd_per_month >= best.usd_per_month:
        return None
    return cheapest


def _smaller_text(row: Row) -> str:
    context = "" if row.kv_tokens is None else f"; its KV cache holds {row.kv_tokens:,} tokens"
    return f"{row.name} would hold it for {row.usd_per_month:,.0f} USD a month, and is not in limits.gpus{context}"


def _fleet_look(  # noqa: PLR0913 (one per thing a fleet is made of)
    seen: Searched,
    row: Row,
    what: What,
    replicas: int,
    routing: Routing,
    *,
    queue: int,
    lost: int = 0,
    ups: tuple[int, ...] = (),
    rates_per_s: tuple[float, ...] = (),
) -> CandidateTask:
    candidate = seen.candidate(row.name)
    task = seen.task(candidate, seen.demand)
    rate_per_s = max(rates_per_s, default=seen.market.peak_per_s)
    slow = candidate.interval.slow
    fleet = FleetTask(what, task, slow, rate_per_s, replicas, routing, lost, ups, rates_per_s, queue)
    return CandidateTask(f"{row.name}: {fleet.name}", fleet=fleet)


def _looked_into(plan: CapacityPlan, best: Row, seen: Searched, means: SearchOptions) -> tuple[CapacityPlan, Row]:
    """Return the plan with all that is asked of the recommended row, and that row with its other sizes."""
    demand, market = seen.demand, seen.market
    assert best.replicas is not None
    assert best.rate_per_s is not None
    carried = best.fleet_per_s or best.rate_per_s
    day, ups = autoscaled(seen.curve, demand.growth, carried, demand.availability, demand.autoscaling, seed=demand.seed)
    candidate = seen.candidate(best.name)
    operating_per_s = market.peak_per_s / (best.needed or 1)
    plan = plan.model_copy(
        update={
            "day": day,
            "autoscaled_usd_per_month": _autoscaled_usd(best, day),
            "engine": candidate.manifest,
            "operating_per_s": operating_per_s,
        }
    )
    contenders = _contenders(seen, best)
    if candidate.manifest is None:
        possible = [row for row in seen.rows if row.status == "possible"]
        return plan.model_copy(update={"sensitivity": tuple(cases_of(demand, market, possible, best, {}))}), best
    task = seen.task(candidate, demand)
    queue = _queue_limit(demand, best)
    looks = {
        **_other_sizes(seen, best, candidate),
        "operating": [_sweep_look(f"{best.name} at its share", task, (operating_per_s,))],
        "operating_middle": [_sweep_look(f"{best.name}, middle", _at(task, NONE), (operating_per_s,))],
        "reliefs": [CandidateTask(f"{best.name}: what binds", reliefs=Reliefs(task, best.found))] if best.found else [],
        "fleets": _fleet_looks(seen, best, day, ups, queue),
        "again": looks_for(contenders, seen.task, demand),
        "sweeps": [_sweep_of(seen, each) for each in contenders],
        "max_tokens": _lower_max_tokens(seen, candidate),
    }
    looked = dict(
        zip(looks, _by_group(_look_all([one for group in looks.values() for one in group], means), looks), strict=True)
    )
    best = _with_others(seen, best, looked)
    seen.replace_row(best)
    fleets, queue = _queue_kept([one.checked for one in looked["fleets"] if one.checked], seen, best, queue, means)
    possible = [row for row in seen.rows if row.status == "possible"]
    swept = {each.row.name: one.swept for each, one in zip(contenders, looked["sweeps"], strict=True)}
    again = again_of(contenders, [one.found for one in looked["again"]])
    return plan.model_copy(
        update={
            "operating": looked["operating"][0].swept[0],
            "operating_middle": looked["operating_middle"][0].swept[0],
            "fleets": tuple(fleets),
            "max_queue_size": queue,
            "max_tokens_note": _max_tokens_note(seen, best, [one.found for one in looked["max_tokens"]]),
            "sweep": swept.get(best.name, ()),
            "frontier": tuple(frontier_of(demand, market, possible, swept)),
            "sensitivity": tuple(cases_of(demand, market, possible, best, again)),
        }
    ), best


def _contenders(seen: Searched, best: Row) -> list[Contender]:
    """Return the recommended row, and the cheapest of another GPU or precision."""
    others = [row for row in seen.rows if row.is_possible and (row.gpu, row.precision) != (best.gpu, best.precision)]
    rows = [row for row in (best, *others) if seen.candidate(row.name).manifest is not None]
    return [Contender(row=row, candidate=seen.candidate(row.name)) for row in rows[:CONTENDERS]]


def _by_group(found: Sequence[TaskResult], looks: dict[str, list[CandidateTask]]) -> Iterator[list[TaskResult]]:
    """Yield results in the groups that they were asked for in."""
    begin = 0
    for group in looks.values():
        yield list(found[begin : begin + len(group)])
        begin += len(group)


def _at(task: Task, slowdown: Slowdown) -> Task:
    return task._replace(interval=task.interval._replace(slow=slowdown))


def _sweep_look(name: str, task: Task, rates_per_s: tuple[float, ...]) -> CandidateTask:
    return CandidateTask(name, sweep=Sweep(task, rates_per_s))


def _sweep_of(seen: Searched, each: Contender) -> CandidateTask:
    assert each.row.rate_per_s is not None
    is_open = each.row.found is not None and each.row.found.promised.above_per_s is not None
    rates = tuple(each.row.rate_per_s * share for share in (SWEEP if is_open else SWEEP[-2:]))
    return _sweep_look(f"{each.row.name}, sweep", seen.task(each.candidate, seen.demand), rates)


def _other_sizes(seen: Searched, best: Row, candidate: Candidate) -> dict[str, list[CandidateTask]]:
    """Return the fleets of the recommended row at the middle of the prediction and at its favourable end."""
    slow, fast = candidate.interval
    found: dict[str, list[CandidateTask]] = {"middle": [], "optimistic": []}
    if slow != NONE and best.middle is not None and best.middle.needed is not None:
        found["middle"] = [_size_look(seen, best, NONE, best.middle.needed)]
    if fast != NONE and best.optimistic is not None and best.optimistic.needed is not None:
        found["optimistic"] = [_size_look(seen, best, fast, best.optimistic.needed)]
    return found


def _with_others(seen: Searched, best: Row, looked: dict[str, list[TaskResult]]) -> Row:
    """Return the recommended row with its other sizes as simulated, and what binds it."""
    promised = best.sizes[0]
    sizes: dict[str, Sized | None] = {"middle": best.middle, "optimistic": best.optimistic}
    for name, known in sizes.items():
        found = looked[name][0].size if looked[name] else None
        if known is not None:
            sizes[name] = promised if found is None else resized(known, best, found, seen.demand)
    if not looked["optimistic"] and looked["middle"]:
        sizes["optimistic"] = sizes["middle"]
    changed: dict[str, object] = dict(sizes)
    if looked["reliefs"] and looked["reliefs"][0].found is not None:
        relieved = looked["reliefs"][0].found
        changed |= {"found": relieved, "binding": relieved.binding}
    return best.model_copy(update=changed)


def _fleet_looks(seen: Searched, best: Row, day: Day, ups: Ups, queue: int) -> list[CandidateTask]:
    """Return the fleets to simulate: what remains after a loss by each routing, the loss itself, the steepest ramp."""
    assert best.needed is not None
    assert best.replicas is not None
    routing = seen.demand.routing
    others = [each for each in get_args(Routing) if each != routing]
    looks = [_fleet_look(seen, best, "peak", best.needed, each, queue=queue) for each in (routing, *others)]
    if best.needed == 1:
        looks = looks[:1]
    lost = worst_loss(best.replicas, seen.demand.availability)
    if lost:
        looks.append(_fleet_look(seen, best, "loss", best.replicas, routing, queue=queue, lost=lost))
    rates = [rate * seen.demand.growth for rate in seen.curve.rates_per_s.tolist()]
    steep, up = ramp_of(rates, ups.up, day.steepest_h)
    if max(steep) > 0 and len(set(up)) > 1:
        looks.append(_fleet_look(seen, best, "ramp", max(up), routing, queue=queue, ups=up, rates_per_s=tuple(steep)))
    return looks


def _queue_limit(demand: Demand, best: Row) -> int:
    """Return how many requests may wait on a replica: as many as the middle of the prediction serves in time."""
    limits = [limit for of in demand.all_objectives.values() for limit in of.ttft_s.values()]
    rate_per_s = best.middle_rate_per_s or best.rate_per_s
    return max(1, math.ceil(rate_per_s * max(limits))) if limits and rate_per_s else 0


def _queue_kept(
    fleets: list[Checked], seen: Searched, best: Row, queue: int, means: SearchOptions
) -> tuple[list[Checked], int]:
    """Return the fleets and the queue limit, doubled until it refuses no more than the demand lets fail."""
    allowed = seen.demand.objectives.errors_ratio
    for _ in range(QUEUE_DOUBLINGS):
        if not fleets or fleets[0].refused <= allowed:
            return fleets, queue
        queue *= 2
        run_task = _fleet_look(seen, best, "peak", best.needed or 1, seen.demand.routing, queue=queue)
        (looked,) = _look_all([run_task], means)
        fleets = [looked.checked, *fleets[1:]] if looked.checked else fleets
    return fleets, queue if not fleets or fleets[0].refused <= allowed else 0


def _lower_max_tokens(seen: Searched, candidate: Candidate) -> list[CandidateTask]:
    """Return the search of the same engine with `max_tokens` at the longest reply, where less would be reserved."""
    shape, manifest = seen.shape, candidate.manifest
    if manifest is None or manifest.runtime.scheduler_policy == "max_utilization":
        return []
    if shape.max_tokens <= shape.longest_osl:
        return []
    lowered = with_max_tokens(seen.demand, shape.longest_osl)
    task = seen.task(candidate, lowered)._replace(shape=shape._replace(max_tokens=shape.longest_osl), is_brief=True)
    return [CandidateTask(f"{candidate.name}, max_tokens {shape.longest_osl}", search=task)]


def with_max_tokens(demand: Demand, tokens: int) -> Demand:
    """Return a demand whose requests ask for at most so many reply tokens."""
    traffic = demand.traffic
    if traffic.process == "trace":
        return demand.model_copy(update={"traffic": traffic.model_copy(update={"max_tokens": tokens})})
    changed = {
        "lengths": traffic.lengths.model_copy(update={"max_tokens": tokens}),
        "classes": tuple(
            each
            if each.lengths is None
            else each.model_copy(update={"lengths": each.lengths.model_copy(update={"max_tokens": tokens})})
            for each in traffic.classes
        ),
    }
    return demand.model_copy(update={"traffic": traffic.model_copy(update=changed)})


def _max_tokens_note(seen: Searched, best: Row, found: Sequence[ReplicaCapacity | None]) -> str | None:
    shape = seen.shape
    lowered = found[0] if found else None
    if lowered is None or lowered.rate_per_s is None:
        return None
    row = costed(
        best.model_copy(update={"rate_per_s": lowered.rate_per_s, "fleet_per_s": None}), seen.demand, seen.market
    )
    before = best.needed or 0
    said = (
        f"Every request reserves KV cache for {shape.max_tokens:,} reply tokens (max_tokens); no reply is longer than "
        f"{shape.longest_osl:,}. "
    )
    if row.needed is None or row.needed >= before:
        return f"{said}Lowering max_tokens to that saves no replica."
    cost = "" if row.usd_per_month is None else f", {row.usd_per_month:,.0f} USD a month"
    return f"{said}Lowering max_tokens to that takes {row.replicas} replicas{cost}."


def _used_prices(seen: Searched) -> list[Price]:
    """Return the price of each GPU that a row was costed with."""
    return list({row.gpu: row.price for row in seen.rows if row.price is not None}.values())


def _autoscaled_usd(row: Row, day: Day) -> float | None:
    if not day.is_day or row.price is None:
        return None
    return day.mean_replicas * row.tensor_parallel * row.price.usd_per_gpu_h * HOURS_PER_MONTH


def _facts(demand: Demand, seen: Searched) -> TrafficFacts:
    curve, shape = seen.curve, seen.shape
    return TrafficFacts(
        peak_per_s=curve.peak_per_s,
        hour_per_s=curve.hour_per_s,
        planned_peak_per_s=seen.market.peak_per_s,
        mean_per_s=curve.mean_per_s,
        growth=demand.growth,
        is_day=curve.is_day,
        mean_isl=shape.mean_isl,
        mean_osl=shape.mean_osl,
        longest_isl=shape.longest_isl,
        longest_osl=shape.longest_osl,
        max_tokens=shape.max_tokens,
        tokens_per_month=seen.market.tokens_per_month,
    )
