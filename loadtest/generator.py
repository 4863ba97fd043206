"""What sends: the state a load generator's users share, one request, and a level, or a worker's share of one."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gevent
import numpy as np

from loadtest.conversations import Mix, Talk
from loadtest.dialects import dialect_of
from loadtest.dialects.base import Answer, Asked
from loadtest.dialects.triton_http import ENGINE_MODEL
from loadtest.ledger import Book
from loadtest.prompts import Prompt, PromptMaker
from loadtest.records import Outcome, RequestRecord
from loadtest.talk import CRASHED
from loadtest.traffic import ClosedLoop, GeneratorPlan, LevelPlan, OpenLoop, Turn, closed_loop, open_loop
from loadtest.watch import LogHistogram, Watch
from loadtest.wires import Connection, Door, Readings, UnreachableError

PROBE_S = 0.25  # how often a server that went away is looked for
TICK_S = 0.02  # how often the generator looks at its own clock
COUNTED_AT_ONCE = 100
CLOSED_USERS, OPEN_USERS = "ClosedLoopUser", "OpenLoopUser"


class Generator:
    """What the users of a run share: the plan, the prompts, the level under way, the book of requests.

    Args:
        worker: Which of `workers` processes this is; each has its own users, or sends every `workers`-th arrival.
        watch: Where records are looked at as they end; None where somebody else does.
    """

    def __init__(
        self, plan: GeneratorPlan, book: Book, *, worker: int = 0, workers: int = 1, watch: Watch | None = None
    ) -> None:
        self.plan = plan
        self.maker = PromptMaker(plan.scenario, Path(plan.prompts))
        self.mix = Mix(plan.scenario, self.maker.rows)
        self.book = book
        self.worker, self.workers = worker, workers
        self.watch = watch
        self.began_monotonic_s = plan.began_monotonic_s
        self.loop = ClosedLoop(1, self.begin_talk, 1, 0, 0)
        self.opened: OpenLoop | None = None
        self.level = 0
        self.level_plan = LevelPlan(None)
        self.open_began_s = 0.0
        self.user_numbers: Iterator[int] = iter(())
        self.is_over = False  # no user begins another request
        self.suffices = False  # the level's requests tell enough: it ends with what has ended
        self.stopped: str | None = None
        self.spare: list[Connection] = []  # connections of an open loop nobody is using
        scenario = plan.scenario
        self.door = Door(
            plan.endpoint,
            dialect_of(plan.endpoint, scenario.model, environment=os.environ, extra=scenario.extra_body),
            silence_s=scenario.request_timeout_s,
            reply_s=scenario.reply_timeout_s,
            clock=self.now_s,
        )
        self._away: tuple[float, str] | None = None
        self._away_s = self._asked_s = 0.0

    def now_s(self) -> float:
        """Return seconds since the run began, on the clock the monitor uses too."""
        return time.monotonic() - self.began_monotonic_s

    def begin_talk(self, number: int) -> Talk:
        """Begin a conversation of the level under way."""
        return self.mix.begin(number, self.level)

    def note_sent(self, turn: Turn, prompt: Prompt, scheduled_s: float) -> None:
        """Take a request as under way."""
        sent_s = round(self.now_s(), 6)
        self.book.note_sent(
            RequestRecord(
                id=turn.id,
                level=self.level,
                phase=turn.phase,
                scheduled_s=scheduled_s,
                sent_s=sent_s,
                token_times_s=(),
                done_s=sent_s,
                prompt_tokens=prompt.tokens,
                output_tokens=0,
                outcome="lost",
                error="under way in a load generator that was lost",
                asked_tokens=turn.output_tokens if turn.exact else None,
                class_name=turn.class_name,
                conversation=turn.conversation,
                turn=turn.place,
                worker=self.worker,
            )
        )
        if self.plan.texts is not None:
            said = {"text": prompt.text} if prompt.text else {"ids": prompt.ids}
            self.book.note_text(json.dumps({"id": turn.id, "tokens": prompt.tokens, **said}))

    def write(self, record: RequestRecord) -> None:
        """Take a request as ended."""
        if self.worker:
            record = record.model_copy(update={"worker": self.worker})
        self.book.note_end(record)
        if self.watch is not None:
            self.watch.note(record)

    def note_reach(self, failure: Exception | None) -> None:
        """Take whether a request found the server; where none has for a while, the server is gone."""
        if not isinstance(failure, UnreachableError):
            self._back()
        elif self._away is None:
            self._away = (self.now_s(), str(failure))
            gevent.spawn(self._await_server)

    @property
    def gone(self) -> str | None:
        """Why there is no server any more: nothing has taken connections for longer than is allowed."""
        if self._away is None or self.now_s() - self._away[0] < self.plan.scenario.unreachable_s:
            return None
        return self._away[1]

    @property
    def is_away(self) -> bool:
        """Whether nothing takes connections at the server's address just now."""
        return self._away is not None

    def take_away_s(self) -> float:
        """Return how long nothing took connections since this was last asked."""
        now_s = self.now_s()
        since_s = 0.0 if self._away is None else now_s - max(self._away[0], self._asked_s)
        taken, self._away_s, self._asked_s = self._away_s + since_s, 0.0, now_s
        return taken

    @property
    def why_end(self) -> str | None:
        """Why the run cannot go on, if so."""
        return self.stopped or self.book.failed or self.gone

    def _await_server(self) -> None:
        """Look for somebody taking connections again, for as long as the run goes on."""
        endpoint = self.plan.endpoint
        while self._away is not None:
            gevent.sleep(PROBE_S)
            with contextlib.suppress(OSError):
                socket.create_connection((endpoint.host, endpoint.port), timeout=1).close()
                self._back()

    def _back(self) -> None:
        if self._away is not None:
            self._away_s += self.now_s() - max(self._away[0], self._asked_s)
            self._away = None


def send(shared: Generator, connection: Connection, turn: Turn, scheduled_s: float) -> int | None:
    """Send one request, read its reply, write its record however it ends; return its tokens, None if not well.

    Raises:
        ValueError: The turn is of no conversation, so that nobody knows its prompt.
    """
    if turn.talk is None:
        raise ValueError(f"request {turn.id} has no conversation, and so no prompt")
    prompt = shared.maker.prompt(turn.talk)
    asked = Asked(f"r{turn.id}", prompt, turn.output_tokens, turn.exact, shared.maker.end_id)
    answer = Answer(reply=[] if shared.maker.wants_reply(turn.talk) else None)
    outcome: Outcome = "cancelled"
    shared.note_sent(turn, prompt, scheduled_s)
    try:
        connection.ask(asked, answer)
        shared.note_reach(answer.failure)
    finally:
        outcome, error = answer.outcome(asked)
        shared.write(
            RequestRecord(
                id=turn.id,
                level=shared.level,
                phase="fill" if shared.suffices and outcome == "cancelled" else turn.phase,
                scheduled_s=scheduled_s,
                sent_s=round(answer.sent_s, 6),
                token_times_s=tuple(round(t, 6) for t in answer.times_s),
                done_s=round(answer.done_s, 6),
                prompt_tokens=answer.prompt_tokens or prompt.tokens,
                output_tokens=len(answer.times_s),
                outcome=outcome,
                error=error,
                asked_tokens=turn.output_tokens if turn.exact else None,
                bundled_tokens=answer.bundled_tokens,
                queue_s=answer.queue_s,
                cached_tokens=answer.cached_tokens,
                class_name=turn.class_name,
                conversation=turn.conversation,
                turn=turn.place,
                finish_reason=answer.finish_reason,
            )
        )
    if outcome != "ok":
        return None
    shared.maker.keep(turn.talk, len(answer.times_s), answer.reply)
    return len(answer.times_s)


class Share:
    """A level under way in this process: the whole of it, or a worker's share.

    Args:
        first_id: Id of the level's first request.
        begin_s: When the level begins, on the run's clock; a share of an open loop may be told of it beforehand.
        start: Starts so many users of a class.
    """

    def __init__(
        self,
        shared: Generator,
        runner: Any,
        level: int,
        plan: LevelPlan,
        *,
        first_id: int,
        begin_s: float,
        start: Callable[[dict[str, int]], object],
    ) -> None:
        self._shared, self._runner, self._plan = shared, runner, plan
        self.begin_s = begin_s
        shared.level, shared.level_plan = level, plan
        shared.is_over, shared.suffices, shared.open_began_s = False, False, begin_s
        shared.take_away_s()
        shared.door.readings = Readings()
        if plan.concurrency is not None:
            shared.loop = closed_loop(
                shared.plan.scenario,
                plan.concurrency,
                first_id=first_id,
                time_scale=shared.plan.time_scale,
                worker=shared.worker,
                workers=shared.workers,
                begin_talk=shared.begin_talk,
            )
            shared.user_numbers = iter(shared.loop.users)
        else:
            shared.opened = open_loop(
                shared.plan.scenario,
                plan,
                shared.mix,
                level=level,
                first_id=first_id,
                worker=shared.worker,
                workers=shared.workers,
            )
        self._users = len(shared.loop.users) if plan.concurrency is not None else 1
        self._lateness = _Lateness()
        self._watcher = gevent.spawn(self._lateness.watch)
        start({(OPEN_USERS if plan.concurrency is None else CLOSED_USERS): self._users})

    @property
    def is_warm(self) -> bool:
        """Whether this share's users have warmed up."""
        return self._plan.concurrency is None or self._shared.loop.is_warm

    @property
    def is_measuring(self) -> bool:
        """Whether what is sent now is measured."""
        if self._plan.concurrency is not None:
            return self._shared.loop.measure_s is not None
        return self._shared.now_s() >= self._measure_s(0.0)

    @property
    def is_done(self) -> bool:
        """Whether all that this share measures has ended."""
        return self._shared.loop.is_over if self._plan.concurrency is not None else not self._runner.user_count

    @property
    def next_id(self) -> int:
        """The first id that no request of this share has, nor any before it."""
        opened = self._shared.opened
        return opened.next_id if self._plan.concurrency is None and opened else self._shared.loop.next_id

    def check_users(self) -> None:
        """End the run where a user has died of a mistake of ours; its traceback is in this process's log."""
        died = self._plan.concurrency is not None and self._runner.user_count < self._users
        if died and not self._shared.is_over and not self._shared.loop.is_over:
            self._shared.stopped = f"{CRASHED}: see the traceback"

    def begin_measuring(self, now_s: float) -> None:
        """Measure what is sent from now on."""
        if self._plan.concurrency is not None:
            self._shared.loop.begin(now_s)

    def finish(self, *, whole: bool) -> dict[str, Any]:
        """End the users; return what the share was.

        Args:
            whole: Let each end the request it is at where the model does not hear of a cancelled one: through
                Triton's ensemble it would run on, and keep the ensemble from ever being unloaded.
        """
        shared, scenario = self._shared, self._shared.plan.scenario
        is_done = self.is_done
        end_s = (self._plan.concurrency is not None and shared.loop.end_s) or shared.now_s()
        shared.is_over = True
        if whole and scenario.model != ENGINE_MODEL:
            with contextlib.suppress(gevent.Timeout), gevent.Timeout(scenario.request_timeout_s):
                while self._runner.user_count:
                    gevent.sleep(TICK_S)
        self._runner.stop()
        self._watcher.kill()
        return {
            "begin_s": self.begin_s,
            "measure_s": self._measure_s(end_s),
            "end_s": end_s,
            "complete": (is_done or shared.suffices) and not shared.why_end,
            "sufficed": shared.suffices,
            "generator_late_p99_s": self._lateness.p99_s(),
            "away_s": shared.take_away_s(),
            "read_late_p99_s": shared.door.readings.late_p99_s(),
            "clock": shared.door.readings.clock,
            "next_id": self.next_id,
        }

    def _measure_s(self, end_s: float) -> float:
        """Return when measuring began; a level that never came so far measured nothing."""
        shared, plan = self._shared, self._plan
        if plan.concurrency is None:
            ratio = shared.plan.scenario.warmup_ratio
            first = next(each for each in plan.arrivals if plan.phase_of(each, ratio) == "measure")
            return self.begin_s + first.at_s * shared.plan.time_scale
        return end_s if shared.loop.measure_s is None else shared.loop.measure_s


class _Lateness:
    """How late this process wakes up: what a busy generator adds to every time it notes."""

    def __init__(self) -> None:
        self._late = LogHistogram()
        self._recent: list[float] = []

    def watch(self) -> None:
        while True:
            due = time.monotonic() + TICK_S
            gevent.sleep(TICK_S)
            self._recent.append(time.monotonic() - due)
            if len(self._recent) >= COUNTED_AT_ONCE:
                self._count()

    def p99_s(self) -> float:
        self._count()
        return self._late.quantile(0.99) or 0.0

    def _count(self) -> None:
        self._late.add(np.array(self._recent))
        self._recent.clear()
