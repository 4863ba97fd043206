"""From measurements to the file of an accelerator."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from datetime import date
from pathlib import Path

import yaml

from engines.machine.bandwidth import Bandwidth, measure_bandwidth
from engines.machine.cores import run_pinned
from engines.machine.gemm import Gemm, measure_gemm
from engines.machine.gpu import has_gpu, measure_gpu
from engines.machine.serving_products import measure_serving_products
from engines.machine.system_info import cpu_model, library_versions, memory_bytes, read_cpuinfo, vector_flags
from engines.spec import (
    Accelerator,
    Arithmetic,
    BandwidthPoint,
    GemmPoint,
    MachineFacts,
    ModelSpec,
    ProductSpeed,
    Sourced,
)

__all__ = ["describe_cpu", "describe_gpu", "has_gpu", "yaml_of"]


def describe_cpu(
    cores: tuple[int, ...],
    *,
    name: str | None,
    today: date,
    command: str,
    progress: Callable[[str], None],
    vllm: Path | None = None,
    model: ModelSpec | None = None,
) -> Accelerator:
    """Measure this machine's CPU on some of its cores, by 1, 2, 4... threads up to all of them.

    Args:
        cores: Logical cores to pin to; the accelerator's figures are those with all of them at work.
        name: What to call it; None: after the CPU's model and the number of cores.
        vllm: Python of an environment with vLLM for CPUs, whose products are measured by number of rows.
        model: Whose matrices those products are measured with; None: some of a common size.
    """
    bandwidth: list[BandwidthPoint] = []
    gemm: list[GemmPoint] = []
    for threads in thread_counts(len(cores)):
        progress(f"{threads} of {len(cores)} threads: memory bandwidth, then matrix products")
        found = run_pinned(cores[:threads], measure_bandwidth, threads)
        bandwidth.append(BandwidthPoint(threads=threads, **found._asdict()))
        gemm += [_point(each, threads) for each in run_pinned(cores[:threads], measure_gemm)]
    products: dict[Arithmetic, tuple[ProductSpeed, ...]] = {}
    versions = library_versions()
    if vllm is not None:
        progress("vLLM's matrix products by number of rows")
        products["fp32"], versions["products"] = measure_serving_products(vllm, cores, model)
    cpuinfo = read_cpuinfo()
    processor = cpu_model(cpuinfo)
    count = len(cores)
    return Accelerator(
        name=name or name_of(processor, f"{count}-core" if count == 1 else f"{count}-cores"),
        device="cpu",
        kind="measured",
        threads=count,
        memory_bytes=Sourced(value=memory_bytes(), source="the operating system's total, or the container's limit"),
        bandwidth_bytes_per_s=_best_bandwidth(found, count),
        dense_flops=_best_products(point for point in gemm if point.threads == count),
        products=products,
        measured_on=today,
        command=command,
        machine=MachineFacts(
            model=processor,
            cores=cores,
            flags=vector_flags(cpuinfo),
            versions=versions,
            bandwidth=tuple(bandwidth),
            gemm=tuple(gemm),
        ),
    )


def describe_gpu(*, name: str | None, today: date, command: str, progress: Callable[[str], None]) -> Accelerator:
    """Measure the first GPU that torch sees.

    Raises:
        MissingError: torch is not installed, or sees no GPU.
    """
    progress("the first GPU: copies, then matrix products")
    found = measure_gpu()
    points = [_point(each, 1) for each in found.gemm]
    return Accelerator(
        name=name or name_of(found.model, "measured"),
        device="gpu",
        kind="measured",
        compute_capability=found.compute_capability,
        memory_bytes=Sourced(value=found.memory_bytes, source="torch: total_memory"),
        bandwidth_bytes_per_s=Sourced(value=found.copy_bytes_per_s, source="copy within its memory, read and written"),
        dense_flops=_best_products(points),
        interconnect_bytes_per_s=Sourced(value=found.between_bytes_per_s, source=found.between),
        multiprocessors=found.multiprocessors,
        measured_on=today,
        command=command,
        machine=MachineFacts(model=found.model, versions=library_versions(), gemm=tuple(points)),
    )


def thread_counts(cores: int) -> list[int]:
    """Return the numbers of threads to measure: powers of two, and all cores.

    >>> thread_counts(6)
    [1, 2, 4, 6]
    """
    return sorted({cores, *(1 << power for power in range(cores.bit_length()) if 1 << power <= cores)})


def name_of(model: str, ending: str) -> str:
    """Return a name for figures and calibrations from a processor's model.

    >>> name_of("Intel(R) Xeon(R) Gold 6430", "2-cores")
    'intel-r-xeon-r-gold-6430-2-cores'
    """
    words = re.sub(r"[^a-z0-9]+", "-", model.lower()).strip("-")
    return f"{words[:40].strip('-') or 'machine'}-{ending}"


def yaml_of(found: Accelerator) -> str:
    """Return an accelerator's file."""
    values = found.model_dump(mode="json", exclude_none=True)
    text: str = yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=120)
    return "# An accelerator for --gpu FILE.yaml; add usd_per_h: {value, source} for plans with a cost.\n" + text


def _point(found: Gemm, threads: int) -> GemmPoint:
    return GemmPoint(
        threads=threads,
        arithmetic=found.arithmetic,
        library=found.library,
        flops_per_s=round(found.flops_per_s),
    )


def _best_bandwidth(found: Bandwidth, threads: int) -> Sourced:
    """Return the fastest kernel's bandwidth; where two differ, what is slower pays for writing."""
    kernel, value = max(found._asdict().items(), key=lambda pair: pair[1])
    words = {"copy": "STREAM copy", "triad": "STREAM triad", "read": "reading a matrix (matrix-vector product)"}
    said = words[kernel.removesuffix("_bytes_per_s")]
    return Sourced(value=round(value), source=f"{said}, float32, {_threads(threads)}, best pass")


def _best_products(points: Iterable[GemmPoint]) -> dict[Arithmetic, Sourced]:
    """Return the fastest library's product by arithmetic."""
    best: dict[Arithmetic, GemmPoint] = {}
    for point in points:
        if point.arithmetic not in best or point.flops_per_s > best[point.arithmetic].flops_per_s:
            best[point.arithmetic] = point
    return {
        arithmetic: Sourced(value=point.flops_per_s, source=f"square matrix product, {point.library}, best pass")
        for arithmetic, point in best.items()
    }


def _threads(count: int) -> str:
    return "1 thread" if count == 1 else f"{count} threads"
