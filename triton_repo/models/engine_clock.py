"""The emulated engine's clock: runs a batcher on the wall clock with absolute deadlines, and measures its lateness."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from engines.emulator import Batcher, BatcherState, Iteration, Request, RequestId, TokenEvent
from engines.steptime import PowerModel
from triton_repo.models.engine_energy import EnergyCounter

RECENT_STEPS = 2000
SPIN_S = 0.0002  # the last part before a deadline is slept in short intervals, because the kernel wakes late


@dataclass(slots=True)
class Lateness:
    """Lateness of steps, in wall seconds: totals since the start, and statistics of recent steps."""

    steps: int = 0
    step_seconds: float = 0.0
    late_seconds: float = 0.0
    recent: deque[float] = field(default_factory=lambda: deque(maxlen=RECENT_STEPS))

    def note(self, seconds: float, late_s: float) -> None:
        """Record a step's duration and its lateness."""
        self.steps += 1
        self.step_seconds += seconds
        self.late_seconds += late_s
        self.recent.append(late_s)

    def statistics(self) -> dict[str, float]:
        """Return p50, p99 and max over the recent steps; zeros before the first."""
        if not self.recent:
            return {"p50": 0.0, "p99": 0.0, "max": 0.0}
        p50, p99, largest = np.percentile(np.array(self.recent), [50, 99, 100])
        return {"p50": float(p50), "p99": float(p99), "max": float(largest)}


class EngineClock:
    """A thread that steps a batcher in scaled real time.

    A step that ends late does not push the later ones back: each deadline follows from the one before, so that the
    schedule is kept on average and what is late shows in `lateness`, not in a slower engine.

    Args:
        batcher: Idle; from here on only this object touches it.
        time_scale: Wall seconds of one engine second.
        deliver: Called after each step, outside the lock, with the tokens it made; must be quick.
        begun: Called before each step that computes prompts, under the lock; must be quick.
        failed: Called if the thread ends without a call of `stop`: a defect, whose traceback is in the server's log.
        power: Of the emulated GPUs; None: unknown.
    """

    def __init__(
        self,
        batcher: Batcher,
        time_scale: float,
        deliver: Callable[[list[TokenEvent]], None],
        begun: Callable[[Iteration], None] | None = None,
        failed: Callable[[], None] | None = None,
        power: PowerModel | None = None,
    ) -> None:
        self._batcher = batcher
        self._scale = time_scale
        self._deliver = deliver
        self._begun = begun
        self._failed = failed
        self._changed = threading.Condition()
        self._stopping = False
        self._lateness = Lateness()
        self._latest = batcher.snapshot()
        self._energy = None if power is None else EnergyCounter(power, time_scale, time.monotonic())
        self._thread = threading.Thread(target=self._run, name="engine-clock", daemon=True)

    def start(self) -> None:
        """Start stepping."""
        self._thread.start()

    def stop(self) -> None:
        """Stop the thread after the current step."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._thread.join(timeout=5)

    def submit(self, request: Request) -> None:
        """Queue a request. Raises as `Batcher.submit` does."""
        with self._changed:
            self._batcher.submit(request, time.monotonic())
            self._changed.notify()

    def cancel(self, request_id: RequestId) -> bool:
        """End a request; return whether it existed."""
        with self._changed:
            return self._batcher.cancel(request_id)

    def state(self) -> tuple[BatcherState, Lateness]:
        """Return the batcher's current state and the clock's lateness."""
        with self._changed:
            return self._batcher.snapshot(), self._lateness

    def latest_iteration(self) -> tuple[BatcherState, Lateness]:
        """Return the batcher's state at the start of the latest iteration, and the clock's lateness.

        Upstream samples its metrics at that point: a request that arrives during an iteration is not included.
        """
        with self._changed:
            return self._latest, self._lateness

    def energy_j(self) -> float | None:
        """Return the joules of the emulated GPUs since the start, in engine time; None if their power is unknown."""
        with self._changed:
            return None if self._energy is None else self._energy.joules(time.monotonic())

    def is_running(self) -> bool:
        """Return whether steps are taken: from `start` to `stop`, unless a step failed."""
        return self._thread.is_alive()

    def _run(self) -> None:
        try:
            self._step()
        finally:
            if not self._stopping and self._failed is not None:
                self._failed()

    def _step(self) -> None:
        deadline = time.monotonic()
        while True:
            with self._changed:
                iteration = self._batcher.begin(deadline)
                while iteration is None and not self._stopping:
                    self._batcher.rest()
                    self._latest = self._batcher.snapshot()
                    self._changed.wait()
                    deadline = time.monotonic()
                    iteration = self._batcher.begin(deadline)
                if self._stopping or iteration is None:
                    return
                self._latest = self._batcher.snapshot()
                if iteration.chunks and self._begun is not None:
                    self._begun(iteration)
            seconds = iteration.seconds * self._scale
            deadline += seconds
            _sleep_until(deadline)
            late_s = time.monotonic() - deadline
            with self._changed:
                events = self._batcher.finish(iteration)
                self._lateness.note(seconds, late_s)
                if self._energy is not None:
                    self._energy.note(iteration, deadline)
            self._deliver(events)


def _sleep_until(deadline: float) -> None:
    while (left := deadline - time.monotonic()) > 0:
        time.sleep(left - SPIN_S if left > 2 * SPIN_S else SPIN_S / 4)
