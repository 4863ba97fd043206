"""Whether a machine can run a built engine: the one decision behind the preflight check and the audit.

A TensorRT engine runs only under the TensorRT-LLM version that built it, only on the compute capability it was built
for, and only with a GPU for each of its ranks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from engines.build import trtllm

Lack = Literal["compute-capability", "gpus", "version"]


@dataclass(frozen=True, slots=True)
class Machine:
    """What decides whether an engine runs here.

    Attributes:
        tensorrt_llm: Version of the installed TensorRT-LLM; None without one.
        compute_capability: Of the GPUs that are counted; None without a GPU.
        gpus: How many GPUs of that compute capability are here.
        seen: The compute capability of every GPU here.
    """

    tensorrt_llm: str | None
    compute_capability: str | None
    gpus: int
    seen: tuple[str, ...] = field(default=(), compare=False)


def machine_here(compute_capability: str) -> Machine:
    """Look at this machine: its GPUs of a compute capability, or where it has none of that, all those like its first.

    GPUs are counted as the driver tells them, whatever CUDA_VISIBLE_DEVICES hides.
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
    """Yield what an engine needs and a machine lacks; what no container can bring comes first.

    Args:
        compute_capability: That the engine was built for.
        built_by: TensorRT-LLM version that built it; None: not stated, and then not held against the machine.
    """
    if here.compute_capability != compute_capability:
        yield "compute-capability"
    elif here.gpus < ranks:
        yield "gpus"
    if built_by is not None and here.tensorrt_llm != built_by:
        yield "version"
