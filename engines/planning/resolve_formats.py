"""Resolves number formats and what they permit: precision, KV cache, chunked context, KV reuse, the GEMM plugin."""

from __future__ import annotations

from engines.errors import UserError
from engines.manifest import Runtime
from engines.planning.choices import Choices
from engines.planning.llm_api import kv_refusal_of_backend
from engines.planning.recipe import Recipe
from engines.spec import (
    GpuSpec,
    KvFormat,
    ModelSpec,
    Precision,
    Verdict,
    engine_profile_named,
    gib,
    group_size_for,
    keeps_paged_attention,
    kv_refusal,
    require_possible,
)


def resolve_precision(choices: Choices, model: ModelSpec, gpu: GpuSpec, precision: Precision) -> Verdict:
    """Return the support of a precision by the GPU and the model; refuse one without, and an uneven split."""
    found = require_possible(precision, gpu, model.family)
    parallel = choices.resolved.recipe.parallel
    _require_peers(gpu, parallel.tensor * parallel.pipeline)
    _require_even_split(model, parallel.tensor)
    choices.given("model", model.name, f"{model.parameters:,} parameters")
    choices.given("gpu", gpu.name, f"{gib(gpu.memory_bytes)}, {gpu.kind_text}")
    choices.given("precision", precision.name, found.status)
    if found.status == "unlisted upstream":
        choices.notice("unlisted-precision", found.reason)
    scaling = model.rope_scaling if choices.resolved.recipe.backend == "tensorrt" else None
    if scaling is not None and scaling.attn_factor is not None:
        choices.notice(
            "yarn-attn-factor",
            "TensorRT-LLM's engine path does not read rope_scaling.attn_factor "
            f"({scaling.attn_factor:.4f}): its attention magnitude may differ slightly from stacks that do",
        )
    return found


def _require_peers(gpu: GpuSpec, gpus: int) -> None:
    """Refuse a replica of several slices of a GPU: they have no way to each other.

    Source: NVIDIA MIG User Guide, "Application Considerations": no GPU-to-GPU P2P, and a CUDA process sees one slice.
    """
    if gpus > 1 and gpu.is_slice:
        raise UserError(
            f"a replica of {gpus} GPUs on {gpu.name}: slices of a GPU cannot exchange data",
            hint="one slice per replica (--tp 1), a larger slice, or whole GPUs",
        )


def _require_even_split(model: ModelSpec, tensor: int) -> None:
    """Refuse a tensor parallel size that does not divide the heads.

    Each GPU has the same number of attention heads; KV heads are split, or replicated if there are fewer than GPUs.
    Source: TensorRT-LLM, tensorrt_llm/layers/attention.py (num_attention_heads // tp_size, and (num_kv_heads + tp_size
    - 1) // tp_size KV heads on each).
    """
    if model.attention_heads % tensor == 0 and (model.kv_heads % tensor == 0 or tensor % model.kv_heads == 0):
        return
    possible = [size for size in (1, 2, 4, 8) if model.attention_heads % size == 0]
    raise UserError(
        f"tensor parallel {tensor}: {model.name} has {model.attention_heads} attention heads and {model.kv_heads} KV "
        "heads, which it does not divide",
        hint=f"--tp: one of {', '.join(map(str, possible))}",
    )


def require_groups(model: ModelSpec, precision: Precision, recipe: Recipe) -> None:
    """Refuse a precision whose quantization groups do not divide the model's layers, before any work.

    Raises:
        UserError: No supported group size divides them.
    """
    group_size_for(
        precision,
        name=model.name,
        inputs=(model.hidden_size, model.attention_size, model.intermediate_size),
        tensor_parallel=recipe.parallel.tensor,
        backend=recipe.backend,
    )


def resolve_kv_format(choices: Choices, precision: Precision, gpu: GpuSpec) -> KvFormat:
    """Return the KV cache's number format: as given, or the one that supports paged attention."""
    wanted = choices.resolved.recipe.kv_cache.format
    if wanted == "auto":
        chosen: KvFormat = precision.default_kv
        if kv_refusal(chosen, precision, gpu):
            chosen = "16bit"
        choices.derived(
            "kv_cache.format", chosen, f"the cache format that supports paged attention with {precision.name}"
        )
        return chosen
    refused = kv_refusal(wanted, precision, gpu) or kv_refusal_of_backend(choices.resolved.recipe)
    if refused:
        raise UserError(
            f"KV cache {wanted} with {precision.name}: {refused}", hint="without --kv-cache, one that works is chosen"
        )
    choices.given("kv_cache.format", wanted, "as requested")
    return wanted


def resolve_runtime(choices: Choices, kv_format: KvFormat, precision: Precision) -> Runtime:
    """Return whether context is chunked and KV blocks are reused, and the scheduler's policy."""
    recipe = choices.resolved.recipe
    paged = keeps_paged_attention(kv_format, precision)
    values: dict[str, bool] = {}
    for key, requested in (("chunked_context", recipe.chunked_context), ("kv_cache.reuse", recipe.kv_cache.reuse)):
        if requested == "auto":
            values[key] = paged
            choices.derived(
                key, paged, "needs paged context attention, which this KV cache " + ("keeps" if paged else "loses")
            )
        elif requested and not paged:
            raise UserError(
                f"{key}: a {kv_format} KV cache with {precision.name} disables paged context attention, "
                "which this setting needs",
                hint="--kv-cache 16bit keeps it enabled",
            )
        else:
            values[key] = requested
            choices.given(key, requested, "as requested")
    if not paged:
        choices.notice(
            "no-paged-attention",
            f"a {kv_format} KV cache with {precision.name} disables paged context attention: "
            "no chunked context, no KV reuse, and max_num_tokens must cover the longest prompt",
        )
    batching = engine_profile_named(recipe.engine_profile).batching
    if batching.chunked_context is not None and recipe.chunked_context == "auto":
        values["chunked_context"] = batching.chunked_context
    policy = recipe.scheduler_policy
    if batching.scheduler_policy is not None:
        policy = batching.scheduler_policy
        choices.derived("scheduler_policy", policy, f"how {recipe.engine_profile} batches")
    else:
        choices.given("scheduler_policy", policy, "a request is never paused once started")
    return Runtime(
        chunked_context=values["chunked_context"],
        kv_reuse=values["kv_cache.reuse"],
        scheduler_policy=policy,
        new_token_ratio=batching.new_token_ratio,
        prompts_apart=batching.prompts_apart,
    )


def gemm_plugin(choices: Choices, precision: Precision) -> str:
    """Return the value of `trtllm-build --gemm_plugin`."""
    chosen = {"fp8": "disable", "fp4": "nvfp4"}.get(precision.arithmetic, "auto")
    if choices.resolved.recipe.backend == "tensorrt":
        advice = "TensorRT-LLM's advice: auto at 16 bit, off for FP8, nvfp4 for NVFP4"
        choices.derived("gemm_plugin", chosen, advice)
    return chosen
