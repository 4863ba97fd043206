"""The load generator's process, and the only file that knows Locust; started by `runner.py` with a plan's path.

Locust provides the users; clocks, records and the shape of the load are ours. Its statistics are not used: its
percentiles are rounded, and its timers stop at the headers of a streamed reply.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import sys
import time
from pathlib import Path
from typing import Any, TextIO

import gevent
import gevent.pool
import locust
import numpy as np
from locust.env import Environment
from locust.exception import StopUser

from loadtest.conversations import Mix, Talk
from loadtest.dialects import dialect_of
from loadtest.dialects.base import Answer, Asked
from loadtest.dialects.triton_http import ENGINE_MODEL
from loadtest.prompts import PromptMaker
from loadtest.records import Outcome, RequestRecord
from loadtest.traffic import ClosedLoop, GeneratorPlan, LevelPlan, OpenLoop, Turn, closed_loop, open_loop, plans_of
from loadtest.wires import Connection, Door, Readings, UnreachableError

BACK_OFF_S = 0.05  # after a failed request, so that a server that refuses is not hammered
TICK_S = 0.01  # how often the generator looks at its own clock
SPAWN_WITHIN_S = 60.0


class Generator:
    """What the users of a run share: the plan, the prompts, the level under way, the file of records."""

    def __init__(self, plan: GeneratorPlan, records: TextIO) -> None:
        self.plan = plan
        self.maker = PromptMaker(plan.scenario, Path(plan.prompts))
        self.mix = Mix(plan.scenario, self.maker.rows)
        self.records = records
        self.loop = ClosedLoop(1, self.begin_talk, 1, 0, 0)
        self.opened: OpenLoop | None = None
        self.level = 0
        self.gone: str | None = None
        self.user_numbers = itertools.count()
        self.level_plan = LevelPlan(None)
        self.open_began_s = 0.0
        self.open_is_over = False
        self.spare: list[Connection] = []  # connections of an open loop nobody is using
        scenario = plan.scenario
        self.door = Door(
            plan.endpoint,
            dialect_of(plan.endpoint, scenario.model, environment=os.environ, extra=scenario.extra_body),
            silence_s=scenario.request_timeout_s,
            reply_s=scenario.reply_timeout_s,
            clock=self.now_s,
        )
        self.unreachable_since_s: float | None = None

    @property
    def is_over(self) -> bool:
        """Whether the level under way has ended of itself."""
        return self.loop.is_over if self.level_plan.concurrency is not None else self.open_is_over

    def now_s(self) -> float:
        """Return seconds since the run began, on the clock the monitor uses too."""
        return time.monotonic() - self.plan.began_monotonic_s

    def begin_talk(self, number: int) -> Talk:
        """Begin a conversation of the level under way."""
        return self.mix.begin(number, self.level)

    def note_reach(self, failure: Exception | None) -> None:
        """Take whether a request found the server; where none has for a while, the server is gone."""
        if not isinstance(failure, UnreachableError):
            self.unreachable_since_s = None
            return
        now_s = self.now_s()
        if self.unreachable_since_s is None:
            self.unreachable_since_s = now_s
        if now_s - self.unreachable_since_s >= self.plan.scenario.unreachable_s:
            self.gone = str(failure)

    def write(self, record: RequestRecord) -> None:
        """Append a record; on disk before the next one is made."""
        self.records.write(record.model_dump_json() + "\n")
        self.records.flush()


class StreamUser(locust.User):
    """One user of a closed loop: sends, reads the whole reply, sends again."""

    abstract = True
    generator: Generator

    def on_start(self) -> None:
        """Take a number and connect at the first request."""
        self.number = next(self.generator.user_numbers)
        self.connection = Connection(self.generator.door)

    def on_stop(self) -> None:
        """Let go of the connection."""
        self.connection.close()

    @locust.task
    def request(self) -> None:
        """Send one request and write its record."""
        shared = self.generator
        gevent.sleep(shared.loop.wait_s(self.number) * shared.plan.time_scale)
        if shared.loop.is_over or shared.gone:
            raise StopUser
        scheduled_s = shared.now_s()
        turn = shared.loop.next_turn(self.number, scheduled_s)
        tokens = send(shared, self.connection, turn, scheduled_s)
        shared.loop.note_end(turn, shared.now_s(), tokens)
        if tokens is None:
            gevent.sleep(BACK_OFF_S)


class ArrivalsUser(locust.User):
    """All of an open loop: sends each request at its time, whatever has become of those before it."""

    abstract = True
    generator: Generator

    @locust.task
    def arrivals(self) -> None:
        """Send what is due, each on a connection of its own; wait for all that are measured."""
        shared = self.generator
        plan, scale = shared.level_plan, shared.plan.time_scale
        under_way = self.under_way = gevent.pool.Group()
        for place, arrival in enumerate(plan.arrivals):
            due_s = shared.open_began_s + arrival.at_s * scale
            while (left_s := due_s - shared.now_s()) > 0 and not shared.gone:
                gevent.sleep(left_s)
            if shared.gone:
                break
            under_way.start(gevent.Greenlet(self._converse, place, due_s))
        under_way.join()
        shared.open_is_over = not shared.gone
        raise StopUser

    def on_stop(self) -> None:
        """End what is under way; each writes its record."""
        self.under_way.kill()

    def _converse(self, place: int, due_s: float) -> None:
        """Send what an arrival asks for; where that is a conversation, each later turn when its time has come."""
        shared = self.generator
        opened, scale = shared.opened, shared.plan.time_scale
        if opened is None:
            raise RuntimeError("an open loop's level was not prepared")
        turn: Turn | None = opened.turn(place)
        while turn is not None and not shared.gone:
            connection = shared.spare.pop() if shared.spare else Connection(shared.door)
            tokens = send(shared, connection, turn, due_s)
            if tokens is not None:
                shared.spare.append(connection)
            later = opened.follow(turn, (shared.now_s() - shared.open_began_s) / scale, tokens)
            turn = None
            if later is not None:
                due_s, turn = shared.open_began_s + later[0] * scale, later[1]
                gevent.sleep(max(0.0, due_s - shared.now_s()))


def send(shared: Generator, connection: Connection, turn: Turn, scheduled_s: float) -> int | None:
    """Send one request, read its reply, write its record however it ends; return its tokens, None if not well.

    Raises:
        ValueError: The turn is of no conversation, so that nobody knows its prompt.
    """
    if turn.talk is None:
        raise ValueError(f"request {turn.id} has no conversation, and so no prompt")
    prompt = shared.maker.prompt(turn.talk)
    asked = Asked(f"r{turn.id}", prompt, turn.output_tokens, turn.exact)
    answer = Answer(reply=[] if shared.maker.wants_reply(turn.talk) else None)
    outcome: Outcome = "cancelled"
    try:
        connection.ask(asked, answer)
        shared.note_reach(answer.failure)
    finally:
        outcome, error = answer.outcome(asked)
        shared.write(
            RequestRecord(
                id=turn.id,
                level=shared.level,
                phase=turn.phase,
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


def run_level(shared: Generator, level: int, plan: LevelPlan) -> dict[str, Any]:
    """Run one level to its end; return what it was, for the run's manifest."""
    scenario = shared.plan.scenario
    shared.level, shared.level_plan = level, plan
    shared.door.readings = readings = Readings()
    shared.user_numbers = itertools.count()
    begin_s = shared.now_s()
    users, kind = _prepare(shared, plan)
    user_class = type("PlannedUser", (kind,), {"generator": shared, "abstract": False})
    environment = Environment(user_classes=[user_class], catch_exceptions=False)
    limit_s = plan.limit_s(scenario, shared.plan.time_scale)
    isl, osl = plan.mean_lengths(scenario, shared.mix)
    lateness = _Lateness()
    runner = environment.create_local_runner()
    watcher = gevent.spawn(lateness.watch)
    runner.start(users, spawn_rate=users)
    while not shared.is_over and not shared.gone and shared.now_s() - begin_s < limit_s:
        gevent.sleep(TICK_S)
    ended_s = shared.loop.end_s if plan.concurrency is not None else None
    end_s = shared.now_s() if ended_s is None else ended_s
    complete = shared.is_over and not shared.gone
    _end_users(environment, scenario.model, whole=complete, limit_s=scenario.request_timeout_s)
    watcher.kill()
    return {
        "concurrency": plan.concurrency,
        "rate_per_s": plan.rate_per_s,
        "failed_rows": plan.failed_rows,
        "isl": isl,
        "osl": osl,
        "begin_s": begin_s,
        "measure_s": _measure_s(shared, plan, end_s),
        "end_s": end_s,
        "complete": complete,
        "generator_late_p99_s": lateness.p99_s(),
        "read_late_p99_s": readings.late_p99_s(),
        "clock": readings.clock,
    }


def _prepare(shared: Generator, plan: LevelPlan) -> tuple[int, type[locust.User]]:
    """Make a level ready; return how many users Locust starts, and of which kind."""
    if plan.concurrency is None:
        first_id = 0 if shared.opened is None else shared.opened.next_id
        shared.opened = open_loop(shared.plan.scenario, plan, shared.mix, level=shared.level, first_id=first_id)
        shared.open_began_s, shared.open_is_over = shared.now_s(), False
        return 1, ArrivalsUser
    shared.loop = closed_loop(
        shared.plan.scenario,
        plan.concurrency,
        first_id=shared.loop.next_id,
        time_scale=shared.plan.time_scale,
        begin_talk=shared.begin_talk,
    )
    return plan.concurrency, StreamUser


def _measure_s(shared: Generator, plan: LevelPlan, end_s: float) -> float:
    """Return when measuring began; a level that never came so far measured nothing."""
    if plan.concurrency is None:
        first = next(
            each for each in plan.arrivals if plan.phase_of(each, shared.plan.scenario.warmup_ratio) == "measure"
        )
        return shared.open_began_s + first.at_s * shared.plan.time_scale
    return end_s if shared.loop.measure_s is None else shared.loop.measure_s


def _end_users(environment: Environment, model: str, *, whole: bool, limit_s: float) -> None:
    """End the users: at once where the model hears of a cancelled request, else after the request each is at.

    A request cancelled through Triton's ensemble runs on unheard, and keeps the ensemble from ever being unloaded.
    """
    runner = environment.runner
    if model != ENGINE_MODEL and whole:
        with contextlib.suppress(gevent.Timeout), gevent.Timeout(limit_s):
            while runner.user_count:
                gevent.sleep(TICK_S)
    runner.stop()


class _Lateness:
    """How late this process wakes up: what a busy generator adds to every time it notes."""

    def __init__(self) -> None:
        self._late_s: list[float] = []

    def watch(self) -> None:
        while True:
            due = time.monotonic() + TICK_S
            gevent.sleep(TICK_S)
            self._late_s.append(time.monotonic() - due)

    def p99_s(self) -> float:
        return float(np.percentile(self._late_s, 99)) if self._late_s else 0.0


def main(plan_path: str) -> int:
    """Run every level of a plan; print one JSON line for each, and one where the server has gone."""
    plan = GeneratorPlan.model_validate_json(Path(plan_path).read_text(encoding="utf-8"))
    with Path(plan.records).open("a", encoding="utf-8") as records:
        shared = Generator(plan, records)
        for level, level_plan in enumerate(plans_of(plan.scenario)):
            print(json.dumps(run_level(shared, level, level_plan)), flush=True)
            if shared.gone:
                print(json.dumps({"gone": shared.gone}), flush=True)
                break
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
