"""Checks whether this machine can serve a built engine, before Triton is started.

A TensorRT engine runs only with the TensorRT-LLM version that built it, on the compute capability it was built for, and
with one GPU per rank. Otherwise Triton exits with a stack trace minutes later.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from engines.build import trtllm
from engines.errors import MissingError, UserError
from engines.manifest import EngineManifest
from triton_repo.settings import ENGINE_CONFIG_NAME, Machine, lacks, machine_here


@dataclass(frozen=True, slots=True)
class _Refusal:
    text: str
    hint: str


def require_servable(manifest: EngineManifest, engine_folder: Path, here: Machine | None = None) -> None:
    """Refuse a built engine that is incomplete or that this machine cannot run.

    Args:
        engine_folder: The folder that the `tensorrt_llm` model loads: config.json and one file per rank.
        here: The machine; None: this one. Not needed for an emulated engine.

    Raises:
        MissingError: The engine or a part of it is missing, or the machine lacks what it needs.
        UserError: The folder contains a different engine than the manifest describes.
    """
    if manifest.kind != "built":
        return
    version = _config_version(manifest, engine_folder)
    missing = missing_ranks(manifest, engine_folder)
    if missing:
        raise MissingError(
            f"{engine_folder}: {', '.join(missing)} missing; an engine for {_split(manifest)} has a file for each of "
            f"its {_ranks(manifest)} ranks",
            hint=_rebuild(manifest),
        )
    mismatch = _mismatch(manifest, version)
    if mismatch is not None:
        raise UserError(f"{engine_folder}: {mismatch.text}", hint=mismatch.hint)
    lack = _lack(manifest, here or machine_here(manifest.gpu.compute_capability))
    if lack is not None:
        raise MissingError(f"{engine_folder}: {lack.text}", hint=lack.hint)


def missing_ranks(manifest: EngineManifest, engine_folder: Path) -> list[str]:
    """Return the names of missing rank files."""
    names = [f"rank{rank}.engine" for rank in range(_ranks(manifest))]
    return [name for name in names if not (engine_folder / name).is_file()]


def _mismatch(manifest: EngineManifest, version: str | None) -> _Refusal | None:
    """Return a refusal if the engine is not the one that its manifest describes."""
    built_with = manifest.versions.get("tensorrt_llm")
    if built_with is not None and version == built_with:
        return None
    return _Refusal(
        f"the manifest describes an engine by TensorRT-LLM {built_with or '(no version)'}, the engine's own "
        f"{ENGINE_CONFIG_NAME} of {version or 'no version'}; both must name the version that built it",
        hint="the engine was built again since: build-repo ENGINE_DIR --force, or else " + _rebuild(manifest),
    )


def _lack(manifest: EngineManifest, here: Machine) -> _Refusal | None:
    """Return what the engine needs and the machine lacks; what no container can provide comes first."""
    built_for, ranks = manifest.gpu.compute_capability, _ranks(manifest)
    lacking = next(
        lacks(here, compute_capability=built_for, ranks=ranks, built_by=manifest.versions["tensorrt_llm"]), None
    )
    if lacking == "compute-capability":
        seen = here.compute_capability
        found = "no GPU was found" if seen is None else f"this machine's has {seen}"
        return _Refusal(
            f"the engine was built for a GPU of compute capability {built_for} ({manifest.gpu.name}) and {found}; "
            "an engine runs only on the compute capability it was built for",
            hint=_gpu_hint(manifest, here),
        )
    if lacking == "gpus":
        return _Refusal(
            f"the engine was built for {_split(manifest)} and here {_are(here.gpus)} of compute capability "
            f"{built_for}; each of its {ranks} ranks needs one of its own",
            hint="serve it where they are; " + _rebuild(manifest, "with smaller --tp and --pp"),
        )
    return None if lacking is None else _version_lack(manifest, here.tensorrt_llm)


def _version_lack(manifest: EngineManifest, installed: str | None) -> _Refusal:
    built_by = manifest.versions["tensorrt_llm"]
    found = "it is not on this machine" if installed is None else f"TensorRT-LLM {installed} is installed here"
    return _Refusal(
        f"the engine was built by TensorRT-LLM {built_by} and {found}; an engine runs only under the version "
        "that built it",
        hint=_container(built_by) or _rebuild(manifest, f"with --tensorrt-llm {installed or 'VERSION'}"),
    )


def _config_version(manifest: EngineManifest, engine_folder: Path) -> str | None:
    """Return the version in the engine's own config.json; None if it states none.

    Raises:
        MissingError: There is no engine.
        UserError: The file is not JSON.
    """
    path = engine_folder / ENGINE_CONFIG_NAME
    if not path.is_file():
        raise MissingError(
            f"{path}: no such file: the repository's engine is missing",
            hint="point the repository to the engine with build-repo ENGINE_DIR --force; or " + _rebuild(manifest),
        )
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not valid JSON: {error}", hint=_rebuild(manifest)) from error
    version = config.get("version") if isinstance(config, dict) else None
    return version if isinstance(version, str) else None


def _container(version: str) -> str | None:
    """Return how to serve in the image of a version; None if no such image is known."""
    try:
        return f"run the same command in the container: {trtllm.container_entry(version)}"
    except MissingError:
        return None


def _gpu_hint(manifest: EngineManifest, here: Machine) -> str:
    if here.compute_capability is None:
        return "serve it where the GPU is (in a container: --gpus all), or emulate it: build-engine --emulate"
    return _rebuild(manifest, "here with --gpu auto")


def _rebuild(manifest: EngineManifest, how: str = "") -> str:
    return f"build it again{' ' if how else ''}{how}, adding --force to: {manifest.made_by.command}"


def _ranks(manifest: EngineManifest) -> int:
    return manifest.parallel.tensor * manifest.parallel.pipeline


def _split(manifest: EngineManifest) -> str:
    parallel = manifest.parallel
    return f"{_gpus(_ranks(manifest))} (tensor {parallel.tensor} x pipeline {parallel.pipeline})"


def _gpus(count: int) -> str:
    return f"{count} GPU{'' if count == 1 else 's'}"


def _are(count: int) -> str:
    return f"{'is' if count == 1 else 'are'} {_gpus(count)}"
