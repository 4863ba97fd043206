"""Open loops: send times drawn beforehand, independent of the server."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from loadtest.scenario import Arrival, Scenario
from loadtest.traffic.conversations import ConversationSampler, ConversationState
from loadtest.traffic.levels import LevelPlan, Turn, turn_of


@dataclass(slots=True)
class OpenLoop:
    """The requests of a level with predetermined times; later turns of a conversation follow their replies.

    Args:
        begin: Starts an arrival's conversation, given its index among the level's arrivals, and the arrival.
        first_id: Id of the first request; later turns are numbered behind all arrivals.
        worker: Whose share this is, from 0, where several load generators share the level: ids differ.

    Attributes:
        next_id: The first id that no request has.
        waited_for: Measured requests that are due, in flight, or follow a reply.
    """

    plan: LevelPlan
    begin: Callable[[int, Arrival], ConversationState]
    warmup_ratio: float
    first_id: int = 0
    worker: int = 0
    workers: int = 1
    next_id: int = 0
    waited_for: int = 0

    def __post_init__(self) -> None:
        """Reserve the arrivals' own ids."""
        self.next_id = self.first_id + len(self.plan.arrivals) + self.worker

    def turn(self, place: int) -> Turn:
        """Return the request of an arrival."""
        arrival = self.plan.arrivals[place]
        turn = turn_of(
            self.begin(place, arrival), self.first_id + place, self.plan.phase_of(arrival, self.warmup_ratio)
        )
        self.waited_for += turn.phase == "measure"
        return turn

    def follow(self, turn: Turn, ended_s: float, reply_tokens: int | None) -> tuple[float, Turn] | None:
        """Return when the turn that follows a request is due, and that turn; None if there is none.

        Args:
            ended_s: When its reply ended, in engine seconds since the start of the level, as is the due time.
            reply_tokens: Tokens of that reply; None: it failed, which ends its conversation.
        """
        self.waited_for -= turn.phase == "measure"
        state = turn.state
        if state is None:
            return None
        state.go_on(reply_tokens)
        if state.is_over:
            return None
        due_s = ended_s + state.exchange.think_s
        number, self.next_id = self.next_id, self.next_id + self.workers
        later = turn_of(state, number, self.plan.phase_at(due_s, self.warmup_ratio))
        self.waited_for += later.phase == "measure"
        return due_s, later


def open_loop(
    scenario: Scenario,
    plan: LevelPlan,
    sampler: ConversationSampler,
    *,
    level: int,
    first_id: int,
    worker: int = 0,
    workers: int = 1,
) -> OpenLoop:
    """Return the open loop of one level, or what one load generator of several needs of it."""
    return OpenLoop(
        plan,
        lambda place, arrival: sampler.begin_arrival(place, arrival, level),
        scenario.warmup_ratio,
        first_id,
        worker,
        workers,
    )
