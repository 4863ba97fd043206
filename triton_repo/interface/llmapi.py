"""The LLM API's Triton model: its model.yaml, for engines of the PyTorch backend.

TensorRT-LLM compiles nothing for these. One Triton model, `tensorrt_llm`, takes text and gives text; what an engine and
its repository decide stands in a `model.yaml` beside its code.

Source:
    TensorRT-LLM, triton_backend/all_models/llmapi and tensorrt_llm/llmapi/llm_args.py, 1.0 to 1.2.
"""

from __future__ import annotations

from typing import Any

from engines.manifest import EngineManifest
from triton_repo.settings import ServingSettings

MODEL_YAML = "model.yaml"
HEADER = """\
# TensorRT-LLM's LLM API for {name}, as planned; `triton_config` is for Triton's model alone.
# Written by build-repo: change serving.yaml and build it again.
"""


def llm_document(
    engine: EngineManifest, settings: ServingSettings, *, checkpoint: str, tokenizer: str | None
) -> dict[str, Any]:
    """Return model.yaml: the LLM API's arguments, and what Triton itself must know.

    TensorRT-LLM refuses a key it does not know, so one that is not needed is left out.

    Args:
        settings: Resolved.
        checkpoint: Where the server finds the checkpoint.
        tokenizer: Where it finds the tokenizer; None: in the checkpoint.
    """
    document: dict[str, Any] = {"model": checkpoint, "backend": "pytorch"}
    if tokenizer is not None:
        document["tokenizer"] = tokenizer
    document |= {
        "tensor_parallel_size": engine.parallel.tensor,
        "pipeline_parallel_size": engine.parallel.pipeline,
        "max_batch_size": engine.limits.max_batch_size,
        "max_num_tokens": engine.limits.max_num_tokens,
        "max_seq_len": engine.limits.max_seq_len,
        "max_beam_width": engine.limits.max_beam_width,
        "enable_chunked_prefill": settings.scheduling.chunked_context,
        "scheduler_config": {"capacity_scheduler_policy": settings.scheduling.policy.upper()},
        "kv_cache_config": _kv_cache(engine, settings),
        # the LLM API records graphs unless told otherwise; padding lets one serve every smaller batch
        "cuda_graph_config": {"max_batch_size": engine.limits.max_batch_size, "enable_padding": True},
    }
    if settings.decoding.guided_backend is not None:
        document["guided_decoding_backend"] = settings.decoding.guided_backend
    if settings.llmapi.postprocess_workers:
        document["num_postprocess_workers"] = settings.llmapi.postprocess_workers
    document["triton_config"] = {
        "max_batch_size": settings.llmapi.max_batch_size,
        "decoupled": settings.scheduling.streaming,
        "cancellation_check_period_ms": settings.runtime.cancellation_check_period_ms,
    }
    return document


def _kv_cache(engine: EngineManifest, settings: ServingSettings) -> dict[str, Any]:
    cache = settings.kv_cache
    known: dict[str, Any] = {
        "enable_block_reuse": cache.reuse,
        "free_gpu_memory_fraction": cache.free_gpu_mem_fraction,
        "dtype": "fp8" if engine.precision.kv_cache == "fp8" else "auto",
        "tokens_per_block": engine.kv_cache.tokens_per_block,
    }
    if cache.max_tokens is not None:
        known["max_tokens"] = cache.max_tokens
    if cache.max_attention_window:
        known["max_attention_window"] = list(cache.max_attention_window)
    if cache.sink_tokens is not None:
        known["sink_token_length"] = cache.sink_tokens
    if cache.host_bytes:
        known["host_cache_size"] = cache.host_bytes
        known["onboard_blocks"] = cache.onboard_blocks
    return known
