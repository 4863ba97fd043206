"""Small valid inputs of every format a command reads, made once."""

from __future__ import annotations

import json
import struct
from pathlib import Path

from engines.autoscaling import AutoscalingFile, ColdStart, ScalingLaw, simulated_engine
from engines.files import made_by, to_json
from engines.manifest import read_manifest
from tests.attack.victim import ROOT, Victims
from tests.unit.engines.checkpoint.test_inspection import SHAPES, write_checkpoint, write_tokenizer

CLOSED = "http://127.0.0.1:9"  # the discard port: nothing listens
DEMAND = """
name: tiny
model: deepseek-r1-0528-qwen3-8b
traffic: {process: described, rate_per_s: 0.1, classes: [{name: chat, lengths: {isl: 50, osl: 20}}]}
objectives: {ttft_s: {p95: 2.0}}
candidates: {engines: [engine]}
prices: {file: prices.yaml, vendor: mine}
"""
SCENARIO = """
name: small
concurrency: [1]
requests: 2
lengths: {isl: "lognormal(mean=16, cv=0.5, max=64)", osl: 4}
prefixes: {count: 2, tokens: 8, share: 0.5}
conversation: {turns: 2, think_s: 0.1}
seed: 1
"""
NO_PROCESS = 2**22 + 1  # above the largest pid that Linux gives
_HEAD = '"schema": 2, "made_by": {"command": "serve-repo", "version": "0"}, "made_from": []'
SERVER = (
    f'{{{_HEAD}, "pid": {NO_PROCESS}, "started_ticks": 1, "address": "127.0.0.1", "http_port": 8000, '
    '"grpc_port": 8001, "metrics_port": 8002, "triton_version": "2.51.0", "log": "server.log", '
    '"shared_memory_prefix": "triton_1_1_"}'
)
FRONT = f'{{{_HEAD}, "pid": {NO_PROCESS}, "address": "127.0.0.1", "port": 9000, "log": "front.log"}}'
TEXTS = {
    "recipe.yaml": "precision: fp8\nworkload: {isl: 100, osl: 50}\nlimits: {max_batch_size: 8}\n",
    "serving.yaml": "max_queue_size: 8\n",
    "scenario.yaml": SCENARIO,
    "traced.yaml": "arrivals: {process: trace, path: trace.csv}\n",
    "prompted.yaml": "prompts: prompts.jsonl\nconcurrency: [1]\nrequests: 2\nlengths: {osl: 4}\n",
    "demand.yaml": DEMAND,
    "prices.yaml": "prices:\n- {vendor: mine, gpu: h100-sxm-80gb, usd_per_gpu_h: 2, read_on: 2026-01-01, source: x}\n",
    "objectives.yaml": "ttft_s: {p95: 2.0}\nitl_s: {p99: 0.5}\n",
    "gate.yaml": "objectives: {ttft_s: {p95: 2.0}}\n",
    "trace.csv": "at_s,isl,osl\n0,16,4\n0.5,20,4\n1.0,8,2\n",
    "prompts.jsonl": '{"prompt": "w1 w2 w3"}\n{"prompt": "w4 w5"}\n',
    "keys.txt": "sk-attack\n",
    "stopped/server.json": SERVER,
    "stopped-front/front.json": FRONT,
}
POINTS = "concurrency_or_batch,isl,osl,ttft_ms,itl_ms,throughput_out_tok_s\n" + "".join(
    f"{users},{isl},200,{20 + users * isl / 100:g},{6 + users / 10:g},\n" for users in (1, 4, 16) for isl in (200, 1000)
)


def _calibration() -> str:
    """Return a published calibration, as if it were of the engine that is built here."""
    published = ROOT / "validation" / "vllm-v1" / "amd-epyc-1-core" / "smollm2-135m-4-layers" / "calibration.json"
    found = json.loads(published.read_text())
    return json.dumps(
        found | {"gpu": "h100-sxm-80gb", "precision": "fp8", "kv_cache": "fp8", "made_from": []}, indent=1
    )


def make_examples(folder: Path, victims: Victims) -> None:
    """Fill a folder with one valid example of each input."""
    place = folder / "place"
    place.mkdir(parents=True)
    for name, text in {**TEXTS, "points.csv": POINTS, "calibration.json": _calibration()}.items():
        (place / name).parent.mkdir(exist_ok=True)
        (place / name).write_text(text)
    write_checkpoint(place / "checkpoint", shapes=SHAPES)
    (place / "tokenizer").mkdir()
    write_tokenizer(place / "tokenizer", words=10)
    (place / "tokenizer" / "tokenizer_config.json").write_text("{}")
    (place / "model.gguf").write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 0))
    made = {
        "build-engine": [
            ["--precision", "fp8", "--emulate", "--out", "engine"],
            ["--precision", "fp8", "--emulate", "--backend", "pytorch", "--out", "pytorch"],
        ],
        "build-repo": [
            ["engine", "--tokenizer", "tokenizer", "--out", "repository"],
            ["pytorch", "--tokenizer", "tokenizer", "--out", "repository-pytorch"],
        ],
        "predict-load": [
            ["engine", *["--isl", "8", "--osl", "4", "--concurrency", "1,2", "--requests", "4", "--out", "run"]],
        ],
    }
    for name, lines in made.items():
        for words in lines:
            ended = victims.run(name, words, place)
            assert (ended.status, ended.broken(name)) == (0, None), (name, ended)
    (place / "autoscaling.json").write_text(_autoscaling(place / "engine"))


def _autoscaling(engine: Path) -> str:
    """Return a control law, as if it had been simulated with an engine."""
    law = {"controller": "hpa", "signal": "in_flight", "target": 75.0, "min_replicas": 2, "max_replicas": 6}
    found = AutoscalingFile(
        made_by=made_by("attack"),
        law=ScalingLaw.model_validate(law),
        cold_start=ColdStart(pending_s=120, loading_s=180, source="assumed"),
        engine=simulated_engine(read_manifest(engine)),
        row="h100-sxm-80gb fp8",
        simulated_minutes=1440,
        missed_minutes=2,
        gpu_hours=70.9,
        seeds=(0,),
    )
    return to_json(found)
