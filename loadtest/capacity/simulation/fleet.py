"""Many replicas behind a router in virtual time: who gets which request, what a loss and a slow start do.

Each replica is the virtual server of a prediction. All of them are taken to the moment of each arrival, the router
looks at them as they are then, and the chosen one gets the request. With one replica this is the same simulation.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from typing import NamedTuple

from engines.manifest import EngineManifest
from engines.steptime import StepCost, uniform
from loadtest.capacity.inputs import Routing
from loadtest.capacity.simulation.replica import (
    NONE,
    Pessimism,
    RateResult,
    Totals,
    add,
    batcher_of,
    host_of,
    note_state,
    seen_of,
    sent_of,
)
from loadtest.capacity.simulation.traffic_sample import TrafficSample
from loadtest.scenario import Objectives
from loadtest.simulate import Ended, Sent, VirtualServer

# A prefix-aware router gives a request to who holds its beginning, unless that one has so many times the mean number of
# requests: past it, waiting costs more than computing the beginning again.
CROWDED_RATIO = 1.5


@dataclass(slots=True)
class Inbox:
    """A replica's requests, as its router hands them over."""

    waiting: deque[Sent] = field(default_factory=deque)
    outstanding: dict[int, Sent] = field(default_factory=dict)

    @property
    def next_s(self) -> float:
        """When the next request handed over was sent."""
        return self.waiting[0].sent_s if self.waiting else math.inf

    @property
    def is_over(self) -> bool:
        """Whether all that was handed over has ended."""
        return not self.outstanding

    def take(self, sent: Sent) -> None:
        """Take a request from the router."""
        self.waiting.append(sent)
        self.outstanding[sent.turn.id] = sent

    def send(self) -> Sent:
        """Let the next request enter."""
        return self.waiting.popleft()

    def note_end(self, sent: Sent, now_s: float, *, ok: bool = True) -> None:  # noqa: ARG002 (whenever, and however)
        """Take a request as ended."""
        del self.outstanding[sent.turn.id]


class Loss(NamedTuple):
    """Replicas that vanish at a moment; what they had under way is sent again to the others."""

    at_s: float
    replicas: int


@dataclass(slots=True)
class Replica:
    """One replica of a fleet.

    Attributes:
        up_s: From when on it is there.
        down_s: Until when.
    """

    server: VirtualServer
    inbox: Inbox
    up_s: float = 0.0
    down_s: float = math.inf
    ended: list[Ended] = field(default_factory=list)

    def advance_to(self, until_s: float, totals: Totals | None = None) -> None:
        """Do what begins before a time."""
        for each in self.server.advance_to(until_s):
            if each.sent.turn.phase == "measure":
                self.ended.append(each)
            if totals is not None and each.sent.turn.phase != "warmup":
                note_state(self.server.batcher, totals)

    @property
    def load(self) -> int:
        """Requests it has and has not ended."""
        return len(self.inbox.outstanding)


class Router:
    """Chooses a replica for each request, by one policy, from what can be seen at that moment."""

    def __init__(self, routing: Routing) -> None:
        self.routing = routing
        self._turn = 0

    @property
    def looks(self) -> bool:
        """Whether it looks at the replicas at all."""
        return self.routing != "round_robin"

    def choose(self, replicas: list[Replica], sent: Sent) -> Replica:
        """Return the replica for a request; ties go round."""
        self._turn += 1
        ordered = [replicas[(self._turn + place) % len(replicas)] for place in range(len(replicas))]
        if self.routing == "round_robin":
            return ordered[0]
        if self.routing == "least_kv":
            return min(ordered, key=lambda each: (_kv_blocks(each, sent), each.load))
        if self.routing == "prefix_aware" and sent.prefix_hashes:
            most = CROWDED_RATIO * sum(each.load for each in ordered) / len(ordered) + 1
            free = [each for each in ordered if each.load <= most]
            return max(free, key=lambda each: (each.server.batcher.reusable_blocks(sent.prefix_hashes), -each.load))
        return min(ordered, key=lambda each: each.load)


def _kv_blocks(replica: Replica, sent: Sent) -> int:
    """Return the KV blocks in use, and those that waiting prompts will take: as many each as this one's."""
    state = replica.server.batcher.snapshot()
    waiting = replica.load - state.generation_requests
    return state.kv_used_blocks + max(0, waiting) * -(-sent.prompt_tokens // state.kv_tokens_per_block)


class Fleet(NamedTuple):
    """What is simulated.

    Attributes:
        ups_s: When each replica is there; as many as there are replicas.
    """

    manifest: EngineManifest
    ups_s: tuple[float, ...]
    routing: Routing
    pessimism: Pessimism = NONE
    loss: Loss | None = None


class Served(NamedTuple):
    """A fleet's figures.

    Attributes:
        retried: Requests sent again because their replica was lost.
    """

    seen: RateResult
    retried: int


def serve(
    fleet: Fleet, stretches: list[TrafficSample], objectives: dict[str, Objectives], *, rate_per_s: float
) -> Served:
    """Return what all replicas together show, each stretch from an idle start."""
    totals: dict[str, Totals] = {}
    retried = 0
    for stretch in stretches:
        replicas = [_replica(fleet, up_s) for up_s in fleet.ups_s]
        retried += _play(fleet, replicas, stretch, totals.setdefault("", Totals()))
        window_s = {name: each.window_s for name, each in totals.items()}
        for replica in replicas:
            add(replica.server, stretch, replica.ended, totals, objectives, fleet.pessimism)
        for name, each in totals.items():  # the window is the fleet's, not each replica's
            each.window_s = window_s.get(name, 0.0) + stretch.end_s - stretch.measure_s
    return Served(seen_of(totals, objectives, rate_per_s=rate_per_s), retried)


def _replica(fleet: Fleet, up_s: float) -> Replica:
    slower = fleet.pessimism.slower
    ratios = StepCost._make(part * slower for part in uniform(1.0))
    inbox = Inbox()
    server = VirtualServer(batcher_of(fleet.manifest, ratios), inbox, host_of(fleet.manifest, slower), now_s=up_s)
    return Replica(server, inbox, up_s)


def _play(fleet: Fleet, replicas: list[Replica], stretch: TrafficSample, totals: Totals) -> int:
    router = Router(fleet.routing)
    retried = 0
    loss = fleet.loss
    for sent in sent_of(stretch):
        if loss is not None and sent.sent_s >= loss.at_s:
            retried += _lose(router, replicas, loss, totals)
            loss = None
        _hand_over(router, replicas, sent, sent.sent_s, totals)
    for replica in replicas:
        if replica.down_s == math.inf:
            replica.advance_to(math.inf, totals)
    return retried


def _hand_over(router: Router, replicas: list[Replica], sent: Sent, now_s: float, totals: Totals) -> None:
    there = [each for each in replicas if each.up_s <= now_s < each.down_s]
    if router.looks:
        for each in there:
            each.advance_to(now_s, totals)
    router.choose(there, sent).inbox.take(sent)


def _lose(router: Router, replicas: list[Replica], loss: Loss, totals: Totals) -> int:
    """Take replicas away, and send again what they had; users have waited since they first sent it."""
    lost = replicas[: loss.replicas]
    for each in lost:
        each.advance_to(loss.at_s, totals)
        each.down_s = loss.at_s
    orphans = [sent for each in lost for sent in each.inbox.outstanding.values()]
    for sent in orphans:
        _hand_over(router, replicas, sent, loss.at_s, totals)
    return len(orphans)
