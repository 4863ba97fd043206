"""One unit of work for the pool: a search, a sweep of loads, a fleet, or the size of a fleet."""

from __future__ import annotations

from typing import NamedTuple

from engines.files import Strict
from loadtest.capacity.autoscaling import Replayed, ReplayTask, replay
from loadtest.capacity.simulation import (
    Checked,
    FleetSize,
    FleetTask,
    RateProbe,
    ReplicaCapacity,
    SizeTask,
    Task,
    check,
    max_rate_of,
    relieved,
    smallest_fleet,
    sweep_rates,
)


class Sweep(NamedTuple):
    """A sweep of one replica over given loads."""

    task: Task
    rates_per_s: tuple[float, ...]


class Reliefs(NamedTuple):
    """The search for the binding constraint of a replica whose capacity is known."""

    task: Task
    found: ReplicaCapacity


class CandidateTask(NamedTuple):
    """A unit of work; exactly one field besides `known` is set.

    Attributes:
        known: Of a search, its result with a lower `min_per_s`: it saves time, and changes nothing.
    """

    name: str
    search: Task | None = None
    known: ReplicaCapacity | None = None
    sweep: Sweep | None = None
    reliefs: Reliefs | None = None
    fleet: FleetTask | None = None
    size: SizeTask | None = None
    replay: ReplayTask | None = None

    @property
    def key(self) -> str:
        """Everything that the result depends on."""
        if self.search is not None:
            return f"search\n{self.search.key}"
        if self.sweep is not None:
            return f"sweep\n{self.sweep.task.key}\n{self.sweep.rates_per_s!r}"
        if self.reliefs is not None:
            return f"reliefs\n{self.reliefs.task.key}\n{self.reliefs.found.model_dump_json()}"
        if self.size is not None:
            return f"size\n{self.size.key}"
        if self.replay is not None:
            return f"replay\n{self.replay.key}"
        return f"fleet\n{self.fleet.key if self.fleet else ''}"


class TaskResult(Strict):
    """The result of a task; the field that corresponds to it is set."""

    found: ReplicaCapacity | None = None
    swept: tuple[RateProbe, ...] = ()
    checked: Checked | None = None
    size: FleetSize | None = None
    replayed: Replayed | None = None


def run_task(task: CandidateTask) -> TaskResult:
    """Do one unit of work."""
    if task.search is not None:
        return TaskResult(found=max_rate_of(task.search, task.known))
    if task.sweep is not None:
        return TaskResult(swept=sweep_rates(task.sweep.task, task.sweep.rates_per_s))
    if task.reliefs is not None:
        return TaskResult(found=relieved(task.reliefs.task, task.reliefs.found))
    if task.size is not None:
        return TaskResult(size=smallest_fleet(task.size))
    if task.replay is not None:
        return TaskResult(replayed=replay(task.replay))
    if task.fleet is not None:
        return TaskResult(checked=check(task.fleet))
    raise ValueError("nothing to look at")
