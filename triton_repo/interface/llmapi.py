"""Configuration of the LLM API's servers: Triton's model.yaml, trtllm-serve's YAML, inputs of Triton's model.

TensorRT-LLM compiles nothing for these. A single Triton model, `tensorrt_llm`, takes and returns text; its
configuration is a `model.yaml` beside its code.

Source:
    TensorRT-LLM, triton_backend/all_models/llmapi, 1.0 to 1.4rc; argument names by version: `engines.spec.llm_api`.
"""

from __future__ import annotations

from typing import Any

from engines.build import LlmRuntime, choices_of, llm_arguments, model_document, serve_document, served_model
from engines.manifest import EngineManifest
from engines.spec import llm_api
from triton_repo.interface.tensors import LLMAPI_INPUTS, LLMAPI_LORA_INPUTS, Tensor
from triton_repo.settings import ServingSettings

HEADER = """\
# TensorRT-LLM's LLM API for {name}, as planned; `triton_config` is for Triton's model alone.
# Written by build-repo: change serving.yaml and build it again.
"""
SERVE_HEADER = """\
# trtllm-serve for {name}, as planned. Written by build-repo: change serving.yaml and build it again.
"""


def llm_document(
    engine: EngineManifest, settings: ServingSettings, *, checkpoint: str, tokenizer: str | None
) -> dict[str, Any]:
    """Return model.yaml: the LLM API's arguments, and Triton's own settings.

    Args:
        settings: Resolved.
        checkpoint: Path of the checkpoint on the server.
        tokenizer: Path of the tokenizer on the server; None: in the checkpoint.

    Raises:
        UserError: The engine's TensorRT-LLM version has no argument for a setting.
    """
    return model_document(
        llm_arguments(engine, served_runtime(settings)),
        model=served_model(engine, checkpoint),
        tokenizer=tokenizer,
        triton_config={
            "max_batch_size": settings.llmapi.max_batch_size,
            "decoupled": settings.scheduling.streaming,
            "cancellation_check_period_ms": settings.runtime.cancellation_check_period_ms,
        },
    )


def trtllm_serve_document(engine: EngineManifest, settings: ServingSettings) -> dict[str, Any]:
    """Return the YAML of `trtllm-serve` for resolved settings. Raises as `llm_document` does."""
    return serve_document(llm_arguments(engine, served_runtime(settings)))


def served_runtime(settings: ServingSettings) -> LlmRuntime:
    """Return the LLM API's runtime arguments for resolved settings, without those at upstream's default."""
    cache = settings.kv_cache
    more: dict[str, Any] = {}
    if settings.decoding.guided_backend is not None:
        more["guided_decoding_backend"] = settings.decoding.guided_backend
    if settings.llmapi.postprocess_workers:
        more["num_postprocess_workers"] = settings.llmapi.postprocess_workers
    document: dict[str, Any] = {
        "max_tokens": cache.max_tokens,
        "max_attention_window": list(cache.max_attention_window) or None,
        "sink_token_length": cache.sink_tokens,
        "host_cache_size": cache.host_bytes or None,
        "onboard_blocks": False if cache.host_bytes and not cache.onboard_blocks else None,
    }
    return LlmRuntime(
        scheduler_policy=settings.scheduling.policy,
        chunked_prefill=bool(settings.scheduling.chunked_context),
        block_reuse=bool(cache.reuse),
        kv_fraction=float(cache.free_gpu_mem_fraction),
        more_kv_cache={name: value for name, value in document.items() if value is not None},
        more=more,
    )


def llmapi_inputs(engine: EngineManifest) -> tuple[Tensor, ...]:
    """Return the inputs of Triton's model; includes those that select an adapter if the version reads them."""
    return LLMAPI_INPUTS + (LLMAPI_LORA_INPUTS if takes_adapters(engine) else ())


def takes_adapters(engine: EngineManifest) -> bool:
    """Return whether a request can select a LoRA adapter: the engine has some, and the version reads the input."""
    choices = choices_of(engine)
    return choices.adapters is not None and llm_api(choices.version).triton_lora_inputs
