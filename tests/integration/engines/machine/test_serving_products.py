"""Products by the serving engine's own Python: what it prints is read, what fails is told."""

from __future__ import annotations

import stat
import sys
from pathlib import Path

import pytest

from engines.errors import MissingError, ToolError
from engines.machine.serving_products import MAX_BYTES, measure_serving_products, shapes_of
from engines.spec import model_named


def _python(folder: Path, code: str) -> Path:
    path = folder / "python"
    path.write_text(f"#!{sys.executable}\n{code}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def test_what_the_engine_s_python_prints_is_read(tmp_path: Path) -> None:
    """Rows and speeds, with the library's name; the cores are its arguments."""
    said = "{'library': ' '.join(sys.argv[2:]), 'products': [[1, 2e9], [8, 3e9]]}"
    code = f"import json, sys\nprint('noise')\nprint(json.dumps({said}))"
    speeds, library = measure_serving_products(_python(tmp_path, code), (0, 3))
    assert [(speed.rows, speed.weight_bytes_per_s) for speed in speeds] == [(1, 2e9), (8, 3e9)]
    assert library == "0,3"


def test_an_environment_without_vllm_is_told(tmp_path: Path) -> None:
    """This project's own Python has no vLLM: its error is passed on."""
    with pytest.raises(ToolError, match="vllm"):
        measure_serving_products(Path(sys.executable), (0,))
    with pytest.raises(MissingError):
        measure_serving_products(tmp_path / "python", (0,))


def test_a_small_model_s_matrices_are_its_weights() -> None:
    """All linear layers and the head of SmolLM2-135M, each once."""
    model = model_named("smollm2-135m")
    weights = sum(inputs * outputs for inputs, outputs in shapes_of(model))
    assert weights == model.linear_parameters + model.head_parameters


def test_a_large_model_s_matrices_are_as_many_layers_as_fit() -> None:
    """Of Llama-2-7B's 32 layers, those that two gibibytes hold beside its head."""
    shapes = shapes_of(model_named("llama-2-7b"))
    assert len(shapes) < 4 * 32 + 1
    assert 4 * sum(inputs * outputs for inputs, outputs in shapes) <= MAX_BYTES
