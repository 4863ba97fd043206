"""Matrix products of a CPU by arithmetic: numpy's, and torch's where it is installed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import Any, NamedTuple

from engines.spec import Arithmetic

SIZES = (512, 1024, 2048)  # of square matrices: the largest whose product takes no longer than LONGEST_S
LONGEST_S = 1.0
PASSES = 3


class Gemm(NamedTuple):
    """Operations a second, two for each multiply-add; `library` with its version."""

    arithmetic: Arithmetic
    library: str
    flops_per_s: float


def measure_gemm() -> list[Gemm]:
    """Return what each library's products reach, with as many threads as the process's libraries were given."""
    return [Gemm(arithmetic, library, _flops_per_s(make)) for arithmetic, library, make in _products()]


def _products() -> Iterator[tuple[Arithmetic, str, Callable[[int], Callable[[], Any]]]]:
    """Yield a library's product by arithmetic: from a size, the call that multiplies two such matrices."""
    import numpy as np  # noqa: PLC0415 (its threads are counted when it is loaded)

    def numpy_product(size: int) -> Callable[[], Any]:
        left, right = (np.random.default_rng(seed).random((size, size), dtype=np.float32) for seed in (0, 1))
        return lambda: left @ right

    yield "fp32", f"numpy {np.__version__}", numpy_product
    if find_spec("torch") is None:
        return
    import torch  # noqa: PLC0415 (optional, and slow to import)

    def torch_product(dtype: Any) -> Callable[[int], Callable[[], Any]]:
        def made(size: int) -> Callable[[], Any]:
            left, right = (torch.ones((size, size), dtype=dtype) for _ in range(2))
            return lambda: torch.matmul(left, right)

        return made

    def torch_int8(size: int) -> Callable[[], Any]:
        left, right = (torch.ones((size, size), dtype=torch.int8) for _ in range(2))
        return lambda: torch._int_mm(left, right)

    torch.set_grad_enabled(False)
    library = f"torch {torch.__version__}"
    yield "fp32", library, torch_product(torch.float32)
    yield "bf16", library, torch_product(torch.bfloat16)
    yield "fp16", library, torch_product(torch.float16)
    yield "int8", library, torch_int8


def _flops_per_s(make: Callable[[int], Callable[[], Any]]) -> float:
    """Return the best of the sizes; a size that would take too long is not tried."""
    best, expected_s = 0.0, 0.0
    for size in SIZES:
        if expected_s > LONGEST_S:
            break
        product = make(size)
        product()  # packs and compiles
        took_s = min(_seconds(product) for _ in range(PASSES))
        best = max(best, 2.0 * size**3 / took_s)
        expected_s = 8 * took_s  # of the next size, twice as wide
    return best


def _seconds(product: Callable[[], Any]) -> float:
    began_s = time.perf_counter()
    product()
    return time.perf_counter() - began_s
