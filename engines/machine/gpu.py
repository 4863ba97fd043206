"""A GPU measured by torch: copies within its memory and out of it, and matrix products by arithmetic."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any, NamedTuple

from engines.errors import MissingError
from engines.machine.gemm import Gemm
from engines.spec import Arithmetic

COPIED_BYTES = 1 << 30
PRODUCT_SIZE = 8192
PASSES = 10


class GpuMeasured(NamedTuple):
    """One GPU as torch sees it; bytes and operations a second.

    Attributes:
        between_bytes_per_s: To a second GPU, or to pinned host memory where there is none.
        between: Which of the two it is.
    """

    model: str
    compute_capability: str
    memory_bytes: int
    multiprocessors: int
    copy_bytes_per_s: float
    between_bytes_per_s: float
    between: str
    gemm: list[Gemm]


def has_gpu() -> bool:
    """Return whether torch is installed and sees a GPU."""
    if find_spec("torch") is None:
        return False
    import torch  # noqa: PLC0415 (optional, and slow to import)

    return bool(torch.cuda.is_available())


def measure_gpu() -> GpuMeasured:
    """Measure the first visible GPU.

    Raises:
        MissingError: torch is not installed, or sees no GPU.
    """
    if not has_gpu():
        raise MissingError("no GPU that torch sees on this machine", hint="--device cpu describes the CPU")
    import torch  # noqa: PLC0415 (optional, and slow to import)

    facts = torch.cuda.get_device_properties(0)
    source = torch.empty(COPIED_BYTES, dtype=torch.uint8, device="cuda:0")
    target = torch.empty_like(source)
    copy_s = _seconds(torch, lambda: target.copy_(source))
    if torch.cuda.device_count() > 1:
        other, between = torch.empty(COPIED_BYTES, dtype=torch.uint8, device="cuda:1"), "copy to the second GPU"
    else:
        other = torch.empty(COPIED_BYTES, dtype=torch.uint8, pin_memory=True)
        between = "copy to pinned host memory; there is no second GPU"
    between_s = _seconds(torch, lambda: other.copy_(source, non_blocking=True))
    return GpuMeasured(
        model=facts.name,
        compute_capability=f"{facts.major}.{facts.minor}",
        memory_bytes=facts.total_memory,
        multiprocessors=facts.multi_processor_count,
        copy_bytes_per_s=2 * COPIED_BYTES / copy_s,
        between_bytes_per_s=COPIED_BYTES / between_s,
        between=between,
        gemm=_products(torch),
    )


def _products(torch: Any) -> list[Gemm]:
    """Return the product of each arithmetic the GPU has; FP8 needs compute capability 8.9."""
    library = f"torch {torch.__version__}"
    dtypes: list[tuple[Arithmetic, Any]] = [
        ("fp32", torch.float32),
        ("bf16", torch.bfloat16),
        ("fp16", torch.float16),
    ]
    calls = [(name, _matmul(torch, dtype)) for name, dtype in dtypes]
    calls.append(("int8", _int_mm(torch)))
    if torch.cuda.get_device_capability(0) >= (8, 9):
        calls.append(("fp8", _scaled_mm(torch)))
    operations = 2.0 * PRODUCT_SIZE**3
    return [Gemm(name, library, operations / _seconds(torch, call)) for name, call in calls]


def _matmul(torch: Any, dtype: Any) -> Callable[[], Any]:
    left, right = (torch.randn(PRODUCT_SIZE, PRODUCT_SIZE, device="cuda:0").to(dtype) for _ in range(2))
    return lambda: torch.matmul(left, right)


def _int_mm(torch: Any) -> Callable[[], Any]:
    left, right = (torch.ones(PRODUCT_SIZE, PRODUCT_SIZE, device="cuda:0", dtype=torch.int8) for _ in range(2))
    turned = right.t().contiguous().t()
    return lambda: torch._int_mm(left, turned)


def _scaled_mm(torch: Any) -> Callable[[], Any]:
    made = (torch.randn(PRODUCT_SIZE, PRODUCT_SIZE, device="cuda:0") for _ in range(2))
    left, right = (each.to(torch.float8_e4m3fn) for each in made)
    scale = torch.ones((), device="cuda:0")
    turned = right.t()
    return lambda: torch._scaled_mm(left, turned, scale_a=scale, scale_b=scale, out_dtype=torch.bfloat16)


def _seconds(torch: Any, call: Callable[[], Any]) -> float:
    """Return the shortest of several passes by the GPU's own clock; the first two warm up."""
    best_ms = float("inf")
    for number in range(PASSES + 2):
        began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        began.record()
        call()
        ended.record()
        torch.cuda.synchronize()
        if number > 1:
            best_ms = min(best_ms, began.elapsed_time(ended))
    return best_ms / 1e3
