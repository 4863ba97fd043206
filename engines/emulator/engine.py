"""The iteration loop of an in-flight batcher, its clock passed in."""

from __future__ import annotations

from dataclasses import dataclass

from engines.emulator.request import BatcherSettings, BatcherState, Request, RequestId, TokenEvent
from engines.steptime.shape import StepShape, StepTime


@dataclass(slots=True)
class Iteration:
    """One iteration under way, or a run of decode iterations alike but for their growing contexts.

    Attributes:
        first_index: Number of the (first) iteration; the engine's first is 0.
        repeats: Iterations in this run; 1 from `Batcher.begin`.
        shape: Of the first iteration.
        seconds: From the start to the end of the run.
    """

    first_index: int
    repeats: int
    shape: StepShape
    seconds: float


class Batcher:
    """In-flight batcher of one engine: pure and deterministic, time comes with each call.

    A wall-clock driver does: ``submit`` as requests arrive; ``begin(now)``; sleep ``iteration.seconds``;
    ``finish(iteration, now)``; send the tokens; again. ``begin`` returns None when there is nothing to do until the
    next ``submit``. Not thread-safe: hold a lock around each call (not while sleeping). Between ``begin`` and
    ``finish``, ``submit`` and ``cancel`` are allowed: a new request waits for the next iteration, and a cancelled
    one gets no token from the iteration under way.
    """

    def __init__(self, settings: BatcherSettings, step_time: StepTime) -> None:
        self.settings = settings
        self.step_time = step_time

    def submit(self, request: Request, now_s: float) -> None:
        """Queue a request.

        Raises:
            QueueFullError: The queue is full.
            PromptTooLongError: The prompt can never run here.
            ValueError: The id is in use, or a length is below 1.
        """
        raise NotImplementedError

    def cancel(self, request_id: RequestId) -> bool:
        """End a request now and free its blocks; return whether it was there. No token event follows."""
        raise NotImplementedError

    def begin(self, now_s: float) -> Iteration | None:
        """Schedule the next iteration; None when no request can run."""
        raise NotImplementedError

    def finish(self, iteration: Iteration, now_s: float) -> list[TokenEvent]:
        """Take the iteration as done; return the tokens it made."""
        raise NotImplementedError

    def snapshot(self) -> BatcherState:
        """Return the numbers of TensorRT-LLM's metrics as they are now."""
        raise NotImplementedError
