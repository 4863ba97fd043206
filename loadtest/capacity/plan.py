"""From a demand to a capacity plan: what is asked, searched, sized and answered, in one document."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import NamedTuple

from engines.files import Document, Strict
from loadtest.capacity.answer import Market, Row, market_of, nearest_possible, recommended, rows_of, sentence_of
from loadtest.capacity.candidates import Candidate, candidates_of
from loadtest.capacity.demand import Demand
from loadtest.capacity.load import Curve, Shape, curve_of, shape_of
from loadtest.capacity.measured import measured_most
from loadtest.capacity.most import Found, Task, most_of
from loadtest.capacity.prices import prices_for
from loadtest.capacity.size import worst_loss
from loadtest.capacity.spread import Kept, Work, do

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
    """

    demand: Demand
    traffic: TrafficFacts
    rows: list[Row]
    recommended: str | None
    sentence: str | None
    nearest: str | None

    @property
    def chosen(self) -> Row | None:
        """The recommended row."""
        return next((row for row in self.rows if row.name == self.recommended), None)


class Means(NamedTuple):
    """How the work is done, not what it is."""

    kept: Kept
    workers: int
    on_ray: bool
    progress: Callable[[str], None]


class Searched(NamedTuple):
    """Everything that was found out, before it is judged."""

    curve: Curve
    shape: Shape
    market: Market
    found: list[tuple[Candidate, Found | None]]
    rows: list[Row]


def search(demand: Demand, folder: Path, head: Document, means: Means, *, today: date) -> Searched:
    """Find what a replica of every candidate carries.

    Args:
        folder: Where the demand's relative paths begin.
    """
    prices = prices_for(demand.prices, folder, today=today)
    curve, shape = curve_of(demand, folder), shape_of(demand, folder)
    market = market_of(demand, curve, shape, prices)
    candidates = candidates_of(demand, folder, shape, made_by=head.made_by)
    runs = [measured_most(each, demand, shape) for each in candidates if each.run is not None]
    open_ones = [each for each in candidates if each.run is None and each.refused is None]
    refused = [(each, None) for each in candidates if each.refused is not None]
    tasks = [
        Task(each.name, each.manifest, demand, folder, shape, each.pessimism)
        for each in open_ones
        if each.manifest is not None
    ]
    most = searched(tasks, means)
    found = [*runs, *zip(open_ones, most, strict=True), *refused]
    return Searched(curve, shape, market, found, rows_of(demand, market, found))


def searched(tasks: list[Task], means: Means) -> list[Found]:
    """Search every task, on as many cores as there are, or on Ray."""
    work = Work(most_of, Found, lambda task: task.key, lambda task: task.name)
    return do(work, tasks, kept=means.kept, workers=means.workers, progress=means.progress, on_ray=means.on_ray)


def make_capacity(demand: Demand, folder: Path, head: Document, means: Means, *, today: date) -> CapacityPlan:
    """Return the plan of a demand; one without a possible row says what would be possible."""
    seen = search(demand, folder, head, means, today=today)
    best = recommended(seen.rows)
    sentence = None
    if best is not None:
        lost = worst_loss(best.replicas or 0, demand.availability)
        sentence = sentence_of(demand, seen.market, best, lost)
    sources = [*head.made_from, *(source for candidate, _ in seen.found for source in candidate.sources)]
    return CapacityPlan(
        made_by=head.made_by,
        made_from=list({source.path: source for source in sources}.values()),
        demand=demand,
        traffic=_facts(demand, seen),
        rows=seen.rows,
        recommended=None if best is None else best.name,
        sentence=sentence,
        nearest=None if best is not None else nearest_possible(demand, seen.market, seen.rows),
    )


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
