"""From resolved settings to the `parameters` of each model's config.pbtxt, by TensorRT-LLM's names."""

from __future__ import annotations

from typing import Any

from engines.manifest import EngineManifest
from triton_repo.settings import RepositoryManifest, ServingSettings, shown

# Keys without which TensorRT-LLM's backend does not load, even if empty; all others are optional.
MUST_BE_THERE = ("gpt_model_type", "tokenizer_dir", "xgrammar_tokenizer_info_path", "guided_decoding_backend")
# Keys of upstream's template that are never written: for encoder-decoder models, and one that the backend ignores.
NEVER_WRITTEN = ("encoder_model_path", "enable_trt_overlap")


def engine_parameters(
    settings: ServingSettings, engine: EngineManifest, *, engine_dir: str, tokenizer_dir: str
) -> dict[str, str]:
    """Return the parameters of the `tensorrt_llm` model, as TensorRT-LLM's backend reads them.

    Args:
        settings: Resolved. None values are omitted, so that the backend's default applies.
    """
    values: dict[str, Any] = {
        # this project's own; TensorRT-LLM's backend ignores unknown keys
        "engine_name": f"{engine.model.name} {engine.precision.name} on {engine.gpu.name}",
        "max_beam_width": engine.limits.max_beam_width,
        "FORCE_CPU_ONLY_INPUT_TENSORS": "no",
        "gpt_model_type": settings.scheduling.batching,
        "gpt_model_path": engine_dir,
        "batch_scheduler_policy": settings.scheduling.policy,
        "enable_chunked_context": settings.scheduling.chunked_context,
        "exclude_input_in_output": settings.scheduling.exclude_input_in_output,
        **_cache(settings),
        **_decoding(settings, tokenizer_dir),
        **_runtime(settings),
        **_adapters(settings),
    }
    if engine.kind == "emulated":
        values |= {
            "emulated": True,
            "emulator_time_scale": f"{settings.emulation.time_scale:g}",
            "emulator_manifest": "engine.json",
            **limit_parameters(settings),
        }
    return written(values)


def model_parameters(repository: RepositoryManifest, *, engine_dir: str, tokenizer_dir: str) -> dict[str, str]:
    """Return the parameters of a repository's `tensorrt_llm` model: an engine's, or a relay's."""
    settings, engine, relay = repository.resolved, repository.engine, repository.relay
    if relay is None:
        return engine_parameters(settings, engine, engine_dir=engine_dir, tokenizer_dir=tokenizer_dir)
    return written(
        {
            "engine_name": f"{engine.model.name} {engine.precision.name} on {engine.gpu.name}",
            "engine_url": relay.url,
            "engine_model": relay.model,
            "vocabulary": engine.model.vocab_size,
            "exclude_input_in_output": settings.scheduling.exclude_input_in_output,
            "cancellation_check_period_ms": settings.runtime.cancellation_check_period_ms,
            "stats_check_period_ms": settings.runtime.stats_check_period_ms,
            **limit_parameters(settings),
        }
    )


def limit_parameters(settings: ServingSettings) -> dict[str, Any]:
    """Return this project's own parameters for the models that enforce length limits."""
    return {
        "max_prompt_tokens": settings.limits.max_prompt_tokens,
        "max_output_tokens": settings.limits.max_output_tokens,
    }


def written(values: dict[str, Any]) -> dict[str, str]:
    """Return parameters in config.pbtxt's notation; None and empty lists are omitted."""
    return {key: shown(value) for key, value in values.items() if value is not None and value != ()}


def _cache(settings: ServingSettings) -> dict[str, Any]:
    cache = settings.kv_cache
    return {
        "max_tokens_in_paged_kv_cache": cache.max_tokens,
        "max_attention_window_size": cache.max_attention_window,
        "sink_token_length": cache.sink_tokens,
        "kv_cache_free_gpu_mem_fraction": cache.free_gpu_mem_fraction,
        "cross_kv_cache_fraction": cache.cross_fraction,
        "kv_cache_host_memory_bytes": cache.host_bytes,
        "kv_cache_onboard_blocks": cache.onboard_blocks,
        "enable_kv_cache_reuse": cache.reuse,
    }


def _decoding(settings: ServingSettings, tokenizer_dir: str) -> dict[str, Any]:
    decoding = settings.decoding
    return {
        "decoding_mode": decoding.mode,
        "normalize_log_probs": decoding.normalize_log_probs,
        "lookahead_window_size": decoding.lookahead.window_size,
        "lookahead_ngram_size": decoding.lookahead.ngram_size,
        "lookahead_verification_set_size": decoding.lookahead.verification_set_size,
        "medusa_choices": decoding.medusa_choices,
        "eagle_choices": decoding.eagle_choices,
        "speculative_decoding_fast_logits": decoding.fast_logits,
        "tokenizer_dir": tokenizer_dir,
        "guided_decoding_backend": decoding.guided_backend or "",
        "xgrammar_tokenizer_info_path": decoding.tokenizer_info or "",
    }


def _runtime(settings: ServingSettings) -> dict[str, Any]:
    runtime, processes = settings.runtime, settings.processes
    return {
        "cancellation_check_period_ms": runtime.cancellation_check_period_ms,
        "stats_check_period_ms": runtime.stats_check_period_ms,
        "recv_poll_period_ms": runtime.recv_poll_period_ms,
        "iter_stats_max_iterations": runtime.iter_stats_max_iterations,
        "request_stats_max_iterations": runtime.request_stats_max_iterations,
        "gpu_weights_percent": runtime.gpu_weights_percent,
        "enable_context_fmha_fp32_acc": runtime.context_fmha_fp32_acc,
        "multi_block_mode": runtime.multi_block_mode,
        "cuda_graph_mode": runtime.cuda_graphs,
        "cuda_graph_cache_size": runtime.cuda_graph_cache_size,
        "gpu_device_ids": processes.gpu_device_ids,
        "participant_ids": processes.participant_ids,
        "num_nodes": processes.num_nodes,
        "executor_worker_path": processes.worker_path,
    }


def _adapters(settings: ServingSettings) -> dict[str, Any]:
    lora = settings.lora
    return {
        "lora_cache_optimal_adapter_size": lora.optimal_adapter_size,
        "lora_cache_max_adapter_size": lora.max_adapter_size,
        "lora_cache_gpu_memory_fraction": lora.gpu_memory_fraction,
        "lora_cache_host_memory_bytes": lora.host_memory_bytes,
        "lora_prefetch_dir": lora.prefetch_dir,
    }
