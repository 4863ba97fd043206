"""Finds each candidate's capacity per replica, and the cheapest candidate by its smallest simulated fleet."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import NamedTuple

from engines.files import Document
from engines.steptime import Slowdown
from loadtest.capacity.accuracy import ranked_loss
from loadtest.capacity.candidates import EVICTING, Candidate, candidates_of
from loadtest.capacity.decision import Market, Row, limit_of, market_of, merit_of, priced, ranked, recommended, rows_of
from loadtest.capacity.from_run import measured_capacity
from loadtest.capacity.inputs import HOURS_PER_MONTH, SMALL_GPUS, Demand, prices_for
from loadtest.capacity.parallel import ResultCache, Work, Workers, do
from loadtest.capacity.replica_count import total_for
from loadtest.capacity.sensitivity import STEP
from loadtest.capacity.simulation import (
    FleetSize,
    LengthProfile,
    LoadBench,
    RateCurve,
    ReplicaCapacity,
    SizeTask,
    Task,
    curve_of,
    shape_of,
)
from loadtest.capacity.tasks import CandidateTask, TaskResult, run_task

BOUND_MARGIN = 1.3  # a simulated replica carries at most this many times the closed form of a full batch
NEAR_RATIO = 0.6  # of the requests that reservations have room for; below this, none has to wait for a reservation
_ROUNDING = 1e-9  # relative tolerance within which costs are equal, for rounding errors
MARGIN = 0.95  # a fleet can need one replica fewer than one replica's own rate implies
SIZED_AT_ONCE = 2


class SearchOptions(NamedTuple):
    """How to do the work: it decides how many candidates are searched to their end, not which is recommended."""

    cache: ResultCache
    workers: Workers
    progress: Callable[[str], None]
    first_table: Callable[[Sequence[Row]], None] = lambda _: None


@dataclass(slots=True)
class Searched:
    """Results of every candidate's own search, and the rows made from them.

    Attributes:
        is_brief: Search only what each row costs: it is never shown.
    """

    demand: Demand
    folder: Path
    curve: RateCurve
    shape: LengthProfile
    market: Market
    found: list[tuple[Candidate, ReplicaCapacity | None]]
    rows: list[Row]
    is_brief: bool = False

    def candidate(self, name: str) -> Candidate:
        """Return a row's candidate."""
        return next(each for each, _ in self.found if each.name == name)

    @property
    def enough_per_s(self) -> float:
        """The load beyond which no replica is searched: the whole demand, with the sensitivity cases' growth."""
        return self.rate_per_s * (1 + STEP)

    @property
    def rate_per_s(self) -> float:
        """The planned peak with headroom: the load of the smallest fleet."""
        return self.market.peak_per_s / (1 - self.demand.availability.headroom)

    def task(self, candidate: Candidate, demand: Demand) -> Task:
        """Return the search task of a candidate that has an engine."""
        assert candidate.manifest is not None
        return Task(
            candidate.name,
            candidate.manifest,
            demand,
            self.folder,
            self.shape,
            candidate.interval,
            is_brief=self.is_brief,
            enough_per_s=self.enough_per_s,
        )

    def add(self, found: Sequence[tuple[Candidate, ReplicaCapacity | None]]) -> None:
        """Add results of candidates."""
        self.found += found
        known = {row.name: row for row in self.rows if row.verdict is not None}
        self.rows = ranked([known.get(row.name, row) for row in rows_of(self.demand, self.market, self.found)])

    def replace_row(self, changed: Row) -> None:
        """Replace the row of the same name."""
        self.rows = ranked([changed if row.name == changed.name else row for row in self.rows])


def search(
    demand: Demand, folder: Path, head: Document, options: SearchOptions, *, today: date
) -> tuple[Searched, SearchOptions]:
    """Find every candidate's capacity per replica unless it cannot win; return the options for the remaining work too.

    Args:
        folder: Where the demand's relative paths start.
    """
    own = demand.own_accelerators
    prices = prices_for(demand.prices, folder, today=today, ratio=demand.scale.price, own=own)
    curve, shape = curve_of(demand, folder), shape_of(demand, folder)
    market = market_of(demand, curve, shape, prices, own)
    candidates = candidates_of(demand, folder, shape, made_by=head.made_by)
    searched = Searched(demand, folder, curve, shape, market, [], [])
    searched.add([measured_capacity(each, demand, shape) for each in candidates if each.run and not each.refused])
    searched.add([(each, None) for each in candidates if each.refused is not None])
    open_ones = [each for each in candidates if each.run is None and each.refused is None]
    if any(_is_small(searched, each) for each in open_ones):
        options = options._replace(workers=Workers(1))  # faster than starting other processes
    _search_all(searched, open_ones, options)
    return searched, options


def _is_small(searched: Searched, candidate: Candidate) -> bool:
    """Whether one replica carries the whole demand at low utilization."""
    bench = LoadBench(searched.task(candidate, searched.demand))
    return bench.is_small(searched.enough_per_s, candidate.interval.slow)


class _Known:
    """Results of one candidate's searches: by the rate below which each was given up, and the one that was not."""

    def __init__(self) -> None:
        self.at: dict[float | None, ReplicaCapacity] = {}
        self.whole: ReplicaCapacity | None = None

    def add(self, min_per_s: float | None, found: ReplicaCapacity) -> None:
        self.at[min_per_s] = found
        if not _is_bound(found, min_per_s):
            self.whole = found


def _is_bound(found: ReplicaCapacity, min_per_s: float | None) -> bool:
    """Whether a search ended at the rate that it had to reach."""
    return min_per_s is not None and found.promised.rate_per_s is None and found.promised.above_per_s == min_per_s


def _search_all(searched: Searched, candidates: Sequence[Candidate], options: SearchOptions) -> None:
    """Search candidates, potentially cheapest first; a search stops early once it cannot beat the best result.

    As many as there are workers are searched at once, each as if those before it in the same round had no result. Those
    that would have been given up earlier had they waited are then given up, which takes one load: what is found does
    not depend on the number of workers.
    """
    waiting = sorted(candidates, key=lambda each: (each.evicts, _least_usd(searched, each)))
    known = {each.name: _Known() for each in candidates}
    while waiting:
        candidate = waiting[0]
        if candidate.evicts and not _reservations_bind(searched, candidate):
            del waiting[0]
            continue
        found = known[candidate.name].at.get(_min_per_s(searched, candidate))
        if found is not None:
            searched.add([(candidate, found)])
            del waiting[0]
            continue
        chosen = [each for each in waiting if not each.evicts or _reservations_bind(searched, each)]
        tried = [(each, _min_per_s(searched, each)) for each in chosen]
        tried = [pair for pair in tried if pair[1] not in known[pair[0].name].at][: options.workers.count]
        tasks = [
            CandidateTask(
                each.name,
                search=searched.task(each, searched.demand)._replace(min_per_s=min_per_s),
                known=known[each.name].whole,
            )
            for each, min_per_s in tried
        ]
        for (each, min_per_s), result in zip(tried, run_tasks(tasks, options), strict=True):
            assert result.found is not None
            known[each.name].add(min_per_s, result.found)


def _reservations_bind(searched: Searched, candidate: Candidate) -> bool:
    """Whether reservations limit the same engine; if not, its evicting variant is equivalent."""
    manifest = candidate.manifest
    assert manifest is not None
    name = candidate.name.removesuffix(EVICTING)
    known = next((found for each, found in searched.found if each.name == name), None)
    if known is None:  # not searched yet
        return True
    reserved = min(searched.shape.mean_isl + searched.shape.max_tokens, manifest.limits.max_seq_len)
    slots = manifest.kv_cache.blocks * manifest.kv_cache.tokens_per_block / reserved
    return max((each.in_flight for each in known.tried), default=0.0) > NEAR_RATIO * slots


def _least_usd(searched: Searched, candidate: Candidate) -> float:
    """Return a lower bound of a candidate's monthly cost, from the closed form of its full batch."""
    price = searched.market.prices.get(candidate.gpu)
    if price is None:
        return math.inf
    bench = LoadBench(searched.task(candidate, searched.demand))
    rate_per_s = BOUND_MARGIN * bench.bound_per_s / candidate.interval.slow.step
    needed = math.ceil(searched.rate_per_s / rate_per_s)
    return total_for(needed, searched.demand.availability) * price.usd_per_gpu_h * candidate.tensor_parallel


def _min_per_s(searched: Searched, candidate: Candidate) -> float | None:
    """Return the rate per replica above which a fleet is cheaper than the best one found so far; None: any rate.

    Only rows that lose no more accuracy count: a dearer row that loses less belongs to the frontier.
    """
    loss = ranked_loss(candidate.accuracy)
    best = recommended([row for row in searched.rows if row.accuracy_loss <= loss])
    price = searched.market.prices.get(candidate.gpu)
    if best is None or best.usd_per_month is None or price is None:
        return None
    each_usd = price.usd_per_gpu_h * HOURS_PER_MONTH * candidate.tensor_parallel
    needed = 0
    while total_for(needed + 1, searched.demand.availability) * each_usd < best.usd_per_month * (1 - _ROUNDING):
        needed += 1
    if needed == 0:
        return searched.enough_per_s  # even one replica is not cheaper
    return MARGIN * searched.rate_per_s / needed


def run_tasks(tasks: list[CandidateTask], options: SearchOptions) -> list[TaskResult]:
    """Return the results of tasks, in order; cached ones are read."""
    work = Work(run_task, TaskResult, lambda task: task.key, lambda task: task.name)
    return do(work, tasks, cache=options.cache, workers=options.workers, progress=options.progress)


def cheapest_sized(searched: Searched, options: SearchOptions) -> Row | None:
    """Return the cheapest row after simulating the smallest fleet of every row that could be preferred to it."""
    while True:
        best = recommended(searched.rows)
        open_rows = [
            row
            for row in searched.rows
            if row.is_possible and row.verdict is None and searched.candidate(row.name).manifest is not None
        ]
        if best is None or best not in open_rows:
            near = [row for row in open_rows if best is not None and merit_of(row) == merit_of(best)]
        else:
            near = [row for row in open_rows if row.cost <= best.cost / MARGIN**2]
        chosen = near[:SIZED_AT_ONCE]
        if not chosen:
            if _search_again(searched, options):
                continue
            return best
        tasks = [
            size_task(searched, row, searched.candidate(row.name).interval.slow, row.needed or 1) for row in chosen
        ]
        for row, result in zip(chosen, run_tasks(tasks, options), strict=True):
            if result.size is not None:
                searched.replace_row(_with_size(searched, row, result.size))


def _search_again(searched: Searched, options: SearchOptions) -> bool:
    """Search again what was given up against a fleet that turned out larger; return whether there was any.

    A search is given up where its row, by one replica's rate, cannot be cheaper than the best one known then. If that
    one's fleet needs more replicas once it is simulated, the rate that a row needs to be cheaper falls.
    """
    again = []
    for candidate, found in searched.found:
        if found is not None and found.given_up:
            min_per_s = _min_per_s(searched, candidate)
            if min_per_s is None or min_per_s < (found.promised.above_per_s or 0.0) * (1 - _ROUNDING):
                again.append(candidate)
    if not again:
        return False
    names = {each.name for each in again}
    searched.found = [(each, found) for each, found in searched.found if each.name not in names]
    searched.add([])
    _search_all(searched, again, options)
    return True


def _with_size(searched: Searched, row: Row, found: FleetSize) -> Row:
    """Return a row with the size of the smallest fleet that was simulated."""
    if found.needed is None or found.chosen is None:
        missed = found.verdicts[-1]
        reason = f"{missed.replicas} replicas miss {', '.join(missed.tried.missed)} at the peak, as do fewer"
        return row.model_copy(update={"status": "objectives missed", "reason": reason, "verdict": missed})
    changed = row.model_copy(
        update={
            "fleet_per_s": max(searched.rate_per_s, row.rate_per_s or 0.0)
            if found.needed == 1
            else searched.rate_per_s / found.needed,
            "verdict": found.chosen,
            "added": found.needed - (row.needed or 0),
            "limited_by": limit_of(found) or row.limited_by,
        }
    )
    total = total_for(found.needed, searched.demand.availability)
    return priced(changed, searched.demand, searched.market, needed=found.needed, replicas=total)


def size_task(searched: Searched, row: Row, slowdown: Slowdown, start: int) -> CandidateTask:
    """Return the task that finds a row's smallest fleet at a slowdown, starting at `start` replicas."""
    task = searched.task(searched.candidate(row.name), searched.demand)
    size = SizeTask(task, slowdown, searched.rate_per_s, start, searched.demand.routing)
    return CandidateTask(f"{row.name}: fleets of about {start}", size=size)


def smaller_gpu(searched: Searched, best: Row, head: Document, options: SearchOptions) -> Row | None:
    """Return the cheapest smaller GPU that carries a demand for which one replica is enough; None if there is none."""
    known = {row.gpu for row in searched.rows}
    gpus = tuple(gpu for gpu in SMALL_GPUS if gpu in searched.market.prices and gpu not in known)
    if not gpus or best.usd_per_month is None:
        return None
    limits = searched.demand.limits.model_copy(update={"gpus": gpus})
    demand = searched.demand.model_copy(update={"limits": limits})
    open_ones = candidates_of(demand, searched.folder, searched.shape, made_by=head.made_by)
    other = (
        searched
        if searched.demand.limits.is_any_gpu
        else Searched(demand, searched.folder, searched.curve, searched.shape, searched.market, [], [], is_brief=True)
    )
    other.add([(each, None) for each in open_ones if each.refused is not None and each.run is None])
    _search_all(other, [each for each in open_ones if each.refused is None and each.run is None], options)
    cheapest = cheapest_sized(other, options)
    if cheapest is None or cheapest.usd_per_month is None or cheapest.usd_per_month >= best.usd_per_month:
        return None
    return cheapest
