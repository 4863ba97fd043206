"""Stands in for what ModelOpt takes from tensorrt_llm.models.modeling_utils: the mapping, and how layers are quantized.

Source of the fields:
    TensorRT-LLM 1.x, tensorrt_llm/models/modeling_utils.py (QuantConfig) and tensorrt_llm/mapping.py.
"""

from __future__ import annotations

import dataclasses
from typing import Any


@dataclasses.dataclass
class QuantConfig:
    """A field that is not there is an error, as it is upstream."""

    quant_algo: str | None = None
    kv_cache_quant_algo: str | None = None
    group_size: int = 128
    smoothquant_val: float = 0.5
    clamp_val: list[float] | None = None
    use_meta_recipe: bool = False
    has_zero_point: bool = False
    pre_quant_scale: bool = False
    exclude_modules: list[str] | None = None

    @classmethod
    def from_dict(cls, config: dict[str, Any]) -> QuantConfig:
        """Make one of its fields."""
        return cls(**config)

    def to_dict(self) -> dict[str, Any]:
        """Return its fields."""
        return dataclasses.asdict(self)


@dataclasses.dataclass
class Mapping:
    """How a model lies over GPUs."""

    world_size: int
    tp_size: int
    pp_size: int

    @classmethod
    def from_dict(cls, config: dict[str, Any]) -> Mapping:
        """Make one of its fields."""
        return cls(**config)

    def to_dict(self) -> dict[str, Any]:
        """Return its fields, and those that follow from them."""
        more = {"gpus_per_node": 8, "cp_size": 1, "moe_tp_size": self.tp_size, "moe_ep_size": 1}
        return {**dataclasses.asdict(self), **more}
