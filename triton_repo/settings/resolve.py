"""Resolves serving settings: given values, and defaults derived from the engine.

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
from engines.spec import llm_api
from triton_repo.settings.conflicts import conflicts_in
from triton_repo.settings.engine_config import EngineConfig
from triton_repo.settings.repository_manifest import Choice
from triton_repo.settings.schema import ServingSettings
from triton_repo.settings.setting import Setting, all_settings, merged_over

TOKENIZING_PROCESSES = 4  # upstream advises about five; each costs 30 to 400 MB
MAX_BLS_PROCESSES = 64
Given = dict[str, Literal["flag", "serving.yaml"]]
# Settings with an effect on an engine of the PyTorch backend: arguments of the LLM API, or this project's own.
LLMAPI_SETTINGS = {
    "scheduling.policy", "scheduling.chunked_context", "scheduling.streaming", "kv_cache.free_gpu_mem_fraction",
    "kv_cache.max_tokens", "kv_cache.reuse", "kv_cache.host_bytes", "kv_cache.max_attention_window",
    "kv_cache.onboard_blocks", "kv_cache.sink_tokens", "decoding.guided_backend",
    "runtime.cancellation_check_period_ms", "processes.gpu_device_ids", "limits.max_prompt_tokens",
    "limits.max_output_tokens", "emulation.time_scale", "llmapi.max_batch_size", "llmapi.instances",
    "llmapi.postprocess_workers", "llmapi.model_code",
}  # fmt: skip


# Settings that a relayed engine behaves by: those of Triton, and of the models around the engine.
RELAYED_ROOMS = ("queue", "text", "limits")
RELAYED_SETTINGS = {
    "scheduling.streaming", "scheduling.exclude_input_in_output", "runtime.cancellation_check_period_ms",
    "runtime.stats_check_period_ms",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Resolved:
    """Settings without `auto`, the reason for each value, and notices."""

    settings: ServingSettings
    choices: list[Choice]
    notices: list[Notice]


def resolve(
    requested: ServingSettings,
    given: Given,
    engine: EngineManifest,
    config: EngineConfig | None = None,
    *,
    relay_url: str | None = None,
) -> Resolved:
    """Resolve open settings and refuse conflicts.

    Args:
        given: Dotted names of the explicitly given settings, with their origin.
        config: The engine's own config.json; None for an emulated engine, or if it is not available.
        relay_url: The server that requests are relayed to; `engine` is then the plan of that server.

    Raises:
        UserError: A conflict: the setting, its value, the contradiction, and a fix.
    """
    values = requested.model_dump()
    reasons: dict[str, str] = {}
    for setting in all_settings(requested):
        if setting.value == "auto":
            value, reasons[setting.name] = _DERIVED[setting.name](requested, engine, config)
            merged_over(values, setting.name, value)
    settings = validate(values, ServingSettings, where="serving settings")
    for what, hint in conflicts_in(settings, engine, config):
        raise UserError(what, hint=hint)
    choices = [
        _choice(setting, given, reasons, has_effect=_has_effect(setting, engine, relayed=relay_url is not None))
        for setting in all_settings(settings)
    ]
    notices = _notices(choices, settings, engine) if relay_url is None else _relayed_notices(choices, relay_url)
    return Resolved(settings, choices, list(notices))


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
        ("guaranteed_no_evict", "a static batch starts as a whole")
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
    "runtime.cuda_graph_cache_size": lambda requested, engine, _: (
        (engine.limits.max_batch_size, "a graph for each batch size")
        if requested.runtime.cuda_graphs
        else (0, "no CUDA graphs")
    ),
    "text.preprocessing_instances": lambda _, engine, __: (
        (1, "the engine shares this machine's CPU with them")
        if engine.kind == "emulated"
        else (TOKENIZING_PROCESSES, "long prompts do not wait for each other")
    ),
    "text.bls_instances": lambda _, engine, __: (
        (1, "the engine shares this machine's CPU with them")
        if engine.kind == "emulated"
        else (
            min(engine.limits.max_batch_size, MAX_BLS_PROCESSES),
            "one request per instance: as many as the engine's batch size",
        )
    ),
    "limits.max_prompt_tokens": lambda _, engine, __: (
        engine.limits.max_input_len,
        "the engine accepts no prompt longer than this",
    ),
    "limits.max_output_tokens": lambda _, engine, __: (engine.limits.max_seq_len, "no sequence is longer"),
}


def _decoding_mode(engine: EngineManifest, config: EngineConfig | None) -> tuple[str, str]:
    if config is not None and config.speculation:
        return config.speculation, "the engine was built for it"
    if engine.limits.max_beam_width > 1:
        return "beam_search", f"the engine's beam width is {engine.limits.max_beam_width}"
    return "top_k_top_p", "the engine's beam width is 1"


def _has_effect(setting: Setting, engine: EngineManifest, *, relayed: bool) -> bool:
    """Return whether the served engine, or the one that requests are relayed to, is affected by a setting."""
    if relayed:
        return setting.name.partition(".")[0] in RELAYED_ROOMS or setting.name in RELAYED_SETTINGS
    if engine.backend == "pytorch" and setting.name not in LLMAPI_SETTINGS:
        return False
    if engine.backend == "tensorrt" and setting.name.startswith("llmapi."):
        return False
    return setting.target.emulated if engine.kind == "emulated" else setting.name != "emulation.time_scale"


def _choice(setting: Setting, given: Given, reasons: dict[str, str], *, has_effect: bool) -> Choice:
    is_left_out = setting.value is None or setting.value == ()
    is_upstreams = is_left_out or shown(setting.value).lower() == setting.target.upstream_default.lower()
    origin: Any = given.get(setting.name) or (
        "derived" if setting.name in reasons else "upstream default" if is_upstreams else "default"
    )
    return Choice(
        name=setting.name,
        value=setting.value,
        origin=origin,
        reason=reasons.get(setting.name, ""),
        place=setting.target.place,
        upstream_default=setting.target.upstream_default,
        effect="yes" if has_effect else "none",
    )


def _notices(choices: list[Choice], settings: ServingSettings, engine: EngineManifest) -> Iterator[Notice]:
    if idle := _idle(choices):
        served = "an emulated engine" if engine.kind == "emulated" else f"an engine of the {engine.backend} backend"
        yield Notice(code="without-effect", text=f"{served} is not affected by {idle}")
    yield from _llm_api_notices(engine)
    ranks = engine.parallel.tensor * engine.parallel.pipeline
    if engine.kind != "emulated" and ranks > 1:
        how = (
            f"serve-repo starts it as {ranks} MPI ranks (leader mode)"
            if settings.processes.mode == "leader"
            else "serve-repo starts one Triton, which starts the workers (orchestrator mode)"
            if settings.processes.spawn_processes
            else f"start the workers of ranks {settings.processes.participant_ids} beside it (orchestrator mode)"
        )
        yield Notice(code="several-gpus", text=f"the engine has {ranks} ranks: {how}")


def _idle(choices: list[Choice]) -> str:
    """Return the given settings without effect; empty if there are none."""
    return ", ".join(each.name for each in choices if each.effect == "none" and each.origin in ("flag", "serving.yaml"))


def _relayed_notices(choices: list[Choice], url: str) -> Iterator[Notice]:
    """Yield what a reader of figures measured through a relay must know."""
    if idle := _idle(choices):
        yield Notice(code="without-effect", text=f"a relayed engine is not affected by {idle}")
    text = f"requests are relayed to {url}: its batch size, KV cache and scheduling are what it was started with"
    yield Notice(code="relayed", text=text)


def _llm_api_notices(engine: EngineManifest) -> Iterator[Notice]:
    """Yield notices about features of a PyTorch-backend engine's plan that the single Triton model lacks."""
    choices = engine.llm_api
    if choices is None:
        return
    if choices.adapters is not None and not llm_api(choices.version).triton_lora_inputs:
        text = (
            f"Triton's llmapi model of TensorRT-LLM {choices.version} has no input that selects an adapter; "
            "trtllm-serve takes lora_request"
        )
        yield Notice(code="no-adapter-input", text=text)
    if choices.disaggregation is not None:
        text = "one server computes prompts and replies; separate servers for both need trtllm-serve (commands.sh)"
        yield Notice(code="not-disaggregated", text=text)
    if choices.speculation is not None and engine.kind == "emulated" and engine.speculative is None:
        text = "an emulated engine decodes one token per step: the gain from speculation is not emulated"
        yield Notice(code="speculative-not-emulated", text=text)


def shown(value: Any) -> str:
    """Return a value in human notation.

    >>> shown(True), shown(None), shown((1, 2)), shown(0.9)
    ('true', 'none', '1,2', '0.9')
    """
    if isinstance(value, bool):
        return str(value).lower()
    if value is None or value == ():
        return "none"
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
