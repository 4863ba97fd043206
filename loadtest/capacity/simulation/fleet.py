"""A fleet of replicas behind a router in virtual time: routing, losses and slow starts.

Each replica is the virtual server of a prediction. At each arrival the router observes the replicas and chooses one.
For speed, a replica is advanced only when its state is needed; its results are the same. With one replica this equals
the simulation of a single replica.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from engines.emulator import batcher_for
from engines.manifest import EngineManifest
from engines.steptime import NONE, Slowdown, StepShape
from loadtest.capacity.inputs import Routing
from loadtest.capacity.simulation.observations import Observations
from loadtest.capacity.simulation.replica import STATE_EVERY, sent_of
from loadtest.capacity.simulation.traffic_sample import TrafficSample
from loadtest.simulate import Ended, Sent, VirtualServer

# A prefix-aware router sends a request to the replica that has its prefix cached, unless that replica has more than
# this multiple of the mean number of requests: beyond it, waiting costs more than computing the prefix again.
CROWDED_RATIO = 1.5
_ONE_TOKEN = StepShape(decode_sequences=1)  # lower bound of an iteration that produces a token


@dataclass(slots=True)
class Inbox:
    """A replica's requests as its router delivers them."""

    waiting: deque[Sent] = field(default_factory=deque)
    outstanding: dict[int, Sent] = field(default_factory=dict)

    @property
    def next_s(self) -> float:
        """Send time of the next delivered request."""
        return self.waiting[0].sent_s if self.waiting else math.inf

    @property
    def is_over(self) -> bool:
        """Whether every delivered request has ended."""
        return not self.outstanding

    def take(self, sent: Sent) -> None:
        """Accept a request from the router."""
        self.waiting.append(sent)
        self.outstanding[sent.turn.id] = sent

    def send(self) -> Sent:
        """Pass the next request to the server."""
        return self.waiting.popleft()

    def note_end(self, sent: Sent, now_s: float, *, ok: bool = True) -> None:  # noqa: ARG002 (whenever, and however)
        """Note that a request has ended."""
        del self.outstanding[sent.turn.id]


class Loss(NamedTuple):
    """Replicas lost at a given time; their unfinished requests are sent again to the others.

    Attributes:
        notice_s: For so long before, they take no more requests.
        restart_s: From the notice until replacements serve; infinity: there are none.
    """

    at_s: float
    replicas: int
    notice_s: float = 0.0
    restart_s: float = math.inf


@dataclass(slots=True)
class Replica:
    """One replica of a fleet.

    Attributes:
        up_s: Start of its availability.
        down_s: End of its availability; from `closed_s` on it takes no more requests.
        still_until_s: No request can end before this time, so the number of requests is known until then.
    """

    server: VirtualServer
    inbox: Inbox
    into: Observations
    up_s: float = 0.0
    down_s: float = math.inf
    closed_s: float = math.inf
    still_until_s: float = 0.0
    ended: list[Ended] = field(default_factory=list)
    lead: list[Ended] = field(default_factory=list)
    _count: int = 0

    def advance_to(self, until_s: float) -> None:
        """Simulate everything that begins before a time."""
        for each in self.server.advance_to(until_s):
            if each.sent.turn.phase == "measure":
                self.ended.append(each)
            elif each.sent.turn.phase == "warmup":
                self.lead.append(each)
            if each.sent.turn.phase != "warmup":
                self._count += 1
                if self._count % STATE_EVERY == 0:
                    self.into.note_state(self.server)
        self.still_until_s = (
            self.server.batcher.soonest_end_s(self.server.now_s) if self.inbox.outstanding else math.inf
        )

    def take(self, sent: Sent, now_s: float) -> None:
        """Accept a request from the router."""
        self.inbox.take(sent)
        step_s = self.server.batcher.step_time.seconds(_ONE_TOKEN)
        largest = 1 + len(self.server.batcher.settings.acceptance)  # tokens of a step
        self.still_until_s = min(self.still_until_s, now_s + math.ceil(sent.turn.output_tokens / largest) * step_s)

    @property
    def load(self) -> int:
        """Number of unfinished requests."""
        return len(self.inbox.outstanding)


class Router:
    """Chooses a replica for each request by one policy, from the state visible at that moment."""

    def __init__(self, routing: Routing) -> None:
        self.routing = routing
        self._turn = 0

    def observe(self, replicas: list[Replica], now_s: float) -> None:
        """Advance the replicas to a time, as far as the policy needs their state."""
        if self.routing == "round_robin":
            return
        counts_only = self.routing == "least_outstanding"
        for each in replicas:
            if not counts_only or each.still_until_s <= now_s:
                each.advance_to(now_s)

    def choose(self, replicas: list[Replica], sent: Sent) -> Replica:
        """Return the replica for a request; ties are broken round-robin."""
        self._turn += 1
        ordered = [replicas[(self._turn + place) % len(replicas)] for place in range(len(replicas))]
        if self.routing == "round_robin":
            return ordered[0]
        if self.routing == "least_kv":
            return min(ordered, key=lambda each: (_kv_blocks(each, sent), each.load))
        if self.routing == "prefix_aware" and sent.prefix_hashes:
            largest = CROWDED_RATIO * sum(each.load for each in ordered) / len(ordered) + 1
            free = [each for each in ordered if each.load <= largest]
            return max(free, key=lambda each: (each.server.batcher.reusable_blocks(sent.prefix_hashes), -each.load))
        return min(ordered, key=lambda each: each.load)


def _kv_blocks(replica: Replica, sent: Sent) -> int:
    """Return the KV blocks in use plus those that waiting prompts need, each estimated by this request's prompt."""
    state = replica.server.batcher.snapshot()
    waiting = replica.load - state.generation_requests
    return state.kv_used_blocks + max(0, waiting) * -(-sent.prompt_tokens // state.kv_tokens_per_block)


class Fleet(NamedTuple):
    """A fleet to simulate.

    Attributes:
        ups_s: Start time of each replica; one entry per replica.
        max_queue_size: Maximum queued requests per replica; further ones are refused. 0: no limit.
    """

    manifest: EngineManifest
    ups_s: tuple[float, ...]
    routing: Routing
    slowdown: Slowdown = NONE
    loss: Loss | None = None
    max_queue_size: int = 0


def serve(fleet: Fleet, samples: Sequence[TrafficSample], into: Observations | None = None) -> tuple[Observations, int]:
    """Return the observations of all replicas, each window starting idle, and the number of requests sent again.

    Args:
        into: Observations of earlier windows to add to.
    """
    found = Observations() if into is None else into
    retried = 0
    for sample in samples:
        replicas = [new_replica(fleet, up_s, found) for up_s in fleet.ups_s]
        loss = fleet.loss
        if loss is not None:
            notice_s = loss.at_s - loss.notice_s
            for each in replicas[: loss.replicas]:
                each.closed_s = notice_s
            if math.isfinite(loss.restart_s):
                replicas += [new_replica(fleet, notice_s + loss.restart_s, found) for _ in range(loss.replicas)]
        found.begin_window(sample)
        retried += _play(fleet, replicas, sample)
        for replica in replicas:
            found.add(replica.server, replica.ended, replica.lead)
    return found, retried


def new_replica(fleet: Fleet, up_s: float, into: Observations) -> Replica:
    """Return an idle replica that takes requests from a time on."""
    manifest, slowdown = fleet.manifest, fleet.slowdown
    batcher = batcher_for(manifest, max_queue_size=fleet.max_queue_size, ratios=slowdown.parts())
    inbox = Inbox()
    server = VirtualServer(batcher, inbox, slowdown.host_of(manifest.step_time), now_s=up_s)
    return Replica(server, inbox, into, up_s)


def _play(fleet: Fleet, replicas: list[Replica], sample: TrafficSample) -> int:
    router = Router(fleet.routing)
    retried = 0
    loss = fleet.loss
    for sent in sent_of(sample):
        if loss is not None and sent.sent_s >= loss.at_s:
            retried += _lose(router, replicas, loss)
            loss = None
        hand_over(router, replicas, sent, sent.sent_s)
    for replica in replicas:
        if replica.down_s == math.inf:
            replica.advance_to(math.inf)
    return retried


def hand_over(router: Router, replicas: list[Replica], sent: Sent, now_s: float) -> None:
    """Send a request to one of the replicas that take requests at a time."""
    there = [each for each in replicas if each.up_s <= now_s < min(each.down_s, each.closed_s)]
    router.observe(there, now_s)
    router.choose(there, sent).take(sent, now_s)


def _lose(router: Router, replicas: list[Replica], loss: Loss) -> int:
    """Remove replicas and send their unfinished requests again; latency counts from the first sending."""
    lost = replicas[: loss.replicas]
    for each in replicas:
        each.advance_to(loss.at_s)  # no replica may start a request before it is sent again
    for each in lost:
        each.down_s = loss.at_s
    orphans = [sent for each in lost for sent in each.inbox.outstanding.values()]
    for sent in orphans:
        hand_over(router, replicas, sent, loss.at_s)
    return len(orphans)
