"""Creates the batcher of an engine from its manifest."""

from __future__ import annotations

from engines.emulator.engine import Batcher
from engines.emulator.request import BatcherSettings
from engines.manifest import EngineManifest
from engines.steptime import StepCost, cached_step_time


def settings_of(manifest: EngineManifest, *, max_queue_size: int = 0) -> BatcherSettings:
    """Return the batcher settings of an engine."""
    limits, cache, runtime = manifest.limits, manifest.kv_cache, manifest.runtime
    speculative = manifest.speculative
    return BatcherSettings(
        max_batch_size=limits.max_batch_size,
        max_num_tokens=limits.max_num_tokens,
        max_seq_len=limits.max_seq_len,
        max_input_len=limits.max_input_len,
        tokens_per_block=cache.tokens_per_block,
        kv_blocks=cache.blocks,
        kv_reuse=runtime.kv_reuse,
        chunked_context=runtime.chunked_context,
        policy=runtime.scheduler_policy,
        new_token_ratio=runtime.new_token_ratio,
        prompts_apart=runtime.prompts_apart,
        max_queue_size=max_queue_size,
        draft_tokens=0 if speculative is None else speculative.verified_tokens,
        acceptance=() if speculative is None else speculative.acceptance,
    )


def batcher_for(manifest: EngineManifest, *, max_queue_size: int = 0, ratios: StepCost | None = None) -> Batcher:
    """Return an idle batcher of the engine in a manifest, with ratios applied to the parts of its step cost."""
    source = cached_step_time(manifest.step_time, manifest.placed, speculative=manifest.speculative, ratios=ratios)
    return Batcher(settings_of(manifest, max_queue_size=max_queue_size), source)
