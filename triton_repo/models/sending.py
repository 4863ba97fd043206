"""Sending a response through Triton's Python backend without corrupting the interpreter."""

from __future__ import annotations

from typing import Any


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
