"""Run a plan: inspect, quantize, verify, compile; the engine folder appears whole or not at all."""

from __future__ import annotations

import platform
import shlex
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from engines import trtllm
from engines.checkpoint import CheckpointFacts
from engines.corpus import Corpus, WindowSizes, load_corpus
from engines.errors import MissingError
from engines.files import whole_folder, write_json, write_text
from engines.manifest import (
    MANIFEST_NAME,
    CheckpointQuality,
    EngineManifest,
    KvCache,
    Limits,
    Notice,
    Parallel,
    PrecisionFacts,
    StepTimeChoice,
)
from engines.plan import BuildPlan
from engines.quantize import quantize
from engines.recipe import Recipe
from engines.tokenizer import copy_tokenizer
from engines.verify import verify

Kind = Literal["built", "emulated", "checkpoint"]
Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Job:
    """A plan and all that is needed to carry it out.

    Attributes:
        checkpoint: Facts of the Hugging Face checkpoint; None only for an emulated engine.
        tokenizer: Folder of the tokenizer to ship with the engine; None where none was found.
    """

    plan: BuildPlan
    recipe: Recipe
    kind: Kind
    checkpoint: CheckpointFacts | None
    checkpoint_folder: Path | None
    tokenizer: Path | None


def run_job(job: Job, out: Path, *, force: bool, progress: Progress) -> EngineManifest:
    """Carry a job out and return the manifest of the finished folder.

    Raises:
        MissingError: TensorRT-LLM, a checkpoint or a package that the job needs is not here; nothing was written.
        ToolError: A stage failed; nothing is left at `out`.
    """
    if job.kind == "built":
        trtllm.require_tools(job.plan)
    with whole_folder(out, force=force) as folder:
        write_json(folder / "plan.json", job.plan)
        write_text(folder / "commands.sh", commands_text(job))
        if job.tokenizer is not None:
            copy_tokenizer(job.tokenizer, folder / "tokenizer")
        quality, notices = _run_stages(job, folder, progress)
        manifest = _manifest(job, quality, notices)
        write_json(folder / MANIFEST_NAME, manifest)
    return manifest


def emulated_manifest(plan: BuildPlan, recipe: Recipe) -> EngineManifest:
    """Return the manifest of a plan that is to be emulated, without writing anything."""
    job = Job(plan=plan, recipe=recipe, kind="emulated", checkpoint=None, checkpoint_folder=None, tokenizer=None)
    return _manifest(job, None, [])


def commands_text(job: Job) -> str:
    """Return the shell script of the TensorRT-LLM commands that the plan stands for."""
    folders = {"checkpoint": "CHECKPOINT", "quantized": "checkpoint", "engine": "engine", "examples": "/app/examples"}
    if job.checkpoint_folder is not None:
        folders["checkpoint"] = str(job.checkpoint_folder)
    lines = [
        "#!/usr/bin/env bash",
        f"# What `build-engine` runs for {job.plan.name}, in {trtllm.container_image(job.plan.tensorrt_llm)}",
        "set -euo pipefail",
        *(shlex.join(command.filled(folders)) for command in trtllm.build_commands(job.plan)),
    ]
    return "\n".join(lines) + "\n"


def _run_stages(job: Job, folder: Path, progress: Progress) -> tuple[CheckpointQuality | None, list[Notice]]:
    if job.kind == "emulated":
        return None, []
    if job.checkpoint_folder is None:
        raise MissingError(
            "no checkpoint to build from",
            hint="--checkpoint DIR with the model's Hugging Face files, or --emulate to plan and emulate without one",
        )
    with _timed("quantize", progress):
        notices = _quantize(job, job.checkpoint_folder, folder, progress)
    with _timed("verify", progress):
        quality = verify(
            job.checkpoint_folder, folder / "checkpoint", held_out=_corpus(job).held_out, progress=progress
        )
    if job.kind == "built":
        with _timed("compile", progress):
            command = trtllm.compile_command(job.plan)
            folders = {"quantized": str(folder / "checkpoint"), "engine": str(folder / "engine")}
            trtllm.run_tool(command.filled(folders), log=folder / "build.log")
    return quality, notices


def _quantize(job: Job, source: Path, folder: Path, progress: Progress) -> list[Notice]:
    target = folder / "checkpoint"
    target.mkdir()
    return quantize(
        source,
        target,
        precision=job.plan.precision,
        kv_cache=job.plan.kv_format,
        calibration=_corpus(job).calibration,
        seed=job.recipe.seed,
        tensor_parallel=job.plan.sizing.tensor_parallel,
        pipeline_parallel=job.plan.sizing.pipeline_parallel,
        progress=progress,
        log=folder / "build.log",
    )


def _corpus(job: Job) -> Corpus:
    choices = job.recipe.calibration
    sizes = WindowSizes(
        calibration_windows=choices.samples,
        calibration_tokens=choices.sample_tokens,
        held_out_windows=choices.held_out_samples,
        held_out_tokens=choices.sample_tokens,
    )
    return load_corpus(None if choices.text == "auto" else Path(choices.text), sizes=sizes, seed=job.recipe.seed)


def _manifest(job: Job, quality: CheckpointQuality | None, notices: list[Notice]) -> EngineManifest:
    plan = job.plan
    return EngineManifest(
        made_by=plan.made_by,
        made_from=plan.made_from,
        kind=job.kind,
        backend="tensorrt",
        model=plan.model,
        gpu=plan.gpu,
        precision=PrecisionFacts(
            name=plan.precision,
            kv_cache=plan.kv_format,
            activation_dtype="float16" if plan.precision == "fp16" else "bfloat16",
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
            bytes_per_token=plan.model.kv_bytes_per_token(plan.kv_format),
            free_gpu_mem_fraction=plan.sizing.kv_fraction,
        ),
        runtime=plan.runtime,
        step_time=StepTimeChoice(source=job.recipe.step_time),
        tokenizer=None if job.tokenizer is None else "tokenizer",
        engine="engine" if job.kind == "built" else None,
        checkpoint=None if job.kind == "emulated" else "checkpoint",
        versions=_versions(plan),
        quality=quality,
        notices=[*plan.notices, *notices, *_kind_notices(job)],
    )


def _kind_notices(job: Job) -> list[Notice]:
    notices = []
    if job.kind == "emulated":
        text = "no engine was built: every figure taken from it comes from a step-time model, not from a GPU"
        notices.append(Notice(code="emulated", text=text))
    if job.tokenizer is None:
        notices.append(Notice(code="no-tokenizer", text="no tokenizer was found; build-repo needs --tokenizer DIR"))
    return notices


def _versions(plan: BuildPlan) -> dict[str, str]:
    versions = {"python": platform.python_version(), "tensorrt_llm": plan.tensorrt_llm}
    for package in ("nvidia-modelopt", "torch", "transformers"):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions


@contextmanager
def _timed(stage: str, progress: Progress) -> Iterator[None]:
    begin = time.monotonic()
    progress(f"{stage} ...")
    yield
    progress(f"{stage}: {time.monotonic() - begin:.1f} s")
