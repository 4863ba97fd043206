"""Number formats: storage, arithmetic, and TensorRT-LLM's names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from engines.names import known_precision_name

Arithmetic = Literal["fp32", "bf16", "fp16", "fp8", "int8", "fp4"]
KvFormat = Literal["32bit", "16bit", "int8", "fp8", "nvfp4"]

# Bytes per cached number. NVFP4: four bits, and an FP8 scale per 16 numbers.
KV_BYTES: dict[KvFormat, float] = {"32bit": 4, "16bit": 2, "int8": 1, "fp8": 1, "nvfp4": 0.5 + 1 / 16}


@dataclass(frozen=True, slots=True)
class Precision:
    """How an engine stores its linear layers and in what arithmetic it multiplies them.

    Embedding, output projection, norms and activations stay at 16 bit in all of them except `fp32`.

    Attributes:
        name: This project's name, as given to `--precision`.
        weight_bits: Bits of one weight of a linear layer.
        group_size: Weights that share a scale along the input dimension; 0: one scale for each tensor or channel.
        group_scale_bytes: Bytes of the scale (and zero) of one group.
        arithmetic: Number format of the tensor cores' multiplications.
        quant_algo: TensorRT-LLM's name in a checkpoint's config.json; None for no quantization.
        qformat: ModelOpt's name in TensorRT-LLM's quantize.py.
        default_kv: Default KV cache format.
    """

    name: str
    weight_bits: int
    group_size: int
    group_scale_bytes: float
    arithmetic: Arithmetic
    quant_algo: str | None
    qformat: str
    default_kv: KvFormat

    @property
    def rest_bytes(self) -> int:
        """Bytes per number outside the linear layers: embedding, output projection, norms, activations."""
        return 4 if self.arithmetic == "fp32" else 2

    @property
    def rest_arithmetic(self) -> Arithmetic:
        """Arithmetic of the output projection and of prompt attention."""
        return self.arithmetic if self.arithmetic in {"fp32", "fp16"} else "bf16"

    def linear_bytes(self, weights: int) -> int:
        """Return the bytes of `weights` weights of linear layers, including scales.

        >>> PRECISIONS["fp8"].linear_bytes(1000), PRECISIONS["int4_awq"].linear_bytes(1280)
        (1000, 660)
        """
        stored = weights * self.weight_bits // 8
        scales = weights / self.group_size * self.group_scale_bytes if self.group_size else 0
        return int(stored + scales)

    def stored_bytes(self, weights: int) -> int:
        """Return the bytes of `weights` weights of linear layers in a checkpoint, before an engine is built.

        TensorRT-LLM rounds W8A16 weights on loading, so the checkpoint stores them in 16 bit.

        >>> PRECISIONS["int8_wo"].stored_bytes(1000), PRECISIONS["int8_wo"].linear_bytes(1000)
        (2000, 1000)
        """
        return 2 * weights if self.quant_algo == "W8A16" else self.linear_bytes(weights)


# Names and algorithms: TensorRT-LLM 1.2, quantize.py's --qformat and the QuantAlgo enum. Default KV formats: an 8-bit
# cache only where TensorRT-LLM keeps paged context attention (and with it chunked context and reuse), that is with FP8
# arithmetic; see docs/reference/build-engine.md. fp32 is not a format of engines built here: it is how vLLM
# serves on a CPU (--dtype float32), to be predicted.
PRECISIONS: dict[str, Precision] = {
    precision.name: precision
    for precision in (
        Precision("fp32", 32, 0, 0, "fp32", None, "full_prec", "32bit"),
        Precision("bf16", 16, 0, 0, "bf16", None, "full_prec", "16bit"),
        Precision("fp16", 16, 0, 0, "fp16", None, "full_prec", "16bit"),
        Precision("fp8", 8, 0, 0, "fp8", "FP8", "fp8", "fp8"),
        Precision("int8_sq", 8, 0, 0, "int8", "W8A8_SQ_PER_CHANNEL", "int8_sq", "16bit"),
        Precision("int8_wo", 8, 0, 0, "bf16", "W8A16", "int8_wo", "16bit"),
        Precision("int4_awq", 4, 128, 2, "bf16", "W4A16_AWQ", "int4_awq", "16bit"),
        Precision("w4a8_awq", 4, 128, 2, "fp8", "W4A8_AWQ", "w4a8_awq", "fp8"),
        Precision("nvfp4", 4, 16, 1, "fp4", "NVFP4", "nvfp4", "fp8"),
    )
}


def precision_named(name: str) -> Precision:
    """Return a precision by name, case-insensitively.

    Raises:
        UserError: The precision does not exist; the nearest name is suggested.
    """
    return PRECISIONS[known_precision_name(name)]
