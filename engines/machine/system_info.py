"""What the operating system says of the machine: CPU model and flags, memory."""

from __future__ import annotations

import os
import platform
from pathlib import Path

from engines.files import versions_of

_CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")
_LIBRARIES = ("numpy", "torch", "scipy")
# Vector and matrix instructions that a library's kernels are chosen by.
_VECTOR_FLAGS = ("sse4_2", "avx", "avx2", "fma", "f16c", "avx512", "avx_vnni", "amx", "asimd", "sve", "bf16", "i8mm")


def cpu_model(cpuinfo: str) -> str:
    r"""Return the CPU's name from /proc/cpuinfo's text; the machine's architecture where it states none.

    >>> cpu_model("processor: 0\nmodel name\t: AMD EPYC\n")
    'AMD EPYC'
    """
    for line in cpuinfo.splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            return value.strip()
    return platform.machine()


def vector_flags(cpuinfo: str) -> tuple[str, ...]:
    r"""Return the vector and matrix instructions among the flags of /proc/cpuinfo's text.

    >>> vector_flags("flags\t: fpu sse4_2 avx2 avx512f rdtscp")
    ('avx2', 'avx512f', 'sse4_2')
    """
    for line in cpuinfo.splitlines():
        key, _, value = line.partition(":")
        if key.strip() in {"flags", "Features"}:
            return tuple(sorted(flag for flag in value.split() if flag.startswith(_VECTOR_FLAGS)))
    return ()


def read_cpuinfo() -> str:
    """Return the text of /proc/cpuinfo; empty on a system without it."""
    path = Path("/proc/cpuinfo")
    return path.read_text(encoding="utf-8") if path.is_file() else ""


def memory_bytes() -> int:
    """Return this machine's memory, or what the container's limit leaves of it."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = _CGROUP_LIMIT.read_text(encoding="utf-8").strip() if _CGROUP_LIMIT.is_file() else ""
    return min(total, int(limit)) if limit.isdigit() else total


def library_versions() -> dict[str, str]:
    """Return Python's version, and those of the libraries that are installed."""
    system = f"{platform.system()} {platform.release()}"
    return {"python": platform.python_version(), "system": system, **versions_of(_LIBRARIES)}
