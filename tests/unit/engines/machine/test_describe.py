"""What is measured, and the file it becomes."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import numpy as np

from engines.machine.bandwidth import Bandwidth, measure_bandwidth
from engines.machine.describe import _best_bandwidth, _best_products, yaml_of
from engines.machine.system_info import memory_bytes, read_cpuinfo, vector_flags
from engines.spec import Accelerator, GemmPoint, Sourced
from engines.spec.accelerator import read_accelerator


def test_bandwidth_is_that_of_a_memory() -> None:
    """Two threads read, copy and scale at rates that memories have: over 100 MB/s, under 10 TB/s."""
    found = measure_bandwidth(2, array_bytes=8 << 20)
    assert all(1e8 < rate < 1e13 for rate in found)


def test_memory_is_what_the_kernel_says() -> None:
    """Never more than MemTotal, and at least a part of it."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    total = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemTotal"))
    assert 0 < memory_bytes() <= total


def test_vector_flags_are_numpy_s() -> None:
    """Numpy finds AVX2 by asking the CPU, this by reading the kernel's list."""
    if not read_cpuinfo():
        return
    simd = np.show_config(mode="dicts")["SIMD Extensions"]
    found = {name.upper() for name in (*simd["baseline"], *simd["found"])}
    assert ("avx2" in vector_flags(read_cpuinfo())) == bool(found & {"AVX2", "X86_V3", "X86_V4"})


def test_the_fastest_kernel_and_library_count() -> None:
    """Of copy, triad and read the highest; of two libraries' products the higher, each with its source."""
    assert _best_bandwidth(Bandwidth(12e9, 7e9, 9e9), 1).value == 12e9
    points = [
        GemmPoint(threads=1, arithmetic="fp32", library=name, flops_per_s=rate) for name, rate in (("a", 1), ("b", 2))
    ]
    assert _best_products(points)["fp32"] == Sourced(value=2, source="square matrix product, b, best pass")


def test_the_file_reads_back_as_it_was(tmp_path: Path) -> None:
    """What is written is what `--gpu` reads."""
    figure = Sourced(value=1.5e10, source="a test: with a colon")
    made = Accelerator(
        name="round-trip",
        device="cpu",
        kind="measured",
        threads=2,
        memory_bytes=figure,
        bandwidth_bytes_per_s=figure,
        dense_flops={"fp32": figure},
        measured_on=date(2026, 11, 28),
        command="describe-machine",
    )
    path = tmp_path / "machine.yaml"
    path.write_text(yaml_of(made))
    assert read_accelerator(path) == made
