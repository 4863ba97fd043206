"""The comparison of control laws for the recommended row, and its check request by request."""

from __future__ import annotations

from collections.abc import Sequence

from engines.autoscaling import ColdStart
from engines.units import SECONDS_PER_H
from loadtest.capacity.autoscaling import (
    CheckedLaw,
    Followed,
    ReplayTask,
    ReplicaResponse,
    ScalingComparison,
    ScalingInput,
    compare_laws,
    hardest_minutes,
)
from loadtest.capacity.decision import Row
from loadtest.capacity.inputs import Autoscaling
from loadtest.capacity.replica_count import total_for
from loadtest.capacity.search import Searched, SearchOptions, run_tasks
from loadtest.capacity.simulation import SLOT_S, RateProbe, Task
from loadtest.capacity.tasks import CandidateTask

CHECK_MINUTES, LEAD_MINUTES = 15, 3
CHECK_REQUESTS = 30_000  # most requests of a check: fewer minutes of a larger deployment
DRAIN_BEFORE_S = 10.0  # a terminating pod keeps serving while nodes remove its endpoint; `build-deployment`'s default


def compared_laws(
    searched: Searched, best: Row, probes: Sequence[RateProbe], *, full_per_s: float, queue: int, options: SearchOptions
) -> ScalingComparison | None:
    """Return control laws compared for a row; None if one replica carries the whole demand, or was only measured.

    Args:
        probes: Loads of one replica, simulated request by request.
        full_per_s: Requests per second of a full batch.
        queue: Maximum queued requests of a replica; 0: no limit.
    """
    of = scaling_input(searched, best, probes, full_per_s=full_per_s)
    if of is None:
        return None
    found, followed = compare_laws(of)
    task = searched.task(searched.candidate(best.name), searched.demand)
    return found.model_copy(update={"check": _checked(of, found, followed, task, queue, options)})


def scaling_input(
    searched: Searched, best: Row, probes: Sequence[RateProbe], *, full_per_s: float
) -> ScalingInput | None:
    """Return what control laws are compared for. Arguments and None as for `compared_laws`."""
    carried = best.fleet_per_s or best.rate_per_s
    if best.is_lower_bound or carried is None or best.replicas is None or not probes or best.max_batch_size is None:
        return None
    demand = searched.demand
    limits = [limit for of in demand.all_objectives.values() for limit in of.ttft_s.values()]
    return ScalingInput(
        rates_per_s=tuple((searched.curve.rates_per_s * demand.growth).tolist()),
        peak_per_s=searched.market.peak_per_s,
        response=ReplicaResponse.of(
            probes, full_per_s=full_per_s, slots=best.max_batch_size, carried_per_s=carried,
            ttft_limit_s=min(limits, default=None), drain_before_s=DRAIN_BEFORE_S,
        ),
        cold_start=cold_start_of(demand.autoscaling),
        replicas=best.replicas,
        min_replicas=total_for(1, demand.availability),
        max_replicas=demand.limits.max_replicas,
        gpus=best.tensor_parallel,
        seed=demand.seed,
        sync_s=demand.autoscaling.sync_s,
    )  # fmt: skip


def cold_start_of(scaling: Autoscaling) -> ColdStart:
    """Return the phases of a demand's cold start."""
    return ColdStart(
        pending_s=scaling.start_up_s - scaling.loading_s, loading_s=scaling.loading_s, source=scaling.start_up_source
    )


def _checked(
    of: ScalingInput, found: ScalingComparison, followed: Followed, task: Task, queue: int, options: SearchOptions
) -> CheckedLaw | None:
    """Replay the recommended law over the minutes in which its replicas are loaded most.

    It begins with the replicas that are up then, and without the controller's earlier recommendations.
    """
    minutes = min(CHECK_MINUTES, max(1, int(CHECK_REQUESTS / (SLOT_S * of.peak_per_s))))
    if len(of.rates_per_s) < minutes + LEAD_MINUTES:
        return None
    begin = hardest_minutes(followed, of.rates_per_s, of.response.carried_per_s, minutes)
    lead = min(LEAD_MINUTES, begin)
    replay_task = ReplayTask(
        task=task, slowdown=task.interval.slow, routing=task.demand.routing, law=found.chosen.law,
        cold_start=of.cold_start, rates_per_s=of.rates_per_s[begin - lead : begin + minutes], lead_slots=lead,
        begin_with=int(followed.up_by_minute[begin, 0]), max_queue_size=queue,
    )  # fmt: skip
    (result,) = run_tasks([CandidateTask("autoscaler, request by request", replay=replay_task)], options)
    if result.replayed is None:
        return None
    return CheckedLaw(
        begin_h=round(begin * SLOT_S / SECONDS_PER_H, 4),
        replayed=result.replayed,
        fluid_missed=followed.missed[begin : begin + minutes],
        fluid_up=tuple(followed.up_by_minute[begin : begin + minutes, -1].tolist()),
    )
