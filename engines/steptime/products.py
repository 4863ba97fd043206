"""Matrix products of one iteration by measured speeds: how fast the engine's library goes through its weights.

A product of few rows reaches neither the memory's bandwidth nor the arithmetic's peak, and not smoothly: oneDNN on an
EPYC takes 14.4 ms for two rows and 10.1 ms for four, with the same weights (docs/reference/accelerators.md).
"""

from __future__ import annotations

from bisect import bisect_left

from engines.spec import GpuSpec, ModelSpec, Precision, ProductSpeed


class Products:
    """The linear layers and the output projection of a step.

    Args:
        speeds: Measured; rows in rising order, from 1.
        linear_bytes: Weights that every token of the step is multiplied with.
        head_bytes: Weights that the last token of each sequence is multiplied with.
    """

    def __init__(self, speeds: tuple[ProductSpeed, ...], *, linear_bytes: float, head_bytes: float) -> None:
        self._rows = [speed.rows for speed in speeds]
        self._s_per_byte = [1 / speed.weight_bytes_per_s for speed in speeds]
        self._linear_bytes, self._head_bytes = linear_bytes, head_bytes
        self._known: dict[int, float] = {}
        self.min_s = (linear_bytes + head_bytes) * min(self._s_per_byte)

    def seconds(self, tokens: int, sequences: int) -> float:
        """Return the time of a step's products."""
        return self._linear_bytes * self._of(tokens) + self._head_bytes * self._of(sequences)

    def _of(self, rows: int) -> float:
        """Return seconds per byte of weights: linear between measured rows, in proportion past the last."""
        found = self._known.get(rows)
        if found is None:
            found = self._known[rows] = self._between(rows)
        return found

    def _between(self, rows: int) -> float:
        if rows == 0:
            return 0.0
        place = bisect_left(self._rows, rows)
        if place == len(self._rows):
            return self._s_per_byte[-1] * rows / self._rows[-1]
        if self._rows[place] == rows:
            return self._s_per_byte[place]
        first, last = self._rows[place - 1], self._rows[place]
        share = (rows - first) / (last - first)
        return (1 - share) * self._s_per_byte[place - 1] + share * self._s_per_byte[place]


def products_of(model: ModelSpec, gpu: GpuSpec, precision: Precision, *, tensor_parallel: int) -> Products | None:
    """Return the products of a model where the accelerator's were measured in this arithmetic; None elsewhere."""
    speeds = gpu.products.get(precision.arithmetic)
    if not speeds:
        return None
    linear = precision.linear_bytes(model.linear_parameters) / tensor_parallel
    return Products(
        speeds, linear_bytes=linear, head_bytes=precision.rest_bytes * model.head_parameters / tensor_parallel
    )
