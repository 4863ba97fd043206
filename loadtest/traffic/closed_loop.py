"""Closed loops: a fixed number of users, each waiting for its reply."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from loadtest.results import Phase
from loadtest.scenario import Scenario
from loadtest.traffic.conversations import Begin, ConversationSampler, ConversationState
from loadtest.traffic.levels import Turn, turn_of


def closed_loop(
    scenario: Scenario,
    concurrency: int,
    *,
    first_id: int,
    time_scale: float = 1.0,
    worker: int = 0,
    workers: int = 1,
    begin_conversation: Begin | None = None,
) -> ClosedLoop:
    """Return the closed loop of one level, or one load generator's share of it.

    Args:
        begin_conversation: Starts the level's conversations; None: drawn from the scenario.
    """
    return ClosedLoop(
        concurrency,
        begin_conversation or ConversationSampler(scenario).begin,
        scenario.requests_of(concurrency),
        scenario.warmup_requests,
        first_id=first_id,
        window_s=scenario.window_s * time_scale,
        staggered=scenario.start == "staggered",
        worker=worker,
        workers=workers,
    )


@dataclass(slots=True)
class ClosedLoop:
    """The requests of one level, issued one at a time.

    Every user first warms up; the first warm-up replies have staggered lengths by default, so that the users are spread
    over the duration of a request when measurement starts. Measurement starts when every user has warmed up. Once all
    measured requests are in flight, free users send unmeasured requests, which maintains the load until the last
    measured one has ended. A user holds one conversation after the other; if staggered, the first ones start at places
    spread over a whole conversation.

    Several load generators can share a level: users and measured requests are split, ids too (every `workers`-th), and
    measurement starts when `begin` is called, since no share knows when the users of the others have warmed up.

    Args:
        concurrency: Users of the whole level.
        begin_conversation: Starts the level's conversations, which are numbered from 0.
        requests: Measured requests of the whole level.
        first_id: Id of the level's first request.
        worker: Index of this share.
        workers: Load generators that share the level.
        window_s: Requests sent within this time of the first measured one are also measured, beyond `requests`.
        warmup_requests: Per user; with 0, the first wave is measured too.
        staggered: Whether the first warm-up replies have staggered lengths; if not, all users start together.
    """

    concurrency: int
    begin_conversation: Begin
    requests: int
    warmup_requests: int
    first_id: int
    window_s: float = 0.0
    staggered: bool = True
    worker: int = 0
    workers: int = 1
    measure_s: float | None = None
    end_s: float | None = None
    next_id: int = 0
    _next_state: int = 0
    _states: dict[int, ConversationState] = field(default_factory=dict)
    _warmed: set[int] = field(default_factory=set)
    _sent: dict[int, int] = field(default_factory=dict)
    _measured: int = 0
    _ended: int = 0

    def __post_init__(self) -> None:
        """Start at the first id; take this share of the requests."""
        self.next_id = self.first_id + self.worker
        self._next_state = self.worker
        before = sum(len(range(other, self.concurrency, self.workers)) for other in range(self.worker))
        upto = before + len(self.users)
        self.requests = self.requests * upto // self.concurrency - self.requests * before // self.concurrency

    @property
    def users(self) -> range:
        """The numbers of this share's users, among all of the level's from 0."""
        return range(self.worker, self.concurrency, self.workers)

    @property
    def is_warm(self) -> bool:
        """Whether all users of this share have warmed up."""
        return not self.warmup_requests or len(self._warmed) == len(self.users)

    def next_conversations(self, count: int) -> range:
        """Return the numbers of the next conversations to begin."""
        return range(self._next_state, self._next_state + count * self.workers, self.workers)

    def begin(self, now_s: float) -> None:
        """Measure from now on."""
        self.measure_s = now_s
        self.end_s = None if self.users else now_s
        self._end_if_done(now_s)

    @property
    def is_over(self) -> bool:
        """Whether all measured requests have ended."""
        return self.end_s is not None

    def next_turn(self, user: int, now_s: float) -> Turn:
        """Return the next request of a free user."""
        sent = self._sent.get(user, 0)
        self._sent[user] = sent + 1
        if sent >= self.warmup_requests:
            self._warmed.add(user)
        if self.measure_s is None and self.workers == 1 and self.is_warm:
            self.begin(now_s)
        phase: Phase = "warmup"
        if self.measure_s is not None:
            phase = "fill"
            if self._measured < self.requests or self._in_window(now_s):
                phase = "measure"
                self._measured += 1
            self._end_if_done(now_s)
        turn = self._turn(user, phase, is_first=not sent)
        self.next_id += self.workers
        return turn

    def wait_s(self, user: int) -> float:
        """Return a free user's think time before its next request, in engine seconds."""
        state = self._states.get(user)
        return 0.0 if state is None or state.is_over else state.exchange.think_s

    def note_end(self, turn: Turn, now_s: float, reply_tokens: int | None = None) -> None:
        """Record the end of a request with its reply tokens; None: it failed, which ends its conversation."""
        if turn.state is not None:
            turn.state.go_on(reply_tokens)
        if turn.phase == "measure":
            self._ended += 1
            self._end_if_done(now_s)

    def _end_if_done(self, now_s: float) -> None:
        """End the level once all measured requests have ended and none will follow."""
        if self._ended == self._measured >= self.requests and self.end_s is None and not self._in_window(now_s):
            self.end_s = now_s

    def _in_window(self, now_s: float) -> bool:
        return self.measure_s is not None and now_s < self.measure_s + self.window_s

    def _turn(self, user: int, phase: Phase, *, is_first: bool) -> Turn:
        state = self._states.get(user)
        if state is None or state.is_over:
            state = self._states[user] = self.begin_conversation(self._next_state)
            self._next_state += self.workers
        if not is_first or not self.warmup_requests or not self.staggered:
            return turn_of(state, self.next_id, phase)
        reached = len(state.conversation.exchanges) * (user + 1) / self.concurrency
        state.skip_to(math.ceil(reached) - 1)
        share = reached - state.place
        return turn_of(state, self.next_id, phase, max(1, round(state.exchange.reply_tokens * share)))
