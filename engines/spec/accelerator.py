"""A file that describes an accelerator of the user's own: a GPU without a data sheet here, or the CPU of a server.

`describe-machine` writes one by measuring; a data sheet can be typed in. Each figure names its source.
"""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from engines.errors import UserError
from engines.files import Strict, read_yaml
from engines.spec.gpu import GpuSpec, ProductSpeed, known_gpus
from engines.spec.precision import Arithmetic

Positive = Annotated[float, Field(gt=0)]
Text = Annotated[str, Field(min_length=1, max_length=500)]
NAME = r"^[a-z0-9][a-z0-9._-]{0,62}$"


class Sourced(Strict):
    """One figure, in the unit its key states, and where it comes from."""

    value: Positive
    source: Text


class BandwidthPoint(Strict):
    """Memory bandwidth by a number of threads: bytes read and written a second, as STREAM counts them."""

    threads: Annotated[int, Field(ge=1)]
    copy_bytes_per_s: Positive
    triad_bytes_per_s: Positive
    read_bytes_per_s: Positive


class GemmPoint(Strict):
    """Operations a second of a matrix product, two for each multiply-add."""

    threads: Annotated[int, Field(ge=1)]
    arithmetic: Arithmetic
    library: Text
    flops_per_s: Positive


class MachineFacts(Strict):
    """What a measurement ran on.

    Attributes:
        cores: The logical cores the measurement was pinned to; empty for a GPU.
        flags: The CPU's vector instructions.
        versions: Of the libraries that did the work.
    """

    model: Text
    cores: tuple[int, ...] = ()
    flags: tuple[str, ...] = ()
    versions: dict[str, str] = Field(default_factory=dict)
    bandwidth: tuple[BandwidthPoint, ...] = ()
    gemm: tuple[GemmPoint, ...] = ()


class Accelerator(Strict):
    """`FILE.yaml` of `--gpu`.

    Attributes:
        name: What figures and calibrations call it; no name of a known GPU.
        kind: `measured` by `describe-machine`, or `stated` by a data sheet.
        memory_bytes: What weights and KV cache may take.
        dense_flops: By arithmetic, two operations for each multiply-add; what is not stated cannot be planned.
        products: By arithmetic, with the serving engine's own library: see `GpuSpec`; rows in rising order.
        interconnect_bytes_per_s: To one other GPU of the machine; a CPU has none.
        threads: A CPU's, that serve.
        multiprocessors: A GPU's streaming multiprocessors.
        usd_per_h: Price of an hour of one; without it, plans state no cost.
        power_w: A GPU's board power; without it, no power is predicted.
        measured_on: Day; `command`: how. Both belong to `measured`.
    """

    name: Annotated[str, Field(pattern=NAME)]
    device: Literal["cpu", "gpu"]
    kind: Literal["measured", "stated"]
    compute_capability: Annotated[str, Field(pattern=r"^[0-9]{1,2}\.[0-9]$")] | None = None
    memory_bytes: Sourced
    bandwidth_bytes_per_s: Sourced
    dense_flops: Annotated[dict[Arithmetic, Sourced], Field(min_length=1)]
    products: dict[Arithmetic, tuple[ProductSpeed, ...]] = Field(default_factory=dict)
    interconnect_bytes_per_s: Sourced | None = None
    threads: Annotated[int, Field(ge=1)] | None = None
    multiprocessors: Annotated[int, Field(ge=1)] | None = None
    usd_per_h: Sourced | None = None
    power_w: Sourced | None = None
    measured_on: date | None = None
    command: Text | None = None
    machine: MachineFacts | None = None

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if self.name in known_gpus():
            raise ValueError(f"name: '{self.name}' is a known GPU; choose another name")
        for arithmetic, speeds in self.products.items():
            rows = [speed.rows for speed in speeds]
            if rows != sorted(set(rows)) or rows[:1] != [1]:
                raise ValueError(f"products.{arithmetic}: rows must begin at 1 and rise (found {rows})")
        needed = {
            "cpu": ("threads",),
            "gpu": ("compute_capability", "interconnect_bytes_per_s", "multiprocessors"),
        }
        other = "gpu" if self.device == "cpu" else "cpu"
        for key in needed[self.device]:
            if getattr(self, key) is None:
                raise ValueError(f"{key}: missing; a {self.device} needs it")
        for key in needed[other]:
            if getattr(self, key) is not None:
                raise ValueError(f"{key}: a {self.device} has none")
        if self.kind == "measured" and (self.measured_on is None or self.command is None):
            raise ValueError("kind: measured needs measured_on and command")
        return self

    @property
    def spec(self) -> GpuSpec:
        """The accelerator as every computation takes it."""
        bandwidth = self.bandwidth_bytes_per_s
        between = bandwidth if self.interconnect_bytes_per_s is None else self.interconnect_bytes_per_s
        when = "" if self.measured_on is None else f" {self.measured_on.isoformat()}"
        return GpuSpec(
            name=self.name,
            device=self.device,
            peaks=self.kind,
            compute_capability=self.compute_capability or "none",
            memory_bytes=int(self.memory_bytes.value),
            bandwidth_bytes_per_s=bandwidth.value,
            dense_flops={arithmetic: figure.value for arithmetic, figure in self.dense_flops.items()},
            products=self.products,
            interconnect_bytes_per_s=between.value,
            multiprocessors=self.multiprocessors or self.threads or 1,
            power_w=None if self.power_w is None else self.power_w.value,
            source=f"{self.kind}{when}: {bandwidth.source}",
        )


def read_accelerator(path: Path) -> Accelerator:
    """Read an accelerator's file.

    Raises:
        MissingError, UserError: As `files.read_yaml`.
    """
    found = read_yaml(path, Accelerator)
    if any(found.name == alias.lower() for gpu in known_gpus().values() for alias in gpu.aliases):
        raise UserError(f"{path}: name: '{found.name}' is another name of a known GPU", hint="choose another name")
    return found
