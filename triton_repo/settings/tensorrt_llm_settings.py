"""Serving settings of the engine's own model, `tensorrt_llm`: batching, KV cache, decoding, run time, adapters.

Source:
    TensorRT-LLM, triton_backend/all_models/inflight_batcher_llm/*/config.pbtxt and
    triton_backend/inflight_batcher_llm/src/model_instance_state.cc, 1.1 to 1.2.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from engines.files import Strict
from triton_repo.settings.setting import Amount, Auto, Count, Fraction, Line, to

Choices = Annotated[str, StringConstraints(pattern=r"^\{\s*\d+(\s*,\s*\d+)*\s*\}(\s*,\s*\{\s*\d+(\s*,\s*\d+)*\s*\})*$")]


class Scheduling(Strict):
    """How requests share iterations, and how replies are returned."""

    policy: Literal["auto", "guaranteed_no_evict", "max_utilization"] = to(
        "auto",
        "tensorrt_llm: batch_scheduler_policy",
        "guaranteed_no_evict",
        "Whether a running request may be paused when KV blocks run out (max_utilization) or is never paused.",
        emulated=True,
    )
    batching: Literal["auto", "inflight_fused_batching", "inflight_batching", "v1"] = to(
        "auto",
        "tensorrt_llm: gpt_model_type",
        "none: must be given",
        "In-flight batching, by either of its names, or static batches (v1).",
        emulated=True,
    )
    chunked_context: bool | Auto = to(
        "auto",
        "tensorrt_llm: enable_chunked_context",
        "false",
        "Compute long prompts in pieces; the engine must be built with paged context attention.",
        emulated=True,
    )
    streaming: bool = to(
        True,
        "tensorrt_llm, tensorrt_llm_bls: model_transaction_policy.decoupled",
        "none: must be given",
        "Decoupled mode: a request may have many responses. Required for streaming.",
        emulated=True,
    )
    exclude_input_in_output: bool = to(
        False,
        "tensorrt_llm: exclude_input_in_output",
        "false",
        "Omit the prompt from replies that are not streamed; a request can override this.",
        emulated=True,
    )


class KvCacheSettings(Strict):
    """The paged KV cache at run time."""

    free_gpu_mem_fraction: Fraction | Auto = to(
        "auto",
        "tensorrt_llm: kv_cache_free_gpu_mem_fraction",
        "0.9",
        "Share of the GPU memory left free by the engine to use as KV cache.",
        emulated=True,
    )
    max_tokens: Count | None = to(
        None,
        "tensorrt_llm: max_tokens_in_paged_kv_cache",
        "no limit",
        "Maximum tokens in the cache, regardless of the fraction.",
        emulated=True,
    )
    reuse: bool | Auto = to(
        "auto",
        "tensorrt_llm: enable_kv_cache_reuse",
        "true",
        "Keep blocks of ended requests for prompts with the same prefix.",
        emulated=True,
    )
    host_bytes: Amount = to(
        0,
        "tensorrt_llm: kv_cache_host_memory_bytes",
        "0",
        "Host memory for evicted blocks; needs reuse.",
        emulated=True,
    )
    onboard_blocks: bool = to(
        True,
        "tensorrt_llm: kv_cache_onboard_blocks",
        "true",
        "Copy a block found in host memory back to the GPU before use.",
    )
    max_attention_window: tuple[Count, ...] = to(
        (),
        "tensorrt_llm: max_attention_window_size",
        "the longest sequence",
        "Attention window in tokens; one number, or one per layer, repeated.",
    )
    sink_tokens: Amount | None = to(
        None,
        "tensorrt_llm: sink_token_length",
        "none",
        "First tokens always kept in an attention window.",
    )
    cross_fraction: Fraction | None = to(
        None,
        "tensorrt_llm: cross_kv_cache_fraction",
        "0.5, for encoder-decoder models only",
        "Share of the cache for cross attention.",
    )


class Lookahead(Strict):
    """Lookahead decoding; all three belong together."""

    window_size: Count | None = to(
        None, "tensorrt_llm: lookahead_window_size", "none: must be given with lookahead", ("Lookahead window size.")
    )
    ngram_size: Count | None = to(
        None, "tensorrt_llm: lookahead_ngram_size", "none: must be given with lookahead", ("Lookahead n-gram length.")
    )
    verification_set_size: Count | None = to(
        None,
        "tensorrt_llm: lookahead_verification_set_size",
        "none: must be given with lookahead",
        "Number of n-grams verified per step.",
    )


class Decoding(Strict):
    """How tokens are chosen."""

    mode: Literal[
        "auto", "top_k", "top_p", "top_k_top_p", "beam_search", "medusa", "redrafter", "lookahead", "eagle"
    ] = to(
        "auto",
        "tensorrt_llm: decoding_mode",
        "top_k_top_p, or beam_search past a beam width of 1",
        "Decoding mode; speculative modes need an engine built for them.",
    )
    normalize_log_probs: bool = to(
        True, "tensorrt_llm: normalize_log_probs", "true", "Divide a reply's log probability by its length."
    )
    lookahead: Lookahead = Lookahead()
    medusa_choices: Choices | None = to(
        None, "tensorrt_llm: medusa_choices", "mc_sim_7b_63", "Medusa's tree, as {0},{0,0},{1}."
    )
    eagle_choices: Choices | None = to(
        None, "tensorrt_llm: eagle_choices", "mc_sim_7b_63", "EAGLE's tree, as {0},{0,0},{1}."
    )
    fast_logits: bool = to(
        False,
        "tensorrt_llm: speculative_decoding_fast_logits",
        "false",
        "Pass a draft model's logits between processes; orchestrator mode without spawning only.",
    )
    guided_backend: Literal["xgrammar"] | None = to(
        None,
        "tensorrt_llm: guided_decoding_backend",
        "empty, and the key must be there",
        "Backend for guided decoding.",
    )
    tokenizer_info: Line | None = to(
        None,
        "tensorrt_llm: xgrammar_tokenizer_info_path",
        "empty, and the key must be there",
        "JSON file with the vocabulary for xgrammar, at its path on the server.",
    )


class Types(Strict):
    """Number formats of tensors whose type is the deployment's to choose."""

    logits: Literal["auto", "fp32", "fp16"] = to(
        "auto",
        "tensorrt_llm, ensemble, tensorrt_llm_bls: data_type of context_logits, generation_logits, draft_logits",
        "none: must be given",
        "As set by --logits_dtype when the engine was built; FP32 if its config.json is not available.",
        emulated=True,
    )
    prompt_embedding: Literal["fp16", "bf16", "fp32"] = to(
        "fp16",
        "tensorrt_llm, tensorrt_llm_bls: data_type of prompt_embedding_table",
        "none: must be given",
        "As the engine's activations.",
        emulated=True,
    )
    encoder_features: Literal["fp16", "bf16", "fp32"] = to(
        "fp16",
        "tensorrt_llm: data_type of encoder_input_features",
        "none: must be given",
        "For encoder-decoder models.",
        emulated=True,
    )


class RuntimeSettings(Strict):
    """How the engine runs, and intervals of its checks."""

    cuda_graphs: bool = to(False, "tensorrt_llm: cuda_graph_mode", "false", "Record decode steps as CUDA graphs.")
    cuda_graph_cache_size: Amount | Auto = to(
        "auto", "tensorrt_llm: cuda_graph_cache_size", "0", "Number of cached graphs, one per batch size."
    )
    multi_block_mode: bool = to(
        True, "tensorrt_llm: multi_block_mode", "true", "Split one sequence's attention over several thread blocks."
    )
    context_fmha_fp32_acc: bool = to(
        False, "tensorrt_llm: enable_context_fmha_fp32_acc", "false", "Accumulate prompt attention in FP32."
    )
    gpu_weights_percent: Annotated[float, Field(ge=0, le=1)] = to(
        1.0,
        "tensorrt_llm: gpu_weights_percent",
        "1.0",
        "Share of the weights kept on the GPU; below 1 needs an engine built with weight streaming.",
    )
    cancellation_check_period_ms: Count = to(
        100,
        "tensorrt_llm: cancellation_check_period_ms",
        "100",
        "Interval between checks for cancelled requests.",
        emulated=True,
    )
    stats_check_period_ms: Annotated[int, Field(ge=10)] = to(
        100, "tensorrt_llm: stats_check_period_ms", "100", "How often metrics are refreshed.", emulated=True
    )
    recv_poll_period_ms: Amount = to(
        0, "tensorrt_llm: recv_poll_period_ms", "0", "Pause between checks for new requests; 0: a busy loop."
    )
    iter_stats_max_iterations: Amount = to(
        1000, "tensorrt_llm: iter_stats_max_iterations", "1000", "Iterations whose statistics are stored."
    )
    request_stats_max_iterations: Amount = to(
        0, "tensorrt_llm: request_stats_max_iterations", "0", "Iterations whose request statistics are stored."
    )


class LoraCache(Strict):
    """Caches of LoRA adapters; only for engines built with LoRA."""

    optimal_adapter_size: Count = to(
        8, "tensorrt_llm: lora_cache_optimal_adapter_size", "8", "Rank for which the cache's pages are sized."
    )
    max_adapter_size: Count = to(
        64, "tensorrt_llm: lora_cache_max_adapter_size", "64", "Maximum adapter rank in the cache."
    )
    gpu_memory_fraction: Fraction = to(
        0.05,
        "tensorrt_llm: lora_cache_gpu_memory_fraction",
        "0.05",
        "Share of the memory left after engine and KV cache.",
    )
    host_memory_bytes: Amount = to(
        1 << 30, "tensorrt_llm: lora_cache_host_memory_bytes", "1 GiB", "Host memory for adapters."
    )
    prefetch_dir: Line | None = to(
        None, "tensorrt_llm: lora_prefetch_dir", "none", "Folder of adapters to load at start."
    )
