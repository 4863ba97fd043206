"""Using a response sender of Triton's Python backend without crashing its process."""

from __future__ import annotations

import threading
from typing import Any, Protocol


class Answered(Protocol):
    """A request in flight.

    Hold `lock` and check that `finished` is not set before using `sender`: after the final response Triton has freed
    the object behind the sender, and even asking whether it was cancelled crashes the server's process.
    """

    sender: Any
    finished: bool
    lock: threading.Lock


def has_left(call: Answered) -> bool:
    """Return whether a request's client has left; a request that is being sent for is asked about the next time."""
    if not call.lock.acquire(blocking=False):
        return False
    try:
        return not call.finished and bool(call.sender.is_cancelled())
    finally:
        call.lock.release()


def send_response(sender: Any, response: Any, flags: int = 0) -> None:
    """Send a response and hold its tensors until Triton has taken it.

    Triton's `send` releases the GIL and then drops the output tensors that the client did not request. If the response
    holds the last reference to them, their numpy arrays are freed without the GIL, and the process crashes sooner or
    later (a general protection fault in libpython).

    Source:
        triton-inference-server/python_backend, src/response_sender.cc: `gil_scoped_release`, then
        `PruneOutputTensors`.
    """
    tensors = response.output_tensors()
    sender.send(response, flags=flags)
    del tensors
