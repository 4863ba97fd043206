"""The energy of one iteration: base power, bytes read, operations, tokens; see `engines.spec.PowerPrior`.

The same for every source of step times: what an iteration reads and multiplies follows from the model's geometry.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from engines.manifest import EngineManifest
from engines.spec import (
    GpuSpec,
    PlacedModel,
    PowerPrior,
    SpeculativeDecoding,
    power_prior,
    precision_named,
)
from engines.steptime.shape import StepShape, in_order
from engines.steptime.uncertainty import Z_95

if TYPE_CHECKING:  # commands that compute no step times do without numpy
    import numpy as np
    import numpy.typing as npt

    Floats: TypeAlias = npt.NDArray[np.float64]


class StepEnergy(NamedTuple):
    """Joules of one iteration by cause, all GPUs of the replica together.

    Attributes:
        base_j: Clocks up and no work, for the iteration's whole time.
        memory_j: Reading weights and KV cache.
        arithmetic_j: Matrix products and attention.
        tokens_j: Sampling and small kernels of the produced tokens.
    """

    base_j: float
    memory_j: float
    arithmetic_j: float
    tokens_j: float

    @property
    def joules(self) -> float:
        """All of it."""
        return in_order(self)


class PowerModel:
    """Power of a replica's GPUs while it serves a model.

    Args:
        placed: The GPU's board power must be known. Traffic between GPUs is not counted.
        prior: None: the shipped one.

    Raises:
        ValueError: The GPU's board power is unknown.
    """

    def __init__(self, placed: PlacedModel, *, prior: PowerPrior | None = None) -> None:
        model, gpu, tensor_parallel = placed.model, placed.gpu, placed.tensor_parallel
        if gpu.power_w is None:
            raise ValueError(f"{gpu.name}: no board power is known")
        self.prior = prior = prior or power_prior()
        chosen = precision_named(placed.precision)
        self.gpus = tensor_parallel
        self.base_w = prior.base_ratio * gpu.power_w * tensor_parallel
        self.max_w = prior.max_ratio * gpu.power_w * tensor_parallel
        arithmetic_w = prior.arithmetic_ratio * gpu.power_w
        linear_flop_j = arithmetic_w / gpu.dense_flops[chosen.arithmetic]
        rest_flop_j = arithmetic_w / gpu.dense_flops[chosen.rest_arithmetic]
        self._weights_j = prior.byte_j * model.read_bytes_per_step(chosen)
        self._kv_j_per_token = prior.byte_j * model.kv_bytes_per_token(placed.kv_format)
        self._linear_j_per_token = 2 * model.linear_parameters * linear_flop_j
        self._head_j_per_sequence = 2 * model.head_parameters * rest_flop_j
        self._attention_j_per_pair = 4 * model.layers * model.attention_size * rest_flop_j
        self._token_j = prior.token_flops * rest_flop_j
        ratio = math.exp(Z_95 * prior.spread(gpu.name).log_sd)
        self.interval = (1 / ratio, ratio)
        self.provenance = f"power prior {prior.name}, {prior.spread(gpu.name).source}"

    def energy(self, shape: StepShape, seconds: float) -> StepEnergy:
        """Return the energy of an iteration of this shape that takes this long.

        At the board's power limit clocks fall: the iteration takes no more than the limit, and its parts above the base
        are scaled down alike.
        """
        return StepEnergy(*self._parts_j(shape, seconds, min))

    def joules(self, shape: StepShape, seconds: float) -> float:
        """Return the joules of an iteration."""
        return self.energy(shape, seconds).joules

    def joules_of(self, shapes: Sequence[Floats], seconds: Floats, least: Callable[[Any, Any], Any]) -> Floats:
        """Return the joules of each of some iterations.

        Args:
            shapes: One array for each field of `StepShape`; like `seconds`, one entry per iteration.
            least: `numpy.minimum`.
        """
        joules: Floats = sum(self._parts_j(shapes, seconds, least), start=0.0 * seconds)
        return joules

    def _parts_j(
        self, shape: StepShape | Sequence[Floats], seconds: float | Floats, least: Callable[[Any, Any], Any]
    ) -> tuple[Any, Any, Any, Any]:
        """Return the fields of `StepEnergy`, of one iteration or of many."""
        decoding, context_tokens, prompts, prompt_tokens, attended_tokens, _ = shape
        tokens, sequences, pairs = decoding + prompt_tokens, decoding + prompts, context_tokens + attended_tokens
        base_j = self.base_w * seconds
        memory_j = self._weights_j + context_tokens * self._kv_j_per_token
        arithmetic_j = (
            tokens * self._linear_j_per_token
            + sequences * self._head_j_per_sequence
            + pairs * self._attention_j_per_pair
        )
        tokens_j = sequences * self._token_j
        room_j = self.max_w * seconds - base_j
        ratio = least(1.0, room_j / (memory_j + arithmetic_j + tokens_j))
        return base_j, ratio * memory_j, ratio * arithmetic_j, ratio * tokens_j


def power_model_for(manifest: EngineManifest) -> PowerModel | None:
    """Return the power model of an engine; None if `why_no_power` has a reason."""
    if why_no_power(manifest.gpu, manifest.speculative) is not None:
        return None
    return PowerModel(manifest.placed)


def why_no_power(gpu: GpuSpec, speculative: SpeculativeDecoding | None = None) -> str | None:
    """Return why the power of a GPU or CPU, or of speculative decoding on it, is not predicted; None if it is.

    >>> from engines.spec import gpu_named
    >>> why_no_power(gpu_named("h100-sxm-80gb-mig-3g.40gb"))
    'h100-sxm-80gb-mig-3g.40gb: no board power is known for a slice of a GPU'
    """
    if gpu.device == "cpu":
        return f"{gpu.name}: the power model covers GPUs, not CPUs"
    if speculative is not None:
        return "the power model does not cover speculative decoding: drafts and their verification were not measured"
    if gpu.power_w is None:
        return f"{gpu.name}: no board power is known" + (" for a slice of a GPU" if gpu.is_slice else "")
    return None
