"""One unit of the second look: a search, a sweep of loads, or a fleet, so that one pool takes them all."""

from __future__ import annotations

from typing import NamedTuple

from engines.files import Strict
from loadtest.capacity.simulation import Checked, FleetTask, RateProbe, ReplicaCapacity, Task, check, most_of, swept


class Sweep(NamedTuple):
    """Loads of one replica to look at."""

    task: Task
    rates_per_s: tuple[float, ...]


class CandidateTask(NamedTuple):
    """What is to be looked at: exactly one of the three."""

    name: str
    search: Task | None = None
    sweep: Sweep | None = None
    fleet: FleetTask | None = None

    @property
    def key(self) -> str:
        """All that the result depends on."""
        if self.search is not None:
            return f"search\n{self.search.key}"
        if self.sweep is not None:
            return f"sweep\n{self.sweep.task.key}\n{self.sweep.rates_per_s!r}"
        return f"fleet\n{self.fleet.key if self.fleet else ''}"


class TaskResult(Strict):
    """What was found; the one that was asked for."""

    found: ReplicaCapacity | None = None
    swept: tuple[RateProbe, ...] = ()
    checked: Checked | None = None


def look(asked: CandidateTask) -> TaskResult:
    """Look at one thing."""
    if asked.search is not None:
        return TaskResult(found=most_of(asked.search))
    if asked.sweep is not None:
        return TaskResult(swept=swept(asked.sweep.task, asked.sweep.rates_per_s))
    if asked.fleet is not None:
        return TaskResult(checked=check(asked.fleet))
    raise ValueError("nothing to look at")
