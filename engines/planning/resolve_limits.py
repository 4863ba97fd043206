"""Resolves an engine's limits: as given, or found by search; refuses what does not fit."""

from __future__ import annotations

import math

from engines.errors import TargetMissedError, UserError
from engines.manifest import Runtime
from engines.planning.choices import Choices
from engines.planning.limits import (
    BATCH_SIZES,
    TOKEN_BUDGETS,
    WORTH_RATIO,
    Engine,
    Outlook,
    choose_limits,
    outlook,
    without_gap,
)
from engines.planning.recipe import Objectives, SpeculativeChoices, Workload
from engines.planning.resolve_step_time import resolve_step_time
from engines.spec import (
    GpuSpec,
    KvFormat,
    MemoryBudget,
    ModelSpec,
    Precision,
    Sizing,
    SpeculativeDecoding,
    engine_profile_named,
    gib,
)


def resolve_limits(
    choices: Choices,
    model: ModelSpec,
    gpu: GpuSpec,
    precision: Precision,
    kv_format: KvFormat,
    runtime: Runtime,
    speculative: SpeculativeChoices,
    speculation: SpeculativeDecoding | None,
) -> Engine:
    """Return the engine with every limit resolved: as given, or found by search."""
    recipe = choices.resolved.recipe
    choices.given("kv_cache.tokens_per_block", recipe.kv_cache.tokens_per_block, "TensorRT-LLM's block size is 32")
    choices.given(
        "kv_cache.free_gpu_mem_fraction",
        recipe.kv_cache.free_gpu_mem_fraction,
        "share of the memory that is free at load, not of all memory",
    )
    batching = engine_profile_named(recipe.engine_profile).batching
    max_batch_size, max_num_tokens = recipe.limits.max_batch_size, recipe.limits.max_num_tokens
    if max_batch_size == "auto" and batching.max_batch_size is not None:
        max_batch_size = batching.max_batch_size
    if max_num_tokens == "auto" and batching.max_num_tokens is not None:
        max_num_tokens = batching.max_num_tokens
    start = Sizing(
        max_batch_size=1,
        max_num_tokens=1,
        max_seq_len=_max_seq_len(choices, model),
        tokens_per_block=recipe.kv_cache.tokens_per_block,
        kv_fraction=batching.memory_fraction or recipe.kv_cache.free_gpu_mem_fraction,
        tensor_parallel=recipe.parallel.tensor,
        pipeline_parallel=recipe.parallel.pipeline,
    )
    engine = Engine(
        model,
        gpu,
        precision.name,
        kv_format,
        start,
        runtime.chunked_context,
        resolve_step_time(choices, model, gpu, precision, kv_format),
        speculation,
    )
    objectives = _reachable(choices, engine)
    found = choose_limits(
        engine,
        recipe.workload,
        objectives,
        batch_sizes=BATCH_SIZES if max_batch_size == "auto" else (max_batch_size,),
        token_budgets=TOKEN_BUDGETS if max_num_tokens == "auto" else (max_num_tokens,),
        max_draft_len=speculative.max_draft_len if recipe.backend == "tensorrt" else 0,
    )
    why = f"{_reason(outlook(found, recipe.workload), objectives)}; see --explain"
    for name, requested, value in (
        ("limits.max_batch_size", max_batch_size, found.sizing.max_batch_size),
        ("limits.max_num_tokens", max_num_tokens, found.sizing.max_num_tokens),
    ):
        if requested == "auto":
            choices.derived(name, value, why)
        elif requested != value:
            _note_clamp(choices, requested, found.sizing)
        else:
            choices.given(name, value, "as requested")
    return found


def _reachable(choices: Choices, engine: Engine) -> Objectives:
    """Return the recipe's objectives without the defaults that even a single request misses.

    Defaults suit large GPUs. On a small one, such a default would force a batch of one, which misses it as well.
    """
    recipe = choices.resolved.recipe
    alone = [
        outlook(engine.limited(max_batch_size=1, max_num_tokens=budget), recipe.workload) for budget in TOKEN_BUDGETS
    ]
    dropped = {
        name: math.inf
        for name in ("ttft_s", "itl_s")
        if choices.resolved.origin(f"objectives.{name}") == "default"
        and min(getattr(each, name) for each in alone) > getattr(recipe.objectives, name)
    }
    return recipe.objectives.model_copy(update=dropped)


def _reason(expected: Outlook, objectives: Objectives) -> str:
    """Return why limits with these figures were chosen."""
    if expected.misses(without_gap(objectives)):
        return "lowest predicted ITL: no limits meet the objectives"
    kept = (
        f"smallest batch, then largest token budget, within {WORTH_RATIO:.0%} of the highest predicted throughput that "
        "meets the objectives"
    )
    if not expected.misses(objectives):
        return kept
    return f"{kept} but the longest gap, which a full iteration of the smallest token budget misses"


def _max_seq_len(choices: Choices, model: ModelSpec) -> int:
    recipe = choices.resolved.recipe
    if recipe.limits.max_seq_len != "auto":
        if recipe.limits.max_seq_len > model.max_position_embeddings:
            raise UserError(
                f"max_seq_len {recipe.limits.max_seq_len} exceeds the context length of {model.name} "
                f"({model.max_position_embeddings})",
                hint=f"--max-seq-len {model.max_position_embeddings} is the longest",
            )
        choices.given("limits.max_seq_len", recipe.limits.max_seq_len, "as requested")
        workload = recipe.workload
        if workload.isl + workload.osl > recipe.limits.max_seq_len:
            choices.notice(
                "workload-too-long",
                f"figures are of requests with {workload.isl} prompt and {workload.osl} reply tokens, and the engine "
                f"refuses requests of more than {recipe.limits.max_seq_len}: state its own lengths (--isl, --osl)",
            )
        return recipe.limits.max_seq_len
    wanted = recipe.workload.longest_isl + recipe.workload.longest_osl
    chosen = min(wanted, model.max_position_embeddings)
    choices.derived(
        "limits.max_seq_len",
        chosen,
        "longest prompt plus longest reply; always explicit, because trtllm-build would choose more",
    )
    return chosen


def _note_clamp(choices: Choices, requested: int, sizing: Sizing) -> None:
    """Record the value, with a notice, that the builder will use instead of the given `max_num_tokens`."""
    built, largest = sizing.max_num_tokens, sizing.max_batch_size * sizing.max_seq_len
    rule = (
        f"no more than max_batch_size x max_seq_len, {largest}"
        if requested > built
        else "not less than one block of tokens, nor than a full batch with its draft tokens"
    )
    choices.derived("limits.max_num_tokens", built, f"{requested} requested; an engine is built with {rule}")
    choices.notice("builder-clamp", f"max_num_tokens {requested} was requested; {built} will be built: {rule}")


def note_builder_limits(choices: Choices, speculative: SpeculativeChoices, sizing: Sizing) -> None:
    """Record the limits that `trtllm-build` will write."""
    choices.derived(
        "builder.limits",
        f"max_batch_size {sizing.max_batch_size}, max_num_tokens {sizing.max_num_tokens}, "
        f"max_seq_len {sizing.max_seq_len + speculative.max_draft_len}",
        "the values that trtllm-build will write to the engine's config.json, after its own limits",
    )


def require_prompts_fit(workload: Workload, sizing: Sizing, *, chunked: bool) -> None:
    """Refuse a `max_num_tokens` that a full batch, or the longest prompt without chunked context, exceeds."""
    if sizing.max_num_tokens < sizing.max_batch_size:
        raise UserError(
            f"max_num_tokens {sizing.max_num_tokens} is less than max_batch_size {sizing.max_batch_size}: "
            "a full batch could not even decode in one iteration",
            hint="raise --max-num-tokens or lower --max-batch-size",
        )
    longest = min(workload.longest_isl, sizing.max_seq_len - 1)
    if not chunked and sizing.max_num_tokens < longest:
        raise UserError(
            f"without chunked context, max_num_tokens ({sizing.max_num_tokens}) must cover the longest prompt "
            f"({longest} tokens)",
            hint=f"--max-num-tokens {longest}, or a KV cache format that keeps chunked context (--kv-cache auto)",
        )


def require_fit(model: ModelSpec, gpu: GpuSpec, sizing: Sizing, memory: MemoryBudget) -> None:
    """Refuse an engine whose KV cache does not hold one longest sequence.

    Raises:
        TargetMissedError: It does not; the message has the memory budget.
    """
    if memory.kv_tokens >= sizing.max_seq_len:
        return
    raise TargetMissedError(
        f"{model.name} does not fit {gpu.name}: weights {gib(memory.weights_bytes)}, activations "
        f"{gib(memory.activations_bytes)}, buffers {gib(memory.buffers_bytes)}, reserve {gib(memory.reserve_bytes)} of "
        f"{gib(memory.total_bytes)} leave a KV cache of {memory.kv_tokens} tokens, and one sequence of max_seq_len "
        f"needs {sizing.max_seq_len}",
        hint="try a smaller --max-seq-len, fewer weight bits, a larger GPU or more GPUs",
    )
