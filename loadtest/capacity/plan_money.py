"""Adds energy and money to a plan: simulates the mean load of its month, and an interruption of spot machines."""

from __future__ import annotations

from engines.steptime import NONE
from loadtest.capacity.decision import Row
from loadtest.capacity.money import Load, SpotCost, money_of, spot_cost
from loadtest.capacity.schema import CapacityPlan
from loadtest.capacity.search import Searched, SearchOptions, run_tasks
from loadtest.capacity.simulation import FleetTask
from loadtest.capacity.spot import smallest_spot_fleet
from loadtest.capacity.tasks import CandidateTask, Sweep


def with_money(plan: CapacityPlan, best: Row, searched: Searched, options: SearchOptions) -> CapacityPlan:
    """Return the plan with the recommended row's energy and money."""
    load = Load(
        searched.curve.mean_per_s * searched.demand.growth,
        searched.market.tokens_per_month,
        searched.shape.mean_isl,
        searched.shape.mean_osl,
    )
    candidate = searched.candidate(best.name)
    mean, spot = None, None
    if candidate.manifest is not None:
        task = searched.task(candidate, searched.demand)
        middle = task._replace(interval=task.interval._replace(slow=NONE))
        mean_per_s = load.mean_per_s / (best.replicas or 1)
        (found,) = run_tasks(
            [CandidateTask(f"{best.name}, mean load of the month", sweep=Sweep(middle, (mean_per_s,)))], options
        )
        mean = found.swept[0]
        spot = _spot(best, load, searched, options)
    money = money_of(
        searched.demand,
        best,
        load,
        engine=candidate.manifest,
        peak=plan.operating_middle,
        mean=mean,
        spot=spot,
    )
    return plan.model_copy(update={"money": money})


def _spot(best: Row, load: Load, searched: Searched, options: SearchOptions) -> SpotCost | None:
    """Return the cost of spot machines, with an interruption at the peak simulated; None if the demand has none."""
    demand = searched.demand
    spot = demand.spot
    if spot is None:
        return None
    start_up_s = demand.autoscaling.start_up_s
    months = smallest_spot_fleet(best.needed or 1, spot, start_up_s=start_up_s, seed=demand.seed)
    checked = None
    if months is not None and months.total > spot.at_once:
        candidate = searched.candidate(best.name)
        fleet = FleetTask(
            "spot",
            searched.task(candidate, demand),
            candidate.interval.slow,
            searched.market.peak_per_s,
            months.total,
            demand.routing,
            lost=spot.at_once,
            notice_s=spot.notice_s,
            restart_s=spot.wait_s + start_up_s,
        )
        (found,) = run_tasks([CandidateTask(f"{best.name}: {fleet.name}", fleet=fleet)], options)
        checked = found.checked
    return spot_cost(demand, best, load, months, checked)
