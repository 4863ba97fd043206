"""From a recipe to a build plan: every value resolved, with its origin and reason."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from engines.calibration import read_calibration, require_match
from engines.errors import TargetMissedError, UserError
from engines.files import Document, Strict, sha256_of
from engines.manifest import LlmApiChoices, Notice, Runtime, StepTimeChoice
from engines.planning.limits import BATCH_SIZES, TOKEN_BUDGETS, Engine, choose_limits, outlook
from engines.planning.llm_api import kv_refusal_of_backend, llm_api_choices, pytorch_release, require_backend_has
from engines.planning.recipe import LoraChoices, Objectives, Recipe, ResolvedRecipe, SpeculativeChoices, Workload
from engines.planning.speculation import Speculated, resolve_speculation, speculation_of
from engines.spec import (
    GpuSpec,
    KvFormat,
    MemoryBudget,
    ModelSpec,
    Precision,
    Sizing,
    SpeculativeDecoding,
    Verdict,
    engine_profile_named,
    gib,
    group_size_for,
    keeps_paged_attention,
    kv_refusal,
    precision_named,
    require_possible,
    resolve_gpu,
    resolve_model,
)
from engines.steptime import favoured_source

Origin = Literal["flag", "recipe", "default", "derived"]


class Choice(Strict):
    """One resolved value with its origin and reason."""

    name: str
    value: str | int | float | bool
    origin: Origin
    reason: str


class Predicted(Strict):
    """Predicted figures of the full engine for the typical request, from the step-time model."""

    sequences: int
    itl_s: float
    single_itl_s: float
    ttft_s: float
    longest_gap_s: float
    tokens_per_s: float


class BuildPlan(Document):
    """`plan.json`: all decisions and predictions of a build, made before anything is written."""

    backend: Literal["tensorrt", "pytorch"]
    step_time: StepTimeChoice
    model: ModelSpec
    gpu: GpuSpec
    precision: str
    kv_format: KvFormat
    verdict: Verdict
    tensorrt_llm: str
    sizing: Sizing
    max_input_len: int
    memory: MemoryBudget
    runtime: Runtime
    fp8_context_attention: bool
    gemm_plugin: str
    workload: Workload
    objectives: Objectives
    lora: LoraChoices
    speculative: SpeculativeChoices
    speculation: SpeculativeDecoding | None = None
    llm_api: LlmApiChoices | None = None
    predicted: Predicted
    choices: list[Choice]
    notices: list[Notice]

    @property
    def name(self) -> str:
        """The engine's name: model, precision and GPU."""
        return f"{self.model.name}-{self.precision}-{self.gpu.name}"

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes of one token's keys and values, those of the draft model included."""
        draft = None if self.speculation is None else self.speculation.draft
        drafted = 0 if draft is None else draft.kv_bytes_per_token(self.kv_format)
        return self.model.kv_bytes_per_token(self.kv_format) + drafted

    @property
    def built_max_seq_len(self) -> int:
        """The engine's own `max_seq_len`, to which `trtllm-build` adds the draft length."""
        return self.sizing.max_seq_len + self.speculative.max_draft_len


class _Choices:
    """Collects resolved values and notices while a plan is made."""

    def __init__(self, resolved: ResolvedRecipe) -> None:
        self.resolved = resolved
        self.made: list[Choice] = []
        self.notices: list[Notice] = []

    def given(self, key: str, value: str | float | bool, reason: str) -> None:
        """Record a value that was given, or a default."""
        self.made.append(Choice(name=key, value=value, origin=self.resolved.origin(key), reason=reason))

    def derived(self, key: str, value: str | float | bool, reason: str) -> None:
        """Record a value that the plan derived."""
        self.made.append(Choice(name=key, value=value, origin="derived", reason=reason))

    def notice(self, code: str, text: str) -> None:
        """Record a caveat for all later figures."""
        self.notices.append(Notice(code=code, text=text))


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
    choices = _Choices(resolved)
    for old, new in resolved.renamed.items():
        choices.notice("renamed-key", f"the recipe's {old} is now called {new}; the old name is still read")
    release = _release(choices)
    require_backend_has(recipe)
    found = _verdict(choices, model, gpu, precision)
    _require_groups(model, precision, recipe)
    speculative = recipe.speculative
    if recipe.backend == "tensorrt":
        speculative = resolve_speculation(speculative, model)
    kv_format = _kv_format(choices, precision, gpu)
    runtime = _runtime(choices, kv_format, precision)
    speculation = speculation_of(speculative, model)
    engine = _limits(choices, model, gpu, precision, kv_format, runtime, speculative, speculation.decoding)
    sizing, memory = engine.sizing, engine.memory
    _require_fit(model, gpu, sizing, memory)
    _require_prompts_fit(recipe.workload, sizing, chunked=runtime.chunked_context)
    predicted = _predicted(choices, engine)
    _note_speculation(choices, speculative, speculation, sizing)
    if recipe.backend == "tensorrt":
        _note_builder_limits(choices, speculative, sizing)
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
        gemm_plugin=_gemm_plugin(choices, precision),
        workload=recipe.workload,
        objectives=recipe.objectives,
        lora=_lora(choices),
        speculative=speculative,
        speculation=engine.speculation,
        llm_api=_llm_api(choices, release, engine, max_input_len),
        predicted=predicted,
        choices=choices.made,
        notices=choices.notices,
    )


def _release(choices: _Choices) -> str:
    """Return the TensorRT-LLM release to plan for; recorded if it follows from an LLM API version."""
    recipe = choices.resolved.recipe
    if recipe.backend == "tensorrt":
        return recipe.tensorrt_llm
    release = pytorch_release(recipe, is_release_given=choices.resolved.origin("tensorrt_llm") != "default")
    choices.given("tensorrt_llm", release, "the release whose LLM API the files are written for")
    return release


def _llm_api(choices: _Choices, release: str, engine: Engine, max_input_len: int) -> LlmApiChoices | None:
    """Return the settings of a PyTorch-backend server, recorded in the plan; None for an engine."""
    recipe = choices.resolved.recipe
    if recipe.backend == "tensorrt":
        return None
    found = llm_api_choices(recipe, release, engine.sizing, max_input_len=max_input_len)
    choices.notice(
        "pytorch-step-time",
        f"predictions for the PyTorch backend use the {engine.pricing.source} step-time model, as for an engine; its "
        "own time between iterations is not in it until a calibration finds it",
    )
    choices.given("trtllm_version", found.version, "whose argument names the files are written in")
    if found.cuda_graph_batch_sizes:
        sizes = " ".join(map(str, found.cuda_graph_batch_sizes))
        choices.given("cuda_graphs.batch_sizes", sizes, "one CUDA graph per size; other batch sizes run without")
    if found.disaggregation is not None:
        split = found.disaggregation
        choices.given("disaggregation.context_servers", split.context_servers, "prefill servers")
        choices.given("disaggregation.generation_servers", split.generation_servers, "decode servers")
        choices.notice(
            "disaggregation-not-predicted",
            (
                "predictions assume one server for prefill and decode; disaggregated servers and the transfer "
                "of the KV cache between them are not predicted"
            ),
        )
    return found


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


def _verdict(choices: _Choices, model: ModelSpec, gpu: GpuSpec, precision: Precision) -> Verdict:
    found = require_possible(precision, gpu, model.family)
    _require_even_split(model, choices.resolved.recipe.parallel.tensor)
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


def _kv_format(choices: _Choices, precision: Precision, gpu: GpuSpec) -> KvFormat:
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
            f"KV cache {wanted} with {precision.name}: {refused}", hint="--kv-cache auto picks one that works"
        )
    choices.given("kv_cache.format", wanted, "as requested")
    return wanted


def _limits(
    choices: _Choices,
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
    found = choose_limits(
        Engine(
            model,
            gpu,
            precision.name,
            kv_format,
            start,
            runtime.chunked_context,
            _pricing(choices, model, gpu, precision, kv_format),
            speculation,
        ),
        recipe.workload,
        recipe.objectives,
        batch_sizes=BATCH_SIZES if max_batch_size == "auto" else (max_batch_size,),
        token_budgets=TOKEN_BUDGETS if max_num_tokens == "auto" else (max_num_tokens,),
        max_draft_len=speculative.max_draft_len if recipe.backend == "tensorrt" else 0,
    )
    for name, requested, value in (
        ("limits.max_batch_size", max_batch_size, found.sizing.max_batch_size),
        ("limits.max_num_tokens", max_num_tokens, found.sizing.max_num_tokens),
    ):
        if requested == "auto":
            choices.derived(name, value, "highest predicted throughput that meets the objectives; see --explain")
        elif requested != value:
            _note_clamp(choices, requested, found.sizing)
        else:
            choices.given(name, value, "as requested")
    return found


def _note_builder_limits(choices: _Choices, speculative: SpeculativeChoices, sizing: Sizing) -> None:
    choices.derived(
        "builder.limits",
        f"max_batch_size {sizing.max_batch_size}, max_num_tokens {sizing.max_num_tokens}, "
        f"max_seq_len {sizing.max_seq_len + speculative.max_draft_len}",
        "the values that trtllm-build will write to the engine's config.json, after its own limits",
    )


def _note_clamp(choices: _Choices, requested: int, sizing: Sizing) -> None:
    """Record the value, with a notice, that the builder will use instead of the given `max_num_tokens`."""
    built, most = sizing.max_num_tokens, sizing.max_batch_size * sizing.max_seq_len
    rule = (
        f"no more than max_batch_size x max_seq_len, {most}"
        if requested > built
        else "not less than one block of tokens, nor than a full batch with its draft tokens"
    )
    choices.derived("limits.max_num_tokens", built, f"{requested} requested; an engine is built with {rule}")
    choices.notice("builder-clamp", f"max_num_tokens {requested} was requested; {built} will be built: {rule}")


def _pricing(
    choices: _Choices, model: ModelSpec, gpu: GpuSpec, precision: Precision, kv_format: KvFormat
) -> StepTimeChoice:
    """Return the step-time model; a calibration provides its own source, and is refused for other hardware."""
    recipe = choices.resolved.recipe
    tensor = recipe.parallel.tensor
    if recipe.step_time_calibration is None:
        profile = engine_profile_named(recipe.engine_profile)
        choices.given("engine_profile", profile.name, profile.description)
        source = recipe.step_time
        if source == "auto":
            source, why = favoured_source(model, gpu, precision.name, kv_format, tensor_parallel=tensor)
            choices.derived("step_time", source, why)
        else:
            choices.given("step_time", source, "as requested")
        factors = profile.factors_on(gpu, model)
        return StepTimeChoice(source=source, profile=profile.name, factors=factors, host=profile.host)
    path = Path(recipe.step_time_calibration)
    known = read_calibration(path)
    require_match(known, gpu=gpu.name, precision=precision.name, tensor_parallel=tensor, path=path)
    if known.measured_on == "emulated":
        choices.notice(
            "emulated-calibration", f"{path} was measured on an emulated engine, and does not describe a GPU"
        )
    return StepTimeChoice(source=known.source, factors=known.factors, host=known.host, calibration=sha256_of(path))


def _require_prompts_fit(workload: Workload, sizing: Sizing, *, chunked: bool) -> None:
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


def _predicted(choices: _Choices, engine: Engine) -> Predicted:
    """Predict the chosen engine's figures, with a notice if the objectives cannot be met."""
    recipe = choices.resolved.recipe
    for derived in getattr(engine.step_time, "derived", ()):
        choices.notice("step-time-derived", f"no measured kernels: {derived}")
    expected = outlook(engine, recipe.workload)
    missed = expected.misses(recipe.objectives)
    if missed:
        choices.notice("objectives-missed", f"predicted with a full batch: {missed}")
    return Predicted(
        sequences=expected.sequences,
        itl_s=expected.itl_s,
        single_itl_s=expected.single_itl_s,
        ttft_s=expected.ttft_s if expected.sequences else 0.0,
        longest_gap_s=expected.longest_gap_s,
        tokens_per_s=expected.tokens_per_s,
    )


def _lora(choices: _Choices) -> LoraChoices:
    lora = choices.resolved.recipe.lora
    if lora.target_modules:
        choices.given("lora.target_modules", " ".join(lora.target_modules), f"adapters up to rank {lora.max_rank}")
        choices.notice("lora", "the memory plan and predictions do not include adapters")
    return lora


def _require_groups(model: ModelSpec, precision: Precision, recipe: Recipe) -> None:
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


def _note_speculation(
    choices: _Choices, speculative: SpeculativeChoices, speculated: Speculated, sizing: Sizing
) -> None:
    """Record the speculation and what is accepted, with a notice of what no figure includes."""
    if speculative.mode == "none":
        return
    draft, decoding = speculative.max_draft_len, speculated.decoding
    choices.given("speculative.mode", speculative.mode, f"up to {draft} draft tokens per step")
    if choices.resolved.recipe.backend == "tensorrt":
        choices.notice(
            "speculative",
            f"trtllm-build adds {draft} to max_seq_len and needs max_num_tokens of at least "
            f"{sizing.max_batch_size * (draft + 1)}",
        )
    if decoding is None:
        choices.notice(
            "speculative-not-predicted",
            f"predictions and the emulator decode one token per step: {speculated.reason}; a draft model's memory is "
            "not in the plan",
        )
        return
    rates = " ".join(f"{rate:g}" for rate in decoding.acceptance)
    choices.given("speculative.acceptance", rates, decoding.acceptance_source)
    choices.derived(
        "speculative.tokens_per_step", round(decoding.tokens_per_step, 3), "one, and the sum of the acceptance"
    )
    if decoding.draft is not None:
        text = (
            f"{gib(decoding.draft.weights_bytes(precision_named('bf16')))} of 16-bit weights; its cache in every block"
        )
        choices.given("speculative.draft_model", decoding.draft.name, text)
    choices.notice(
        "acceptance",
        f"figures assume {decoding.tokens_per_step:.2f} tokens per step; acceptance depends on the draft model and the "
        "text, and is independent from step to step here",
    )


def _max_seq_len(choices: _Choices, model: ModelSpec) -> int:
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


def _require_fit(model: ModelSpec, gpu: GpuSpec, sizing: Sizing, memory: MemoryBudget) -> None:
    if memory.kv_tokens >= sizing.max_seq_len:
        return
    raise TargetMissedError(
        f"{model.name} does not fit {gpu.name}: weights {gib(memory.weights_bytes)}, activations "
        f"{gib(memory.activations_bytes)}, buffers {gib(memory.buffers_bytes)}, reserve {gib(memory.reserve_bytes)} of "
        f"{gib(memory.total_bytes)} leave a KV cache of {memory.kv_tokens} tokens, and one sequence of max_seq_len "
        f"needs {sizing.max_seq_len}",
        hint="try a smaller --max-seq-len, fewer weight bits, a larger GPU or more GPUs",
    )


def _runtime(choices: _Choices, kv_format: KvFormat, precision: Precision) -> Runtime:
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
    )


def _gemm_plugin(choices: _Choices, precision: Precision) -> str:
    chosen = {"fp8": "disable", "fp4": "nvfp4"}.get(precision.arithmetic, "auto")
    if choices.resolved.recipe.backend == "tensorrt":
        advice = "TensorRT-LLM's advice: auto at 16 bit, off for FP8, nvfp4 for NVFP4"
        choices.derived("gemm_plugin", chosen, advice)
    return chosen
