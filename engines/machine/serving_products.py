"""Matrix products with the kernels of the engine that serves, measured by that engine's own Python."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from engines.errors import MissingError, ToolError
from engines.files import parse_json
from engines.spec import ModelSpec, ProductSpeed

SCRIPT = Path(__file__).with_name("vllm_products.py")
MAX_BYTES = 2 << 30  # of float32 weights; layers beyond repeat the same shapes
_WITHIN_S = 300.0


def shapes_of(model: ModelSpec) -> list[tuple[int, int]]:
    """Return inputs and outputs of a model's matrices as vLLM multiplies them, within MAX_BYTES; at least one layer.

    Queries, keys and values are one product there, and so are gate and up projection.
    """
    layer = [
        (model.hidden_size, model.attention_size + 2 * model.kv_size),
        (model.attention_size, model.hidden_size),
        (model.hidden_size, (model.mlp_matrices - 1) * model.intermediate_size),
        (model.intermediate_size, model.hidden_size),
    ]
    head = (model.hidden_size, model.vocab_size)
    bytes_of_layer = 4 * sum(inputs * outputs for inputs, outputs in layer)
    layers = max(1, min(model.layers, (MAX_BYTES - 4 * head[0] * head[1]) // bytes_of_layer))
    return [*layer * layers, head]


def measure_serving_products(
    python: Path, cores: tuple[int, ...], model: ModelSpec | None = None
) -> tuple[tuple[ProductSpeed, ...], str]:
    """Return the float32 products of a vLLM for CPUs by number of rows, and the library's name and version.

    Args:
        python: Of the environment.
        cores: Logical cores to pin to.
        model: Whose matrices to measure with; None: matrices of 1024 by 2048.

    Raises:
        MissingError: There is no such program.
        ToolError: It has no vLLM for CPUs, or failed.
    """
    if not python.is_file():
        raise MissingError(f"{python}: no such file", hint="--vllm takes the bin/python of an environment")
    words = [str(python), str(SCRIPT), ",".join(map(str, cores))]
    words += [] if model is None else [json.dumps(shapes_of(model))]
    done = subprocess.run(words, capture_output=True, text=True, timeout=_WITHIN_S, check=False)
    if done.returncode:
        raise ToolError("vLLM's products", status=done.returncode, last_lines=done.stderr.splitlines()[-5:])
    output = parse_json(done.stdout.splitlines()[-1], where=str(SCRIPT))
    speeds = tuple(ProductSpeed(rows=rows, weight_bytes_per_s=round(speed)) for rows, speed in output["products"])
    return speeds, output["library"]
