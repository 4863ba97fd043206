"""The implementation of `build-engine`: plan, then build or emulate, one engine or a matrix of engines."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engines.build import (
    Job,
    Kind,
    Stages,
    available_memory_bytes,
    inspect_in_stages,
    pytorch_refusal,
    run_job,
    visible_gpu,
)
from engines.checkpoint import (
    CheckpointFacts,
    find_tokenizer,
    inspect_checkpoint,
    model_of,
    quantizing_memory_bytes,
    verifying_memory_bytes,
)
from engines.cli.tables import show_explained, show_pairs, show_plan, show_quality, show_stages
from engines.console import command_line, progress, quoted, show, wrote
from engines.errors import MissingError, TargetMissedError, UserError
from engines.files import Document, Source, made_by, source_of, to_json
from engines.manifest import EngineManifest
from engines.outputs import paths_named, refuse_existing
from engines.planning import (
    BuildPlan,
    Combination,
    Comparison,
    ResolvedRecipe,
    combinations_of,
    listed,
    make_plan,
    planned_row,
    rates_of,
    recipe_path,
    refused_row,
    resolve_recipe,
    show_comparison,
)
from engines.spec import gib, known_gpus, milliseconds, sources_named


def run(**flags: Any) -> None:
    """Plan, build or emulate an engine."""
    if flags["list_pairs"]:
        show_pairs()
        return
    combinations = combinations_of(flags)
    if len(combinations) > 1:
        _build_matrix(combinations, flags)
        return
    (combination,) = combinations
    planned = _plan_one(combination, flags, stages=_stages(flags, flags["out"]))
    if flags["explained"]:
        show_explained(planned.plan, as_json=flags["as_json"])
    elif flags["dry_run"]:
        show_plan(planned.plan, as_json=flags["as_json"])
    else:
        _build_one(planned, flags)


def _build_one(planned: Planned, flags: dict[str, Any]) -> None:
    refuse_existing(planned.out, force=flags["force"], inputs=paths_named(flags), command="build-engine")
    _announce(planned, quiet=flags["as_json"])
    manifest = run_job(planned.job, planned.out, force=flags["force"], stages=planned.stages)
    if flags["as_json"]:
        show(to_json(manifest).rstrip())
    else:
        show_quality(manifest)
        show_stages(manifest)
        is_servable = manifest.kind != "checkpoint" or manifest.backend == "pytorch"
        tokenizer = "" if manifest.tokenizer else " --tokenizer DIR"
        compiling = (
            f"bash {quoted(planned.out / 'commands.sh')}, in the container that it names, on a machine with the GPU"
        )
        wrote(planned.out, f"build-repo {quoted(planned.out)}{tokenizer}" if is_servable else compiling)
    require_accuracy(manifest, flags["max_perplexity_increase"])


def _build_matrix(combinations: list[Combination], flags: dict[str, Any]) -> None:
    """Plan every combination, build those that are possible, and compare all of them in one table.

    Raises:
        TargetMissedError: None of the engines can be built.
    """
    folder = flags["out"] or Path("artifacts/engines")
    rows = []
    for combination in combinations:
        try:
            planned = _plan_one(combination, flags, stages=_stages(flags, folder / "any"), within=folder)
        except (UserError, TargetMissedError, MissingError) as refused:
            rows.append(refused_row(combination, refused))
            continue
        built = None
        if not (flags["dry_run"] or flags["explained"]):
            refuse_existing(planned.out, force=flags["force"], inputs=paths_named(flags), command="build-engine")
            _announce(planned, quiet=flags["as_json"])
            built = run_job(planned.job, planned.out, force=flags["force"], stages=planned.stages)
        rows.append(planned_row(combination, planned.plan, built, planned.out))
    comparison = Comparison(made_by=made_by(command_line("build-engine")), rows=rows)
    show(to_json(comparison).rstrip()) if flags["as_json"] else show_comparison(comparison)
    if all(row.verdict_refused for row in rows):
        raise TargetMissedError(
            "none of these engines can be built", hint="build-engine --list shows which precisions each GPU supports"
        )
    for row in rows:
        if row.manifest is not None:
            require_accuracy(row.manifest, flags["max_perplexity_increase"])


@dataclass(frozen=True, slots=True)
class Planned:
    """A plan, the job that carries it out, its output folder and its stages."""

    plan: BuildPlan
    job: Job
    out: Path
    stages: Stages


def _resolved_recipe(combination: Combination, flags: dict[str, Any]) -> ResolvedRecipe:
    by_key = {
        "model": flags["model"],
        "checkpoint": None if flags["checkpoint"] is None else str(flags["checkpoint"]),
        "tokenizer": flags["tokenizer"],
        "precision": combination.precision,
        "gpu": _gpu_name(combination.gpu),
        "tensorrt_llm": flags["tensorrt_llm"],
        "backend": flags["backend"],
        "trtllm_version": flags["trtllm_version"],
        "published_checkpoint": flags["published"],
        "cuda_graphs.batch_sizes": _listed(flags["cuda_graph_batch_sizes"]),
        "speculative.draft_model": flags["draft_model"],
        **_split(flags["disaggregated"]),
        "parallel.tensor": flags["tp"],
        "parallel.pipeline": flags["pp"],
        "workload.isl": flags["isl"],
        "workload.osl": flags["osl"],
        "objectives.ttft_s": None if flags["ttft_ms"] is None else flags["ttft_ms"] / 1e3,
        "objectives.itl_s": None if flags["itl_ms"] is None else flags["itl_ms"] / 1e3,
        "limits.max_batch_size": flags["max_batch_size"],
        "limits.max_num_tokens": flags["max_num_tokens"],
        "limits.max_seq_len": flags["max_seq_len"],
        "kv_cache.format": flags["kv_cache"],
        "lora.target_modules": _listed(flags["lora_modules"]),
        "lora.max_rank": flags["max_lora_rank"],
        "speculative.mode": flags["speculative"],
        "speculative.lookahead": _lookahead(flags["lookahead"]),
        "speculative.max_draft_len": flags["max_draft_len"],
        "speculative.max_total_draft_tokens": flags["max_total_draft_tokens"],
        "speculative.acceptance": rates_of(flags["acceptance"]),
        "engine_profile": flags["engine_profile"],
        "step_time": flags["step_time"],
        "step_time_calibration": flags["step_time_calibration"],
        "calibration.text": flags["calibration_text"],
        "calibration.samples": flags["calibration_samples"],
        "calibration.sample_tokens": flags["calibration_tokens"],
        "seed": flags["seed"],
    }
    return resolve_recipe(combination.recipe, by_key, typed=by_key)


def _listed(text: str | None) -> tuple[str, ...] | None:
    return None if text is None else listed(text)


def _split(text: str | None) -> dict[str, str]:
    """Return the server counts of `--disaggregated N:M`. The recipe's schema checks their values."""
    if text is None:
        return {}
    context, colon, generation = text.partition(":")
    if not (colon and context.isdecimal() and generation.isdecimal()):
        raise UserError(f"--disaggregated {text}: expected two counts", hint="--disaggregated 1:1")
    return {"disaggregation.context_servers": context, "disaggregation.generation_servers": generation}


def _lookahead(text: str | None) -> dict[str, int] | None:
    """Return the three sizes of `--lookahead`.

    Raises:
        UserError: The value is not three whole numbers.
    """
    if text is None:
        return None
    words = listed(text)
    names = ("window_size", "ngram_size", "verification_set_size")
    if len(words) != len(names) or not all(word.isdigit() for word in words):
        raise UserError(f"--lookahead {text}: expected three sizes", hint="--lookahead 7,7,7")
    return {name: int(word) for name, word in zip(names, words, strict=True)}


def _stages(flags: dict[str, Any], out: Path | None) -> Stages:
    beside = (out or Path("artifacts/engines/any")).parent / ".stages"
    quiet = flags["as_json"]
    report = (lambda _: None) if quiet else progress
    return Stages(flags["stages_folder"] or beside, report, made_by(command_line("build-engine")))


def _gpu_name(name: str | None) -> str | None:
    """Return the GPU to plan for. `auto` asks this machine's driver.

    Raises:
        MissingError: `auto`, and this machine has no GPU.
        UserError: `auto`, and this project has no data sheet of this machine's GPU.
    """
    if name != "auto":
        return name
    found = visible_gpu()
    if found is None:
        raise MissingError("no GPU on this machine", hint=f"--gpu NAME, one of: {', '.join(known_gpus())}")
    for gpu in known_gpus().values():
        maker, *_ = gpu.name.split("-")
        total_gib = gpu.memory_bytes / 2**20
        stated = float(found.split(",")[-1].split()[0])
        if maker in found.lower() and abs(stated - total_gib) < 0.03 * total_gib:
            return gpu.name
    raise UserError(f"this machine's GPU ({found}) is not supported", hint=", ".join(known_gpus()))


def _plan_one(
    combination: Combination, flags: dict[str, Any], *, stages: Stages, within: Path | None = None
) -> Planned:
    """Plan one engine. `within` is the parent folder of a matrix's engines."""
    resolved = _resolved_recipe(combination, flags)
    recipe = resolved.recipe
    sources: list[Source] = []
    if combination.recipe is not None:
        sources.append(source_of(recipe_path(combination.recipe)))
    sources += sources_named(gpu=recipe.gpu, model=None if recipe.checkpoint is not None else recipe.model)
    folder = None if recipe.checkpoint is None else Path(recipe.checkpoint)
    facts = None if folder is None else _inspected(folder, flags, stages)
    if facts is not None:
        sources += facts.files
    head = Document(made_by=made_by(command_line("build-engine")), made_from=sources)
    plan = make_plan(resolved, head=head, model=None if facts is None else model_of(facts))
    refused = pytorch_refusal(plan.precision, plan.kv_format) if plan.backend == "pytorch" else None
    if refused:
        raise UserError(refused, hint="--backend tensorrt builds it; with pytorch choose fp8, int4_awq or bf16")
    job = Job(
        plan=plan,
        recipe=recipe,
        kind=_kind(flags, plan),
        checkpoint=facts,
        checkpoint_folder=folder,
        tokenizer=find_tokenizer(recipe.tokenizer, folder, plan.model.family),
    )
    name = plan.name if within is None or combination.recipe is None else f"{plan.name}-{combination.recipe_word}"
    out = within / name if within is not None else flags["out"] or Path("artifacts/engines") / name
    return Planned(plan, job, out, stages)


def _inspected(folder: Path, flags: dict[str, Any], stages: Stages) -> CheckpointFacts:
    """Inspect a checkpoint. A dry run writes nothing and uses no cached stage."""
    if flags["dry_run"] or flags["explained"]:
        return inspect_checkpoint(folder)
    return inspect_in_stages(folder, stages)


def _kind(flags: dict[str, Any], plan: BuildPlan) -> Kind:
    if flags["emulate"] and flags["until"] == "checkpoint":
        raise UserError(
            "--emulate and --until checkpoint exclude each other: --emulate builds nothing, the other quantizes"
        )
    if flags["emulate"]:
        return "emulated"
    if plan.gpu.device == "cpu" or plan.precision == "fp32":
        raise UserError(
            f"{plan.precision} on {plan.gpu.name}: TensorRT-LLM builds no such engine",
            hint="--emulate plans it; predict-load --engine-profile vllm-v1 predicts a server of it",
        )
    return "checkpoint" if flags["until"] == "checkpoint" or plan.backend == "pytorch" else "built"


def _announce(planned: Planned, *, quiet: bool) -> None:
    """Print on stderr what will be built, the memory the build needs, and all notices."""
    if quiet:
        return
    plan, job = planned.plan, planned.job
    memory = plan.memory
    progress(
        f"{plan.name}: weights {gib(memory.weights_bytes)}, KV cache {memory.kv_tokens:,} tokens ({plan.kv_format})"
    )
    progress(
        f"max batch size {plan.sizing.max_batch_size}, max tokens an iteration {plan.sizing.max_num_tokens}, "
        f"max sequence length {plan.sizing.max_seq_len}"
    )
    predicted = plan.predicted
    progress(
        f"predicted, {predicted.sequences} request{'s' * (predicted.sequences != 1)} of {plan.workload.isl}/"
        f"{plan.workload.osl} in flight: ITL {milliseconds(predicted.itl_s)} ms, {predicted.tokens_per_s:,.0f} tokens/s"
    )
    if job.kind != "emulated" and job.checkpoint is not None:
        ranks = plan.sizing.tensor_parallel * plan.sizing.pipeline_parallel
        quantizing = quantizing_memory_bytes(job.checkpoint, plan.precision, ranks=ranks)
        verifying = verifying_memory_bytes(job.checkpoint)
        progress(
            f"peak memory, upper estimate: {gib(quantizing)} to quantize, {gib(verifying)} to verify; "
            f"{gib(available_memory_bytes())} available"
        )
    for notice in plan.notices:
        progress(f"notice: {notice.text}")


def require_accuracy(manifest: EngineManifest, limit: float | None) -> None:
    """Check the built engine against the accuracy target.

    Args:
        limit: Largest allowed increase of perplexity over the source checkpoint's, as a ratio. None: no target.

    Raises:
        UserError: There is a target, but nothing was quantized.
        TargetMissedError: The increase is larger. The engine's folder is kept for inspection.
    """
    if limit is None:
        return
    if manifest.quality is None:
        raise UserError("--max-perplexity-increase: nothing was quantized", hint="omit --emulate")
    quality = manifest.quality
    increase = quality.perplexity_quantized / quality.perplexity_source - 1
    if increase > limit:
        raise TargetMissedError(
            f"{manifest.precision.name} raised perplexity by {increase:.1%}; the limit is {limit:.1%}",
            hint="try more --calibration-samples, text that resembles your traffic, or a precision with more bits",
        )
