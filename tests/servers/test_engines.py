"""Engines with other schedulers: llama.cpp, one request at a time, and transformers' continuous batching."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import pytest

from loadtest.results import RequestRecord
from tests.servers.endpoint import Endpoint
from tests.servers.loads import load

pytestmark = pytest.mark.e2e
# llama.cpp's own count of a request: the first token comes with the prompt.
RUNS = re.compile(r"^llama_perf_context_print: +eval time = .* / +(\d+) runs", re.MULTILINE)


@pytest.mark.parametrize("protocol", ["openai-chat", "openai-completions"])
def test_llama_cpp_is_counted_as_it_counts_itself(
    llama_cpp: Endpoint, checkpoint: Path, logs: Path, tmp_path: Path, protocol: str
) -> None:
    """It states no usage in a stream: an event is a token, as its own log confirms."""
    before = len(RUNS.findall((logs / "llama.log").read_text()))
    asked = ("--isl", 32, "--osl", 12, "--concurrency", 1, "--requests", 6)
    records = load(llama_cpp, tmp_path / "run", *asked, protocol=protocol, tokenizer=checkpoint)
    measured = [record for record in records if record.phase == "measure"]
    assert {(record.outcome, record.output_tokens, record.finish_reason) for record in measured} == {
        ("ok", 12, "length")
    }
    runs = list(map(int, RUNS.findall((logs / "llama.log").read_text())[before:]))
    assert [count + 1 for count in runs] == [record.output_tokens for record in sorted(records, key=_sent)]


def test_llama_cpp_serves_one_after_the_other(llama_cpp: Endpoint, checkpoint: Path, tmp_path: Path) -> None:
    """Three users wait for each other: replies do not overlap, and a token of one never delays those of another."""
    asked = ("--isl", 32, "--osl", 12, "--concurrency", 3, "--requests", 6)
    records = load(llama_cpp, tmp_path / "run", *asked, protocol="openai-completions", tokenizer=checkpoint)
    spans = sorted((record.token_times_s[0], record.token_times_s[-1]) for record in records if record.token_times_s)
    assert len(spans) >= 6
    assert all(last_s <= first_s for (_, last_s), (first_s, _) in itertools.pairwise(spans))


@pytest.mark.parametrize("protocol", ["openai-chat", "openai-completions"])
def test_transformers_is_loaded_without_the_fields_it_refuses(
    transformers_serve: Endpoint, checkpoint: Path, tmp_path: Path, protocol: str
) -> None:
    """Its list of models fails, it refuses `ignore_eos`, and its stream ends without [DONE]: no error."""
    scenario = tmp_path / "scenario.yaml"
    scenario.write_text(
        "name: plain\nconcurrency: [2]\nrequests: 6\nlengths: {isl: 32, osl: 8}\n"
        "extra_body: {ignore_eos: null, min_tokens: null}\n"
    )
    asked = ("--scenario", scenario)
    records = load(transformers_serve, tmp_path / "run", *asked, protocol=protocol, tokenizer=checkpoint)
    for record in records:
        # A reply may end by itself, which is not what was asked for.
        expected = ("ok", "length") if record.output_tokens == record.asked_tokens else ("cut", "stop")
        assert (record.outcome, record.finish_reason) == expected
        assert len(record.token_times_s) == record.output_tokens
    assert {record.outcome for record in records} >= {"ok"}


def test_transformers_batches(transformers_serve: Endpoint, checkpoint: Path, tmp_path: Path) -> None:
    """Two users' replies overlap in time: their tokens come from common iterations."""
    scenario = tmp_path / "scenario.yaml"
    scenario.write_text(
        "name: plain\nconcurrency: [2]\nrequests: 4\nlengths: {isl: 32, osl: 16}\n"
        "extra_body: {ignore_eos: null, min_tokens: null}\n"
    )
    records = load(
        transformers_serve, tmp_path / "run", "--scenario", scenario, protocol="openai-chat", tokenizer=checkpoint
    )
    spans = sorted((record.token_times_s[0], record.token_times_s[-1]) for record in records)
    assert any(first_s < last_s for (_, last_s), (first_s, _) in itertools.pairwise(spans))


def _sent(record: RequestRecord) -> float:
    return record.sent_s
