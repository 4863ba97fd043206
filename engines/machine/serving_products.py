"""Matrix products with the kernels of the engine that serves, measured by that engine's own Python."""

from __future__ import annotations

import subprocess
from pathlib import Path

from engines.errors import MissingError, ToolError
from engines.files import parse_json
from engines.spec import ProductSpeed

SCRIPT = Path(__file__).with_name("vllm_products.py")
_WITHIN_S = 300.0


def measure_serving_products(python: Path, cores: tuple[int, ...]) -> tuple[tuple[ProductSpeed, ...], str]:
    """Return the float32 products of a vLLM for CPUs by number of rows, and the library's name and version.

    Args:
        python: Of the environment.
        cores: Logical cores to pin to.

    Raises:
        MissingError: There is no such program.
        ToolError: It has no vLLM for CPUs, or failed.
    """
    if not python.is_file():
        raise MissingError(f"{python}: no such file", hint="--vllm takes the bin/python of an environment")
    words = [str(python), str(SCRIPT), *map(str, cores)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=_WITHIN_S, check=False)
    if done.returncode:
        raise ToolError("vLLM's products", status=done.returncode, last_lines=done.stderr.splitlines()[-5:])
    said = parse_json(done.stdout.splitlines()[-1], where=str(SCRIPT))
    speeds = tuple(ProductSpeed(rows=rows, weight_bytes_per_s=round(speed)) for rows, speed in said["products"])
    return speeds, said["library"]
