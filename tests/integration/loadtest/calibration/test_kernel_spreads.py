"""The spread of kernels between frameworks, in the tables that step times come from, against what a fit expects."""

from __future__ import annotations

from collections import defaultdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from loadtest.calibration.parameters import KERNEL_SPREADS, PLACE, PRIOR

pq = pytest.importorskip("pyarrow.parquet")
if (SPEC := find_spec("aiconfigurator_core")) is None or SPEC.origin is None:
    pytest.skip("aiconfigurator-core is not installed", allow_module_level=True)
DATA = Path(SPEC.origin).parent / "systems" / "data"
SYSTEMS = ("a100_sxm", "h100_sxm", "h200_sxm", "l40s", "b200_sxm")
TOKENS = (1024, 2048, 4096, 8192)
PROMPTS = ((1, 1024), (1, 2048), (4, 2048), (1, 4096), (1, 8192), (4, 8192))
PRODUCTS = ((4096, 4096), (6144, 4096), (8192, 4096), (12288, 4096), (4096, 12288))  # outputs, inputs
LLAMA_8B = {"num_heads": 32, "num_key_value_heads": 8, "head_dim": 128}

Times = dict[Any, dict[Any, float]]


def _read(path: Path, **wanted: int) -> list[dict[str, Any]]:
    rows = pq.read_table(path).to_pylist()
    return [row for row in rows if all(row.get(key, value) == value for key, value in wanted.items())]


def _products(path: Path) -> Times:
    """Return by format the time of all products at each number of tokens."""
    found: defaultdict[Any, defaultdict[Any, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in _read(path):
        if row["gemm_dtype"] in {"bfloat16", "fp8"} and (row["n"], row["k"]) in PRODUCTS:
            found[row["gemm_dtype"]][row["n"], row["k"], row["m"]].append(row["latency"])
    return {
        each: {tokens: sum(float(np.median(times[*shape, tokens])) for shape in PRODUCTS) for tokens in TOKENS}
        for each, times in found.items()
    }


def _attention(path: Path) -> Times:
    """Return by formats the time of Llama-3-8B's attention of some prompts."""
    found: defaultdict[Any, defaultdict[Any, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in _read(path, window_size=0, step=0, **LLAMA_8B):
        if (prompt := (row["batch_size"], row["isl"])) in PROMPTS:
            found[row["attn_dtype"], row["kv_cache_dtype"]][prompt].append(row["latency"])
    return {each: {key: float(np.median(times)) for key, times in of.items()} for each, of in found.items()}


def _log_ratios(table: str, times_of: Any) -> list[float]:
    """Return ln(other framework / TensorRT-LLM), a mean over shapes, by GPU, other framework and format."""
    ratios = []
    for system in SYSTEMS:
        by_framework = defaultdict(list)
        for path in sorted((DATA / system).rglob(table)):
            by_framework[path.parent.parent.name].append(times_of(path))
        (ours,) = by_framework.pop("trtllm")
        for theirs in (times for several in by_framework.values() for times in several):
            for formats in ours.keys() & theirs.keys():
                shared = ours[formats].keys() & theirs[formats].keys()
                if shared:
                    ratios.append(np.mean([np.log(theirs[formats][key] / ours[formats][key]) for key in shared]))
    return [float(ratio) for ratio in ratios]


def test_what_is_expected_of_products_and_attention_is_what_the_tables_say() -> None:
    """Root mean squares of 0.064 and 0.26; products take TensorRT-LLM's time on average; any source is less certain."""
    products, attention = (
        _log_ratios("gemm_perf.parquet", _products),
        _log_ratios("context_attention_perf.parquet", _attention),
    )
    assert min(len(products), len(attention)) >= 15
    assert np.sqrt(np.mean(np.square(products))) == pytest.approx(0.064, abs=0.005)
    assert np.mean(products) == pytest.approx(0.0, abs=0.01)
    assert np.sqrt(np.mean(np.square(attention))) == pytest.approx(KERNEL_SPREADS["attention_ratio"], abs=0.01)
    assert 0.064 < KERNEL_SPREADS["gemm_ratio"] < PRIOR.spread[PLACE["gemm_ratio"]]
    assert KERNEL_SPREADS["attention_ratio"] < PRIOR.spread[PLACE["attention_ratio"]]
