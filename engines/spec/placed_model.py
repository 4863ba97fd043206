"""A model on GPUs: what the cost of an iteration depends on, before any measurement."""

from __future__ import annotations

from dataclasses import dataclass

from engines.spec.gpu import GpuSpec
from engines.spec.model import ModelSpec
from engines.spec.precision import KvFormat


@dataclass(frozen=True, slots=True)
class PlacedModel:
    """A model at a precision on the GPUs of one replica.

    Attributes:
        model: Geometry.
        gpu: One GPU of the replica.
        precision: Name of the number format of the linear layers.
        kv_format: Number format of the KV cache.
        tensor_parallel: GPUs that share every layer.
    """

    model: ModelSpec
    gpu: GpuSpec
    precision: str
    kv_format: KvFormat
    tensor_parallel: int = 1
