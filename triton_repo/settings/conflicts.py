"""What cannot be: settings that contradict each other, or the engine they are to serve."""

from __future__ import annotations

from collections.abc import Iterator

from engines.manifest import EngineManifest
from engines.spec import lookahead_draft_tokens
from triton_repo.settings.engine_config import EngineConfig
from triton_repo.settings.schema import Lookahead, ServingSettings

SPECULATIVE = {"medusa", "redrafter", "lookahead", "eagle"}


def contradictions(
    settings: ServingSettings, engine: EngineManifest, config: EngineConfig | None
) -> Iterator[tuple[str, str]]:
    """Yield what cannot be, and one thing to try; nothing where the settings stand.

    Args:
        settings: Without an `auto`.
    """
    yield from _of_attention(settings, engine, config)
    yield from _of_cache(settings, engine)
    yield from _of_decoding(settings, engine, config)
    yield from _of_queue(settings)
    yield from _of_processes(settings, engine)
    yield from _of_text(settings, engine)
    yield from _of_adapters(settings, config)


def _of_attention(
    settings: ServingSettings, engine: EngineManifest, config: EngineConfig | None
) -> Iterator[tuple[str, str]]:
    paged = engine.runtime.chunked_context or engine.runtime.kv_reuse
    if config is not None and config.paged_context is not None:
        paged = config.paged_context
    for name, on in (
        ("scheduling.chunked_context", settings.scheduling.chunked_context),
        ("kv_cache.reuse", settings.kv_cache.reuse),
    ):
        if on and not paged:
            yield (
                f"{name} true: the engine was built without paged context attention (--use_paged_context_fmha)",
                f"leave {name} out, or build the engine with a KV cache that keeps it: build-engine --kv-cache auto",
            )
    budget, longest = engine.limits.max_num_tokens, settings.limits.max_prompt_tokens
    if not settings.scheduling.chunked_context and isinstance(longest, int) and budget < longest:
        yield (
            f"scheduling.chunked_context false: an iteration of {budget} tokens does not hold the longest prompt "
            f"({longest} tokens) whole",
            f"leave it on, or limits.max_prompt_tokens {budget}",
        )


def _of_cache(settings: ServingSettings, engine: EngineManifest) -> Iterator[tuple[str, str]]:
    cache = settings.kv_cache
    if cache.host_bytes and not cache.reuse:
        yield (
            f"kv_cache.host_bytes {cache.host_bytes} without kv_cache.reuse: blocks are kept in host memory only to "
            "be found again",
            "kv_cache.reuse true, or no host cache",
        )
    if cache.max_tokens is not None and cache.max_tokens < engine.limits.max_seq_len:
        yield (
            f"kv_cache.max_tokens {cache.max_tokens} does not hold one sequence of {engine.limits.max_seq_len} tokens",
            "TensorRT-LLM would shorten every sequence: raise it, or build the engine with a smaller --max-seq-len",
        )
    if cache.sink_tokens is not None and not cache.max_attention_window:
        yield (
            f"kv_cache.sink_tokens {cache.sink_tokens} without kv_cache.max_attention_window: nothing slides",
            "state the attention window too, or neither",
        )


def _of_decoding(
    settings: ServingSettings, engine: EngineManifest, config: EngineConfig | None
) -> Iterator[tuple[str, str]]:
    decoding = settings.decoding
    is_alone = (decoding.guided_backend is None) != (decoding.tokenizer_info is None)
    if is_alone and engine.backend == "tensorrt":  # the LLM API reads the vocabulary from the tokenizer
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
    built_for = None if config is None else config.speculation or "none"
    if built_for is not None and (decoding.mode if decoding.mode in SPECULATIVE else "none") != built_for:
        yield (
            f"decoding.mode {decoding.mode}: the engine's config.json says it was built for "
            f"{'no speculation' if built_for == 'none' else built_for}",
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


def _of_processes(settings: ServingSettings, engine: EngineManifest) -> Iterator[tuple[str, str]]:
    processes, ranks = settings.processes, engine.parallel.tensor * engine.parallel.pipeline
    if processes.mode == "leader" and not processes.spawn_processes:
        yield "processes.spawn_processes false is for orchestrator mode", "processes.mode orchestrator"
    if processes.mode == "orchestrator" and not processes.spawn_processes and processes.participant_ids is None:
        yield (
            "processes.spawn_processes false: processes.participant_ids must name the MPI ranks that serve",
            f"for {ranks} ranks behind an orchestrator of rank 0: '{','.join(map(str, range(1, ranks + 1)))}'",
        )
    for name in ("gpu_device_ids", "participant_ids"):
        groups = getattr(processes, name)
        wrong = [group for group in (groups or "").split(";") if group and len(group.split(",")) != ranks]
        if wrong:
            yield (
                f"processes.{name} '{wrong[0]}' names {len(wrong[0].split(','))}; the engine has {ranks} "
                f"rank{'' if ranks == 1 else 's'} (tensor {engine.parallel.tensor} x pipeline "
                f"{engine.parallel.pipeline})",
                "one number for each rank; semicolons part instances",
            )
    if processes.num_nodes > ranks:
        yield f"processes.num_nodes {processes.num_nodes} for {ranks} ranks", f"at most {ranks}"


def _of_text(settings: ServingSettings, engine: EngineManifest) -> Iterator[tuple[str, str]]:
    text, limits, built = settings.text, settings.limits, engine.limits
    if text.postprocessing_instances > 1 and settings.scheduling.streaming:
        yield (
            f"text.postprocessing_instances {text.postprocessing_instances} with scheduling.streaming: tokens of one "
            "character may reach different processes, which lose it",
            "1; a detokenizer needs a few microseconds for a token",
        )
    if text.accumulate_tokens and not settings.scheduling.streaming:
        yield "text.accumulate_tokens without scheduling.streaming: nothing is sent in parts", "leave one out"
    if isinstance(limits.max_prompt_tokens, int) and limits.max_prompt_tokens > built.max_input_len:
        yield (
            f"limits.max_prompt_tokens {limits.max_prompt_tokens} is past the engine's max_input_len "
            f"{built.max_input_len}",
            f"at most {built.max_input_len}",
        )
    if isinstance(limits.max_output_tokens, int) and limits.max_output_tokens > built.max_seq_len:
        yield (
            f"limits.max_output_tokens {limits.max_output_tokens} is past the engine's max_seq_len {built.max_seq_len}",
            f"at most {built.max_seq_len}",
        )


def _of_adapters(settings: ServingSettings, config: EngineConfig | None) -> Iterator[tuple[str, str]]:
    lora = settings.lora
    if lora.optimal_adapter_size > lora.max_adapter_size:
        yield (
            f"lora.optimal_adapter_size {lora.optimal_adapter_size} is past lora.max_adapter_size "
            f"{lora.max_adapter_size}",
            "the largest must be the largest",
        )
    if lora.prefetch_dir is not None and config is not None and config.lora is False:
        yield "lora.prefetch_dir: the engine was built without LoRA", "build-engine --lora-modules"
    if settings.runtime.gpu_weights_percent < 1 and config is not None and not config.weight_streaming:
        yield (
            f"runtime.gpu_weights_percent {settings.runtime.gpu_weights_percent}: the engine was built without weight "
            "streaming",
            "1.0, or trtllm-build --weight_streaming",
        )


def _of_lookahead(sizes: Lookahead, config: EngineConfig | None) -> Iterator[tuple[str, str]]:
    """Hold the sizes to the draft length the engine was built for: TensorRT-LLM wants just that one."""
    window, ngram, verified = sizes.window_size, sizes.ngram_size, sizes.verification_set_size
    if config is None or config.max_draft_len is None or window is None or ngram is None or verified is None:
        return
    draft = lookahead_draft_tokens(window, ngram, verified)
    if draft != config.max_draft_len:
        yield (
            f"decoding.lookahead {window}, {ngram}, {verified} drafts {draft} tokens a step; the engine's config.json "
            f"says it was built for {config.max_draft_len}",
            f"the sizes the engine was built with, or an engine of --lookahead {window},{ngram},{verified}",
        )
