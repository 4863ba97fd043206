"""Settings of the emulated batcher, from a model's config.pbtxt as Triton provides it.

An emulated engine reads the same parameters as TensorRT-LLM's backend and handles missing or invalid values in the same
way, so an edited config.pbtxt changes the emulated engine as it would change the real one.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from engines.emulator import BatcherSettings, SchedulerPolicy, settings_of
from engines.files import read_json
from engines.manifest import EngineManifest
from triton_repo.models.parameters import flag, number, parameters_of

DEFAULT_KV_FRACTION = 0.9


class ModelFiles(NamedTuple):
    """What Triton gives a model to start from: its configuration, version folder and the emulated engine's manifest."""

    config: dict[str, Any]
    parameters: dict[str, str]
    folder: Path
    manifest: EngineManifest


def model_files(args: Mapping[str, str]) -> ModelFiles:
    """Return what a Python-backend model's `initialize` arguments lead to."""
    config = json.loads(args["model_config"])
    parameters = parameters_of(config)
    folder = Path(args["model_repository"]) / args["model_version"]
    return ModelFiles(config, parameters, folder, read_json(folder / parameters["emulator_manifest"], EngineManifest))


def batcher_settings(config: Mapping[str, Any], manifest: EngineManifest) -> BatcherSettings:
    """Return the batcher settings of the in-flight batching model: the engine's limits and the parameters.

    Args:
        config: The model's configuration, as JSON.
    """
    values = parameters_of(config)
    policy = values.get("batch_scheduler_policy")
    static = values.get("gpt_model_type", "").lower() == "v1"
    running: SchedulerPolicy = "max_utilization" if policy == "max_utilization" else "guaranteed_no_evict"
    queue = config.get("dynamic_batching", {}).get("default_queue_policy", {})
    reuse = flag(values, "enable_kv_cache_reuse", default=True)
    return replace(
        settings_of(manifest, max_queue_size=int(queue.get("max_queue_size", 0))),
        policy="static_batch" if static else running,
        chunked_context=flag(values, "enable_chunked_context", default=False),
        kv_reuse=reuse,
        kv_blocks=kv_blocks(
            manifest,
            fraction=number(values, "kv_cache_free_gpu_mem_fraction", DEFAULT_KV_FRACTION),
            max_kv_tokens=number(values, "max_tokens_in_paged_kv_cache", math.inf),
        ),
        host_blocks=host_blocks(manifest, number(values, "kv_cache_host_memory_bytes", 0)) if reuse else 0,
    )


def llmapi_settings(document: Mapping[str, Any], manifest: EngineManifest) -> BatcherSettings:
    """Return the batcher settings of the LLM API's engine, from its model.yaml."""
    cache = document.get("kv_cache_config", {})
    scheduler = document.get("scheduler_config", {})
    policy = str(scheduler.get("capacity_scheduler_policy", "GUARANTEED_NO_EVICT")).lower()
    known: dict[str, SchedulerPolicy] = {"max_utilization": "max_utilization", "static_batch": "static_batch"}
    reuse = bool(cache.get("enable_block_reuse", True))
    return replace(
        settings_of(manifest),
        policy=known.get(policy, "guaranteed_no_evict"),
        chunked_context=bool(document.get("enable_chunked_prefill", False)),
        kv_reuse=reuse,
        kv_blocks=kv_blocks(
            manifest,
            fraction=float(cache.get("free_gpu_memory_fraction", DEFAULT_KV_FRACTION)),
            max_kv_tokens=float(cache.get("max_tokens") or math.inf),
        ),
        host_blocks=host_blocks(manifest, float(cache.get("host_cache_size") or 0)) if reuse else 0,
    )


def kv_blocks(manifest: EngineManifest, *, fraction: float, max_kv_tokens: float) -> int:
    """Return the number of blocks of the KV pool: the plan's, scaled to another memory fraction, and capped.

    The plan's pool is its fraction of the memory the engine leaves free, so the size for another fraction is
    proportional.
    """
    cache = manifest.kv_cache
    blocks = cache.blocks
    if fraction != cache.free_gpu_mem_fraction:
        blocks = int(cache.blocks * fraction / cache.free_gpu_mem_fraction)
    if math.isfinite(max_kv_tokens):
        blocks = min(blocks, math.ceil(max_kv_tokens / cache.tokens_per_block))
    return blocks


def host_blocks(manifest: EngineManifest, size_bytes: float) -> int:
    """Return the number of blocks that fit into host memory."""
    cache = manifest.kv_cache
    return int(size_bytes // (cache.bytes_per_token * cache.tokens_per_block))
