"""From a plan to the manifest of its engine: built, emulated or quantized only."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from typing import Literal

from engines.files import versions_of
from engines.manifest import (
    CheckpointQuality,
    EngineManifest,
    KvCache,
    Limits,
    Notice,
    Parallel,
    PrecisionFacts,
    StageRecord,
)
from engines.planning.build_plan import BuildPlan
from engines.planning.recipe import Recipe

Kind = Literal["built", "emulated", "checkpoint"]
_ACTIVATIONS: dict[str, Literal["float32", "float16"]] = {"fp32": "float32", "fp16": "float16"}
BUILD_TOOLS = ("nvidia-modelopt", "torch", "transformers", "safetensors")


def emulated_manifest(plan: BuildPlan, recipe: Recipe) -> EngineManifest:
    """Return the manifest of an emulated engine, without writing anything."""
    return manifest_of(plan, recipe, kind="emulated", has_tokenizer=False)


def manifest_of(
    plan: BuildPlan,
    recipe: Recipe,
    *,
    kind: Kind,
    has_tokenizer: bool,
    quality: CheckpointQuality | None = None,
    notices: Sequence[Notice] = (),
    stages: Sequence[StageRecord] = (),
) -> EngineManifest:
    """Return the manifest of an engine made from a plan.

    Args:
        has_tokenizer: Whether it includes a tokenizer.
        quality: Accuracy of the quantized checkpoint, if there is one.
        notices: Notices of the build, in addition to the plan's.
    """
    return EngineManifest(
        made_by=plan.made_by,
        made_from=plan.made_from,
        kind=kind,
        backend=plan.backend,
        model=plan.model,
        gpu=plan.gpu,
        precision=PrecisionFacts(
            name=plan.precision,
            kv_cache=plan.kv_format,
            activation_dtype=_ACTIVATIONS.get(plan.precision, "bfloat16"),
        ),
        parallel=Parallel(tensor=plan.sizing.tensor_parallel, pipeline=plan.sizing.pipeline_parallel),
        limits=Limits(
            max_batch_size=plan.sizing.max_batch_size,
            max_num_tokens=plan.sizing.max_num_tokens,
            max_seq_len=plan.sizing.max_seq_len,
            max_input_len=plan.max_input_len,
        ),
        kv_cache=KvCache(
            tokens_per_block=plan.sizing.tokens_per_block,
            blocks=plan.memory.kv_blocks,
            bytes_per_token=plan.kv_bytes_per_token,
            free_gpu_mem_fraction=plan.sizing.kv_fraction,
        ),
        runtime=plan.runtime,
        step_time=plan.step_time,
        speculative=plan.speculation,
        llm_api=plan.llm_api,
        tokenizer="tokenizer" if has_tokenizer else None,
        engine="engine" if kind == "built" else None,
        checkpoint=None if kind == "emulated" or recipe.published_checkpoint else "checkpoint",
        versions=_versions(plan),
        quality=quality,
        stages=tuple(stages),
        notices=[*plan.notices, *notices, *_kind_notices(kind, has_tokenizer=has_tokenizer)],
    )


def _kind_notices(kind: Kind, *, has_tokenizer: bool) -> list[Notice]:
    notices = []
    if kind == "emulated":
        text = "no engine was built: every figure comes from a step-time model, not from a GPU"
        notices.append(Notice(code="emulated", text=text))
    if not has_tokenizer:
        notices.append(Notice(code="no-tokenizer", text="no tokenizer was found; build-repo needs --tokenizer DIR"))
    return notices


def _versions(plan: BuildPlan) -> dict[str, str]:
    return {"python": platform.python_version(), "tensorrt_llm": plan.tensorrt_llm, **versions_of(BUILD_TOOLS)}
