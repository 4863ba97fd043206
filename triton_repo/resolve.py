"""From what was asked of the server, and the engine at hand, to settings with nothing left open.

Every `auto` becomes what the engine's plan says; what contradicts the engine, or another setting, is refused before a
file is written; what has no effect where it will be served is said.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from engines.errors import UserError
from engines.files import validate
from engines.manifest import EngineManifest, Notice
from triton_repo.engine_config import EngineConfig
from triton_repo.settings import Choice, ServingSettings, Setting, all_settings, laid_over

TOKENIZING_PROCESSES = 4  # upstream advises about five; one costs 30 to 400 MB
MOST_BLS_PROCESSES = 64
Given = dict[str, Literal["flag", "serving.yaml"]]
SPECULATIVE = {"medusa", "redrafter", "lookahead", "eagle"}
# Settings that reach an engine of the PyTorch backend: by an argument of the LLM API, or because they are ours.
LLMAPI_SETTINGS = {
    "scheduling.policy", "scheduling.chunked_context", "scheduling.streaming", "kv_cache.free_gpu_mem_fraction",
    "kv_cache.max_tokens", "kv_cache.reuse", "kv_cache.host_bytes", "kv_cache.max_attention_window",
    "kv_cache.onboard_blocks", "kv_cache.sink_tokens", "decoding.guided_backend",
    "runtime.cancellation_check_period_ms", "processes.gpu_device_ids", "limits.max_prompt_tokens",
    "limits.max_output_tokens", "emulation.time_scale", "llmapi.max_batch_size", "llmapi.instances",
    "llmapi.postprocess_workers", "llmapi.model_code",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Resolved:
    """Settings without an `auto`, why each is what it is, and what to know of them."""

    settings: ServingSettings
    choices: list[Choice]
    notices: list[Notice]


def resolve(
    asked: ServingSettings, given: Given, engine: EngineManifest, config: EngineConfig | None = None
) -> Resolved:
    """Fill in what was left open, refuse what cannot be.

    Args:
        given: The dotted names that were asked for, and where.
        config: The engine's own config.json; None for an emulated engine, or where it is not here.

    Raises:
        UserError: A contradiction: the setting, its value, what it contradicts, and what would do.
    """
    values = asked.model_dump()
    reasons: dict[str, str] = {}
    for setting in all_settings(asked):
        if setting.value == "auto":
            value, reasons[setting.name] = _DERIVED[setting.name](asked, engine, config)
            laid_over(values, setting.name, value)
    settings = validate(values, ServingSettings, where="serving settings")
    for what, hint in contradictions(settings, engine, config):
        raise UserError(what, hint=hint)
    choices = [_choice(setting, given, reasons, engine) for setting in all_settings(settings)]
    return Resolved(settings, choices, list(_notices(choices, settings, engine)))


def given_in(document: dict[str, Any], prefix: str = "") -> list[str]:
    """Return the dotted names of the leaves of nested dictionaries.

    >>> given_in({"queue": {"delay_us": 5}, "text": {}})
    ['queue.delay_us']
    """
    names: list[str] = []
    for key, value in document.items():
        names += given_in(value, f"{prefix}{key}.") if isinstance(value, dict) else [prefix + key]
    return names


_Derivation = Callable[[ServingSettings, EngineManifest, EngineConfig | None], tuple[Any, str]]
_DERIVED: dict[str, _Derivation] = {
    "scheduling.policy": lambda _, engine, __: (
        ("guaranteed_no_evict", "static batches start whole")
        if engine.runtime.scheduler_policy == "static_batch"
        else (engine.runtime.scheduler_policy, "the engine was planned with it")
    ),
    "scheduling.batching": lambda _, engine, __: (
        ("v1", "the engine was planned for static batches")
        if engine.runtime.scheduler_policy == "static_batch"
        else ("inflight_fused_batching", "the engine was planned for in-flight batching")
    ),
    "scheduling.chunked_context": lambda _, engine, __: (
        engine.runtime.chunked_context,
        "the engine was planned with it" if engine.runtime.chunked_context else "the engine was planned without it",
    ),
    "kv_cache.free_gpu_mem_fraction": lambda _, engine, __: (
        engine.kv_cache.free_gpu_mem_fraction,
        f"the plan's {engine.kv_cache.blocks} KV blocks follow from it",
    ),
    "kv_cache.reuse": lambda _, engine, __: (
        engine.runtime.kv_reuse,
        "the engine was planned with it" if engine.runtime.kv_reuse else "the engine was planned without it",
    ),
    "decoding.mode": lambda _, engine, config: _decoding_mode(engine, config),
    "types.logits": lambda _, __, config: (
        (config.logits, "the engine's config.json")
        if config is not None and config.logits
        else ("fp32", "trtllm-build's default")
    ),
    "runtime.cuda_graph_cache_size": lambda asked, engine, _: (
        (engine.limits.max_batch_size, "a graph for each batch size")
        if asked.runtime.cuda_graphs
        else (0, "no CUDA graphs")
    ),
    "text.preprocessing_instances": lambda _, engine, __: (
        (1, "an emulated engine shares the CPU with them")
        if engine.kind == "emulated"
        else (TOKENIZING_PROCESSES, "long prompts do not wait for each other")
    ),
    "text.bls_instances": lambda _, engine, __: (
        (1, "an emulated engine shares the CPU with them")
        if engine.kind == "emulated"
        else (min(engine.limits.max_batch_size, MOST_BLS_PROCESSES), "one request each: as many as the engine batches")
    ),
    "limits.max_prompt_tokens": lambda _, engine, __: (engine.limits.max_input_len, "the engine takes no longer one"),
    "limits.max_output_tokens": lambda _, engine, __: (engine.limits.max_seq_len, "no sequence is longer"),
}


def _decoding_mode(engine: EngineManifest, config: EngineConfig | None) -> tuple[str, str]:
    if config is not None and config.speculation:
        return config.speculation, "the engine was built for it"
    if engine.limits.max_beam_width > 1:
        return "beam_search", f"the engine's beam width is {engine.limits.max_beam_width}"
    return "top_k_top_p", "the engine's beam width is 1"


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
    if (decoding.guided_backend is None) != (decoding.tokenizer_info is None):
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


def has_effect(setting: Setting, engine: EngineManifest) -> bool:
    """Return whether the engine to be served behaves by a setting."""
    if engine.backend == "pytorch" and setting.name not in LLMAPI_SETTINGS:
        return False
    if engine.backend == "tensorrt" and setting.name.startswith("llmapi."):
        return False
    return setting.target.emulated if engine.kind == "emulated" else setting.name != "emulation.time_scale"


def _choice(setting: Setting, given: Given, reasons: dict[str, str], engine: EngineManifest) -> Choice:
    is_upstreams = shown(setting.value).lower() == setting.target.upstream_default.lower()
    origin: Any = given.get(setting.name) or (
        "derived" if setting.name in reasons else "upstream default" if is_upstreams else "default"
    )
    return Choice(
        name=setting.name,
        value=setting.value,
        origin=origin,
        reason=reasons.get(setting.name, "as asked" if setting.name in given else ""),
        place=setting.target.place,
        upstream_default=setting.target.upstream_default,
        effect="yes" if has_effect(setting, engine) else "none",
    )


def _notices(choices: list[Choice], settings: ServingSettings, engine: EngineManifest) -> Iterator[Notice]:
    idle = [choice.name for choice in choices if choice.effect == "none" and choice.origin in ("flag", "serving.yaml")]
    if idle:
        served = "an emulated engine" if engine.kind == "emulated" else f"an engine of the {engine.backend} backend"
        yield Notice(code="without-effect", text=f"{served} does not behave by {', '.join(idle)}")
    ranks = engine.parallel.tensor * engine.parallel.pipeline
    if engine.kind != "emulated" and ranks > 1:
        how = (
            f"start it as {ranks} MPI ranks: mpirun -n {ranks} tritonserver ..."
            if settings.processes.mode == "leader"
            else "start one Triton with TRTLLM_ORCHESTRATOR=1 in its environment"
            + ("" if settings.processes.spawn_processes else " and TRTLLM_ORCHESTRATOR_SPAWN_PROCESSES=0")
        )
        yield Notice(code="several-gpus", text=f"the engine has {ranks} ranks: {how}")


def shown(value: Any) -> str:
    """Return a value as people write it.

    >>> shown(True), shown(None), shown((1, 2)), shown(0.9)
    ('true', 'none', '1,2', '0.9')
    """
    if isinstance(value, bool):
        return str(value).lower()
    if value is None or value == ():
        return "none"
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
