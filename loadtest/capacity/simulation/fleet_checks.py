"""Whole fleets of the recommended replicas, simulated: at the peak by each routing, through a loss, through a ramp."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

from engines.files import Strict
from loadtest.capacity.inputs import Routing
from loadtest.capacity.simulation.fleet import Fleet, Loss, Served, serve
from loadtest.capacity.simulation.max_rate import RateProbe, Task, tried_of
from loadtest.capacity.simulation.traffic_sample import SLOT_S, TrafficSample, Wanted, requests_needed, stretches_at
from loadtest.scenario import Steps, draw_times_s

import numpy as np  # isort: skip

MOST_REPLICAS = 32  # simulated together; a larger fleet is taken as so many with their share of the traffic
RAMP_S = 1200.0
What = Literal["peak", "loss", "ramp"]


class FleetTask(NamedTuple):
    """One fleet to simulate.

    Attributes:
        task: The replica: its engine, the demand, how pessimistically.
        in_flight: Requests that a replica has under way at its promised load.
        replicas: That are up (before a loss).
        lost: Replicas that a loss takes, halfway through.
        ups: Of a ramp, the replicas up by slot; `rates_per_s` the rate.
    """

    what: What
    task: Task
    rate_per_s: float
    in_flight: float
    replicas: int
    routing: Routing
    lost: int = 0
    ups: tuple[int, ...] = ()
    rates_per_s: tuple[float, ...] = ()

    @property
    def name(self) -> str:
        """In words, for progress."""
        return f"{self.replicas} replicas, {self.what}, {self.routing.replace('_', ' ')}"

    @property
    def key(self) -> str:
        """All that the result depends on."""
        return f"{self.task.key}\n{self._replace(task=None)!r}"  # type: ignore[arg-type]


class Checked(Strict):
    """A fleet's figures at the unfavourable end of the prediction.

    Attributes:
        replicas: Of the fleet; `simulated` of them were, with their share of the traffic.
        up_most: Of a ramp, replicas at its end.
        retried: Requests sent again because their replica was lost.
    """

    what: What
    routing: Routing
    rate_per_s: float
    replicas: int
    simulated: int
    lost: int
    retried: int
    up_most: int
    tried: RateProbe


def check(asked: FleetTask) -> Checked:
    """Simulate one fleet."""
    largest = max([asked.replicas, *asked.ups])
    share = min(1.0, MOST_REPLICAS / largest)
    served, simulated, up_most = _ramp(asked, share) if asked.what == "ramp" else _steady(asked, share)
    return Checked(
        what=asked.what,
        routing=asked.routing,
        rate_per_s=asked.rate_per_s,
        replicas=asked.replicas,
        simulated=simulated,
        lost=asked.lost,
        retried=served.retried,
        up_most=up_most,
        tried=tried_of(served.seen),
    )


def _steady(asked: FleetTask, share: float) -> tuple[Served, int, int]:
    task = asked.task
    count = max(1, round(asked.replicas * share))
    rate_per_s = asked.rate_per_s * count / asked.replicas
    stretches = _peak(asked, rate_per_s, count)
    lost = min(count - 1, max(1, round(asked.lost * share))) if asked.lost else 0
    loss = Loss((stretches[0].measure_s + stretches[0].end_s) / 2, lost) if lost else None
    fleet = Fleet(task.manifest, (0.0,) * count, asked.routing, task.pessimism, loss)
    served = serve(fleet, stretches, task.demand.all_objectives, rate_per_s=asked.rate_per_s)
    return served, count, asked.replicas


def _peak(asked: FleetTask, rate_per_s: float, replicas: int) -> list[TrafficSample]:
    task = asked.task
    slots = math.ceil(asked.in_flight * replicas)
    requests = requests_needed(task.demand, slots)
    block = task.manifest.kv_cache.tokens_per_block if task.manifest.runtime.kv_reuse else None
    return stretches_at(task.demand, task.folder, Wanted(rate_per_s, requests, slots, block))


def _ramp(asked: FleetTask, share: float) -> tuple[Served, int, int]:
    """Simulate some minutes of the day with replicas coming up late, Poisson arrivals at the curve's rate."""
    task = asked.task
    rates = [rate * share for rate in asked.rates_per_s]
    ups = [max(1, round(up * share)) for up in asked.ups]
    lead = len(rates) // 4
    rng = np.random.default_rng(task.demand.seed)
    times_s = draw_times_s(Steps(rates_per_s=tuple(rates), step_s=SLOT_S), rng).tolist()
    pattern = [ask for each in _peak(asked, max(rates), max(ups)) for ask in each.asks]
    asks = tuple(pattern[place % len(pattern)]._replace(at_s=at_s) for place, at_s in enumerate(times_s))
    stretch = TrafficSample(asks, lead * SLOT_S, len(rates) * SLOT_S)
    most = max(ups)
    starts = tuple(next(slot for slot, up in enumerate(ups) if up > place) * SLOT_S for place in range(most))
    fleet = Fleet(task.manifest, starts, asked.routing, task.pessimism)
    served = serve(fleet, [stretch], task.demand.all_objectives, rate_per_s=asked.rate_per_s)
    return served, most, max(asked.ups)


def ramp_of(rates_per_s: list[float], ups: tuple[int, ...], steepest_h: float) -> tuple[list[float], tuple[int, ...]]:
    """Return rates and replicas of the minutes around the steepest moment."""
    slots = int(RAMP_S / SLOT_S)
    middle = int(steepest_h * 3600 / SLOT_S)
    begin = max(0, min(middle - slots // 2, len(rates_per_s) - slots))
    return rates_per_s[begin : begin + slots], ups[begin : begin + slots]
