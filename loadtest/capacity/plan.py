"""From a demand to a capacity plan: what is asked, searched, sized and answered, in one document."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import NamedTuple, get_args

from engines.files import Document, Strict
from engines.manifest import EngineManifest
from loadtest.capacity.autoscaler import Day, Ups, autoscaled
from loadtest.capacity.candidates import Candidate, candidates_of
from loadtest.capacity.decision import (
    Market,
    Row,
    in_order,
    market_of,
    nearest_possible,
    priced,
    recommended,
    rows_of,
    sentence_of,
)
from loadtest.capacity.from_run import measured_most
from loadtest.capacity.inputs import HOURS_PER_MONTH, Demand, Routing, prices_for
from loadtest.capacity.parallel import ResultCache, Work, do
from loadtest.capacity.pareto import Point, frontier_of
from loadtest.capacity.replica_count import total_for, worst_loss
from loadtest.capacity.sensitivity import Case, Contender, again_of, cases_of, looks_for
from loadtest.capacity.simulation import (
    NONE,
    Checked,
    FleetTask,
    LengthProfile,
    RateCurve,
    RateProbe,
    ReplicaCapacity,
    Task,
    What,
    curve_of,
    ramp_of,
    shape_of,
)
from loadtest.capacity.tasks import CandidateTask, Sweep, TaskResult, look

CONTENDERS = 3  # rows that are looked into beyond their search
SWEEP = (0.1, 0.25, 0.5, 0.75, 0.9, 1.0, 1.1)  # loads of a replica, of what it is promised to carry
GROW_AT_MOST = 3  # a fleet is made larger by a third of itself at most before its candidate is given up

PLAN_NAME = "capacity.json"


class TrafficFacts(Strict):
    """What the demand's traffic is, in numbers.

    Attributes:
        peak_per_s: Today's; `planned_peak_per_s` grown to the horizon.
        is_day: Whether the curve covers a whole day.
    """

    peak_per_s: float
    planned_peak_per_s: float
    mean_per_s: float
    growth: float
    is_day: bool
    mean_isl: float
    mean_osl: float
    longest_isl: int
    longest_osl: int
    tokens_per_month: float


class CapacityPlan(Document):
    """`capacity.json`.

    Attributes:
        recommended: Name of a row; None where nothing possible was found, and `nearest` says what would be.
        fleets: The recommended replicas simulated together; empty where the row is a measured run.
        day: Replicas over the day by an autoscaler, of the recommended row.
        autoscaled_usd_per_month: What they cost; None where the traffic is no whole day.
        sweep: The recommended replica at lower and higher loads.
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
    workers: int
    on_ray: bool
    progress: Callable[[str], None]


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

    def task(self, candidate: Candidate, demand: Demand) -> Task:
        """Return the search of a candidate that has an engine."""
        assert candidate.manifest is not None
        return Task(candidate.name, candidate.manifest, demand, self.folder, self.shape, candidate.pessimism)

    def replace_row(self, changed: Row) -> None:
        """Put a changed row in the place of the one of its name."""
        self.rows = in_order([changed if row.name == changed.name else row for row in self.rows])


def make_capacity(
    demand: Demand, folder: Path, head: Document, means: SearchOptions, *, today: date, is_brief: bool = False
) -> CapacityPlan:
    """Return the plan of a demand; one without a possible row says what would be possible.

    Args:
        folder: Where the demand's relative paths begin.
        is_brief: Only the rows and the recommendation are wanted.
    """
    seen = search(demand, folder, head, means, today=today)
    best = _checked_best(seen, means)
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
    )
    if best is None:
        return plan
    lost = worst_loss(best.replicas or 0, demand.availability)
    plan = plan.model_copy(update={"sentence": sentence_of(demand, seen.market, best, lost)})
    return plan if is_brief else _looked_into(plan, best, seen, means)


def search(demand: Demand, folder: Path, head: Document, means: SearchOptions, *, today: date) -> Searched:
    """Find what a replica of every candidate carries.

    Args:
        folder: Where the demand's relative paths begin.
    """
    prices = prices_for(demand.prices, folder, today=today, ratio=demand.scale.price)
    curve, shape = curve_of(demand, folder), shape_of(demand, folder)
    market = market_of(demand, curve, shape, prices)
    candidates = candidates_of(demand, folder, shape, made_by=head.made_by)
    seen = Searched(demand, folder, curve, shape, market, [], [])
    runs = [measured_most(each, demand, shape) for each in candidates if each.run is not None]
    open_ones = [each for each in candidates if each.run is None and each.refused is None]
    refused = [(each, None) for each in candidates if each.run is None and each.refused is not None]
    looks = [CandidateTask(each.name, search=seen.task(each, demand)) for each in open_ones]
    most = [each.found for each in _look_all(looks, means)]
    seen.found = [*runs, *zip(open_ones, most, strict=True), *refused]
    seen.rows = rows_of(demand, market, seen.found)
    return seen


def _look_all(looks: list[CandidateTask], means: SearchOptions) -> list[TaskResult]:
    work = Work(look, TaskResult, lambda asked: asked.key, lambda asked: asked.name)
    return do(work, looks, kept=means.kept, workers=means.workers, progress=means.progress, on_ray=means.on_ray)


def _checked_best(seen: Searched, means: SearchOptions) -> Row | None:
    """Return the recommended row, its fleet simulated at the peak and made larger until it keeps the objectives.

    A row that grows may be overtaken by another, which then is looked at in its turn.
    """
    fine: set[str] = set()
    while True:
        best = recommended(seen.rows)
        if best is None or best.name in fine or seen.candidate(best.name).manifest is None:
            return best
        assert best.needed is not None
        for needed in range(best.needed, best.needed + max(2, best.needed // GROW_AT_MOST) + 1):
            (looked,) = _look_all([_peak_look(seen, best, needed, seen.demand.routing)], means)
            if looked.checked is not None and looked.checked.tried.met:
                fine.add(best.name)
                break
        if needed != best.needed or best.name not in fine:
            seen.replace_row(_grown(seen, best, needed, is_fine=best.name in fine))


def _grown(seen: Searched, row: Row, needed: int, *, is_fine: bool) -> Row:
    if not is_fine:
        reason = f"even {needed} replicas behind a {seen.demand.routing.replace('_', ' ')} router miss what one keeps"
        return row.model_copy(update={"status": "objectives missed", "reason": reason})
    total = total_for(needed, seen.demand.availability)
    grown = priced(row, seen.demand, seen.market, needed=needed, replicas=total)
    return grown.model_copy(update={"added": needed - (row.needed or 0)})


def _peak_look(seen: Searched, row: Row, needed: int, routing: Routing) -> CandidateTask:
    return _fleet_look(seen, row, "peak", needed, routing)


def _fleet_look(
    seen: Searched,
    row: Row,
    what: What,
    replicas: int,
    routing: Routing,
    *,
    lost: int = 0,
    ups: tuple[int, ...] = (),
    rates_per_s: tuple[float, ...] = (),
) -> CandidateTask:
    task = seen.task(seen.candidate(row.name), seen.demand)
    at = row.at_knee
    in_flight = 1.0 if at is None else max(1.0, at.in_flight)
    rate_per_s = max(rates_per_s, default=seen.market.peak_per_s)
    fleet = FleetTask(what, task, rate_per_s, in_flight, replicas, routing, lost, ups, rates_per_s)
    return CandidateTask(f"{row.name}: {fleet.name}", fleet=fleet)


def _looked_into(plan: CapacityPlan, best: Row, seen: Searched, means: SearchOptions) -> CapacityPlan:
    """Return the plan with all that is asked of the recommended row."""
    demand, market = seen.demand, seen.market
    assert best.rate_per_s is not None
    assert best.replicas is not None
    day, ups = autoscaled(
        seen.curve, demand.growth, best.rate_per_s, demand.availability, demand.autoscaling, seed=demand.seed
    )
    lost = worst_loss(best.replicas, demand.availability)
    candidate = seen.candidate(best.name)
    plan = plan.model_copy(
        update={
            "day": day,
            "autoscaled_usd_per_month": _autoscaled_usd(best, day),
            "engine": candidate.manifest,
        }
    )
    contenders = [
        Contender(row=row, candidate=seen.candidate(row.name))
        for row in seen.rows
        if row.is_possible and seen.candidate(row.name).manifest is not None
    ][:CONTENDERS]
    fleets = [] if candidate.manifest is None else _fleet_looks(seen, best, lost, day, ups)
    searches = looks_for(contenders, seen.task, demand)
    sweeps = [_sweep_look(seen, each) for each in contenders]
    operating_per_s = market.peak_per_s / (best.needed or 1)
    operating = [] if candidate.manifest is None else _operating_looks(seen, candidate, operating_per_s)
    looked = _look_all([*fleets, *searches, *sweeps, *operating], means)
    looked, at_load = looked[: len(looked) - len(operating)], looked[len(looked) - len(operating) :]
    checked = [each.checked for each in looked[: len(fleets)] if each.checked is not None]
    again = again_of(contenders, [each.found for each in looked[len(fleets) : len(fleets) + len(searches)]])
    swept = {
        each.row.name: found.swept
        for each, found in zip(contenders, looked[-len(sweeps) :] if sweeps else [], strict=True)
    }
    possible = [row for row in seen.rows if row.status == "possible"]
    return plan.model_copy(
        update={
            "operating_per_s": operating_per_s,
            "operating": at_load[0].swept[0] if at_load else None,
            "operating_middle": at_load[1].swept[0] if at_load else None,
            "fleets": tuple(checked),
            "sweep": swept.get(best.name, ()),
            "frontier": tuple(frontier_of(demand, market, possible, swept)),
            "sensitivity": tuple(cases_of(demand, market, possible, best, again)),
        }
    )


def _fleet_looks(seen: Searched, best: Row, lost: int, day: Day, ups: Ups) -> list[CandidateTask]:
    """Return the fleets to simulate: what remains after a loss by each routing, the loss itself, the steepest ramp."""
    assert best.needed is not None
    assert best.replicas is not None
    routing = seen.demand.routing
    looks = [_peak_look(seen, best, best.needed, each) for each in get_args(Routing)]
    if lost:
        looks.append(_fleet_look(seen, best, "loss", best.replicas, routing, lost=lost))
    rates = [rate * seen.demand.growth for rate in seen.curve.rates_per_s.tolist()]
    steep, up = ramp_of(rates, ups.up, day.steepest_h)
    if max(steep) > 0 and len(set(up)) > 1:
        looks.append(_fleet_look(seen, best, "ramp", max(up), routing, ups=up, rates_per_s=tuple(steep)))
    return looks


def _sweep_look(seen: Searched, each: Contender) -> CandidateTask:
    assert each.row.rate_per_s is not None
    rates = tuple(each.row.rate_per_s * share for share in SWEEP)
    return CandidateTask(f"{each.row.name}, sweep", sweep=Sweep(seen.task(each.candidate, seen.demand), rates))


def _operating_looks(seen: Searched, candidate: Candidate, rate_per_s: float) -> list[CandidateTask]:
    """Return one replica at its share of the peak: at the unfavourable end of the prediction, and at its middle."""
    task = seen.task(candidate, seen.demand)
    return [
        CandidateTask(f"{candidate.name} at {rate_per_s:.3g} requests/s", sweep=Sweep(each, (rate_per_s,)))
        for each in (task, task._replace(pessimism=NONE))
    ]


def _autoscaled_usd(row: Row, day: Day) -> float | None:
    if not day.is_day or row.price is None:
        return None
    return day.mean_replicas * row.tensor_parallel * row.price.usd_per_gpu_h * HOURS_PER_MONTH


def _facts(demand: Demand, seen: Searched) -> TrafficFacts:
    curve, shape = seen.curve, seen.shape
    return TrafficFacts(
        peak_per_s=curve.peak_per_s,
        planned_peak_per_s=seen.market.peak_per_s,
        mean_per_s=curve.mean_per_s,
        growth=demand.growth,
        is_day=curve.is_day,
        mean_isl=shape.mean_isl,
        mean_osl=shape.mean_osl,
        longest_isl=shape.longest_isl,
        longest_osl=shape.longest_osl,
        tokens_per_month=seen.market.tokens_per_month,
    )
