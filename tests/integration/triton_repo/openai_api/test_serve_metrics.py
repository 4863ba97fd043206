"""The twin's metrics pages: names, buckets and what each number is taken from."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from tests.facts import read_facts
from triton_repo.openai_api.serve_metrics import BUCKETS, MeasuredReply, ServeMetrics
from triton_repo.openai_api.triton_client import EngineTimes, Generation

PUBLISHED: dict[str, list[str]] = read_facts(Path(__file__).parents[3] / "contract" / "serve_metrics.yaml")["versions"]
LABELS = 'model="tensorrt_llm",version="1"'
TRITON = "\n".join(
    [
        f'nv_trt_llm_request_metrics{{{LABELS},request_type="{kind}"}} {value}'
        for kind, value in {"active": 8, "max": 8, "scheduled": 6, "context": 1, "waiting": 2}.items()
    ]
    + [
        f'nv_trt_llm_kv_cache_block_metrics{{kv_cache_block_type="{kind}",{LABELS}}} {value}'
        for kind, value in {"max": 40, "free": 10, "used": 30, "tokens_per": 32, "fraction": 0.75}.items()
    ]
    + [
        f'nv_trt_llm_inflight_batcher_metrics{{inflight_batcher_specific_metric="paused_requests",{LABELS}}} 1',
        f"emulator_waiting_requests{{{LABELS}}} 7",
        f"emulator_steps_total{{{LABELS}}} 100",
        f"emulator_step_seconds_total{{{LABELS}}} 2",
    ]
)


def _values(page: str) -> dict[str, float]:
    """Return a page's values by name, without labels; of a histogram the count and the sum."""
    lines = [line for line in page.splitlines() if not line.startswith("#") and "_bucket" not in line]
    return {line.split("{")[0]: float(line.split()[-1]) for line in lines}


def test_requests_are_counted_by_the_engines_times() -> None:
    """Two replies: one of 11 tokens that waited, one of a single token that did not."""
    metrics = ServeMetrics("1.3", "qwen")
    metrics.ended("length", EngineTimes(0.5, 1.0, 2.0), prompt_tokens=100, tokens=11)
    metrics.ended("stop", EngineTimes(0.0, 0.1, 0.1), prompt_tokens=50, tokens=1)
    page = metrics.page(TRITON)
    values = _values(page)
    assert values["trtllm_e2e_request_latency_seconds_sum"] == pytest.approx(2.1)
    assert values["trtllm_time_to_first_token_seconds_count"] == 2
    assert values["trtllm_time_per_output_token_seconds_sum"] == pytest.approx(0.1)
    assert values["trtllm_request_queue_time_seconds_count"] == 2
    assert (values["trtllm_prompt_tokens_total"], values["trtllm_generation_tokens_total"]) == (150, 12)
    assert 'trtllm_request_success_total{finished_reason="length",engine_type="trtllm",model_name="qwen"} 1.0' in page


def test_gauges_are_the_engines() -> None:
    """Waiting is the executor's queue alone, as upstream's numQueuedRequests."""
    values = _values(ServeMetrics("1.3", "qwen").page(TRITON))
    assert values["trtllm_num_requests_running"] == 8
    assert values["trtllm_num_requests_waiting"] == 5
    assert values["trtllm_max_num_active_requests"] == 8
    assert values["trtllm_kv_cache_utilization"] == 0.75
    assert values["trtllm_iteration_latency_seconds"] == 0.02
    [iteration] = ServeMetrics("1.3", "qwen").iterations(TRITON)
    assert (iteration["numQueuedRequests"], iteration["iterLatencyMS"]) == (5, 20)
    assert iteration["kvCacheStats"]["usedNumBlocks"] == 30
    assert iteration["inflightBatchingStats"]["numPausedRequests"] == 1


@pytest.mark.parametrize("version", ["1.2", "1.3", "1.4rc"])
def test_a_version_publishes_its_names_and_no_others(version: str) -> None:
    """Each has a HELP and a TYPE; 1.2 has the five of requests, and says undefined of itself."""
    metrics = ServeMetrics(version, "qwen")
    metrics.ended("stop", EngineTimes(0.5, 1.0, 2.0), prompt_tokens=1, tokens=2)
    page = metrics.page(TRITON)
    typed = [line.split()[2] for line in page.splitlines() if line.startswith("# TYPE")]
    assert typed == PUBLISHED[version]
    assert ('model_name="undefined"' in page) == (version == "1.2")


def test_only_1_2_leaves_a_wait_of_nothing_out_and_counts_no_errors() -> None:
    """As upstream did until it was mended; errors are told by their HTTP status."""
    for version, waits, errors in (("1.2", "", []), ("1.3", "trtllm_request_queue_time_seconds_count", ["503"])):
        metrics = ServeMetrics(version, "qwen")
        metrics.ended("stop", EngineTimes(0.0, 0.1, 0.2), prompt_tokens=1, tokens=2)
        metrics.failed(503)
        page = metrics.page("")
        assert ("queue_time_seconds_count" in page) == bool(waits)
        assert [code for code in ("400", "503") if f'request_error_total{{http_code="{code}"' in page] == errors


def test_buckets_add_up() -> None:
    """Each bucket counts what is at most its bound; the last is all."""
    metrics = ServeMetrics("1.2", "qwen")
    for last_s in (0.3, 0.31, 9000.0):
        metrics.ended("stop", EngineTimes(0.1, 0.2, last_s), prompt_tokens=1, tokens=2)
    lines = [line for line in metrics.page("").splitlines() if line.startswith("e2e_request_latency_seconds_bucket")]
    counts = [float(line.split()[-1]) for line in lines]
    assert len(counts) == len(BUCKETS["e2e_request_latency_seconds"]) + 1
    assert (counts[0], counts[1], counts[-2], counts[-1]) == (1, 2, 2, 3)


class _Reply:
    """An engine's reply in two messages; the last has its times."""

    def __init__(self, *, times: EngineTimes | None) -> None:
        self.times: EngineTimes | None = None
        self._messages: list[Any] = [([5], None), ([6, 7], times), (None, None)]

    async def read(self) -> list[int] | None:
        """Return the next tokens."""
        ids, self.times = self._messages.pop(0)
        return ids  # type: ignore[no-any-return]

    def cancel(self) -> None:
        """Do nothing."""


@pytest.mark.parametrize(
    ("length", "end_id", "stop_words", "reason"),
    [(3, None, (), "length"), (3, 7, (), "stop"), (3, 6, (), "length"), (9, None, ((6, 7),), "stop")],
)
def test_why_a_reply_ended(length: int, end_id: int | None, stop_words: Any, reason: str) -> None:
    """By its last tokens, or by how many there are."""
    metrics = ServeMetrics("1.3", "qwen")
    asked = Generation([1, 2], length, streaming=True, end_id=end_id, stop_words=stop_words)
    reply = MeasuredReply(_Reply(times=EngineTimes(0.1, 0.2, 0.3)), asked, metrics)  # type: ignore[arg-type]
    assert [asyncio.run(reply.read()) for _ in range(3)] == [[5], [6, 7], None]
    page = metrics.page("")
    assert f'finished_reason="{reason}"' in page
    assert _values(page)["trtllm_generation_tokens_total"] == 3


def test_a_cancelled_reply_is_not_counted() -> None:
    """The engine says no times of it."""
    metrics = ServeMetrics("1.3", "qwen")
    reply = MeasuredReply(_Reply(times=None), Generation([1], 9, streaming=True), metrics)  # type: ignore[arg-type]
    for _ in range(3):
        asyncio.run(reply.read())
    assert _values(metrics.page(""))["trtllm_generation_tokens_total"] == 0
