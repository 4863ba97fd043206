"""Typed access to the input tensors of the `tensorrt_llm` model; contradictory inputs are refused."""

from __future__ import annotations

from typing import Any

import numpy as np

from triton_repo.models.reply import Array


class RefusedError(Exception):
    """The engine cannot serve a request; the text is sent to the client."""


class Inputs:
    """Typed access to one request's tensors; `row` is a row of its batch."""

    def __init__(self, backend: Any, request: Any) -> None:
        self._backend = backend
        self._request = request
        lengths = self._get("input_lengths")
        self.rows = 1 if lengths is None or lengths.ndim == 0 else max(1, int(lengths.shape[0]))

    def number(self, name: str, row: int = 0) -> int | None:
        """Return an integer; None if not sent."""
        values = self._row(name, row)
        return None if values is None or not values.size else int(values[0])

    def flag(self, name: str) -> bool:
        """Return a boolean; False if not sent."""
        return bool(self.number(name))

    def numbers(self, name: str, row: int) -> list[int]:
        """Return a row of integers; empty if not sent."""
        values = self._row(name, row)
        return [] if values is None else [int(value) for value in values]

    def prompt(self, row: int, vocabulary: int) -> Array:
        """Return a prompt's tokens without padding.

        Raises:
            RefusedError: There are none, `input_lengths` contradicts them, or one is outside the vocabulary.
        """
        batch = self._get("input_ids")
        if batch is not None and self.rows > 1 and batch.shape[:1] != (self.rows,):
            raise RefusedError(f"input_lengths has {self.rows} rows, and input_ids has shape {list(batch.shape)}")
        ids = self._row("input_ids", row)
        if ids is None:
            raise RefusedError("input_ids or encoder_input_features is not present in the request.")
        length = self.number("input_lengths", row)
        if len(ids) == 0:
            raise RefusedError("input_ids is empty")
        if length is not None and not 1 <= length <= len(ids):
            raise RefusedError(f"input_lengths is {length}, and input_ids holds {len(ids)} tokens")
        ids = ids[:length]
        if ids.min() < 0 or ids.max() >= vocabulary:
            wrong = ids.min() if ids.min() < 0 else ids.max()
            raise RefusedError(f"input_ids holds {wrong}; the model's tokens are 0 to {vocabulary - 1}")
        return np.array(ids)

    def real(self, name: str) -> float | None:
        """Return a real number; None if it was not sent."""
        values = self._row(name, 0)
        return None if values is None or not values.size else float(values[0])

    def size(self, name: str) -> int:
        """Return the number of elements of a tensor; 0 if it was not sent."""
        values = self._get(name)
        return 0 if values is None else int(values.size)

    def _get(self, name: str) -> Array | None:
        tensor = self._backend.get_input_tensor_by_name(self._request, name)
        return None if tensor is None else np.asarray(tensor.as_numpy())

    def _row(self, name: str, row: int) -> Array | None:
        values = self._get(name)
        if values is None:
            return None
        if self.rows > 1 and values.ndim and values.shape[0] == self.rows:
            values = values[row]
        return np.asarray(values).reshape(-1)
