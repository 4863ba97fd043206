"""An in-flight batcher without a GPU: scheduler, paged KV blocks, iteration loop; time is passed in."""

from engines.emulator.engine import Batcher
from engines.emulator.request import (
    BatcherSettings,
    BatcherState,
    PromptTooLongError,
    QueueFullError,
    Request,
    RequestError,
    RequestId,
    SchedulerPolicy,
    TokenEvent,
)
from engines.emulator.scheduler import Iteration, Sequence
from engines.emulator.settings import batcher_for, settings_of

__all__ = [
    "Batcher",
    "BatcherSettings",
    "BatcherState",
    "Iteration",
    "PromptTooLongError",
    "QueueFullError",
    "Request",
    "RequestError",
    "RequestId",
    "SchedulerPolicy",
    "Sequence",
    "TokenEvent",
    "batcher_for",
    "settings_of",
]
