"""Checks whether a machine can run a built engine; shared by the preflight check and the audit.

A TensorRT engine runs only with the TensorRT-LLM version that built it, on the compute capability it was built for, and
with one GPU per rank.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from engines.build import trtllm

Lack = Literal["compute-capability", "gpus", "version"]


@dataclass(frozen=True, slots=True)
class Machine:
    """The facts of a machine that decide whether an engine runs.

    Attributes:
        tensorrt_llm: Version of the installed TensorRT-LLM; None if not installed.
        compute_capability: Of the GPUs counted; None without a GPU.
        gpus: Number of GPUs with that compute capability.
        seen: Compute capabilities of all GPUs.
    """

    tensorrt_llm: str | None
    compute_capability: str | None
    gpus: int
    seen: tuple[str, ...] = field(default=(), compare=False)


def machine_here(compute_capability: str) -> Machine:
    """Inspect this machine: its GPUs of a compute capability, or if it has none, all GPUs like its first.

    GPUs are counted by the driver, independent of CUDA_VISIBLE_DEVICES.
    """
    seen = trtllm.visible_compute_capabilities()
    counted = compute_capability if compute_capability in seen or not seen else seen[0]
    return Machine(
        tensorrt_llm=trtllm.installed_version(),
        compute_capability=counted if seen else None,
        gpus=seen.count(counted),
        seen=tuple(seen),
    )


def lacks(here: Machine, *, compute_capability: str, ranks: int, built_by: str | None) -> Iterator[Lack]:
    """Yield what an engine needs and a machine lacks; what no container can provide comes first.

    Args:
        compute_capability: The one the engine was built for.
        built_by: TensorRT-LLM version that built it; None: unknown and not checked.
    """
    if here.compute_capability != compute_capability:
        yield "compute-capability"
    elif here.gpus < ranks:
        yield "gpus"
    if built_by is not None and here.tensorrt_llm != built_by:
        yield "version"
