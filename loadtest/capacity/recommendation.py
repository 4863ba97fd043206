"""Details of the recommended row: its other sizes, fleets, day, autoscaler, load curve and sensitivity."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import get_args

from engines.steptime import NONE, Slowdown
from loadtest.capacity.autoscaling import ScalingComparison
from loadtest.capacity.candidates import EVICTING, Candidate
from loadtest.capacity.day import day_of
from loadtest.capacity.decision import Row, Sized, costed, resized
from loadtest.capacity.inputs import HOURS_PER_MONTH, Demand, Routing
from loadtest.capacity.pareto import frontier_of
from loadtest.capacity.replica_count import replicas_text, worst_loss
from loadtest.capacity.scaling import compared_laws
from loadtest.capacity.schema import CapacityPlan
from loadtest.capacity.search import Searched, SearchOptions, run_tasks, size_task
from loadtest.capacity.sensitivity import Contender, again_of, cases_of, tasks_for
from loadtest.capacity.simulation import (
    Checked,
    FleetTask,
    LoadBench,
    ReplicaCapacity,
    Task,
    What,
)
from loadtest.capacity.tasks import CandidateTask, Reliefs, Sweep, TaskResult

CONTENDERS = 2  # rows with simulations beyond their search
SWEEP = (0.25, 0.5, 0.75, 0.9, 1.0, 1.1)  # loads of the sweep, relative to the promised rate
QUEUE_DOUBLINGS = 4  # of a queue limit that refuses more than the demand allows to fail; then there is no limit


def with_details(plan: CapacityPlan, best: Row, searched: Searched, options: SearchOptions) -> tuple[CapacityPlan, Row]:
    """Return the plan with the recommended row's details, and that row with its other sizes."""
    demand, market = searched.demand, searched.market
    assert best.replicas is not None
    assert best.rate_per_s is not None
    candidate = searched.candidate(best.name)
    carried = best.fleet_per_s or best.rate_per_s
    if best.is_lower_bound:
        carried = max(carried, full_batch_per_s(searched, candidate, candidate.interval.slow))
    operating_per_s = market.peak_per_s / (best.needed or 1)
    plan = plan.model_copy(
        update={
            "day": day_of(searched.curve, demand.growth, carried, demand.availability),
            "engine": candidate.manifest,
            "operating_per_s": operating_per_s,
        }
    )
    contenders = _contenders(searched, best)
    if candidate.manifest is None:
        possible = [row for row in searched.rows if row.status == "possible"]
        return plan.model_copy(update={"sensitivity": tuple(cases_of(demand, market, possible, best, {}))}), best
    task = searched.task(candidate, demand)
    queue = _queue_limit(searched, best, candidate)
    tasks = {
        **_other_sizes(searched, best, candidate),
        "operating": [_sweep_task(f"{best.name} at its share of the peak", task, (operating_per_s,))],
        "operating_middle": [_sweep_task(f"{best.name}, middle", _at(task, NONE), (operating_per_s,))],
        "reliefs": [CandidateTask(f"{best.name}: bottleneck", reliefs=Reliefs(task, best.found))] if best.found else [],
        "fleets": _fleet_tasks(searched, best, queue),
        "again": tasks_for(contenders, searched.task, demand, fleet_per_s=searched.rate_per_s),
        "sweeps": [load_curve_task(searched, each) for each in contenders],
        "max_tokens": _lower_max_tokens(searched, candidate),
    }
    results = dict(
        zip(
            tasks, _by_group(run_tasks([one for group in tasks.values() for one in group], options), tasks), strict=True
        )
    )
    best = _with_others(searched, best, results)
    searched.replace_row(best)
    fleets, queue = _sufficient_queue(
        [one.checked for one in results["fleets"] if one.checked], searched, best, queue, options
    )
    possible = [row for row in searched.rows if row.status == "possible"]
    swept = {each.row.name: one.swept for each, one in zip(contenders, results["sweeps"], strict=True)}
    scaling = compared_laws(
        searched,
        best,
        swept.get(best.name, ()),
        full_per_s=full_batch_per_s(searched, candidate, candidate.interval.slow),
        queue=queue,
        options=options,
    )
    again = again_of(contenders, [one.found for one in results["again"]])
    return plan.model_copy(
        update={
            "operating": results["operating"][0].swept[0],
            "operating_middle": results["operating_middle"][0].swept[0],
            "fleets": tuple(fleets),
            "max_queue_size": queue,
            "scaling": scaling,
            "autoscaled_usd_per_month": _autoscaled_usd(best, scaling, is_day=searched.curve.is_day),
            "max_tokens_note": _max_tokens_note(searched, best, [one.found for one in results["max_tokens"]]),
            "sweep": swept.get(best.name, ()),
            "frontier": tuple(frontier_of(demand, market, possible, swept)),
            "sensitivity": tuple(cases_of(demand, market, possible, best, again)),
        }
    ), best


def _contenders(searched: Searched, best: Row) -> list[Contender]:
    """Return the recommended row, and the cheapest row of another GPU or precision."""
    others = [
        row for row in searched.rows if row.is_possible and (row.gpu, row.precision) != (best.gpu, best.precision)
    ]
    rows = [row for row in (best, *others) if searched.candidate(row.name).manifest is not None]
    return [Contender(row=row, candidate=searched.candidate(row.name)) for row in rows[:CONTENDERS]]


def _by_group(found: Sequence[TaskResult], tasks: dict[str, list[CandidateTask]]) -> Iterator[list[TaskResult]]:
    """Yield results in the groups in which they were requested."""
    begin = 0
    for group in tasks.values():
        yield list(found[begin : begin + len(group)])
        begin += len(group)


def _at(task: Task, slowdown: Slowdown) -> Task:
    return task._replace(interval=task.interval._replace(slow=slowdown))


def _sweep_task(name: str, task: Task, rates_per_s: tuple[float, ...]) -> CandidateTask:
    return CandidateTask(name, sweep=Sweep(task, rates_per_s))


def load_curve_task(searched: Searched, each: Contender) -> CandidateTask:
    """Return the sweep of a row's replica below and above its promised load."""
    assert each.row.rate_per_s is not None
    is_open = each.row.found is not None and each.row.found.promised.above_per_s is not None
    rates = tuple(each.row.rate_per_s * share for share in (SWEEP if is_open else SWEEP[-2:]))
    return _sweep_task(f"{each.row.name}, sweep", searched.task(each.candidate, searched.demand), rates)


def _other_sizes(searched: Searched, best: Row, candidate: Candidate) -> dict[str, list[CandidateTask]]:
    """Return the tasks that size the recommended row at the middle and at the favourable end of the prediction."""
    slow, fast = candidate.interval
    found: dict[str, list[CandidateTask]] = {"middle": [], "optimistic": []}
    if slow != NONE and best.middle is not None and best.middle.needed is not None:
        found["middle"] = [size_task(searched, best, NONE, best.middle.needed)]
    if fast != NONE and best.optimistic is not None and best.optimistic.needed is not None:
        found["optimistic"] = [size_task(searched, best, fast, best.optimistic.needed)]
    return found


def _with_others(searched: Searched, best: Row, results: dict[str, list[TaskResult]]) -> Row:
    """Return the recommended row with its other sizes as simulated, and its binding constraint."""
    promised = best.sizes[0]
    sizes: dict[str, Sized | None] = {"middle": best.middle, "optimistic": best.optimistic}
    for name, known in sizes.items():
        found = results[name][0].size if results[name] else None
        if known is not None:
            sizes[name] = promised if found is None else resized(known, best, found, searched.demand)
    if not results["optimistic"] and results["middle"]:
        sizes["optimistic"] = sizes["middle"]
    changed: dict[str, object] = dict(sizes)
    if results["reliefs"] and results["reliefs"][0].found is not None:
        relieved = results["reliefs"][0].found
        changed |= {"found": relieved, "binding": relieved.binding}
    return best.model_copy(update=changed)


def _fleet_task(
    searched: Searched,
    row: Row,
    what: What,
    replicas: int,
    routing: Routing,
    *,
    queue: int,
    lost: int = 0,
) -> CandidateTask:
    candidate = searched.candidate(row.name)
    task = searched.task(candidate, searched.demand)
    slow = candidate.interval.slow
    fleet = FleetTask(what, task, slow, searched.market.peak_per_s, replicas, routing, lost, queue)
    return CandidateTask(f"{row.name}: {fleet.name}", fleet=fleet)


def _fleet_tasks(searched: Searched, best: Row, queue: int) -> list[CandidateTask]:
    """Return the fleets to simulate: the survivors of a loss with each routing, and the loss itself."""
    assert best.needed is not None
    assert best.replicas is not None
    routing = searched.demand.routing
    others = [each for each in get_args(Routing) if each != routing]
    tasks = [_fleet_task(searched, best, "peak", best.needed, each, queue=queue) for each in (routing, *others)]
    if best.needed == 1:
        tasks = tasks[:1]
    lost = worst_loss(best.replicas, searched.demand.availability)
    if lost:
        tasks.append(_fleet_task(searched, best, "loss", best.replicas, routing, queue=queue, lost=lost))
    return tasks


def _queue_limit(searched: Searched, best: Row, candidate: Candidate) -> int:
    """Return a replica's queue limit: as many requests as the middle of the prediction serves within the TTFT limit.

    Where one replica carries more than the whole demand, its own limit is not known: the rate of a full batch is taken
    instead. The demand's small rate would refuse requests that arrive together though the batch has room for them.
    """
    limits = [limit for of in searched.demand.all_objectives.values() for limit in of.ttft_s.values()]
    rate_per_s = best.middle_rate_per_s or best.rate_per_s
    if not limits or not rate_per_s:
        return 0
    if best.middle is None or best.middle.is_lower_bound:
        rate_per_s = max(rate_per_s, full_batch_per_s(searched, candidate, NONE))
    return max(1, math.ceil(rate_per_s * max(limits)))


def full_batch_per_s(searched: Searched, candidate: Candidate, slowdown: Slowdown) -> float:
    """Return the requests per second of one replica's full batch, in closed form; 0 for one without an engine."""
    if candidate.manifest is None:
        return 0.0
    return LoadBench(searched.task(candidate, searched.demand)).bound_per_s / slowdown.step


def _sufficient_queue(
    fleets: list[Checked], searched: Searched, best: Row, queue: int, options: SearchOptions
) -> tuple[list[Checked], int]:
    """Return the fleets and the queue limit, doubled until it refuses no more than the demand allows to fail."""
    allowed = searched.demand.objectives.errors_ratio
    for _ in range(QUEUE_DOUBLINGS):
        if not fleets or fleets[0].refused <= allowed:
            return fleets, queue
        queue *= 2
        task = _fleet_task(searched, best, "peak", best.needed or 1, searched.demand.routing, queue=queue)
        (result,) = run_tasks([task], options)
        fleets = [result.checked, *fleets[1:]] if result.checked else fleets
    return fleets, queue if not fleets or fleets[0].refused <= allowed else 0


def _lower_max_tokens(searched: Searched, candidate: Candidate) -> list[CandidateTask]:
    """Return the search of an engine that reserves, with `max_tokens` set to the longest reply, if that reserves less.

    It is the recommended engine, or the one that it is a variant of with evictions. An engine that never reserves gains
    nothing from a lower `max_tokens`.
    """
    shape, manifest = searched.shape, candidate.manifest
    if manifest is None or shape.max_tokens <= shape.longest_osl:
        return []
    if manifest.runtime.scheduler_policy == "max_utilization":
        if not candidate.evicts:
            return []
        candidate = searched.candidate(candidate.name.removesuffix(EVICTING))
    lowered = with_max_tokens(searched.demand, shape.longest_osl)
    task = searched.task(candidate, lowered)._replace(shape=shape._replace(max_tokens=shape.longest_osl))
    task = task.counting(searched.rate_per_s)
    return [CandidateTask(f"{candidate.name}, max_tokens {shape.longest_osl}", search=task)]


def with_max_tokens(demand: Demand, tokens: int) -> Demand:
    """Return a demand whose requests have this `max_tokens`."""
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


def _max_tokens_note(searched: Searched, best: Row, found: Sequence[ReplicaCapacity | None]) -> str | None:
    """Return what lowering `max_tokens` to the longest reply buys; None if the recommended engine gains nothing."""
    shape = searched.shape
    lowered = found[0] if found else None
    if lowered is None or lowered.rate_per_s is None:
        return None
    row = costed(
        best.model_copy(update={"rate_per_s": lowered.rate_per_s, "fleet_per_s": None}),
        searched.demand,
        searched.market,
    )
    saves = row.needed is not None and row.needed < (best.needed or 0)
    cost = "" if row.usd_per_month is None else f", {row.usd_per_month:,.0f} USD a month"
    replicas = replicas_text(row.replicas)
    if best.scheduler_policy == "max_utilization":
        text = (
            f"The recommended engine reserves no KV cache for max_tokens ({shape.max_tokens:,}); it evicts requests "
            f"instead. No reply is longer than {shape.longest_osl:,} tokens. With max_tokens lowered to that, the same "
            "engine with reservations "
        )
        return f"{text}needs {replicas}{cost}, and evicts none." if saves else f"{text}saves no replica."
    text = (
        f"Every request reserves KV cache for {shape.max_tokens:,} reply tokens (max_tokens); no reply is longer than "
        f"{shape.longest_osl:,}. "
    )
    if not saves:
        return f"{text}Lowering max_tokens to that saves no replica."
    return f"{text}Lowering max_tokens to that needs {replicas}{cost}."


def _autoscaled_usd(row: Row, scaling: ScalingComparison | None, *, is_day: bool) -> float | None:
    if scaling is None or not is_day or row.price is None:
        return None
    return scaling.chosen.mean_replicas * row.tensor_parallel * row.price.usd_per_gpu_h * HOURS_PER_MONTH
