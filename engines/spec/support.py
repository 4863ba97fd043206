"""The number formats that each GPU supports in TensorRT-LLM's engine path, known before any work is done.

The rules are the builder's own errors (raised by `trtllm-build`) and the model families' support tables, as of
TensorRT-LLM 1.2. Where they disagree, the builder counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from engines.errors import UserError
from engines.files import Strict
from engines.spec.gpu import GpuSpec, known_gpus
from engines.spec.model import Family
from engines.spec.precision import PRECISIONS, KvFormat, Precision

Status = Literal["supported upstream", "unlisted upstream", "impossible"]
Backend = Literal["tensorrt", "pytorch"]

FP8_SM = 89
BLACKWELL_SM = 100
# Group sizes with kernels for each backend, largest first. Engines: W4A8_AWQ in groups of 64 "is not implemented yet"
# (tensorrt_llm/quantization/layers.py, WeightOnlyGroupwiseQuant*Linear).
_GROUPS: dict[Backend, dict[str, tuple[int, ...]]] = {
    "tensorrt": {"int4_awq": (128, 64), "w4a8_awq": (128,), "nvfp4": (16,)},
    "pytorch": {"int4_awq": (128, 64), "w4a8_awq": (128, 64), "nvfp4": (16,)},
}
_ON_A_CPU = {"fp32", "bf16", "fp16"}  # unquantized: what the step-time model knows of a CPU
_INTEGER_WEIGHTS = {"int8_sq", "int8_wo", "int4_awq", "w4a8_awq"}
# The qwen example's support matrix lists these for dense Qwen3; the other families' matrices list every format here.
_LISTED_FOR_QWEN3 = {"bf16", "fp16", "fp8", "nvfp4"}


class Verdict(Strict):
    """Whether an engine with this precision can be built for this GPU.

    Attributes:
        reason: The reason, if any.
        nearest: The precision to use instead if this one is impossible.
    """

    status: Status
    reason: str = ""
    nearest: str | None = None


def verdict(precision: Precision, gpu: GpuSpec, family: Family) -> Verdict:
    """Return whether TensorRT-LLM builds `precision` for `gpu`, and if not, the nearest precision it builds.

    >>> from engines.spec.gpu import gpu_named
    >>> verdict(PRECISIONS["fp8"], gpu_named("a100-sxm-80gb"), "qwen3").nearest
    'int8_sq'
    """
    reason = _impossible_because(precision, gpu)
    if reason:
        return Verdict(status="impossible", reason=reason, nearest=_nearest(precision, gpu))
    if precision.arithmetic == "fp32" or gpu.device == "cpu":
        reason = "no engine is built of it: predict another server, for example with the engine profile vllm-v1"
        return Verdict(status="unlisted upstream", reason=reason)
    if family == "gptj":
        reason = "no checkpoint of GPT-J is exported here: plan it and emulate it"
        return Verdict(status="unlisted upstream", reason=reason)
    if family == "qwen3" and precision.name not in _LISTED_FOR_QWEN3:
        return Verdict(
            status="unlisted upstream",
            reason=f"TensorRT-LLM's support table for dense Qwen3 does not list {precision.name}: verify its accuracy",
        )
    return Verdict(status="supported upstream")


def require_possible(precision: Precision, gpu: GpuSpec, family: Family) -> Verdict:
    """Return the verdict on a pair that can be built.

    Raises:
        UserError: It cannot be built; states the reason and the nearest alternative.
    """
    found = verdict(precision, gpu, family)
    if found.status == "impossible":
        gpus = [other.name for other in known_gpus().values() if not _impossible_because(precision, other)]
        where = ", ".join(gpus) or "an accelerator whose --gpu FILE.yaml states that arithmetic"
        nearest = "no precision" if found.nearest is None else f"--precision {found.nearest}"
        raise UserError(
            f"{precision.name} on {gpu.name}: {found.reason}",
            hint=f"{nearest} works there; {precision.name} works on {where}",
        )
    return found


def kv_refusal(kv_format: KvFormat, precision: Precision, gpu: GpuSpec) -> str | None:
    """Return why this precision on this GPU does not support a KV cache format; None if it does.

    >>> from engines.spec.gpu import gpu_named
    >>> kv_refusal("fp8", PRECISIONS["int8_sq"], gpu_named("a100-sxm-80gb"))
    'an FP8 KV cache needs compute capability 8.9 or newer in the engine path; a100-sxm-80gb has 8.0'
    """
    if (kv_format == "32bit") != (precision.arithmetic == "fp32"):
        return "a 32-bit KV cache goes with fp32, and fp32 with no other"
    if gpu.device == "cpu":
        return None if kv_format in {"32bit", "16bit"} else f"{gpu.name} is a CPU: its KV cache is 32 or 16 bit"
    return _kv_refusal_of_gpu(kv_format, precision, gpu)


def _kv_refusal_of_gpu(kv_format: KvFormat, precision: Precision, gpu: GpuSpec) -> str | None:
    if kv_format == "fp8" and gpu.sm < FP8_SM:
        return (
            "an FP8 KV cache needs compute capability 8.9 or newer in the engine path; "
            f"{gpu.name} has {gpu.compute_capability}"
        )
    if kv_format == "nvfp4" and gpu.sm < BLACKWELL_SM:
        return f"an NVFP4 KV cache needs compute capability 10.0 (Blackwell); {gpu.name} has {gpu.compute_capability}"
    if kv_format == "nvfp4" and precision.arithmetic not in {"fp8", "fp4"}:
        return "an NVFP4 KV cache goes with FP8 or NVFP4 weights"
    if kv_format == "int8" and gpu.sm >= BLACKWELL_SM:
        return f"trtllm-build refuses an INT8 KV cache on compute capability {gpu.compute_capability}"
    if kv_format == "int8" and precision.arithmetic in {"fp8", "fp4"}:
        return f"{precision.name} goes with an FP8 or 16-bit KV cache"
    return None


def group_size_for(
    precision: Precision, *, name: str, inputs: Sequence[int], tensor_parallel: int, backend: Backend = "tensorrt"
) -> int:
    """Return the quantization group size: the largest that divides every layer's input on every rank.

    Args:
        name: The model's name, for the message.
        inputs: Input widths of the linear layers of one decoder layer: of the query projection, the attention output
            projection and the last feed-forward projection. All must divide on every GPU, even those that are not split
            there: ModelOpt checks this (modelopt/torch/export/postprocess.py, `check_weight_shape_valid`).

    Returns:
        0 for a precision without groups.

    Raises:
        UserError: No supported group size divides them.

    >>> sizes = (4096, 4096, 12288)
    >>> group_size_for(PRECISIONS["w4a8_awq"], name="qwen3-8b", inputs=sizes, tensor_parallel=2)
    128
    """
    candidates = _GROUPS[backend].get(precision.name, ())
    if not candidates:
        return 0
    local = [size // tensor_parallel for size in inputs]
    for group in candidates:
        if all(size % group == 0 for size in local):
            return group
    raise UserError(
        f"{name}: {precision.name} needs linear layers whose input size is a multiple of {candidates[-1]}; they are "
        f"{', '.join(str(size) for size in local)} wide on each of {tensor_parallel} GPUs",
        hint="choose fp8 or int8_wo, or a lower --tp",
    )


def keeps_paged_attention(kv_format: KvFormat, precision: Precision) -> bool:
    """Return whether paged context attention stays enabled; chunked context and KV reuse need it.

    `trtllm-build` silently disables it for an INT8 KV cache, and for an FP8 cache with weights that are not in FP8
    arithmetic.
    """
    if kv_format in {"32bit", "16bit"}:
        return True
    return kv_format in {"fp8", "nvfp4"} and precision.arithmetic in {"fp8", "fp4"}


def _impossible_because(precision: Precision, gpu: GpuSpec) -> str:
    lacking = {precision.arithmetic, precision.rest_arithmetic} - gpu.dense_flops.keys()
    if gpu.device == "cpu":
        if precision.name not in _ON_A_CPU:
            return f"a CPU is predicted in {', '.join(sorted(_ON_A_CPU))}"
        return f"its file states no {min(lacking)} arithmetic" if lacking else ""
    if precision.arithmetic == "fp4" and gpu.sm < BLACKWELL_SM:
        return f"FP4 arithmetic needs compute capability 10.0 (Blackwell); this GPU has {gpu.compute_capability}"
    if precision.arithmetic == "fp8" and gpu.sm < FP8_SM:
        return f"FP8 arithmetic needs compute capability 8.9 or newer; this GPU has {gpu.compute_capability}"
    if precision.name in _INTEGER_WEIGHTS and gpu.sm >= BLACKWELL_SM:
        return f"trtllm-build refuses integer weights on compute capability {gpu.compute_capability}"
    return f"its data sheet states no {min(lacking)} arithmetic" if lacking else ""


def _nearest(precision: Precision, gpu: GpuSpec) -> str | None:
    """Return the possible precision closest in weight bits, 8-bit arithmetic first; None where none is possible."""
    preference = {"fp8": 0, "int8_sq": 1, "nvfp4": 2, "int4_awq": 3, "int8_wo": 4, "bf16": 5, "w4a8_awq": 6, "fp16": 7}
    possible = [other for other in PRECISIONS.values() if not _impossible_because(other, gpu)]
    nearest = min(
        possible, key=lambda o: (abs(o.weight_bits - precision.weight_bits), preference.get(o.name, 8)), default=None
    )
    return None if nearest is None else nearest.name
