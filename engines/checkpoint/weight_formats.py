"""How each precision stores a linear layer's weight in a TensorRT-LLM checkpoint, and its inverse."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from engines.checkpoint.inspection import library
from engines.checkpoint.shards import TensorFacts
from engines.errors import ToolError

DTYPES = {"bfloat16": "BF16", "float16": "F16"}
FLOAT32_BYTES = 4
NVFP4_GROUP = 16
_INT8_STEPS = 128
TINY = 1e-30
# Magnitudes represented by the lower three bits of an E2M1 number.
_E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


def linear_tensors(config: dict[str, Any], rows: int, columns: int) -> Iterator[tuple[str, TensorFacts]]:
    """Yield the tensors of one rank's share of a linear layer, by suffix."""
    dtype = DTYPES[config["dtype"]]
    quantization = config["quantization"]
    group = quantization.get("group_size") or NVFP4_GROUP
    one, groups = TensorFacts((1,), "F32"), (rows, columns // group)
    factor = ("prequant_scaling_factor", TensorFacts((columns,), dtype))
    channels = ("weights_scaling_factor", TensorFacts((rows,), "F32"))
    activation = ("activation_scaling_factor", one)
    int8 = ("weight", TensorFacts((rows, columns), "I8"))
    int4 = [("weight", TensorFacts((rows // 2, columns), "I8")), ("weights_scaling_factor", TensorFacts(groups, "F32"))]
    none = TensorFacts((), "F32")
    by_algo: dict[str | None, list[tuple[str, TensorFacts]]] = {
        None: [("weight", TensorFacts((rows, columns), dtype))],
        "FP8": [("weight", TensorFacts((rows, columns), "F8_E4M3")), activation, ("weights_scaling_factor", one)],
        "W8A8_SQ_PER_CHANNEL": [int8, activation, factor, channels],
        "W8A16": [("weight", TensorFacts((rows, columns), dtype))],
        "W4A16_AWQ": [*int4, factor],
        "W4A8_AWQ": [*int4, factor, activation, ("weights_scaling_factor_2", one)],
        "NVFP4": [
            ("weight", TensorFacts((rows, columns // 2), "U8")),
            ("weights_scaling_factor", TensorFacts(groups, "F8_E4M3")),
            ("weights_scaling_factor_2", none),
            ("activation_scaling_factor", none),
        ],
    }
    yield from by_algo[quantization.get("quant_algo")]


def dequantized(algo: str | None, tensors: dict[str, Any]) -> Any:
    """Return one rank's share of a weight as the engine multiplies it, float32, shape (out, in).

    Args:
        algo: TensorRT-LLM's name of the format; None for 16 bit.
        tensors: The linear layer's tensors by suffix: `weight` and its scales.

    Raises:
        ToolError: The format is unknown.
    """
    weight = tensors["weight"]
    scale: Any = tensors.get("weights_scaling_factor")
    match algo:
        case None:
            found = weight.float()
        case "FP8":
            found = weight.float() * scale
        case "W8A16":
            found = round_int8_weight(weight.float())
        case "W8A8_SQ_PER_CHANNEL":
            found = weight.float() * scale[:, None]
        case "W4A16_AWQ":
            found = _scaled_groups(_unpack_int4(weight), scale)
        case "W4A8_AWQ":
            found = round_fp8(_scaled_groups(_unpack_int4(weight), scale), float(tensors["weights_scaling_factor_2"]))
        case "NVFP4":
            found = _scaled_groups(_unpack_e2m1(weight), scale.float() * tensors["weights_scaling_factor_2"])
        case _:
            raise ToolError(f"unsupported weight format: {algo}")
    return found


def round_fp8(values: Any, scale: float) -> Any:
    """Round to E4M3 numbers times `scale`, saturating at 448 times `scale`."""
    torch = library("torch")
    limit = torch.finfo(torch.float8_e4m3fn).max
    return (values / scale).clamp(-limit, limit).to(torch.float8_e4m3fn).float() * scale


def round_int8_weight(weight: Any) -> Any:
    """Round a weight, shape (out, in), as TensorRT-LLM does when it loads a W8A16 checkpoint.

    The step of each output channel is its largest magnitude over 128; the integers saturate at -128 and 127.

    Source:
        cpp/tensorrt_llm/kernels/cutlass_kernels/cutlass_preprocessors.cpp, `symmetric_quantize`.
    """
    step = weight.abs().amax(dim=1, keepdim=True) / _INT8_STEPS
    return (weight / step.clamp(min=TINY)).round().clamp(-_INT8_STEPS, _INT8_STEPS - 1) * step


def _unpack_int4(packed: Any) -> Any:
    """Undo ModelOpt's packing: byte (i, j) contains rows 2i (low bits) and 2i + 1 (high bits) of column j, signed."""
    torch = library("torch")
    low = (packed << 4) >> 4  # int8 shifts keep the sign
    high = packed >> 4
    return torch.stack([low, high], dim=1).reshape(-1, packed.shape[1]).float()


def _unpack_e2m1(packed: Any) -> Any:
    """Undo NVFP4's packing: byte (i, j) contains columns 2j (low bits) and 2j + 1 (high bits) of row i."""
    torch = library("torch")
    codes = torch.stack([packed & 0xF, packed >> 4], dim=-1).reshape(packed.shape[0], -1)
    table = torch.tensor([*_E2M1, *(-value for value in _E2M1)])
    return table[codes.long()]


def _scaled_groups(values: Any, scales: Any) -> Any:
    """Multiply groups along the input dimension by their scales; shapes (out, in) and (out, groups)."""
    rows, groups = scales.shape
    return (values.reshape(rows, groups, -1) * scales[:, :, None]).reshape(rows, -1)
