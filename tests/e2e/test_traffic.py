"""One scenario, two clocks: what run-load sends the real Triton is what predict-load sends the batcher."""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from conftest import Server, succeed

pytestmark = pytest.mark.e2e

MIXED = """
name: mixed
concurrency: [4]
requests: 24
classes:
  - name: talk
    weight: 2
    lengths: {isl: "uniform(40, 90)", osl: "uniform(8, 24)"}
    prefixes: {count: 2, tokens: 200, share: 0.7}
    conversation: {turns: 3, think_s: "exponential(0.05)"}
  - name: alone
    lengths: {isl: "lognormal(mean=120, cv=0.6, max=400)", osl: 8}
    prompts: random
"""
REUSED = 'kv_cache_block_type="reused"'


@pytest.fixture
def scenario(tmp_path: Path) -> Path:
    """Write a scenario of conversations that share beginnings, and single requests between them."""
    path = tmp_path / "mixed.yaml"
    path.write_text(MIXED)
    return path


def _records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "requests.jsonl").read_text().splitlines()]


def _by_talk(records: list[dict[str, Any]]) -> dict[int, list[dict[str, Any]]]:
    found: defaultdict[int, list[dict[str, Any]]] = defaultdict(list)
    for record in sorted(records, key=lambda record: record["turn"]):
        if record["conversation"] is not None:
            found[record["conversation"]].append(record)
    return found


def _reused_blocks(folder: Path) -> float:
    """Return by how much the server's count of found KV blocks grew during a run."""
    samples = [json.loads(line)["values"] for line in (folder / "samples.jsonl").read_text().splitlines()]
    counts = [value for values in samples for series, value in values.items() if REUSED in series]
    return max(counts) - min(counts)


@pytest.mark.parametrize(("protocol", "model"), [("triton-http", "tensorrt_llm"), ("triton-grpc", "ensemble")])
def test_a_run_sends_what_was_predicted(
    protocol: str, model: str, server: Server, engine: Path, scenario: Path, tmp_path: Path
) -> None:
    """Classes, turns and lengths are the prediction's, no turn overtakes its reply, and shared blocks are found."""
    url = server.url if protocol == "triton-http" else f"http://127.0.0.1:{server.grpc}"
    target = ["--url", url, "--protocol", protocol, "--model", model]
    succeed("run-load", *target, "--scenario", scenario, "--out", tmp_path / "run")
    succeed("predict-load", engine, "--scenario", scenario, "--out", tmp_path / "predicted")
    run, predicted = _records(tmp_path / "run"), _records(tmp_path / "predicted")
    assert all(record["outcome"] in ("ok", "cancelled") for record in run)

    told = {(record["conversation"], record["turn"]): record for record in predicted if record["conversation"]}
    seen = [record for record in run if (record["conversation"], record["turn"]) in told]
    assert len(seen) >= len(told) - 8  # who is free first at the end may differ
    for record in seen:
        other = told[record["conversation"], record["turn"]]
        for what in ("prompt_tokens", "class_name"):
            assert record[what] == other[what]
        if record["phase"] != "warmup":
            assert record["asked_tokens"] == other["asked_tokens"]
    assert {record["class_name"] for record in run} == {"talk", "alone"}

    for turns in _by_talk(run).values():
        for one, later in pairwise(turns):
            assert later["turn"] == one["turn"] + 1
            assert later["sent_s"] >= one["done_s"]

    found = sum(record["cached_tokens"] for record in predicted if record["cached_tokens"]) / 32
    assert _reused_blocks(tmp_path / "run") == pytest.approx(found, rel=0.25)


@pytest.mark.quiet
def test_an_open_loop_of_conversations_follows_its_replies(server: Server, tmp_path: Path) -> None:
    """Conversations begin by the clock whatever the server does; their later turns wait for their replies."""
    path = tmp_path / "open.yaml"
    path.write_text(
        "rate_per_s: [10]\nduration_s: 2\nlengths: {isl: 50, osl: 8}\nconversation: {turns: 3, think_s: 0.2}\n"
    )
    succeed("run-load", "--url", server.url, "--scenario", path, "--out", tmp_path / "run")
    records = _records(tmp_path / "run")
    talks = _by_talk(records)
    assert len(talks) > 8
    for turns in talks.values():
        for one, later in pairwise(turns):
            assert later["scheduled_s"] == pytest.approx(one["done_s"] + 0.2 * 2, abs=0.2)  # time scale x2
            assert later["prompt_tokens"] == one["prompt_tokens"] + 50 + 8
    assert len({record["id"] for record in records}) == len(records)


def test_prompts_of_a_file_are_sent_as_they_are(server: Server, tmp_path: Path) -> None:
    """As text, a file's prompts go out whole; a free reply that ends where it likes is no failure."""
    prompts = ["What is the capital of France?", "Name three rivers, and the sea that each of them runs into."]
    (tmp_path / "ours.jsonl").write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))
    path = tmp_path / "ours.yaml"
    path.write_text("prompts: ours.jsonl\nlengths: {osl: 6}\nreplies: free\nconcurrency: [2]\nrequests: 4\n")
    options = ["--url", server.url, "--model", "ensemble", "--keep-text"]
    succeed("run-load", *options, "--scenario", path, "--out", tmp_path / "run")
    kept = [json.loads(line) for line in (tmp_path / "run" / "prompts.jsonl").read_text().splitlines()]
    assert {line["text"] for line in kept} == set(prompts)
    records = _records(tmp_path / "run")
    assert all(record["outcome"] in ("ok", "cancelled") and record["asked_tokens"] is None for record in records)
