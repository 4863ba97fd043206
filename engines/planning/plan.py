"""From a recipe to a build plan: every value resolved, with its origin and reason."""

from __future__ import annotations

from engines.files import Document
from engines.planning.build_plan import BuildPlan, Predicted
from engines.planning.choices import Choices
from engines.planning.limits import Engine, outlook, without_gap
from engines.planning.llm_api import release_of, require_backend_has, resolve_llm_api
from engines.planning.recipe import LoraChoices, ResolvedRecipe
from engines.planning.resolve_formats import (
    gemm_plugin,
    require_groups,
    resolve_kv_format,
    resolve_precision,
    resolve_runtime,
)
from engines.planning.resolve_limits import note_builder_limits, require_fit, require_prompts_fit, resolve_limits
from engines.planning.speculation import note_speculation, resolve_speculation, speculation_of
from engines.spec import ModelSpec, gib, keeps_paged_attention, precision_named, resolve_gpu, resolve_model


def make_plan(resolved: ResolvedRecipe, *, head: Document, model: ModelSpec | None = None) -> BuildPlan:
    """Resolve a recipe into a plan.

    Args:
        resolved: The recipe and the origins of its values.
        head: `made_by` and `made_from` of the plan.
        model: Geometry read from a checkpoint; None: the recipe's model by name.

    Raises:
        UserError: The combination cannot be built; the hint names the nearest that can.
        TargetMissedError: The model does not fit the GPU, or the KV cache does not fit one longest request.
    """
    recipe = resolved.recipe
    model = model or resolve_model(recipe.model)
    gpu, precision = resolve_gpu(recipe.gpu), precision_named(recipe.precision)
    choices = Choices(resolved)
    for old, new in resolved.renamed.items():
        choices.notice("renamed-key", f"the recipe's {old} is now called {new}; the old name is still read")
    release = release_of(choices)
    require_backend_has(recipe)
    found = resolve_precision(choices, model, gpu, precision)
    require_groups(model, precision, recipe)
    speculative = recipe.speculative
    if recipe.backend == "tensorrt":
        speculative = resolve_speculation(speculative, model)
    kv_format = resolve_kv_format(choices, precision, gpu)
    runtime = resolve_runtime(choices, kv_format, precision)
    speculation = speculation_of(speculative, model)
    engine = resolve_limits(choices, model, gpu, precision, kv_format, runtime, speculative, speculation.decoding)
    sizing, memory = engine.sizing, engine.memory
    require_fit(model, gpu, sizing, memory)
    require_prompts_fit(recipe.workload, sizing, chunked=runtime.chunked_context)
    predicted = _predicted(choices, engine)
    note_speculation(choices, speculative, speculation, sizing)
    if recipe.backend == "tensorrt":
        note_builder_limits(choices, speculative, sizing)
    max_input_len = min(recipe.workload.longest_isl, sizing.max_seq_len - 1)
    choices.derived("kv_blocks", memory.kv_blocks, f"{gib(memory.kv_pool_bytes)} hold {memory.kv_tokens} tokens")
    return BuildPlan(
        made_by=head.made_by,
        made_from=head.made_from,
        backend=recipe.backend,
        step_time=engine.pricing,
        model=model,
        gpu=gpu,
        precision=precision.name,
        kv_format=kv_format,
        verdict=found,
        tensorrt_llm=release,
        sizing=sizing,
        max_input_len=max_input_len,
        memory=memory,
        runtime=runtime,
        fp8_context_attention=kv_format == "fp8" and keeps_paged_attention(kv_format, precision),
        gemm_plugin=gemm_plugin(choices, precision),
        workload=recipe.workload,
        objectives=recipe.objectives,
        lora=_lora(choices),
        speculative=speculative,
        speculation=engine.speculation,
        llm_api=resolve_llm_api(choices, release, engine, max_input_len),
        predicted=predicted,
        choices=choices.made,
        notices=choices.notices,
    )


def _predicted(choices: Choices, engine: Engine) -> Predicted:
    """Predict the chosen engine's figures, with a notice if the objectives cannot be met."""
    recipe = choices.resolved.recipe
    for derived in getattr(engine.step_time, "derived", ()):
        choices.notice("step-time-derived", f"no measured kernels: {derived}")
    expected = outlook(engine, recipe.workload)
    missed = expected.misses(recipe.objectives)
    if missed:
        alone = outlook(engine.limited(max_batch_size=1), recipe.workload).misses(without_gap(recipe.objectives))
        reach = f"; out of reach of one request at a time too: {alone} (--ttft-ms and --itl-ms are in milliseconds)"
        choices.notice("objectives-missed", f"predicted with a full batch: {missed}{reach if alone else ''}")
    return Predicted(
        sequences=expected.sequences,
        itl_s=expected.itl_s,
        single_itl_s=expected.single_itl_s,
        ttft_s=expected.ttft_s if expected.sequences else 0.0,
        longest_gap_s=expected.longest_gap_s,
        tokens_per_s=expected.tokens_per_s,
    )


def _lora(choices: Choices) -> LoraChoices:
    lora = choices.resolved.recipe.lora
    if lora.target_modules:
        choices.given("lora.target_modules", " ".join(lora.target_modules), f"adapters up to rank {lora.max_rank}")
        choices.notice("lora", "the memory plan and predictions do not include adapters")
    return lora
