"""Real exports of every family at every precision, held to what TensorRT-LLM's classes ask for."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engines.checkpoint.export_job import ExportJob
from engines.checkpoint.quantization import quantize
from engines.spec import known_models
from engines.spec.memory import buffers_bytes
from engines.spec.model_config import read_config
from engines.spec.precision import PRECISIONS, KvFormat
from tests.contract.trtllm_loader import FACTS, problems
from tests.late import Late
from tests.tiny_checkpoints import WINDOWS, write_model

Late("modelopt", "quantize")
SIZES = {"hidden_size": 256, "intermediate_size": 512, "head_dim": 64}
Exported = Callable[..., Path]


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """Export a tiny checkpoint of a family, once for each way."""
    made: dict[tuple[Any, ...], Path] = {}

    def once(family: str, precision: str = "bf16", kv_cache: KvFormat = "16bit", tensor_parallel: int = 1) -> Path:
        key = (family, precision, kv_cache, tensor_parallel)
        if (family,) not in made:
            made[family,] = write_model(tmp_path_factory.mktemp(family), family, **SIZES)
        if key not in made:
            made[key] = tmp_path_factory.mktemp("-".join(map(str, key)))
            job = ExportJob(
                source=made[family,],
                precision=precision,
                kv_cache=kv_cache,
                calibration=WINDOWS,
                seed=0,
                tensor_parallel=tensor_parallel,
            )
            quantize(job, made[key], progress=lambda _: None)
        return made[key]

    return once


# Every precision with its own KV cache, then those caches that TensorRT-LLM's converters cannot make at 16 bit.
EXPORTED = {name: precision for name, precision in PRECISIONS.items() if name != "fp32"}  # no engine is built in it
WAYS = [(precision.name, precision.default_kv) for precision in EXPORTED.values()]
OTHER_CACHES = [("bf16", "fp8"), ("fp16", "fp8"), ("int8_wo", "fp8"), ("int8_wo", "int8"), ("int8_sq", "int8")]


@pytest.mark.parametrize(("precision", "kv_cache"), WAYS)
@pytest.mark.parametrize("family", sorted(FACTS["families"]))
def test_every_family_loads_at_every_precision(
    exported: Exported, family: str, precision: str, kv_cache: KvFormat
) -> None:
    """Not a key missing, not a tensor too many, too few, of another type or another shape."""
    assert problems(exported(family, precision, kv_cache), family, precision, kv_cache, 1) == []


@pytest.mark.parametrize(("precision", "kv_cache"), OTHER_CACHES)
def test_an_eight_bit_cache_beside_other_weights_loads(exported: Exported, precision: str, kv_cache: KvFormat) -> None:
    """A cache that is planned is a cache that is built: its algorithm is stated, its scale is there."""
    assert problems(exported("qwen3", precision, kv_cache), "qwen3", precision, kv_cache, 1) == []


@pytest.mark.parametrize(
    ("family", "precision", "kv_cache"),
    [*(("qwen3", *way) for way in WAYS), *((family, "fp8", "fp8") for family in ("qwen2", "llama", "mistral"))],
)
def test_every_rank_of_two_loads(exported: Exported, family: str, precision: str, kv_cache: KvFormat) -> None:
    """Split over two GPUs, each rank holds its share."""
    assert problems(exported(family, precision, kv_cache, 2), family, precision, kv_cache, 2) == []


def test_what_could_not_be_loaded_is_found(exported: Exported, tmp_path: Path) -> None:
    """The stand-in refuses what upstream refused when it was run: no seq_length, 8-bit weights for W8A16."""
    folder = exported("qwen3", "fp8", "fp8")
    config = json.loads((folder / "config.json").read_text())
    (tmp_path / "rank0.safetensors").symlink_to(folder / "rank0.safetensors")

    def with_config(changed: dict[str, Any], precision: str = "fp8") -> list[str]:
        (tmp_path / "config.json").write_text(json.dumps(changed))
        return problems(tmp_path, "qwen3", precision, "fp8", 1)

    assert with_config({key: value for key, value in config.items() if key != "seq_length"}) == [
        "config.json: no seq_length"
    ]
    assert "quant_algo FP8, W8A16 is meant" in with_config(config, "int8_wo")[0]
    weight_only = {**config, "quantization": read_config(exported("qwen3", "int8_wo", "fp8"))["quantization"]}
    found = with_config(weight_only, "int8_wo")
    assert "rank 0: provided but not required: transformer.layers.0.mlp.fc.weights_scaling_factor" in found
    assert any("mlp.fc.weight is ('F8_E4M3'" in problem for problem in found)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_logits_are_kept_as_they_are_counted(exported: Exported, precision: str) -> None:
    """The export states 16-bit logits, and the memory plan reserves two bytes for each of its two copies of them."""
    assert read_config(exported("llama", precision))["logits_dtype"] == "float16"
    vocabulary, slots = 151_936, 64
    model = known_models()["deepseek-r1-0528-qwen3-8b"]
    without = buffers_bytes(model.model_copy(update={"vocab_size": 0}), max_batch_size=slots, max_seq_len=8192)
    counted = buffers_bytes(model, max_batch_size=slots, max_seq_len=8192) - without
    assert counted == 2 * 2 * slots * vocabulary


def test_every_precision_there_is_has_its_facts() -> None:
    """A precision added to the matrix fails here until its tensors are known."""
    assert FACTS["precisions"].keys() == EXPORTED.keys()
    assert len(FACTS["families"]) == 4
