"""Tensors outlive the send: what Triton drops meanwhile is never freed without the GIL."""

from __future__ import annotations

import gc
import weakref
from typing import Any

from triton_repo.models.sending import send_response


class _Tensor:
    """An output that can be watched."""


class _Response:
    """Holds the only other references to its tensors, as Triton's response does."""

    def __init__(self) -> None:
        self.tensors = [_Tensor()]

    def output_tensors(self) -> list[_Tensor]:
        """Return a list of its own, as pybind does."""
        return list(self.tensors)


class _PruningSender:
    """Drops the tensors that nobody requested, as Triton's sender does before it sends."""

    def __init__(self) -> None:
        self.was_alive: list[bool] = []

    def send(self, response: Any, flags: int = 0) -> None:  # noqa: ARG002 (Triton's name)
        """Prune, and look whether the tensor still lives."""
        watched = weakref.ref(response.tensors[0])
        response.tensors.clear()
        gc.collect()
        self.was_alive.append(watched() is not None)


def test_a_pruned_tensor_lives_until_the_send_returns() -> None:
    """It is freed afterwards, when the GIL is held."""
    response, sender = _Response(), _PruningSender()
    watched = weakref.ref(response.tensors[0])
    send_response(sender, response)
    assert sender.was_alive == [True]
    assert watched() is None
