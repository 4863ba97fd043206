"""What a scenario's levels send, without sockets or clocks of their own: who sends next, and when it is over."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from engines.errors import UserError
from engines.files import Strict
from loadtest.arrivals import Poisson, Process, arrivals_of
from loadtest.dialects.endpoint import Endpoint
from loadtest.records import Phase
from loadtest.scenario import Scenario
from loadtest.traces import Arrival, Trace


class GeneratorPlan(Strict):
    """What the load generator's process is told.

    Attributes:
        endpoint: The server.
        prompts: File of prompts.
        records: File to append records to.
        under_way: File to note requests in that have not ended.
        began_monotonic_s: The run's zero on the machine's monotonic clock.
        time_scale: Wall seconds of one second of the scenario's arrivals and windows.
    """

    endpoint: Endpoint
    scenario: Scenario
    prompts: str
    records: str
    under_way: str
    began_monotonic_s: float
    time_scale: float = 1.0


@dataclass(frozen=True, slots=True)
class LevelPlan:
    """One level of a scenario: so many users, or requests by a process.

    Attributes:
        rate_per_s: Requests a second of an open loop; of a trace or a changing rate, the mean.
        arrivals: Of an open loop, in order; empty for a closed one.
        failed_rows: Rows of a trace left out because they have no prompt or no reply.
    """

    concurrency: int | None
    rate_per_s: float | None = None
    arrivals: tuple[Arrival, ...] = ()
    failed_rows: int = 0

    def phase_of(self, arrival: Arrival, warmup_ratio: float) -> Phase:
        """Return whether a request of an open loop is measured."""
        return "warmup" if arrival.at_s < warmup_ratio * self.arrivals[-1].at_s else "measure"


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
    return LevelPlan(None, rate_per_s or round((len(found) - 1) / (end_s - begin_s), 4), found, failed_rows)


def closed_loop(
    scenario: Scenario,
    concurrency: int,
    *,
    first_id: int,
    time_scale: float = 1.0,
    worker: int = 0,
    workers: int = 1,
) -> ClosedLoop:
    """Return the closed loop of one level, or one load generator's share of it."""
    return ClosedLoop(
        concurrency,
        scenario.lengths.osl,
        max(scenario.requests, scenario.requests_per_user * concurrency),
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
        class_name: Class of a mix; None where there is one kind of request.
        conversation: Number of the conversation it is a turn of; None of a single request.
        place: Its place in that conversation, from 0.
    """

    id: int
    phase: Phase
    output_tokens: int
    class_name: str | None = None
    conversation: int | None = None
    place: int = 0


@dataclass(slots=True)
class ClosedLoop:
    """The requests of one level, given out one at a time.

    Every user first warms up; the first warm-up replies have staggered lengths unless told otherwise, so that the
    users are spread over the whole of a request when measuring begins instead of all starting at once. Measuring
    begins when every user has warmed up. Once all measured requests are under way, users that become free send
    requests that are not measured: the load stays what it was until the last measured one has ended.

    Several load generators share a level: users and measured requests are split, ids too (every `workers`-th), and
    measuring begins when `begin` is called, since no share knows when the users of the others have warmed up.

    Args:
        concurrency: Users of the whole level.
        requests: Measured by the whole level.
        first_id: Id of the level's first request.
        worker: Whose share this is, from 0.
        workers: Load generators that share the level.
        window_s: Requests sent within this time of the first measured one are measured too, beyond `requests`.
        warmup_requests: Of each user; with 0, the first wave is measured with the others.
        staggered: Whether the first warm-up replies have staggered lengths; if not, all users begin together.
    """

    concurrency: int
    output_tokens: int
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
    _warmed: set[int] = field(default_factory=set)
    _sent: dict[int, int] = field(default_factory=dict)
    _measured: int = 0
    _ended: int = 0

    def __post_init__(self) -> None:
        """Start at the first id; take the share of the requests that the share of the users is."""
        self.next_id = self.first_id + self.worker
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
        turn = Turn(self.next_id, phase, self._length(user, sent))
        self.next_id += self.workers
        return turn

    def note_end(self, turn: Turn, now_s: float) -> None:
        """Take a request as ended, well or not."""
        if turn.phase == "measure":
            self._ended += 1
            self._end_if_done(now_s)

    def _end_if_done(self, now_s: float) -> None:
        """End the level once all that was sent to be measured has ended, and nothing more will be."""
        if self._ended == self._measured >= self.requests and not self._in_window(now_s):
            self.end_s = self.end_s if self.end_s is not None else now_s

    def _in_window(self, now_s: float) -> bool:
        return self.measure_s is not None and now_s < self.measure_s + self.window_s

    def _length(self, user: int, sent: int) -> int:
        if sent or not self.warmup_requests or not self.staggered:
            return self.output_tokens
        return max(1, round(self.output_tokens * (user + 1) / self.concurrency))
