"""Accelerators and models of the user's own, against numbers from elsewhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from engines.errors import CommandError, MissingError, UserError
from engines.spec import (
    PRECISIONS,
    PlacedModel,
    gpu_named,
    kv_refusal,
    model_named,
    resolve_gpu,
    resolve_model,
    verdict,
)
from engines.spec.accelerator import read_accelerator
from engines.steptime import Roofline, StepShape
from tests.smollm2 import SMOLLM2

A_CPU: dict[str, Any] = {
    "name": "one-core",
    "device": "cpu",
    "kind": "stated",
    "threads": 1,
    "memory_bytes": {"value": 16e9, "source": "a test"},
    "bandwidth_bytes_per_s": {"value": 10e9, "source": "a test"},
    "dense_flops": {"fp32": {"value": 80e9, "source": "a test"}},
}


def _file(folder: Path, **changed: Any) -> str:
    values = {key: value for key, value in (A_CPU | changed).items() if value is not None}
    path = folder / "own.yaml"
    path.write_text(yaml.safe_dump(values))
    return str(path)


def _checkpoint(folder: Path, **changed: Any) -> str:
    made = folder / "smollm2-cut"
    made.mkdir()
    (made / "config.json").write_text(json.dumps(SMOLLM2 | changed))
    return str(made)


def test_a_gpu_described_in_a_file_is_as_fast_as_the_known_one(tmp_path: Path) -> None:
    """The A100's data sheet typed into a file gives the known A100's step times, in every precision it has."""
    known = gpu_named("a100-sxm-80gb")
    path = _file(
        tmp_path,
        name="my-a100",
        device="gpu",
        threads=None,
        compute_capability="8.0",
        multiprocessors=108,
        memory_bytes={"value": known.memory_bytes, "source": known.source},
        bandwidth_bytes_per_s={"value": 2.039e12, "source": known.source},
        interconnect_bytes_per_s={"value": 300e9, "source": known.source},
        dense_flops={name: {"value": flops, "source": known.source} for name, flops in known.dense_flops.items()},
    )
    shape = StepShape(
        decode_sequences=8,
        decode_context_tokens=9000,
        prefill_sequences=1,
        prefill_tokens=512,
        prefill_attended_tokens=131_328,
    )
    model = model_named("llama-3-8b")
    for precision in ("fp16", "bf16", "int8_sq", "int4_awq"):
        own, theirs = (
            Roofline(PlacedModel(model, gpu, precision, "16bit")).cost(shape) for gpu in (resolve_gpu(path), known)
        )
        assert own == theirs


def test_a_decode_step_in_fp32_reads_four_bytes_a_parameter(tmp_path: Path) -> None:
    """SmolLM2-135M has 134,515,008 parameters (its model card): 538 MB, 53.8 ms at 10 GB/s, and 46,080 B a token."""
    model = resolve_model(_checkpoint(tmp_path))
    precision = PRECISIONS["fp32"]
    assert model.weights_bytes(precision) == 4 * 134_515_008
    assert model.kv_bytes_per_token("32bit") == 46_080  # 2 x 30 layers x 3 heads x 64 x 4 B
    roofline = Roofline(PlacedModel(model, resolve_gpu(_file(tmp_path)), "fp32", "32bit"))
    assert roofline.cost(StepShape(decode_sequences=1)).weights_s == pytest.approx(0.0538060, rel=1e-4)


def test_a_cut_of_a_model_is_its_first_layers(tmp_path: Path) -> None:
    """Four layers of SmolLM2 have its head and four thirtieths of its linear weights."""
    cut, whole = resolve_model(_checkpoint(tmp_path, num_hidden_layers=4)), model_named("smollm2-135m")
    assert (cut.name, cut.head_parameters) == ("smollm2-cut", whole.head_parameters)
    assert cut.linear_parameters * 30 == whole.linear_parameters * 4


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"name": "h100-sxm-80gb"}, "is a known GPU"),
        ({"name": "a100"}, "another name of a known GPU"),
        ({"bandwith_bytes_per_s": {"value": 1, "source": "x"}}, "unknown key 'bandwith_bytes_per_s'"),
        ({"memory_bytes": {"value": 16e9}}, "missing key 'memory_bytes.source'"),
        ({"memory_bytes": {"value": 0, "source": "x"}}, "memory_bytes.value"),
        ({"memory_bytes": {"value": 16e9, "source": ""}}, "memory_bytes.source"),
        ({"dense_flops": {}}, "dense_flops"),
        ({"dense_flops": {"fp64": {"value": 1, "source": "x"}}}, "dense_flops"),
        ({"threads": None}, "threads: missing; a cpu needs it"),
        ({"compute_capability": "9.0"}, "compute_capability: a cpu has none"),
        ({"device": "gpu", "threads": None}, "compute_capability: missing; a gpu needs it"),
        ({"kind": "measured"}, "measured needs measured_on and command"),
    ],
)
def test_a_wrong_file_is_refused_in_one_line(tmp_path: Path, changed: dict[str, Any], said: str) -> None:
    """File and key are named."""
    path = _file(tmp_path, **changed)
    with pytest.raises(UserError) as refused:
        read_accelerator(Path(path))
    assert path in refused.value.message
    assert said in refused.value.message
    assert "\n" not in refused.value.message


@pytest.mark.parametrize("resolve", [resolve_gpu, resolve_model])
def test_an_unknown_name_says_what_else_can_be_given(resolve: Any) -> None:
    """A misspelled name is met with the nearest, and with the file or folder that would do."""
    with pytest.raises(UserError) as refused:
        resolve("h100-sxm-80" if resolve is resolve_gpu else "qwen3-8")
    assert "did you mean" in (refused.value.hint or "")
    assert "? Also possible: a " in (refused.value.hint or "")


def test_a_missing_file_is_no_unknown_gpu(tmp_path: Path) -> None:
    """A path that leads nowhere is said to lead nowhere."""
    with pytest.raises(MissingError, match="no such file"):
        resolve_gpu(str(tmp_path / "none.yaml"))


def test_a_folder_without_a_config_is_no_model(tmp_path: Path) -> None:
    """The file that is missing is named."""
    with pytest.raises(UserError, match=r"not a checkpoint: it has no config\.json"):
        resolve_model(str(tmp_path))


def test_another_architecture_is_refused(tmp_path: Path) -> None:
    """A config.json of a family whose cost is not known is no model."""
    with pytest.raises(CommandError, match="GPT2LMHeadModel is not supported"):
        resolve_model(_checkpoint(tmp_path, architectures=["GPT2LMHeadModel"]))


def test_a_cpu_runs_what_its_file_states(tmp_path: Path) -> None:
    """FP32 is possible where stated, BF16 is not, 8-bit formats and their caches never are."""
    cpu = resolve_gpu(_file(tmp_path))
    status = {name: verdict(precision, cpu, "llama").status for name, precision in PRECISIONS.items()}
    assert {name for name, found in status.items() if found != "impossible"} == {"fp32"}
    assert verdict(PRECISIONS["int8_sq"], cpu, "llama").nearest == "fp32"
    assert kv_refusal("32bit", PRECISIONS["fp32"], cpu) is None
    assert kv_refusal("fp8", PRECISIONS["bf16"], cpu) is not None
    assert kv_refusal("16bit", PRECISIONS["fp32"], cpu) is not None


def test_fp32_is_built_for_no_known_gpu() -> None:
    """TensorRT-LLM's engines are 16 bit or less here."""
    assert verdict(PRECISIONS["fp32"], gpu_named("h100-sxm-80gb"), "llama").status == "impossible"


@pytest.mark.parametrize("rows", [[2, 4], [1, 4, 2], [1, 1]])
def test_products_are_of_rising_rows_from_one(tmp_path: Path, rows: list[int]) -> None:
    """A table that cannot be looked up is refused, with its key."""
    speeds = [{"rows": each, "weight_bytes_per_s": 1e10} for each in rows]
    with pytest.raises(UserError, match=r"products\.fp32: rows must begin at 1 and rise"):
        read_accelerator(Path(_file(tmp_path, products={"fp32": speeds})))
