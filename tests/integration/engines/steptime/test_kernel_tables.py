"""The smaller copy of the kernel tables, and our list of operations, give what the library's own give."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from engines.derived_copy import MADE_OF
from engines.spec import Kernels, ModelSpec, model_named
from engines.steptime.kernel_tables import smaller_tables, write_smaller_tables
from engines.steptime.operations import Lookup, engine_of
from engines.steptime.silicon import SYSTEMS, read_tables

pytest.importorskip("aiconfigurator_core")
pytest.importorskip("pyarrow")

from aiconfigurator_core.sdk.engine import EngineHandle

_NEWER = ("h100_sxm", "h200_sxm", "l40s", "b200_sxm")
MEASURED: list[tuple[Kernels, str, str]] = [
    *(("trtllm", "a100_sxm", mode) for mode in ("bfloat16", "sq", "int8_wo", "int4_wo")),
    *(("trtllm", system, mode) for system in _NEWER for mode in ("bfloat16", "fp8_static")),
    ("vllm", "a100_sxm", "bfloat16"),
    *(("vllm", system, mode) for system in _NEWER for mode in ("bfloat16", "fp8")),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the smaller copy."""
    found = tmp_path_factory.mktemp("tables") / "smaller"
    write_smaller_tables(tuple(SYSTEMS.values()), found)
    return found


@pytest.mark.parametrize("tensor_parallel", [1, 2])
@pytest.mark.parametrize(("kernels", "system", "gemm_mode"), MEASURED)
def test_smaller_tables_give_the_same_times(
    folder: Path, kernels: Kernels, system: str, gemm_mode: str, tensor_parallel: int
) -> None:
    """Products, logits and attention take the same time from both, for small, odd and large shapes."""
    model = model_named("deepseek-r1-0528-qwen3-8b")
    kv_mode = "bfloat16" if system == "a100_sxm" else "fp8"
    smaller = smaller_tables(kernels, system, model.head_size, folder)
    assert smaller == str(folder / kernels)
    lookup = Lookup(model, kernels, system, gemm_mode, kv_mode, tensor_parallel)
    own = read_tables(lookup, None)
    copy = read_tables(lookup, smaller)
    for count in (1, 7, 64, 333, 2048, 8192):
        assert copy.linear_s(count) == own.linear_s(count)
        assert copy.logits_s(count) == own.logits_s(count)
        assert copy.decode_attention_s(count // 8 + 1, 3 * count) == own.decode_attention_s(count // 8 + 1, 3 * count)
        assert copy.prompt_attention_s(count // 512 + 1, count, 128) == own.prompt_attention_s(
            count // 512 + 1, count, 128
        )


@pytest.mark.parametrize("name", ["deepseek-r1-0528-qwen3-8b", "qwen2.5-7b"])
@pytest.mark.parametrize("tensor_parallel", [1, 2])
@pytest.mark.parametrize(("kernels", "system", "gemm_mode"), [*MEASURED, ("trtllm", "b200_sxm", "nvfp4")])
def test_the_list_of_operations_costs_what_the_library_s_own_does(
    tmp_path: Path, kernels: Kernels, system: str, gemm_mode: str, tensor_parallel: int, name: str
) -> None:
    """Each operation of the library's Llama takes the same time, to the last digit; those without work are left out."""
    model = model_named(name)
    kv_mode = "bfloat16" if system == "a100_sxm" else "fp8"
    (tmp_path / "config.json").write_text(json.dumps(_config_of(model)), encoding="utf-8")
    modes = {"gemm_quant_mode": gemm_mode, "kvcache_quant_mode": kv_mode}
    library = EngineHandle.compile(str(tmp_path), system, kernels, tp_size=tensor_parallel, **modes)
    engine, names = engine_of(Lookup(model, kernels, system, gemm_mode, kv_mode, tensor_parallel), None)
    every = list(range(len(names)))
    for count in (1, 7, 64, 333, 2048, 8192):
        shape = {"batch_size": count // 512 + 1, "s": count, "prefix": 128, "x": count}
        *theirs, (last, idle_ms, *_) = library.evaluate_context_ops([*every, len(every)], **shape)
        assert (last, idle_ms) == ("context_p2p", 0.0)  # between pipeline stages, of which there is one
        ours = engine.evaluate_context_ops(every, **shape)
        assert [ms for _, ms, *_ in ours] == [ms for _, ms, *_ in theirs]
        decoded = {"batch_size": count // 8 + 1, "s": 3 * count}
        ((_, attention_ms, *_),) = engine.evaluate_generation_ops([0], **decoded)
        ((kind, library_ms, *_),) = library.evaluate_generation_ops([3], **decoded)
        assert (kind, library_ms) == ("generation_attention", attention_ms)


def _config_of(model: ModelSpec) -> dict[str, Any]:
    """Return a Hugging Face config of Llama with a model's shapes."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": model.hidden_size,
        "intermediate_size": model.intermediate_size * model.mlp_matrices // 3,
        "num_hidden_layers": model.layers,
        "num_attention_heads": model.attention_heads,
        "num_key_value_heads": model.kv_heads,
        "head_dim": model.head_size,
        "max_position_embeddings": model.max_position_embeddings,
        "rms_norm_eps": 1e-5,
        "vocab_size": model.vocab_size,
        "torch_dtype": "bfloat16",
    }


def test_tables_of_another_release_are_not_used(folder: Path) -> None:
    """A copy made of another release, for another head size or another system is passed over."""
    assert smaller_tables("vllm", "h100_sxm", 64, folder) is None
    assert smaller_tables("vllm", "no_such_system", 128, folder) is None
    stamp = folder / MADE_OF
    made_of = json.loads(stamp.read_text(encoding="utf-8"))
    stamp.write_text(json.dumps(made_of | {"of": made_of["of"] | {"aiconfigurator-core": "0.0.0"}}), encoding="utf-8")
    assert smaller_tables("vllm", "h100_sxm", 128, folder) is None
    stamp.write_text(json.dumps(made_of), encoding="utf-8")
    assert smaller_tables("vllm", "h100_sxm", 128, folder) == str(folder / "vllm")


@pytest.mark.parametrize("name", ["gemm_perf.parquet", "collection_meta.yaml"])
def test_damaged_tables_are_not_used(folder: Path, name: str) -> None:
    """A table that was cut made products take another time, without an error; a link may lead to nothing."""
    damaged = next(folder.glob(f"vllm/data/h100_sxm/gemm/**/{name}"))
    kept = damaged.rename(damaged.with_name("kept"))
    for data in (kept.read_bytes()[:-100], b"", None):
        if data is not None:
            damaged.write_bytes(data)
        assert smaller_tables("vllm", "h100_sxm", 128, folder) is None
        assert smaller_tables("trtllm", "h100_sxm", 128, folder) == str(folder / "trtllm")
        damaged.unlink(missing_ok=True)
    kept.rename(damaged)
    assert smaller_tables("vllm", "h100_sxm", 128, folder) == str(folder / "vllm")
