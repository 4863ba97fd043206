"""A worker: runs its share of each level and reports its records."""

from __future__ import annotations

import socket
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gevent
import gevent.queue

from engines.errors import ToolError
from loadtest.generator.distributed.plan_files import schedule_digest, with_files
from loadtest.generator.plan import GeneratorPlan
from loadtest.results import RequestRecord
from loadtest.traffic import LevelPlan

REPORT_S = 0.1  # interval of a worker's reports on sent and finished requests
MASTER_SILENT_S = 15.0
LAST_WORDS_S = 0.3  # time for queued messages to leave


class Outbox:
    """Records of a worker for its next report to the master."""

    failed: str | None = None

    def __init__(self) -> None:
        self._sent: list[tuple[int, str]] = []
        self._texts: list[str] = []
        self._ended: list[tuple[int, str]] = []
        self.in_flight = 0

    def note_sent(self, number: int, if_lost: str) -> None:
        """Record a request as in flight, with the record, as a line, that it gets if its end is never reported."""
        self.in_flight += 1
        self._sent.append((number, if_lost))

    def note_end(self, record: RequestRecord) -> None:
        """Record the end of a request."""
        self.in_flight -= 1
        self._ended.append((record.id, record.model_dump_json()))

    def note_text(self, line: str) -> None:
        """Record a prompt that was sent, if prompts are kept."""
        self._texts.append(line)

    def flush(self) -> None:
        """Do nothing: what is pending is taken."""

    def take(self) -> dict[str, Any]:
        """Return what is to be reported, and clear it."""
        ended = {number for number, _ in self._ended}
        sent = [each for each in self._sent if each[0] not in ended]
        taken = {"sent": sent, "ended": self._ended, "texts": self._texts}
        self._sent, self._ended, self._texts = [], [], []
        return taken


class Worker:
    """A worker's side of a run.

    Args:
        runner: Locust's worker runner.
        prepare: Makes the generator of a plan, given this worker's index and the number of workers.
        open_share: Starts a level: generator, level, its plan, its first id, its start time.
        clock: The machine's monotonic clock.
    """

    def __init__(
        self,
        runner: Any,
        *,
        prepare: Callable[[GeneratorPlan, Outbox, int, int], Any],
        open_share: Callable[..., Any],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        self._runner, self._prepare, self._open_share = runner, prepare, open_share
        self._outbox = Outbox()
        self._inbox: gevent.queue.Queue[tuple[str, Any]] = gevent.queue.Queue()
        self._folder = tempfile.TemporaryDirectory(prefix="run-load-worker-")
        self._generator: Any = None
        self._plans: list[LevelPlan] = []
        self._share: Any = None
        self._level = -1
        self.heard_s = self._clock()
        self.stopped: str | None = None
        for kind in ("file", "plan", "level", "measure", "finish"):
            runner.register_message(kind, self._take)
        runner.register_message("clock", self._answer_clock)
        runner.environment.events.heartbeat_received.add_listener(self._note_heartbeat)

    def run(self) -> None:
        """Follow the master until it dismisses this worker or is lost, or this process is stopped.

        Raises:
            ToolError: The master has been silent for too long.
        """
        with self._folder:
            while len(self._runner.greenlet):  # Locust ends them all when the master lets go
                try:
                    kind, data = self._inbox.get(timeout=REPORT_S)
                    getattr(self, f"_on_{kind}")(**data)
                except gevent.queue.Empty:
                    pass
                self._report()
                if self.stopped or self._clock() - self.heard_s > MASTER_SILENT_S:
                    break
            if self._share is not None:
                self._generator.stopped = self.stopped or "the connection to the master was lost"
                self._share.finish(whole=False)
                self._report()
            if self.stopped:
                self._runner.environment.events.quitting.fire(environment=self._runner.environment, reverse=True)
                gevent.sleep(LAST_WORDS_S)
        if self._clock() - self.heard_s > MASTER_SILENT_S:
            raise ToolError(f"no message from the master for {MASTER_SILENT_S:g} s")

    def _take(self, environment: Any, msg: Any, **_: Any) -> None:  # noqa: ARG002 (Locust's names)
        self._inbox.put((msg.type, msg.data))

    def _answer_clock(self, environment: Any, msg: Any, **_: Any) -> None:  # noqa: ARG002 (Locust's names)
        self._runner.send_message("clock", {**msg.data, "other_s": self._clock()})

    def _note_heartbeat(self, **_: Any) -> None:
        self.heard_s = self._clock()
        self._runner.last_heartbeat_timestamp = None  # Locust's own check uses the wall clock, which may be set

    def _on_file(self, *, name: str, chunk: bytes) -> None:
        with (Path(self._folder.name) / Path(name).name).open("ab") as file:
            file.write(chunk)

    def _on_plan(self, *, plan: str, worker: int, workers: int) -> None:
        found = with_files(GeneratorPlan.model_validate_json(plan), Path(self._folder.name))
        self._plans = found.levels()
        self._generator = self._prepare(found, self._outbox, worker, workers)
        self._runner.send_message("ready", {"host": socket.gethostname(), "schedule": schedule_digest(self._plans)})

    def _on_level(self, *, level: int, first_id: int, begin_s: float, began_monotonic_s: float) -> None:
        self._generator.began_monotonic_s = began_monotonic_s
        self._level = level
        self._share = self._open_share(self._generator, level, self._plans[level], first_id=first_id, begin_s=begin_s)

    def _on_measure(self, *, now_s: float) -> None:
        self._share.begin_measuring(now_s)

    def _on_finish(self, *, whole: bool) -> None:
        facts = self._share.finish(whole=whole)
        self._report()
        self._share = None
        self._runner.send_message("ended", facts)

    def _report(self) -> None:
        if self._generator is None:
            self._runner.send_message("here", {})  # until the master has received it
        if self._share is None:
            return
        self._share.check_users()
        self._generator.flush()
        state = {"warm": self._share.is_warm, "done": self._share.is_done, "why_end": self._generator.why_end}
        self._runner.send_message("report", {**self._outbox.take(), "level": self._level, **state})
