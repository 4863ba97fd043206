"""The master: coordinates the workers and writes their records; it sends no load."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gevent
import gevent.queue

from engines.errors import ToolError
from loadtest.generator.distributed.clock_offset import Offset, RoundTrip, offset_of
from loadtest.generator.distributed.plan_files import files_of, schedule_digest
from loadtest.generator.distributed.worker import REPORT_S
from loadtest.generator.journal import RecordJournal
from loadtest.generator.messages import level_of, tell, tell_progress
from loadtest.generator.plan import GeneratorPlan
from loadtest.generator.progress import LiveStats, Progress
from loadtest.results import Level, RequestRecord, WorkerClock
from loadtest.traffic import LevelPlan

ROUND_TRIPS = 25
ANSWER_WITHIN_S = 10.0
PREPARE_WITHIN_S = 120.0
WAITING_S = 5.0  # interval of the message that the master is waiting for workers
LEAD_S = 0.25  # delay from the announcement of an open loop to its start, so that all workers know of it
CHUNK_BYTES = 1 << 20
CHECK_S = 0.5


class WorkerLostError(ToolError):
    """The connection to a worker was lost."""


class Master:
    """The master's side of a run.

    Args:
        runner: Locust's master runner.
        expected: Workers to wait for.
        on_look: Called with every progress snapshot of the current level.
        on_record: Called with every record.
        clock: The machine's monotonic clock.
    """

    def __init__(
        self,
        runner: Any,
        plan: GeneratorPlan,
        *,
        expected: int,
        on_look: Callable[[Progress], object],
        on_record: Callable[[RequestRecord], object],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        self._runner, self._plan, self._expected = runner, plan, expected
        self._on_look, self._on_record = on_look, on_record
        self._journal = RecordJournal.of(plan)
        self._watch = LiveStats(plan.time_scale, plan.scenario.objectives)
        self._inbox: gevent.queue.Queue[tuple[float, str, str, Any]] = gevent.queue.Queue()
        self._ids: list[str] = []
        self._hosts: dict[str, str] = {}
        self._state: dict[str, dict[str, Any]] = {}
        self._checked_s = 0.0
        self._limits_s: list[float] = []
        self.stopped: str | None = None
        for kind in ("here", "clock", "ready", "report", "ended"):
            runner.register_message(kind, self._take)

    def now_s(self) -> float:
        """Return seconds since the run began."""
        return self._clock() - self._plan.began_monotonic_s

    def run(self, *, within_s: float) -> None:
        """Run every level with the workers, report each, and dismiss the workers.

        Args:
            within_s: How long to wait for the workers.

        Raises:
            ToolError: Not all workers connected, or they draw different arrivals than the master.
        """
        waits = gevent.spawn(self._say_waiting)
        self._assemble(within_s)
        plans = self._plan.levels()
        self._limits_s = [plan.limit_s(self._plan.scenario, self._plan.time_scale) for plan in plans]
        self._hand_out(schedule_digest(plans))
        waits.kill()
        if self.stopped:
            tell(ended=self.stopped)
            return
        first_id = 0
        for number, plan in enumerate(plans):
            level, clocks, first_id, why_end = self._run_level(number, plan, first_id)
            self._journal.flush()
            tell(clocks=[clock.model_dump() for clock in clocks])
            tell(level=level.model_dump())
            if why_end:
                tell(ended=why_end)
                break
        self._journal.close()

    def let_go(self) -> None:
        """Dismiss the workers."""
        for node in self._runner.clients.values():
            node.user_classes_count = {}  # all have ended; Locust would wait for their next report
        self._runner.update_state("stopped")
        self._runner.quit()

    def _take(self, environment: Any, msg: Any, **_: Any) -> None:  # noqa: ARG002 (Locust's names)
        self._inbox.put((self._clock(), msg.type, msg.node_id, msg.data))

    def _next(self, timeout_s: float) -> tuple[float, str, str, Any] | None:
        """Return the next message, or None if none arrived in time; reports are processed here.

        Raises:
            WorkerLostError: A worker was lost.
        """
        if self._clock() - self._checked_s > CHECK_S:
            self._checked_s = self._clock()
            self._check_all_there()
        try:
            arrived_s, kind, worker, data = self._inbox.get(timeout=timeout_s)
        except gevent.queue.Empty:
            return None
        if kind == "report":
            self._note(worker, data)
        return arrived_s, kind, worker, data

    def _note(self, worker: str, data: Mapping[str, Any]) -> None:
        for number, line in data["sent"]:
            self._journal.note_sent(number, line)
        for number, line in data["ended"]:
            self._journal.note_end_line(number, line)
            record = RequestRecord.model_validate_json(line)
            self._watch.note(record)
            self._on_record(record)
        for line in data["texts"]:
            self._journal.note_text(line)
        self._state[worker] = {key: data[key] for key in ("level", "warm", "done", "why_end")}

    def _check_all_there(self) -> None:
        for place, worker in enumerate(self._ids):
            node = self._runner.clients.get(worker)
            if node is None or node.state == "missing":
                raise WorkerLostError(f"worker {place} on {self._hosts.get(worker, 'its machine')} was lost")

    def _say_waiting(self) -> None:
        while True:
            gevent.sleep(WAITING_S)
            tell(waiting=len(self._runner.clients))

    def _assemble(self, within_s: float) -> None:
        """Wait until enough workers have announced themselves; a worker that is only connected may not receive yet."""
        due_s = self._clock() + within_s
        here: set[str] = set()
        while len(here) < self._expected and not self.stopped:
            message = self._next(REPORT_S)
            if message is not None and message[1] == "here":
                here.add(message[2])
            if self._clock() > due_s:
                raise ToolError(
                    f"{len(here)} of {self._expected} workers connected within {within_s:g} s",
                    hint="start one with run-load --worker --master-host HOST --port PORT",
                )
        self._ids = sorted(here, key=self._runner.get_worker_index)[: self._expected]

    def _hand_out(self, digest: str) -> None:
        """Give each worker the plan and its files; wait until all have read them."""
        for place, worker in enumerate(self._ids):
            for name, path in files_of(self._plan).items():
                self._send_file(worker, name, path)
            fields = {"plan": self._plan.model_dump_json(), "worker": place, "workers": len(self._ids)}
            self._runner.send_message("plan", fields, client_id=worker)
        waiting, due_s = set(self._ids), self._clock() + PREPARE_WITHIN_S
        while waiting and not self.stopped:
            message = self._next(REPORT_S)
            if message is not None and message[1] == "ready":
                waiting.discard(message[2])
                self._hosts[message[2]] = message[3]["host"]
                if message[3]["schedule"] != digest:
                    raise ToolError(
                        f"the worker on {message[3]['host']} draws different arrivals from the same seed",
                        hint="install the same versions on all machines",
                    )
            if self._clock() > due_s:
                raise WorkerLostError(f"{len(waiting)} workers were not ready within {PREPARE_WITHIN_S:g} s")

    def _send_file(self, worker: str, name: str, path: Path) -> None:
        with path.open("rb") as file:
            while chunk := file.read(CHUNK_BYTES):
                self._runner.send_message("file", {"name": name, "chunk": chunk}, client_id=worker)
                gevent.sleep(0)

    def _offset(self, worker: str) -> Offset:
        """Measure how far a worker's clock is ahead of this process's clock.

        Raises:
            WorkerLostError: The worker was lost.
            ToolError: It does not answer.
        """
        trips: list[RoundTrip] = []
        for _ in range(ROUND_TRIPS):
            left_s = self._clock()
            self._runner.send_message("clock", {"left_s": left_s}, client_id=worker)
            while not trips or trips[-1].left_s < left_s:
                message = self._next(REPORT_S)
                if message is not None and message[1:3] == ("clock", worker) and message[3]["left_s"] == left_s:
                    trips.append(RoundTrip(left_s, message[3]["other_s"], message[0]))
                elif self._clock() - left_s > ANSWER_WITHIN_S:
                    raise WorkerLostError(f"the worker on {self._hosts.get(worker)} does not answer")
        return offset_of(trips)

    def _run_level(
        self, number: int, plan: LevelPlan, first_id: int
    ) -> tuple[Level, list[WorkerClock], int, str | None]:
        """Run one level; return it, the clocks, the next level's first id, and why the run cannot continue."""
        shares: dict[str, Any] = {}
        clocks: list[WorkerClock] = []
        begin_s, measure_s, why_end, lost = self.now_s(), None, None, False
        ticker = gevent.spawn(tell_progress, lambda: self._progress(measure_s is not None), self._note_progress)
        try:
            clocks = self._clocks(number)
            begin_s = self.now_s() + (LEAD_S if plan.concurrency is None else 0.0)
            self._begin(number, plan, first_id, begin_s, clocks)
            measure_s = self._await("warm", number, begin_s)
            if measure_s is not None:
                self._runner.send_message("measure", {"now_s": measure_s})
                self._await("done", number, begin_s)
            why_end = self._why_end()
            shares = self._finish(whole=why_end is None)
            clocks = self._drifted(clocks)
        except WorkerLostError as error:
            why_end, lost = error.message, True
            tell(lost=why_end)
            shares = self._finish_others()
        ticker.kill()
        facts = [*shares.values()]
        if lost or not facts:
            facts.append({"begin_s": begin_s, "measure_s": measure_s or begin_s, "end_s": self.now_s()})
        next_id = max((share["next_id"] for share in shares.values()), default=first_id)
        return level_of(plan, facts), clocks, next_id, why_end or self._why_end()

    def _progress(self, is_measuring: bool) -> Progress:
        return self._watch.statistics(self.now_s(), self._journal.in_flight, measuring=is_measuring)

    def _note_progress(self, progress: Progress) -> None:
        self._journal.flush()
        self._on_look(progress)

    def _why_end(self) -> str | None:
        theirs = (state["why_end"] for state in self._state.values() if state.get("why_end"))
        return self.stopped or self._journal.failed or next(theirs, None)

    def _clocks(self, number: int) -> list[WorkerClock]:
        """Measure every worker's clock."""
        found = []
        for place, worker in enumerate(self._ids):
            offset = self._offset(worker)
            found.append(
                WorkerClock(
                    worker=place,
                    host=self._hosts[worker],
                    level=number,
                    offset_s=offset.offset_s,
                    uncertainty_s=offset.uncertainty_s,
                )
            )
        return found

    def _begin(self, number: int, plan: LevelPlan, first_id: int, begin_s: float, clocks: list[WorkerClock]) -> None:
        level = level_of(plan, [{"begin_s": begin_s}])
        self._watch.begin(level.load, begin_s, is_open=level.concurrency is None)
        self._state = {}
        self._runner.update_state("running")
        tell(began=level.model_dump())
        for worker, clock in zip(self._ids, clocks, strict=True):
            ahead_s = Offset(clock.offset_s, clock.uncertainty_s).applied_s
            data = {
                "level": number,
                "first_id": first_id,
                "begin_s": begin_s,
                "began_monotonic_s": self._plan.began_monotonic_s + ahead_s,
            }
            self._runner.send_message("level", data, client_id=worker)

    def _await(self, what: str, number: int, begin_s: float) -> float | None:
        """Wait until all workers have reported `what`; return the time, None if the level must end before."""
        while not all(
            self._state.get(worker, {}).get("level") == number and self._state[worker][what] for worker in self._ids
        ):
            if self._why_end() or self.now_s() - begin_s > self._limits_s[number]:
                return None
            self._next(REPORT_S)
        return self.now_s()

    def _finish(self, *, whole: bool) -> dict[str, Any]:
        """End the level everywhere; return the shares' results."""
        self._runner.send_message("finish", {"whole": whole})
        shares: dict[str, Any] = {}
        due_s = self._clock() + self._plan.scenario.request_timeout_s + ANSWER_WITHIN_S
        while len(shares) < len(self._ids):
            message = self._next(REPORT_S)
            if message is not None and message[1] == "ended":
                shares[message[2]] = message[3]
            if self._clock() > due_s:
                raise WorkerLostError("a worker did not end its level")
        return shares

    def _finish_others(self) -> dict[str, Any]:
        """End the level on the remaining workers; the run is over."""
        gone = [worker for worker in self._ids if self._is_gone(worker)]
        self._ids = [worker for worker in self._ids if worker not in gone]
        try:
            return self._finish(whole=False) if self._ids else {}
        except WorkerLostError:
            return {}

    def _is_gone(self, worker: str) -> bool:
        node = self._runner.clients.get(worker)
        return node is None or node.state == "missing"

    def _drifted(self, clocks: list[WorkerClock]) -> list[WorkerClock]:
        """Return the clocks with their drift against ours during the level."""
        after = [self._offset(worker).offset_s for worker in self._ids]
        return [
            clock.model_copy(update={"drift_s": round(now_s - clock.offset_s, 9)})
            for clock, now_s in zip(clocks, after, strict=True)
        ]
