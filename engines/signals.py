"""Blocks of code that SIGINT and SIGTERM do not cut in two."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_INTERRUPTS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def interrupts_deferred() -> Iterator[None]:
    """Hold SIGINT and SIGTERM back to the end of the block, which must be short.

    For steps that are wrong when half done, and for libraries that hide the exception of a signal: pydantic turns a
    KeyboardInterrupt in a serializer into an error of its own, and the command would not know that it was interrupted.
    Outside the main thread, where Python runs no handlers, the block runs without this. A handler that was not
    installed from Python stays, because it could not be restored.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    received: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 (a signal handler's signature)
        received.append(number)

    replaceable = [number for number in _INTERRUPTS if signal.getsignal(number) is not None]
    before = {number: signal.signal(number, note) for number in replaceable}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if received:
            signal.raise_signal(received[0])
