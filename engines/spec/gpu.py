"""GPU data sheets: memory, bandwidth, arithmetic. All figures are dense, without sparsity.

The user's own accelerators, GPUs or CPUs, are described in files: see `engines.spec.accelerator`.
"""

from __future__ import annotations

from functools import cache
from typing import Annotated, Literal

from pydantic import Field

from engines.files import Strict, validate
from engines.names import known_gpu_name, spec_data
from engines.spec.precision import Arithmetic


class ProductSpeed(Strict):
    """A measured matrix product of a few rows: the weight bytes that it reads per second."""

    rows: Annotated[int, Field(ge=1)]
    weight_bytes_per_s: Annotated[float, Field(gt=0)]


class GpuSpec(Strict):
    """One GPU as its vendor states it, or the user's own accelerator.

    Attributes:
        device: `gpu`, or the `cpu` of a server without one.
        peaks: `stated` by the maker: engines stay below them. `measured` in the same libraries: engines reach them.
        compute_capability: As NVIDIA writes it; `none` for a CPU.
        memory_bytes: What the driver reports as total, not the name's round number.
        bandwidth_bytes_per_s: Peak memory bandwidth.
        dense_flops: Peak multiply-add operations per second by arithmetic, two for each multiply-add, without
            sparsity; an arithmetic the GPU lacks is absent.
        products: By arithmetic, measured products of the serving engine's own library, fewest rows first; may be empty.
            They replace bandwidth and peak, which small products do not reach.
        interconnect_bytes_per_s: To one other GPU of the same machine, one direction; of a CPU, its memory's.
        l2_bytes: Level-2 cache.
        multiprocessors: Streaming multiprocessors, each running thread blocks of its own; of a CPU, its threads.
        power_w: Board power; None if unknown, and for a slice of a GPU.
        aliases: Other names people and published tables use.
        source: Where the numbers were read.
    """

    name: str
    device: Literal["gpu", "cpu"] = "gpu"
    peaks: Literal["stated", "measured"] = "stated"
    compute_capability: str
    memory_bytes: int
    bandwidth_bytes_per_s: float
    dense_flops: dict[Arithmetic, float]
    products: dict[Arithmetic, tuple[ProductSpeed, ...]] = Field(default_factory=dict)
    interconnect_bytes_per_s: float
    l2_bytes: int | None = None
    multiprocessors: int
    power_w: float | None = None
    aliases: tuple[str, ...] = ()
    source: str

    @property
    def sm(self) -> int:
        """Compute capability as TensorRT-LLM writes it: 90 for 9.0; 0 for a CPU."""
        return 0 if self.device == "cpu" else int(self.compute_capability.replace(".", ""))

    @property
    def is_slice(self) -> bool:
        """Whether it is a MIG slice of a GPU."""
        return "-mig-" in self.name

    @property
    def kind_text(self) -> str:
        """What it is, in words: a GPU's compute capability."""
        return "CPU" if self.device == "cpu" else f"compute capability {self.compute_capability}"


class _GpuFile(Strict):
    gpus: tuple[GpuSpec, ...]


@cache
def _library() -> dict[str, GpuSpec]:
    loaded = validate(spec_data("gpus"), _GpuFile, where="gpus.yaml")
    return {gpu.name: gpu for gpu in loaded.gpus}


def known_gpus() -> dict[str, GpuSpec]:
    """Return all GPUs of the data file, by name."""
    return dict(_library())


def gpu_named(name: str) -> GpuSpec:
    """Return a GPU by its name or an alias, case-insensitively.

    Raises:
        UserError: There is no such GPU; the nearest is suggested.

    >>> gpu_named("H100-SXM-80GB").sm
    90
    """
    return _library()[known_gpu_name(name)]
