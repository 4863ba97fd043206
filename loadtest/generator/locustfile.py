"""The load generator's process, and the only file that imports Locust; `processes.py` forks or starts it.

Locust provides the users and the messages between machines; clocks, records and the load profile are this project's
own. Locust's statistics are not used: its percentiles are rounded, and its timers stop at the headers of a streamed
reply.
"""

from __future__ import annotations

import faulthandler
import gc
import json
import logging
import os
import resource
import sys
import time
import traceback
from typing import Any

import gevent
import gevent.pool
import locust
from locust.env import Environment
from locust.exception import StopUser

from engines.errors import CommandError
from loadtest.client import Connection
from loadtest.generator.distributed import Master, Outbox, Worker
from loadtest.generator.journal import RecordJournal
from loadtest.generator.level_run import CLOSED_USERS, OPEN_USERS, LevelRun
from loadtest.generator.live_page import add_live_page
from loadtest.generator.messages import CRASHED, INTERRUPTED, CommandReader, level_of, tell, tell_progress
from loadtest.generator.plan import ENOUGH, GeneratorPlan
from loadtest.generator.progress import History, LiveStats, Progress
from loadtest.generator.sender import TICK_S, SenderState, send
from loadtest.results import RequestRecord
from loadtest.traffic import LevelPlan, OpenLoop, Turn

BACK_OFF_S = 0.05  # pause after a failed request, to avoid flooding a server that refuses
STOP_WITHIN_S = 0.2  # how quickly an open loop notices that it is over


class StreamUser(locust.User):
    """One user of a closed loop: sends, reads the whole reply, sends again."""

    abstract = True
    generator: SenderState

    def on_start(self) -> None:
        """Take a number, and connect at the first request."""
        self.number = next(self.generator.user_numbers)
        self.free_s = self.generator.now_s()
        self.connection = Connection(self.generator.connections)

    def on_stop(self) -> None:
        """Close the connection."""
        self.connection.close()

    @locust.task
    def requests(self) -> None:
        """Send requests until the level is over: a task of Locust's for each would add its own time to every one."""
        shared = self.generator
        while not (shared.is_over or (shared.workers == 1 and shared.loop.is_over)):
            if shared.is_away or shared.why_end:
                gevent.sleep(BACK_OFF_S)
            elif self._has_thought():
                self._request()
        raise StopUser

    def _request(self) -> None:
        """Send one request and write its record."""
        shared = self.generator
        scheduled_s = shared.now_s()
        turn = shared.loop.next_turn(self.number, scheduled_s)
        tokens = send(shared, self.connection, turn, scheduled_s)
        self.free_s = shared.now_s()
        shared.loop.note_end(turn, self.free_s, tokens)
        if tokens is None:
            gevent.sleep(BACK_OFF_S)

    def _has_thought(self) -> bool:
        """Return whether the think time before a conversation's next turn is over; wait briefly if not."""
        shared = self.generator
        left_s = self.free_s + shared.loop.wait_s(self.number) * shared.plan.time_scale - shared.now_s()
        if left_s > 0:
            gevent.sleep(min(left_s, STOP_WITHIN_S))
        return left_s <= STOP_WITHIN_S


class ArrivalsUser(locust.User):
    """A whole open loop, or a worker's share: sends each request at its time, regardless of the others."""

    abstract = True
    generator: SenderState

    @locust.task
    def arrivals(self) -> None:
        """Send each due request on its own connection; wait for all measured ones."""
        shared, opened = self.generator, self.generator.opened
        if opened is None:
            raise RuntimeError("an open loop's level was not prepared")
        plan, scale = shared.level_plan, shared.plan.time_scale
        under_way = self.under_way = gevent.pool.Group()
        for place in range(shared.worker, len(plan.arrivals), shared.workers):
            due_s = shared.open_began_s + plan.arrivals[place].at_s * scale
            while (left_s := due_s - shared.now_s()) > 0 and not shared.why_end:
                gevent.sleep(min(left_s, STOP_WITHIN_S))
            if shared.why_end:
                break
            under_way.start(gevent.Greenlet(self._converse, opened, opened.turn(place), due_s))
        while len(under_way) and not shared.why_end and opened.waited_for:
            under_way.join(timeout=TICK_S)
        raise StopUser

    def on_stop(self) -> None:
        """End requests in flight; each writes its record."""
        self.under_way.kill()

    def _converse(self, opened: OpenLoop, turn: Turn | None, due_s: float) -> None:
        """Send an arrival's request, or all turns of its conversation, each at its time."""
        shared = self.generator
        try:
            while turn is not None and not shared.why_end:
                connection = shared.spare.pop() if shared.spare else Connection(shared.connections)
                tokens = send(shared, connection, turn, due_s)
                if tokens is not None:
                    shared.spare.append(connection)
                due_s, turn = self._later(opened, turn, tokens)
                gevent.sleep(max(0.0, due_s - shared.now_s()))
        except BaseException as error:
            if not isinstance(error, gevent.GreenletExit):
                shared.stopped = f"{CRASHED}: {error!r}"
            raise

    def _later(self, opened: OpenLoop, turn: Turn, tokens: int | None) -> tuple[float, Turn | None]:
        """Return when the next turn is due, and the turn; None for it at the end of the conversation."""
        shared = self.generator
        scale, ended_s = shared.plan.time_scale, shared.now_s()
        found = opened.follow(turn, self._level_s(ended_s), tokens)
        return (ended_s, None) if found is None else (shared.open_began_s + found[0] * scale, found[1])

    def _level_s(self, now_s: float) -> float:
        return (now_s - self.generator.open_began_s) / self.generator.plan.time_scale


def users_of(shared: SenderState) -> list[type[locust.User]]:
    """Return the user classes that Locust starts."""
    kinds = {CLOSED_USERS: StreamUser, OPEN_USERS: ArrivalsUser}
    return [type(name, (kind,), {"generator": shared, "abstract": False}) for name, kind in kinds.items()]


def run_alone(orders: CommandReader) -> None:
    """Run every level of a plan in this process, without messages and other processes."""
    plan = GeneratorPlan.model_validate_json(orders.next())
    journal = RecordJournal.of(plan)
    watch = LiveStats(plan.time_scale, plan.scenario.objectives)
    shared = SenderState(plan, journal, watch=watch)
    orders.on_end = lambda: setattr(shared, "stopped", shared.stopped or INTERRUPTED)
    runner = Environment(user_classes=users_of(shared), catch_exceptions=False).create_local_runner()
    gevent.spawn(_hear_enough, orders, shared)
    first_id = 0
    for level, level_plan in enumerate(plan.levels()):
        first_id = run_level(shared, runner, level, level_plan, first_id, journal=journal)
        if shared.why_end:
            tell(ended=shared.why_end)
            break
    journal.close()


def _hear_enough(orders: CommandReader, shared: SenderState) -> None:
    """End the current level when the command signals that its results are conclusive."""
    while orders.next() == ENOUGH:
        shared.suffices = True


def run_level(
    shared: SenderState, runner: Any, level: int, plan: LevelPlan, first_id: int, *, journal: RecordJournal
) -> int:
    """Run one level and report it; return the next level's first id."""
    begin_s = shared.now_s()
    limit_s = plan.limit_s(shared.plan.scenario, shared.plan.time_scale)
    began = level_of(plan, [{"begin_s": begin_s}])
    tell(began=began.model_dump())
    watch = shared.watch or LiveStats(shared.plan.time_scale, shared.plan.scenario.objectives)
    watch.begin(began.load, begin_s, is_open=began.concurrency is None)
    share = LevelRun(
        shared,
        runner,
        level,
        plan,
        first_id=first_id,
        begin_s=begin_s,
        start=runner.spawn_users,
        # Not its stop(), which looks up the source of every caller for a log message: 0.05 s of CPU.
        stop=lambda: runner.stop_users(runner.user_classes_count),
    )

    def statistics() -> Progress:
        shared.flush()
        return watch.statistics(shared.now_s(), journal.in_flight, measuring=share.is_measuring)

    ticker = gevent.spawn(tell_progress, statistics)
    while not share.is_done and not shared.suffices and not shared.why_end and shared.now_s() - begin_s < limit_s:
        share.await_tick()
        share.check_users()
    facts = share.finish(whole=not shared.why_end)
    ticker.kill()
    tell(level=level_of(plan, [facts]).model_dump())
    return int(facts["next_id"])


def run_master(orders: CommandReader, options: dict[str, Any]) -> None:
    """Run every level of a plan with connecting workers."""
    environment = Environment(user_classes=[], catch_exceptions=False)
    runner = environment.create_master_runner(options["bind"], options["port"])
    tell(port=runner.server.port)
    history = History()
    page = None
    if options["web_port"] is not None:
        page = environment.create_web_ui("127.0.0.1", options["web_port"], delayed_start=True)
    plan, label = GeneratorPlan.model_validate_json(orders.next()), orders.next()
    environment.host = plan.endpoint.authority

    def note(record: RequestRecord) -> None:
        environment.events.request.fire(
            request_type=plan.endpoint.protocol,
            name=plan.scenario.model,
            response_time=(record.done_s - record.sent_s) * 1e3 / plan.time_scale,
            response_length=0,
            exception=None if record.outcome == "ok" else RuntimeError(f"{record.outcome}: {record.error}"),
        )

    master = Master(
        runner,
        plan,
        expected=options["workers"],
        on_look=history.add,
        on_record=note if page is not None else lambda _: None,
    )
    orders.on_end = lambda: setattr(master, "stopped", master.stopped or INTERRUPTED)
    if page is not None:
        add_live_page(page.app, history, label)
        page.start()
        gevent.spawn(locust.stats.stats_history, runner)
    try:
        master.run(within_s=options["within_s"])
    except CommandError as error:
        tell(ended=error.message, hint=error.hint)
    history.has_ended = True
    master.let_go()
    if page is not None:
        tell(lingering=options["linger_s"])
        due_s = time.monotonic() + options["linger_s"]
        while time.monotonic() < due_s and not master.stopped:
            gevent.sleep(STOP_WITHIN_S)


def run_worker(orders: CommandReader) -> None:
    """Join a master and run the share it assigns."""
    host, port, within_s = orders.next().split()
    environment = Environment(user_classes=[], catch_exceptions=False)
    try:
        with gevent.Timeout(float(within_s)):
            runner = environment.create_worker_runner(host, int(port))
    except gevent.Timeout:
        tell(ended=f"no master answered at {host}:{port} within {within_s} s")
        return
    tell(joined=runner.worker_index)

    def prepare(plan: GeneratorPlan, outbox: Outbox, worker: int, workers: int) -> SenderState:
        shared = SenderState(plan, outbox, worker=worker, workers=workers)
        environment.user_classes = users_of(shared)
        return shared

    def open_share(shared: SenderState, level: int, plan: LevelPlan, *, first_id: int, begin_s: float) -> LevelRun:
        start, stop = runner.start_worker, runner.stop
        return LevelRun(shared, runner, level, plan, first_id=first_id, begin_s=begin_s, start=start, stop=stop)

    worker = Worker(runner, prepare=prepare, open_share=open_share)
    orders.on_end = lambda: setattr(worker, "stopped", INTERRUPTED)
    try:
        worker.run()
    except CommandError as error:
        tell(ended=error.message, hint=error.hint)


def main(role: str, options: str) -> None:
    """Run as the only generator, as the master, or as a worker; never returns.

    The process exits immediately in every case: sockets could otherwise wait forever to deliver a last message.
    """
    logging.basicConfig(level=logging.WARNING)
    faulthandler.enable(all_threads=False)  # a crash in a library leaves a traceback in the log
    _, largest = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (largest, largest))  # a connection is a file descriptor
    gc.freeze()  # existing objects stay: garbage collection during a reply need not scan them
    orders = CommandReader(sys.stdin.fileno())
    try:
        match role:
            case "alone":
                run_alone(orders)
            case "master":
                run_master(orders, json.loads(options))
            case _:
                run_worker(orders)
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
