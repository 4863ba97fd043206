"""Sensitivity of the answer to traffic, reply length, price and prediction error, each moved up and down."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

from engines.files import Strict
from engines.steptime import Slowdown
from loadtest.capacity.candidates import Candidate
from loadtest.capacity.decision import Market, Row, costed, recommended
from loadtest.capacity.inputs import Demand, times
from loadtest.capacity.simulation import ReplicaCapacity, Task
from loadtest.capacity.tasks import CandidateTask

STEP = 0.2
SHORTER, LONGER, TWICE = "replies shorter", "replies longer", "twice the prediction error"
Lever = Literal["traffic", "reply length", "price of the recommended GPU", "prediction error"]


class Case(Strict):
    """One input moved one way, all others unchanged.

    Attributes:
        moved: In words: `+20 %`, `none`, `twice`.
        usd_per_month: Of the originally recommended row; `best_usd_per_month` of the row recommended in this case.
        recommended: The row recommended in this case; None if nothing is possible.
        changes: Whether it differs from the original recommendation.
    """

    lever: Lever
    moved: str
    replicas: int | None
    usd_per_month: float | None
    recommended: str | None
    best_usd_per_month: float | None
    changes: bool


class Contender(Strict):
    """A row to simulate again, with its candidate."""

    row: Row
    candidate: Candidate


def tasks_for(
    contenders: Sequence[Contender],
    make_task: Callable[[Candidate, Demand], Task],
    demand: Demand,
    *,
    fleet_per_s: float,
) -> list[CandidateTask]:
    """Return the searches of each contender: shorter replies, longer replies, twice the prediction error.

    Args:
        fleet_per_s: Load of the fleet; a case states how many replicas it needs.
    """
    tasks: list[CandidateTask] = []
    for each in contenders:
        task = make_task(each.candidate, demand).counting(fleet_per_s / _fleet_ratio(each.row))
        tasks += [
            CandidateTask(f"{each.row.name}, {SHORTER}", search=_longer(task, 1 - STEP, each.row)),
            CandidateTask(f"{each.row.name}, {LONGER}", search=_longer(task, 1 + STEP, each.row)),
            CandidateTask(f"{each.row.name}, {TWICE}", search=_doubled(task, each.row)),
        ]
    return tasks


def again_of(
    contenders: Sequence[Contender], results: Sequence[ReplicaCapacity | None]
) -> dict[tuple[str, str], ReplicaCapacity]:
    """Return the results of the searches of `tasks_for`, by row and case."""
    keys = [(each.row.name, which) for each in contenders for which in (SHORTER, LONGER, TWICE)]
    return {key: found for key, found in zip(keys, results, strict=True) if found is not None}


def _longer(task: Task, ratio: float, row: Row) -> Task:
    """Return a search with longer or shorter replies by the same engine, whose length limit is raised if necessary."""
    demand = task.demand
    scale = demand.scale.model_copy(update={"osl": demand.scale.osl * ratio})
    limits = task.manifest.limits
    largest = limits.max_seq_len + max(0, round(task.shape.longest_osl * (ratio - 1)))
    manifest = task.manifest.model_copy(update={"limits": limits.model_copy(update={"max_seq_len": largest})})
    shape = task.shape._replace(
        mean_osl=task.shape.mean_osl * ratio, longest_osl=max(1, round(task.shape.longest_osl * ratio))
    )
    start_per_s = _start_per_s(row, ratio)
    return task._replace(
        demand=demand.model_copy(update={"scale": scale}), manifest=manifest, shape=shape, start_per_s=start_per_s
    )


def _start_per_s(row: Row, slower: float) -> float | None:
    """Return where the search of a replica begins that takes `slower` times as long; None: at the closed form.

    A rate that is only a lower bound, because no more was needed, says little about the replica.
    """
    return None if row.rate_per_s is None or row.is_lower_bound else row.rate_per_s / slower


def _doubled(task: Task, row: Row) -> Task:
    slow = task.interval.slow
    start_per_s = _start_per_s(row, slow.step)
    worse = task.interval._replace(slow=Slowdown(slow.step**2, slow.host**2))
    return task._replace(interval=worse, start_per_s=start_per_s)


def cases_of(
    demand: Demand, market: Market, rows: Sequence[Row], best: Row, found: dict[tuple[str, str], ReplicaCapacity]
) -> list[Case]:
    """Return all cases, each input moved both ways.

    Where a measured run is recommended, there is no case of reply length: a run does not cover other replies. Twice
    the prediction error does not change what was measured.

    Args:
        rows: All possible rows; cases of reply length and of twice the error use only those simulated again.
        found: By row and case, as `again_of` returns them.
    """
    cases = []
    for sign in (-1, 1):
        ratio = 1 + sign * STEP
        words = f"{sign * STEP:+.0%}".replace("%", " %")
        traffic = market.model_copy(
            update={
                "peak_per_s": market.peak_per_s * ratio,
                "tokens_per_month": market.tokens_per_month * ratio,
            }
        )
        cases.append(_case("traffic", words, demand, traffic, rows, best))
        which = SHORTER if sign < 0 else LONGER
        lengths = market.model_copy(update={"tokens_per_month": market.tokens_per_month * ratio})
        if not best.is_run:
            cases.append(_case("reply length", words, demand, lengths, _carrying(rows, found, which), best))
        if best.price is not None:
            prices = market.model_copy(update={"prices": {**market.prices, best.gpu: times(best.price, ratio)}})
            cases.append(_case("price of the recommended GPU", words, demand, prices, rows, best))
    middle = [
        _carries(row, row.middle_rate_per_s or row.rate_per_s, row.middle.needed if row.middle else None)
        for row in rows
    ]
    cases.append(_case("prediction error", "none", demand, market, middle, best))
    unchanged = [best] if best.is_run else []
    cases.append(_case("prediction error", "twice", demand, market, [*unchanged, *_carrying(rows, found, TWICE)], best))
    return cases


def _carrying(rows: Sequence[Row], found: dict[tuple[str, str], ReplicaCapacity], which: str) -> list[Row]:
    """Return only the rows that were simulated again, with their new rates."""
    changed = []
    for row in rows:
        again = found.get((row.name, which))
        if again is not None:
            changed.append(_carries(row, again.rate_per_s))
    return changed


def _carries(row: Row, rate_per_s: float | None, needed: int | None = None) -> Row:
    """Return a row with another rate; its rate per replica in a fleet changes in proportion, or to fit `needed`."""
    if needed is not None and row.fleet_per_s is not None and row.needed is not None:
        return row.model_copy(update={"rate_per_s": rate_per_s, "fleet_per_s": row.fleet_per_s * row.needed / needed})
    fleet = None
    if row.fleet_per_s is not None and rate_per_s is not None and row.rate_per_s:
        fleet = _fleet_ratio(row) * rate_per_s
    return row.model_copy(update={"rate_per_s": rate_per_s, "fleet_per_s": fleet})


def _fleet_ratio(row: Row) -> float:
    """Return what a replica carries in the fleet that was simulated, relative to what it carries alone."""
    return row.fleet_per_s / row.rate_per_s if row.fleet_per_s is not None and row.rate_per_s else 1.0


def _case(lever: Lever, moved: str, demand: Demand, market: Market, rows: Sequence[Row], best: Row) -> Case:
    again = [costed(row, demand, market) for row in rows if row.rate_per_s is not None]
    now = recommended(again)
    same = next((row for row in again if row.name == best.name), None)
    return Case(
        lever=lever,
        moved=moved,
        replicas=None if same is None else same.replicas,
        usd_per_month=None if same is None else same.usd_per_month,
        recommended=None if now is None else now.name,
        best_usd_per_month=None if now is None else now.usd_per_month,
        changes=now is None or now.name != best.name,
    )
