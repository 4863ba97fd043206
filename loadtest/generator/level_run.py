"""One process's share of one level."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import Any

import gevent
import numpy as np
from gevent.event import Event

from loadtest.client import Readings
from loadtest.client.protocols.triton_http import ENGINE_MODEL
from loadtest.generator.messages import CRASHED
from loadtest.generator.sender import TICK_S, SenderState
from loadtest.results import LogHistogram
from loadtest.traffic import LevelPlan, Lookahead, closed_loop, open_loop

COUNTED_AT_ONCE = 100


class LevelRun:
    """A running level in this process: all of it, or a worker's share.

    Args:
        first_id: Id of the level's first request.
        begin_s: Start of the level on the run's clock; a share of an open loop may receive it in advance.
        start: Starts a number of users of a class.
        stop: Stops all users.
    """

    def __init__(
        self,
        shared: SenderState,
        runner: Any,
        level: int,
        plan: LevelPlan,
        *,
        first_id: int,
        begin_s: float,
        start: Callable[[dict[str, int]], object],
        stop: Callable[[], object],
    ) -> None:
        self._shared, self._runner, self._plan, self._stop = shared, runner, plan, stop
        self.begin_s = begin_s
        shared.level, shared.level_plan = level, plan
        shared.is_over = shared.suffices = shared.is_out_of_time = False
        shared.open_began_s = begin_s
        shared.take_away_s()
        shared.connections.readings = Readings()
        shared.ahead = Lookahead(shared.sampler, shared.maker, level)
        if plan.concurrency is not None:
            shared.loop = closed_loop(
                shared.plan.scenario,
                plan.concurrency,
                first_id=first_id,
                time_scale=shared.plan.time_scale,
                worker=shared.worker,
                workers=shared.workers,
                begin_conversation=shared.begin_conversation,
            )
            shared.user_numbers = iter(shared.loop.users)
        else:
            shared.opened = open_loop(
                shared.plan.scenario,
                plan,
                shared.sampler,
                level=level,
                first_id=first_id,
                worker=shared.worker,
                workers=shared.workers,
            )
        self._users = len(shared.loop.users) if plan.concurrency is not None else 1
        self._ticks = _Ticks()
        start({(OPEN_USERS if plan.concurrency is None else CLOSED_USERS): self._users})

    @property
    def is_warm(self) -> bool:
        """Whether this share's users have warmed up."""
        return self._plan.concurrency is None or self._shared.loop.is_warm

    @property
    def is_measuring(self) -> bool:
        """Whether requests sent now are measured."""
        if self._plan.concurrency is not None:
            return self._shared.loop.measure_s is not None
        return self._shared.now_s() >= self._measure_s(0.0)

    @property
    def is_done(self) -> bool:
        """Whether all measured requests of this share have ended."""
        return self._shared.loop.is_over if self._plan.concurrency is not None else not self._runner.user_count

    @property
    def next_id(self) -> int:
        """The first id after all ids of this share's requests."""
        opened = self._shared.opened
        return opened.next_id if self._plan.concurrency is None and opened else self._shared.loop.next_id

    def await_tick(self) -> None:
        """Wait until this process's timer fires next."""
        self._ticks.fired.clear()
        self._ticks.fired.wait()

    def check_users(self) -> None:
        """End the run if a user has crashed; its traceback is in this process's log."""
        died = self._plan.concurrency is not None and self._runner.user_count < self._users
        if died and not self._shared.is_over and not self._shared.loop.is_over:
            self._shared.stopped = f"{CRASHED}: see the traceback"

    def begin_measuring(self, now_s: float) -> None:
        """Measure requests sent from now on."""
        if self._plan.concurrency is not None:
            self._shared.loop.begin(now_s)

    def finish(self, *, whole: bool) -> dict[str, Any]:
        """End the users; return the share's result.

        Args:
            whole: Whether the run continues. Then each user finishes its request if the model ignores cancellations: a
                request through Triton's ensemble would go on and keep the ensemble from being unloaded.
        """
        shared, scenario = self._shared, self._shared.plan.scenario
        is_done = self.is_done
        end_s = (self._plan.concurrency is not None and shared.loop.end_s) or shared.now_s()
        shared.is_over = True
        if whole and scenario.model != ENGINE_MODEL:
            with contextlib.suppress(gevent.Timeout), gevent.Timeout(scenario.request_timeout_s):
                while self._runner.user_count:
                    gevent.sleep(TICK_S)
        shared.is_out_of_time = whole and not is_done and not shared.suffices
        self._stop()
        shared.flush()
        self._ticks.stop()
        return {
            "begin_s": self.begin_s,
            "measure_s": self._measure_s(end_s),
            "end_s": end_s,
            "complete": (is_done or shared.suffices) and not shared.why_end,
            "sufficed": shared.suffices,
            "generator_late_p99_s": self._ticks.late_p99_s(),
            "away_s": shared.take_away_s(),
            "read_late_p99_s": shared.connections.readings.late_p99_s(),
            "clock": shared.connections.readings.clock,
            "next_id": self.next_id,
        }

    def _measure_s(self, end_s: float) -> float:
        """Return when measurement started; a level that did not reach it measured nothing."""
        shared, plan = self._shared, self._plan
        if plan.concurrency is None:
            ratio = shared.plan.scenario.warmup_ratio
            first = next(each for each in plan.arrivals if plan.phase_of(each, ratio) == "measure")
            return self.begin_s + first.at_s * shared.plan.time_scale
        return end_s if shared.loop.measure_s is None else shared.loop.measure_s


class _Ticks:
    """This process's timer; a busy generator adds its lateness to every time that it records.

    Attributes:
        fired: Set whenever it fires, so that a greenlet can wait without a timer of its own.
    """

    def __init__(self) -> None:
        self.fired = Event()
        self._late = LogHistogram()
        self._recent: list[float] = []
        self._timer = gevent.get_hub().loop.timer(TICK_S, TICK_S)
        self._start()

    def _start(self) -> None:
        self._due_s = time.monotonic() + TICK_S
        self._timer.again(self._note, update=True)

    def _note(self) -> None:
        self._recent.append(time.monotonic() - self._due_s)
        if len(self._recent) >= COUNTED_AT_ONCE:
            self._count()
        self.fired.set()
        self._start()

    def stop(self) -> None:
        """Take no further samples."""
        self._timer.stop()
        self._timer.close()

    def late_p99_s(self) -> float:
        """Return the 99th percentile of the lateness, 0 without samples."""
        self._count()
        return self._late.quantile(0.99) or 0.0

    def _count(self) -> None:
        self._late.add(np.array(self._recent))
        self._recent.clear()


CLOSED_USERS, OPEN_USERS = "ClosedLoopUser", "OpenLoopUser"
