"""The LLM API's arguments: how newer TensorRT-LLM versions, which compile nothing, are told what a plan decided."""

from __future__ import annotations

from typing import Any

import yaml

from engines.planning import BuildPlan
from engines.spec import KvFormat

# The formats the PyTorch backend runs and ModelOpt exports for it.
PYTORCH_PRECISIONS = ("bf16", "fp16", "fp8", "int4_awq", "w4a8_awq", "nvfp4")

# The keys are those of TensorRT-LLM's llm_args.py; it refuses a file with a key it does not know, and 1.0 does not
# know kv_cache_config.tokens_per_block.
_HEADER = """\
# Arguments of TensorRT-LLM's LLM API for {name}: the PyTorch backend, nothing to compile.
# Loaded by TensorRT-LLM 1.1 and newer: as model.yaml of Triton's llmapi model (tensorrt_llm/1/model.yaml), or in
# Python as LLM(**arguments) once triton_config, which is for Triton alone, is taken out.
# `model` is a path as the server sees it: set it to where the checkpoint folder lies there.
"""


def pytorch_refusal(precision: str, kv_cache: KvFormat) -> str | None:
    """Return why the PyTorch backend cannot run this pair of formats; None where it can.

    >>> pytorch_refusal("int8_sq", "16bit")
    "TensorRT-LLM's PyTorch backend does not run int8_sq; it runs bf16, fp16, fp8, int4_awq, w4a8_awq, nvfp4"
    >>> pytorch_refusal("fp8", "fp8") is None
    True
    """
    if precision not in PYTORCH_PRECISIONS:
        return f"TensorRT-LLM's PyTorch backend does not run {precision}; it runs {', '.join(PYTORCH_PRECISIONS)}"
    if kv_cache == "int8":
        return "TensorRT-LLM's PyTorch backend has no INT8 KV cache; it has FP8 and 16 bit"
    return None


def llm_arguments(plan: BuildPlan, checkpoint: str) -> dict[str, Any]:
    """Return the arguments of `tensorrt_llm.LLM` that make it run as planned.

    Args:
        checkpoint: Where the server will find the quantized checkpoint.
    """
    sizing = plan.sizing
    return {
        "model": checkpoint,
        "backend": "pytorch",
        "tensor_parallel_size": sizing.tensor_parallel,
        "pipeline_parallel_size": sizing.pipeline_parallel,
        "max_batch_size": sizing.max_batch_size,
        "max_num_tokens": sizing.max_num_tokens,
        "max_seq_len": sizing.max_seq_len,
        "max_beam_width": 1,
        "enable_chunked_prefill": plan.runtime.chunked_context,
        "scheduler_config": {"capacity_scheduler_policy": plan.runtime.scheduler_policy.upper()},
        "kv_cache_config": {
            "enable_block_reuse": plan.runtime.kv_reuse,
            "free_gpu_memory_fraction": sizing.kv_fraction,
            "dtype": "fp8" if plan.kv_format == "fp8" else "auto",
            "tokens_per_block": sizing.tokens_per_block,
        },
        "cuda_graph_config": {"max_batch_size": sizing.max_batch_size, "enable_padding": True},
    }


def model_yaml(plan: BuildPlan, checkpoint: str) -> str:
    """Return `model.yaml` of Triton's llmapi model: the arguments, and what Triton itself must know."""
    arguments = llm_arguments(plan, checkpoint)
    # 0: Triton batches nothing, TensorRT-LLM does; decoupled: a request may be answered in many parts.
    arguments["triton_config"] = {"max_batch_size": 0, "decoupled": True}
    return _HEADER.format(name=plan.name) + yaml.safe_dump(arguments, sort_keys=False)
