"""The smaller copy of the kernel tables gives what the library's own give."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from engines.spec import model_named
from engines.steptime.kernel_tables import smaller_tables, write_smaller_tables
from engines.steptime.silicon import SYSTEMS, compiled_tables

pytest.importorskip("aiconfigurator_core")
pytest.importorskip("pyarrow")

MEASURED = [
    *(("a100_sxm", mode) for mode in ("bfloat16", "sq", "int8_wo", "int4_wo")),
    *((system, mode) for system in ("h100_sxm", "h200_sxm", "l40s", "b200_sxm") for mode in ("bfloat16", "fp8_static")),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the smaller copy."""
    found = tmp_path_factory.mktemp("tables") / "smaller"
    write_smaller_tables(tuple(SYSTEMS.values()), found)
    return found


@pytest.mark.parametrize("tensor_parallel", [1, 2])
@pytest.mark.parametrize(("system", "gemm_mode"), MEASURED)
def test_smaller_tables_give_the_same_times(folder: Path, system: str, gemm_mode: str, tensor_parallel: int) -> None:
    """Products, logits and attention take the same time from both, for small, odd and large shapes."""
    model = model_named("deepseek-r1-0528-qwen3-8b")
    kv_mode = "bfloat16" if system == "a100_sxm" else "fp8"
    smaller = smaller_tables(system, model.head_size, folder)
    assert smaller == str(folder)
    own = compiled_tables(model, system, gemm_mode, kv_mode, tensor_parallel=tensor_parallel, folder=None)
    copy = compiled_tables(model, system, gemm_mode, kv_mode, tensor_parallel=tensor_parallel, folder=smaller)
    assert copy.names == own.names
    for count in (1, 7, 64, 333, 2048, 8192):
        assert copy.linear_s(count) == own.linear_s(count)
        assert copy.logits_s(count) == own.logits_s(count)
        assert copy.decode_attention_s(count // 8 + 1, 3 * count) == own.decode_attention_s(count // 8 + 1, 3 * count)
        assert copy.prompt_attention_s(count // 512 + 1, count, 128) == own.prompt_attention_s(
            count // 512 + 1, count, 128
        )


def test_tables_of_another_release_are_not_used(folder: Path) -> None:
    """A copy made of another release or of a library that has gone, for another head size or system is passed over."""
    assert smaller_tables("h100_sxm", 64, folder) is None
    assert smaller_tables("no_such_system", 128, folder) is None
    stamp = folder / "made-of.json"
    made_of = json.loads(stamp.read_text(encoding="utf-8"))
    for other in ({"at": "/none"}, {"at": None}, {"aiconfigurator-core": "0.0.0"}):
        stamp.write_text(json.dumps(made_of | other), encoding="utf-8")
        assert smaller_tables("h100_sxm", 128, folder) is None
    stamp.write_text(json.dumps(made_of), encoding="utf-8")
    assert smaller_tables("h100_sxm", 128, folder) == str(folder)
