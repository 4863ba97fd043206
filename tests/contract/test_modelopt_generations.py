"""The ModelOpt of TensorRT-LLM 1.2's container quantizes as the current one does, or says first what it lacks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from engines.spec.precision import PRECISIONS
from tests.contract.export_all import export_all
from tests.contract.trtllm_loader import problems
from tests.late import Late
from tests.tiny_checkpoints import write_model

Late("modelopt", "quantize")
torch, tensor_files = Late("torch", "quantize"), Late("safetensors.torch", "quantize")
ROOT = Path(__file__).parents[2]
PYTHONS = {"current": Path(sys.executable), "0.37": ROOT / ".venv" / "opt" / "modelopt-0.37" / "bin" / "python"}
WAYS = {name: precision.default_kv for name, precision in PRECISIONS.items() if name != "fp32"}  # no engine has it
LIMIT_S = 300


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Export one tiny Qwen3, written by transformers 5, at every precision by both generations."""
    if not PYTHONS["0.37"].is_file():
        pytest.skip("no .venv/opt/modelopt-0.37; `make setup` makes it with Python 3.12 or older")
    source = write_model(tmp_path_factory.mktemp("qwen3"), "qwen3", hidden_size=128, intermediate_size=256, head_dim=64)
    made = {generation: tmp_path_factory.mktemp(generation) for generation in PYTHONS}
    export_all(source, made["current"], WAYS)
    ways = [f"{precision}:{kv_cache}" for precision, kv_cache in WAYS.items()]
    argv = [PYTHONS["0.37"], "-W", "ignore", "-m", "tests.contract.export_all", source, made["0.37"], *ways]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run(argv, env=env, cwd=ROOT, check=True, timeout=LIMIT_S, capture_output=True)
    return made


def said(folder: Path) -> dict[str, str]:
    """Return the version of ModelOpt that exported, and the refusals by precision."""
    found: dict[str, str] = json.loads((folder / "said.json").read_text())
    return found


def test_what_a_generation_lacks_is_said_before_work_begins(exports: dict[str, Path]) -> None:
    """ModelOpt 0.37 packs NVFP4 on a GPU alone; that is all either lacks, and nothing was begun."""
    older, current = said(exports["0.37"]), said(exports["current"])
    assert older.pop("version").startswith("0.37.")
    assert tuple(int(part) for part in current.pop("version").split(".")[:2]) >= (0, 47)
    assert current == {}
    wanted = "" if torch.cuda.is_available() else "nvfp4"
    assert " ".join(older) == wanted
    assert all("needs a GPU to pack NVFP4 weights" in text for text in older.values())
    assert all("nvidia-modelopt 0.45 and later need none / begun: False" in text for text in older.values())


@pytest.mark.parametrize("precision", sorted(WAYS))
@pytest.mark.parametrize("generation", sorted(PYTHONS))
def test_both_generations_export_what_loads(exports: dict[str, Path], generation: str, precision: str) -> None:
    """TensorRT-LLM's classes would load either's export."""
    if precision in said(exports[generation]):
        pytest.skip(f"ModelOpt {generation} cannot here: {said(exports[generation])[precision]}")
    assert problems(exports[generation] / precision, "qwen3", precision, WAYS[precision], 1) == []


def test_both_generations_find_the_same_numbers(exports: dict[str, Path]) -> None:
    """FP8 weights, their scales and those of activations agree: the older transformers ran the same rope."""
    older, current = (
        tensor_files.load_file(exports[name] / "fp8" / "rank0.safetensors") for name in ("0.37", "current")
    )
    assert older.keys() == current.keys()
    for name, tensor in current.items():
        torch.testing.assert_close(older[name].float(), tensor.float(), rtol=0.02, atol=1e-6, msg=name)
