"""Conflicts: settings that contradict each other or the engine."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace

from engines.manifest import EngineManifest
from engines.spec import lookahead_draft_tokens
from triton_repo.settings.engine_config import EngineConfig
from triton_repo.settings.engine_fit import Code, Served, misfits
from triton_repo.settings.schema import ServingSettings
from triton_repo.settings.tensorrt_llm_settings import Lookahead


def conflicts_in(
    settings: ServingSettings, engine: EngineManifest, config: EngineConfig | None
) -> Iterator[tuple[str, str]]:
    """Yield each conflict and a fix; nothing if the settings are consistent.

    Args:
        settings: Resolved, without `auto`.
    """
    found = {each.code: each.found for each in misfits(_served(settings, engine, config), _built(engine, config))}
    yield from _of_attention(settings, engine, found)
    yield from _of_cache(settings, engine, found)
    yield from _of_decoding(settings, engine, config, found)
    yield from _of_queue(settings)
    yield from _of_processes(settings, engine, found)
    yield from _of_text(settings, engine, found)
    yield from _of_adapters(settings, found)


def _served(settings: ServingSettings, engine: EngineManifest, config: EngineConfig | None) -> Served:
    """Return the settings that the engine must support, without those that only a missing config.json could decide."""
    longest, decoding = settings.limits.max_prompt_tokens, settings.decoding
    stated = longest if isinstance(longest, int) else None
    return Served(
        chunked_context=bool(settings.scheduling.chunked_context),
        kv_reuse=bool(settings.kv_cache.reuse),
        longest_prompt_tokens=stated,
        max_prompt_tokens=stated,
        kv_host_bytes=settings.kv_cache.host_bytes or 0,
        kv_max_tokens=settings.kv_cache.max_tokens,
        decoding_mode="" if config is None else str(decoding.mode),
        gpu_weights_ratio=None if config is None else settings.runtime.gpu_weights_percent,
        prefetches_lora=settings.lora.prefetch_dir is not None,
        gpu_device_ids=settings.processes.gpu_device_ids or "",
        participant_ids=settings.processes.participant_ids or "",
        # the LLM API reads the vocabulary from the tokenizer
        has_guided_backend=engine.backend == "tensorrt" and decoding.guided_backend is not None,
        has_vocabulary=engine.backend == "tensorrt" and decoding.tokenizer_info is not None,
    )


def _built(engine: EngineManifest, config: EngineConfig | None) -> EngineConfig:
    """Return the engine's own config, with limits and ranks from the manifest; without a config, as planned."""
    known = config or EngineConfig()
    paged = known.paged_context
    return replace(
        known,
        ranks=engine.parallel.tensor * engine.parallel.pipeline,
        max_num_tokens=engine.limits.max_num_tokens,
        max_seq_len=engine.limits.max_seq_len,
        max_input_len=engine.limits.max_input_len,
        paged_context=engine.runtime.chunked_context or engine.runtime.kv_reuse if paged is None else paged,
    )


def _of_attention(
    settings: ServingSettings, engine: EngineManifest, found: Collection[Code]
) -> Iterator[tuple[str, str]]:
    checks: tuple[tuple[str, Code], ...] = (
        ("scheduling.chunked_context", "chunked-context-unpaged"),
        ("kv_cache.reuse", "kv-reuse-unpaged"),
    )
    for name, code in checks:
        if code in found:
            yield (
                f"{name} true: the engine was built without paged context attention (--use_paged_context_fmha)",
                f"leave {name} out, or build the engine with a KV cache that supports it: build-engine --kv-cache auto",
            )
    budget, longest = engine.limits.max_num_tokens, settings.limits.max_prompt_tokens
    if "whole-prompts" in found:
        yield (
            f"scheduling.chunked_context false: an iteration of {budget} tokens does not fit the longest prompt "
            f"({longest} tokens)",
            f"leave it on, or limits.max_prompt_tokens {budget}",
        )


def _of_cache(settings: ServingSettings, engine: EngineManifest, found: Collection[Code]) -> Iterator[tuple[str, str]]:
    cache = settings.kv_cache
    if "host-cache" in found:
        yield (
            f"kv_cache.host_bytes {cache.host_bytes} without kv_cache.reuse: blocks in host memory are only "
            "useful for reuse",
            "kv_cache.reuse true, or no host cache",
        )
    if "kv-too-small" in found:
        yield (
            f"kv_cache.max_tokens {cache.max_tokens} does not fit one sequence of {engine.limits.max_seq_len} tokens",
            "TensorRT-LLM would shorten every sequence: raise it, or build the engine with a smaller --max-seq-len",
        )
    if cache.sink_tokens is not None and not cache.max_attention_window:
        yield (
            f"kv_cache.sink_tokens {cache.sink_tokens} without kv_cache.max_attention_window: no sliding window",
            "state the attention window too, or neither",
        )


def _of_decoding(
    settings: ServingSettings, engine: EngineManifest, config: EngineConfig | None, found: Collection[Code]
) -> Iterator[tuple[str, str]]:
    decoding = settings.decoding
    if "guided-pair" in found:
        yield (
            "decoding.guided_backend and decoding.tokenizer_info belong together: the backend needs the vocabulary",
            "give both; TensorRT-LLM's generate_xgrammar_tokenizer_info.py writes the file",
        )
    lookahead = [value for value in decoding.lookahead.model_dump().values() if value is not None]
    if lookahead and decoding.mode != "lookahead":
        yield f"decoding.lookahead with decoding.mode {decoding.mode}", "decoding.mode lookahead, or leave it out"
    if decoding.mode == "lookahead" and len(lookahead) < len(decoding.lookahead.model_dump()):
        yield (
            "decoding.mode lookahead needs lookahead.window_size, ngram_size and verification_set_size",
            "7, 7 and 7 are a common start",
        )
    yield from _of_lookahead(decoding.lookahead, config)
    for choices, mode in ((decoding.medusa_choices, "medusa"), (decoding.eagle_choices, "eagle")):
        if choices is not None and decoding.mode != mode:
            yield (
                f"decoding.{mode}_choices with decoding.mode {decoding.mode}",
                f"decoding.mode {mode}, or leave it out",
            )
    if decoding.mode == "beam_search" and engine.limits.max_beam_width == 1:
        yield "decoding.mode beam_search: the engine was built for a beam width of 1", "top_k_top_p"
    if config is not None and "decoding-mode" in found:
        yield (
            f"decoding.mode {decoding.mode}: the engine's config.json says it was built for "
            f"{config.speculation or 'no speculation'}",
            "decoding.mode auto, or build the engine with --speculative",
        )
    if decoding.fast_logits and (settings.processes.mode != "orchestrator" or settings.processes.spawn_processes):
        yield (
            "decoding.fast_logits needs processes.mode orchestrator and processes.spawn_processes false",
            "TensorRT-LLM would turn it off with a warning: leave it out",
        )


def _of_queue(settings: ServingSettings) -> Iterator[tuple[str, str]]:
    queue = settings.queue
    if queue.default_priority is not None and queue.default_priority > queue.priority_levels:
        yield (
            f"queue.default_priority {queue.default_priority} is not among {queue.priority_levels} priority levels",
            "queue.priority_levels says how many there are; 1 goes first",
        )
    if settings.runtime.cuda_graph_cache_size and not settings.runtime.cuda_graphs:
        yield (
            f"runtime.cuda_graph_cache_size {settings.runtime.cuda_graph_cache_size} without runtime.cuda_graphs",
            "runtime.cuda_graphs true, or leave the size out",
        )


def _of_processes(
    settings: ServingSettings, engine: EngineManifest, found: Mapping[Code, str]
) -> Iterator[tuple[str, str]]:
    processes, ranks = settings.processes, engine.parallel.tensor * engine.parallel.pipeline
    if processes.mode == "leader" and not processes.spawn_processes:
        yield "processes.spawn_processes false is for orchestrator mode", "processes.mode orchestrator"
    if processes.mode == "orchestrator" and not processes.spawn_processes and processes.participant_ids is None:
        yield (
            "processes.spawn_processes false: processes.participant_ids must name the MPI ranks that serve",
            f"for {ranks} ranks behind an orchestrator of rank 0: '{','.join(map(str, range(1, ranks + 1)))}'",
        )
    checks: tuple[tuple[str, Code], ...] = (
        ("gpu_device_ids", "gpu-groups"),
        ("participant_ids", "participant-groups"),
    )
    for name, code in checks:
        wrong = found.get(code)
        if wrong is not None:
            yield (
                f"processes.{name} '{wrong}' names {len(wrong.split(','))}; the engine has {ranks} "
                f"rank{'' if ranks == 1 else 's'} (tensor {engine.parallel.tensor} x pipeline "
                f"{engine.parallel.pipeline})",
                "one number per rank; semicolons separate instances",
            )
    if processes.num_nodes > ranks:
        yield f"processes.num_nodes {processes.num_nodes} for {ranks} ranks", f"at most {ranks}"


def _of_text(settings: ServingSettings, engine: EngineManifest, found: Collection[Code]) -> Iterator[tuple[str, str]]:
    text, limits, built = settings.text, settings.limits, engine.limits
    if text.postprocessing_instances > 1 and settings.scheduling.streaming:
        yield (
            f"text.postprocessing_instances {text.postprocessing_instances} with scheduling.streaming: tokens of one "
            "character may reach different processes, which lose it",
            "1; detokenization takes a few microseconds per token",
        )
    if text.accumulate_tokens and not settings.scheduling.streaming:
        yield "text.accumulate_tokens without scheduling.streaming: nothing is sent in parts", "leave one out"
    if "prompt-limit" in found:
        yield (
            f"limits.max_prompt_tokens {limits.max_prompt_tokens} exceeds the engine's max_input_len "
            f"{built.max_input_len}",
            f"at most {built.max_input_len}",
        )
    if isinstance(limits.max_output_tokens, int) and limits.max_output_tokens > built.max_seq_len:
        yield (
            f"limits.max_output_tokens {limits.max_output_tokens} exceeds the engine's max_seq_len {built.max_seq_len}",
            f"at most {built.max_seq_len}",
        )


def _of_adapters(settings: ServingSettings, found: Collection[Code]) -> Iterator[tuple[str, str]]:
    lora = settings.lora
    if lora.optimal_adapter_size > lora.max_adapter_size:
        yield (
            f"lora.optimal_adapter_size {lora.optimal_adapter_size} exceeds lora.max_adapter_size "
            f"{lora.max_adapter_size}",
            "optimal_adapter_size must not exceed max_adapter_size",
        )
    if "lora" in found:
        yield "lora.prefetch_dir: the engine was built without LoRA", "build-engine --lora-modules"
    if "weight-streaming" in found:
        yield (
            f"runtime.gpu_weights_percent {settings.runtime.gpu_weights_percent}: the engine was built without weight "
            "streaming",
            "1.0, or trtllm-build --weight_streaming",
        )


def _of_lookahead(sizes: Lookahead, config: EngineConfig | None) -> Iterator[tuple[str, str]]:
    """Check lookahead sizes against the engine's draft length: TensorRT-LLM requires exactly that one."""
    window, ngram, verified = sizes.window_size, sizes.ngram_size, sizes.verification_set_size
    if config is None or config.max_draft_len is None or window is None or ngram is None or verified is None:
        return
    draft = lookahead_draft_tokens(window, ngram, verified)
    if draft != config.max_draft_len:
        yield (
            f"decoding.lookahead {window}, {ngram}, {verified} drafts {draft} tokens per step; the engine's "
            f"config.json says it was built for {config.max_draft_len}",
            f"the sizes the engine was built with, or an engine of --lookahead {window},{ngram},{verified}",
        )
