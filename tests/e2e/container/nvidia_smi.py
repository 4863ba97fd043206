"""Stands in for nvidia-smi: one H100."""

from __future__ import annotations

import sys

ANSWERS = {"--query-gpu=name,memory.total": "NVIDIA H100 80GB HBM3, 81559 MiB", "--query-gpu=compute_cap": "9.0"}

if __name__ == "__main__":
    print(ANSWERS[sys.argv[1]])
