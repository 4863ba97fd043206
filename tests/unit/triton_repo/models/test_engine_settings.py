"""How an emulated engine reads the parameters of its config.pbtxt, and those of model.yaml."""

from __future__ import annotations

from typing import Any

import pytest

from engines.files import Document, MadeBy
from engines.manifest import EngineManifest
from engines.planning import emulated_manifest
from engines.planning.plan import make_plan
from engines.planning.recipe import resolve_recipe
from triton_repo.models.engine_settings import batcher_settings, llmapi_settings

HEAD = MadeBy(command="test", version="0")


@pytest.fixture(scope="module")
def manifest() -> EngineManifest:
    """Plan the default engine."""
    asked = resolve_recipe(None, {})
    return emulated_manifest(make_plan(asked, head=Document(made_by=HEAD)), asked.recipe)


def _config(**parameters: str) -> dict[str, Any]:
    return {"parameters": {key: {"string_value": value} for key, value in parameters.items()}}


def test_what_is_not_there_is_upstreams_default(manifest: EngineManifest) -> None:
    """No eviction, reuse on, chunks off, nine tenths of the free memory, no host cache, no queue limit."""
    found = batcher_settings(_config(), manifest)
    assert (found.policy, found.kv_reuse, found.chunked_context) == ("guaranteed_no_evict", True, False)
    assert (found.kv_blocks, found.host_blocks, found.max_queue_size) == (manifest.kv_cache.blocks, 0, 0)
    assert found.max_batch_size == manifest.limits.max_batch_size


def test_parameters_change_the_engine(manifest: EngineManifest) -> None:
    """Policy, reuse, chunks and the queue are what config.pbtxt says."""
    config = _config(
        batch_scheduler_policy="max_utilization", enable_kv_cache_reuse="False", enable_chunked_context="1"
    )
    config["dynamic_batching"] = {"default_queue_policy": {"max_queue_size": 7}}
    found = batcher_settings(config, manifest)
    assert (found.policy, found.kv_reuse, found.chunked_context) == ("max_utilization", False, True)
    assert found.max_queue_size == 7
    assert batcher_settings(_config(gpt_model_type="V1"), manifest).policy == "static_batch"


def test_what_cannot_be_read_is_as_if_it_were_not_there(manifest: EngineManifest) -> None:
    """An unfilled placeholder and a word that is no switch leave the default, as in TensorRT-LLM's backend."""
    unreadable = _config(
        enable_kv_cache_reuse="${enable_kv_cache_reuse}",
        enable_chunked_context="yes",
        kv_cache_free_gpu_mem_fraction="${x}",
        max_tokens_in_paged_kv_cache="",
        batch_scheduler_policy="none",
    )
    assert batcher_settings(unreadable, manifest) == batcher_settings(_config(), manifest)


def test_the_kv_pool_follows_the_fraction_and_its_cap(manifest: EngineManifest) -> None:
    """Half the fraction is half the blocks; a cap in tokens rounds up to whole blocks."""
    cache = manifest.kv_cache
    half = batcher_settings(_config(kv_cache_free_gpu_mem_fraction=str(cache.free_gpu_mem_fraction / 2)), manifest)
    assert half.kv_blocks == cache.blocks // 2
    capped = batcher_settings(_config(max_tokens_in_paged_kv_cache=str(10 * cache.tokens_per_block + 1)), manifest)
    assert capped.kv_blocks == 11


def test_host_memory_is_counted_in_blocks(manifest: EngineManifest) -> None:
    """A GiB of FP8 cache at 72 KiB a token holds 455 blocks of 32 tokens; without reuse it holds none."""
    assert manifest.kv_cache.bytes_per_token == 73_728
    assert batcher_settings(_config(kv_cache_host_memory_bytes=str(1 << 30)), manifest).host_blocks == 455
    off = _config(kv_cache_host_memory_bytes=str(1 << 30), enable_kv_cache_reuse="false")
    assert batcher_settings(off, manifest).host_blocks == 0


def test_model_yaml_says_the_same_of_the_llm_api(manifest: EngineManifest) -> None:
    """The LLM API's arguments lead to the same engine as the parameters of the other models."""
    document = {
        "enable_chunked_prefill": True,
        "scheduler_config": {"capacity_scheduler_policy": "MAX_UTILIZATION"},
        "kv_cache_config": {"enable_block_reuse": True, "free_gpu_memory_fraction": 0.45, "host_cache_size": 1 << 30},
    }
    parameters = _config(
        enable_chunked_context="true",
        batch_scheduler_policy="max_utilization",
        kv_cache_free_gpu_mem_fraction="0.45",
        kv_cache_host_memory_bytes=str(1 << 30),
    )
    assert llmapi_settings(document, manifest) == batcher_settings(parameters, manifest)
    assert llmapi_settings({}, manifest) == batcher_settings(_config(), manifest)
