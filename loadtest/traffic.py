"""What a scenario's levels send, without sockets or clocks of their own: who sends next, and when it is over."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np

from engines.errors import UserError
from engines.files import Strict
from loadtest.arrivals import Poisson, Process, arrivals_of
from loadtest.conversations import SAMPLED, Begin, Mix, Seen, Talk, seen_of
from loadtest.dialects.endpoint import Endpoint
from loadtest.records import Phase
from loadtest.scenario import Scenario
from loadtest.traces import Arrival, Trace

FILL_ALLOWANCE = 3  # conversations for each user beyond what is measured: warm-up, and filling up to the end


ENOUGH = "enough"  # what a generator under way is told when a level's requests tell enough


class GeneratorPlan(Strict):
    """What the load generator's process is told.

    Attributes:
        endpoint: The server.
        prompts: Folder of what prompts are made from.
        records: File to append records to.
        under_way: File to note requests in that have not ended.
        began_monotonic_s: The run's zero on the machine's monotonic clock.
        time_scale: Wall seconds of one second of the scenario's arrivals and windows.
        lengths: Mean prompt and reply of each level's requests, in tokens.
        texts: File to append prompts to as they are sent; None: they are written nowhere.
    """

    endpoint: Endpoint
    scenario: Scenario
    prompts: str
    records: str
    under_way: str
    began_monotonic_s: float
    time_scale: float = 1.0
    lengths: tuple[tuple[int, int], ...] = ()
    texts: str | None = None

    def levels(self) -> list[LevelPlan]:
        """Return the levels as `plans_of`, with their lengths; errors likewise."""
        plans = plans_of(self.scenario)
        return [replace(plan, isl=isl, osl=osl) for plan, (isl, osl) in zip(plans, self.lengths, strict=True)]


@dataclass(frozen=True, slots=True)
class LevelPlan:
    """One level of a scenario: so many users, or requests by a process.

    Attributes:
        rate_per_s: Requests a second of an open loop; of a trace or a changing rate, the mean.
        arrivals: Of an open loop, in order; empty for a closed one.
        failed_rows: Rows of a trace left out because they have no prompt or no reply.
        begun: What the arrivals begin.
        isl: Prompt tokens of its requests, mean; 0 until somebody has counted.
        osl: Reply tokens, likewise.
    """

    concurrency: int | None
    rate_per_s: float | None = None
    arrivals: tuple[Arrival, ...] = ()
    failed_rows: int = 0
    begun: Literal["requests", "conversations"] = "requests"
    isl: int = 0
    osl: int = 0

    def phase_of(self, arrival: Arrival, warmup_ratio: float) -> Phase:
        """Return whether a request of an open loop is measured."""
        return self.phase_at(arrival.at_s, warmup_ratio)

    def phase_at(self, at_s: float, warmup_ratio: float) -> Phase:
        """Return the phase of what is sent at a time of an open loop; past its last arrival, the load falls off."""
        last_s = self.arrivals[-1].at_s
        if at_s < warmup_ratio * last_s:
            return "warmup"
        return "measure" if at_s <= last_s else "fill"

    def limit_s(self, scenario: Scenario, time_scale: float = 1.0) -> float:
        """Return the wall seconds after which the level is ended with what it has."""
        return (self.arrivals[-1].at_s * time_scale if self.arrivals else 0.0) + scenario.level_timeout_s

    def conversations(self, scenario: Scenario) -> int:
        """Return how many conversations the level begins: of a closed loop, about as many, and rather more."""
        if self.concurrency is None:
            return len(self.arrivals)
        return scenario.requests_of(self.concurrency) + (scenario.warmup_requests + FILL_ALLOWANCE) * self.concurrency

    def counted(self, scenario: Scenario, mix: Mix) -> LevelPlan:
        """Return the level with the mean lengths of its requests, in whole tokens."""
        seen = self.seen(scenario, mix)
        return replace(self, isl=round(seen.isl), osl=round(seen.osl))

    def seen(self, scenario: Scenario, mix: Mix) -> Seen:
        """Return what the level's requests are like: means of the first, where there are very many."""
        stated = [arrival for arrival in self.arrivals if arrival.isl is not None and arrival.osl is not None]
        if stated:
            return seen_of([each.isl or 0 for each in stated], [each.osl or 0 for each in stated])
        return mix.at_most(mix.lengths_of(range(min(SAMPLED, self.conversations(scenario)))))


def plans_of(scenario: Scenario) -> list[LevelPlan]:
    """Return a scenario's levels, arrivals drawn from its seed; the same for a prediction and for a run.

    Raises:
        UserError: A process or a trace has no request, or too many.
    """
    if scenario.arrivals is not None:
        return [_open_plan(scenario, scenario.arrivals, None)]
    if scenario.rate_per_s is not None:
        rates = scenario.rate_per_s
        return [_open_plan(scenario, Poisson(rate_per_s=r, duration_s=scenario.duration_s), r) for r in rates]
    return [LevelPlan(concurrency) for concurrency in scenario.concurrency]


def _open_plan(scenario: Scenario, process: Process | Trace, rate_per_s: float | None) -> LevelPlan:
    found, failed_rows = arrivals_of(process, rng=np.random.default_rng(scenario.seed), folder=Path())
    begin_s, end_s = found[0].at_s, found[-1].at_s
    if end_s <= begin_s:
        raise UserError("the arrivals hold one moment only", hint="a longer duration_s or a higher rate")
    mean_per_s = rate_per_s or round((len(found) - 1) / (end_s - begin_s), 4)
    converse = any(kind.conversation for kind in scenario.kinds)
    return LevelPlan(None, mean_per_s, found, failed_rows, "conversations" if converse else "requests")


def closed_loop(
    scenario: Scenario,
    concurrency: int,
    *,
    first_id: int,
    time_scale: float = 1.0,
    worker: int = 0,
    workers: int = 1,
    begin_talk: Begin | None = None,
) -> ClosedLoop:
    """Return the closed loop of one level, or one load generator's share of it.

    Args:
        begin_talk: What begins the level's conversations; None: drawn from the scenario.
    """
    return ClosedLoop(
        concurrency,
        begin_talk or Mix(scenario).begin,
        scenario.requests_of(concurrency),
        scenario.warmup_requests,
        first_id=first_id,
        window_s=scenario.window_s * time_scale,
        staggered=scenario.start == "staggered",
        worker=worker,
        workers=workers,
    )


@dataclass(slots=True)
class Turn:
    """One request a user is to send.

    Attributes:
        output_tokens: Reply length: exactly, or at most, as `exact` says.
        class_name: Class of a mix; None where there is one kind of request.
        conversation: Number of the conversation it is a turn of; None of a single request.
        place: Its place in that conversation, from 0.
        talk: What has been said before it; None where its maker knows nothing of conversations.
    """

    id: int
    phase: Phase
    output_tokens: int
    class_name: str | None = None
    conversation: int | None = None
    place: int = 0
    exact: bool = True
    talk: Talk | None = None


def turn_of(talk: Talk, number: int, phase: Phase, output_tokens: int | None = None) -> Turn:
    """Return the next turn of a conversation as a request of that number."""
    kind = talk.kind
    return Turn(
        number,
        phase,
        talk.exchange.reply_tokens if output_tokens is None else output_tokens,
        kind.name,
        None if kind.conversation is None else talk.conversation.number,
        talk.place,
        kind.is_exact,
        talk,
    )


@dataclass(slots=True)
class ClosedLoop:
    """The requests of one level, given out one at a time.

    Every user first warms up; the first warm-up replies have staggered lengths unless told otherwise, so that the
    users are spread over the whole of a request when measuring begins instead of all starting at once. Measuring
    begins when every user has warmed up. Once all measured requests are under way, users that become free send
    requests that are not measured: the load stays what it was until the last measured one has ended. A user holds
    one conversation after the other; staggered, the first ones begin at places spread over a whole conversation.

    Several load generators share a level: users and measured requests are split, ids too (every `workers`-th), and
    measuring begins when `begin` is called, since no share knows when the users of the others have warmed up.

    Args:
        concurrency: Users of the whole level.
        begin_talk: Begins the level's conversations, which are numbered from 0.
        requests: Measured by the whole level.
        first_id: Id of the level's first request.
        worker: Whose share this is, from 0.
        workers: Load generators that share the level.
        window_s: Requests sent within this time of the first measured one are measured too, beyond `requests`.
        warmup_requests: Of each user; with 0, the first wave is measured with the others.
        staggered: Whether the first warm-up replies have staggered lengths; if not, all users begin together.
    """

    concurrency: int
    begin_talk: Begin
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
    _next_talk: int = 0
    _talks: dict[int, Talk] = field(default_factory=dict)
    _warmed: set[int] = field(default_factory=set)
    _sent: dict[int, int] = field(default_factory=dict)
    _measured: int = 0
    _ended: int = 0

    def __post_init__(self) -> None:
        """Start at the first id; take the share of the requests that the share of the users is."""
        self.next_id = self.first_id + self.worker
        self._next_talk = self.worker
        before = sum(len(range(other, self.concurrency, self.workers)) for other in range(self.worker))
        upto = before + len(self.users)
        self.requests = self.requests * upto // self.concurrency - self.requests * before // self.concurrency

    @property
    def users(self) -> range:
        """The numbers of this share's users, of all of the level's from 0."""
        return range(self.worker, self.concurrency, self.workers)

    @property
    def is_warm(self) -> bool:
        """Whether all users of this share have warmed up."""
        return not self.warmup_requests or len(self._warmed) == len(self.users)

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
        """Return what a free user sends now."""
        sent = self._sent.get(user, 0)
        self._sent[user] = sent + 1
        if sent >= self.warmup_requests:
            self._warmed.add(user)
        if self.measure_s is None and self.workers == 1 and self.is_warm:
            self.begin(now_s)
        phase: Phase = "warmup"
        if self.measure_s is not None:
            phase = "measure" if self._measured < self.requests or self._in_window(now_s) else "fill"
            self._measured += phase == "measure"
            self._end_if_done(now_s)
        turn = self._turn(user, phase, is_first=not sent)
        self.next_id += self.workers
        return turn

    def wait_s(self, user: int) -> float:
        """Return how long a free user thinks before its next request, in engine seconds."""
        talk = self._talks.get(user)
        return 0.0 if talk is None or talk.is_over else talk.exchange.think_s

    def note_end(self, turn: Turn, now_s: float, reply_tokens: int | None = None) -> None:
        """Take a request as ended, with so many tokens; None: not well, which ends its conversation."""
        if turn.talk is not None:
            turn.talk.go_on(reply_tokens)
        if turn.phase == "measure":
            self._ended += 1
            self._end_if_done(now_s)

    def _end_if_done(self, now_s: float) -> None:
        """End the level once all that was sent to be measured has ended, and nothing more will be."""
        if self._ended == self._measured >= self.requests and not self._in_window(now_s):
            self.end_s = self.end_s if self.end_s is not None else now_s

    def _in_window(self, now_s: float) -> bool:
        return self.measure_s is not None and now_s < self.measure_s + self.window_s

    def _turn(self, user: int, phase: Phase, *, is_first: bool) -> Turn:
        talk = self._talks.get(user)
        if talk is None or talk.is_over:
            talk = self._talks[user] = self.begin_talk(self._next_talk)
            self._next_talk += self.workers
        if not is_first or not self.warmup_requests or not self.staggered:
            return turn_of(talk, self.next_id, phase)
        reached = len(talk.conversation.exchanges) * (user + 1) / self.concurrency
        talk.skip_to(math.ceil(reached) - 1)
        share = reached - talk.place
        return turn_of(talk, self.next_id, phase, max(1, round(talk.exchange.reply_tokens * share)))


@dataclass(slots=True)
class OpenLoop:
    """The requests of one level whose times are drawn beforehand; later turns of a conversation follow their replies.

    Args:
        begin: Begins what an arrival asks for: its place among the level's arrivals, and the arrival.
        first_id: Id of the first request; later turns are numbered behind all arrivals.
        worker: Whose share this is, from 0, where several load generators share the level: ids differ.

    Attributes:
        next_id: The first id that no request has.
        waited_for: Measured requests that are due, under way or to follow a reply.
    """

    plan: LevelPlan
    begin: Callable[[int, Arrival], Talk]
    warmup_ratio: float
    first_id: int = 0
    worker: int = 0
    workers: int = 1
    next_id: int = 0
    waited_for: int = 0

    def __post_init__(self) -> None:
        """Leave room for the arrivals' own ids."""
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
        """Return when what follows a request is due, and it; None where nothing does.

        Args:
            ended_s: When its reply ended, in engine seconds since the level began; the due time is in them too.
            reply_tokens: Of that reply; None: it did not end well, which ends its conversation.
        """
        self.waited_for -= turn.phase == "measure"
        talk = turn.talk
        if talk is None:
            return None
        talk.go_on(reply_tokens)
        if talk.is_over:
            return None
        due_s = ended_s + talk.exchange.think_s
        number, self.next_id = self.next_id, self.next_id + self.workers
        later = turn_of(talk, number, self.plan.phase_at(due_s, self.warmup_ratio))
        self.waited_for += later.phase == "measure"
        return due_s, later


def open_loop(
    scenario: Scenario, plan: LevelPlan, mix: Mix, *, level: int, first_id: int, worker: int = 0, workers: int = 1
) -> OpenLoop:
    """Return the open loop of one level, or what one load generator of several needs of it."""
    return OpenLoop(
        plan,
        lambda place, arrival: mix.begin_arrival(place, arrival, level),
        scenario.warmup_ratio,
        first_id,
        worker,
        workers,
    )
