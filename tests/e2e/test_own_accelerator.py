"""From a measured machine and a checkpoint's config to a capacity plan, by the commands alone."""

from __future__ import annotations

import contextlib
import csv
import json
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from conftest import command, succeed

from engines.calibration import read_calibration
from tests.smollm2 import SMOLLM2

pytestmark = pytest.mark.e2e
SHAPES = ((64, 16), (192, 24))
USERS = (1, 4, 8)
DEMAND = """
name: own
model: my-smollm2
traffic: {process: described, rate_per_s: 0.2, lengths: {isl: 64, osl: 16}}
peak_window_s: 60
objectives: {ttft_s: {p95: 60.0}, tpot_s: {p95: 30.0}}
availability: {n_plus: 0}
limits: {gpus: [core.yaml], precisions: [fp32]}
candidates: {engine_profile: vllm-v1, max_batch_size: [8], max_num_tokens: [2048], calibrations: [calibration.json]}
"""


def _run(folder: Path, *words: str) -> str:
    with contextlib.chdir(folder):
        return succeed(*words)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a checkpoint's config and this machine, measured on one core."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "my-smollm2").mkdir()
    (folder / "my-smollm2" / "config.json").write_text(json.dumps(SMOLLM2))
    _run(folder, "describe-machine", "--device", "cpu", "--threads", "1", "--name", "core", "--out", "core.yaml")
    return folder


def _predicted(folder: Path, *words: str) -> list[dict[str, Any]]:
    asked = ("--gpu", "core.yaml", "--model", "my-smollm2", "--precision", "fp32", "--max-batch-size", "8")
    said = _run(folder, "predict-load", *asked, "--max-num-tokens", "2048", "--json", *words)
    return list(json.loads(said)["levels"])


def test_a_deployment_on_this_machine_is_predicted_calibrated_and_planned(place: Path) -> None:
    """Points that a server 1.5 times as slow would show are fitted: predictions follow, and so does the plan."""
    rows = []
    for isl, osl in SHAPES:
        load = ("--isl", str(isl), "--osl", str(osl), "--concurrency", ",".join(map(str, USERS)))
        for users, level in zip(USERS, _predicted(place, *load, "--engine-profile", "vllm-v1"), strict=True):
            rows.append(
                {
                    "concurrency_or_batch": users,
                    "isl": isl,
                    "osl": osl,
                    "ttft_ms": 1.5e3 * level["ttft_s"]["mean"],
                    "itl_ms": 1.5e3 * level["itl_s"]["mean"],
                    "throughput_out_tok_s": level["output_tokens_per_s"] / 1.5,
                }
            )
    with (place / "points.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    deployment = ("--gpu", "core.yaml", "--model", "my-smollm2", "--precision", "fp32", "--engine-profile", "vllm-v1")
    limits = ("--max-batch-size", "8", "--max-num-tokens", "2048", "--start", "staggered")
    _run(place, "calibrate-engine", "--measurements", "points.csv", *deployment, *limits, "--out", "calibration.json")
    found = read_calibration(place / "calibration.json")
    assert (found.gpu, found.model, found.precision, found.kv_cache) == ("core", "my-smollm2", "fp32", "32bit")
    assert found.source == "roofline"
    assert {Path(each.path).name for each in found.made_from} == {"points.csv", "core.yaml", "config.json"}
    assert found.log_error["itl_s"] < 0.1
    again = _predicted(place, "--calibration", "calibration.json", "--isl", "64", "--osl", "16", "--concurrency", "4")
    assert again[0]["itl_s"]["mean"] == pytest.approx(rows[1]["itl_ms"] / 1e3, rel=0.1)
    (place / "demand.yaml").write_text(DEMAND)
    _run(place, "plan-capacity", "demand.yaml", "--out", "plan", "--workers", "1")
    plan = json.loads((place / "plan" / "capacity.json").read_text())
    chosen = next(row for row in plan["rows"] if row["name"] == plan["recommended"])
    assert (chosen["basis"], chosen["gpu"], chosen["usd_per_month"]) == ("calibrated", "core", None)
    assert chosen["replicas"] >= 1


def test_an_engine_on_a_cpu_is_planned_and_not_built(place: Path) -> None:
    """build-engine plans with the file, and says that TensorRT-LLM builds no such engine."""
    asked = ("build-engine", "--gpu", "core.yaml", "--model", "my-smollm2", "--precision", "fp32")
    _run(place, *asked, "--emulate", "--max-seq-len", "512", "--out", "engine")
    manifest = json.loads((place / "engine" / "manifest.json").read_text())
    assert manifest["gpu"]["device"] == "cpu"
    assert manifest["precision"] == {"name": "fp32", "kv_cache": "32bit", "activation_dtype": "float32"}
    refused = command(*asked, "--out", "other", cwd=place)
    assert refused.returncode == 2
    assert "TensorRT-LLM builds no such engine" in refused.stderr
