"""Metrics of an emulated `trtllm-serve`, with upstream's names, labels, units and buckets.

Requests are counted by the front, with the engine's own times; engine metrics come from the metrics page of the Triton
behind it. TensorRT-LLM 1.2 publishes five request metrics and none of the engine.

Source:
    TensorRT-LLM, tensorrt_llm/metrics/collector.py (050f80de, main of 2026) and serve/openai_server.py; additions since
    1.2 came with pull requests 11243, 12545 and 12636 (January to April 2026: candidates of 1.3); for 1.2 the list in
    Dynamo's documentation and a user's page, which shows no prefix. None was run.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from engines.build import choices_of
from triton_repo.openai_api.triton_client import EngineClient, EngineTimes, Generation, Reply
from triton_repo.settings import RepositoryManifest

PREFIX = "trtllm_"
_LONG = (0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680)
_FIRST = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160, 640, 2560,
)  # fmt: skip
_EACH = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80)
BUCKETS: dict[str, tuple[float, ...]] = {
    "e2e_request_latency_seconds": _LONG,
    "time_to_first_token_seconds": _FIRST,
    "time_per_output_token_seconds": _EACH,
    "request_queue_time_seconds": _LONG,
}
REQUESTS = "request_success_total"
ERRORS = "request_error_total"
TOKENS = ("prompt_tokens_total", "generation_tokens_total")
GAUGES = (
    "num_requests_running", "num_requests_waiting", "max_num_active_requests", "iteration_latency_seconds",
    "kv_cache_utilization", "kv_cache_used_blocks", "num_scheduled_requests", "num_context_requests",
    "num_generation_requests", "num_paused_requests",
)  # fmt: skip


@dataclass(slots=True)
class _Histogram:
    bounds: tuple[float, ...]
    counts: list[int] = field(default_factory=list)
    total: float = 0.0

    def observe(self, value: float) -> None:
        self.counts = self.counts or [0] * (len(self.bounds) + 1)
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def lines(self, name: str, labels: str) -> list[str]:
        """Return its lines; none before the first value, as prometheus_client does for labelled metrics."""
        if not self.counts:
            return []
        seen, rows = 0, []
        for bound, count in zip([*map(float, self.bounds), "+Inf"], self.counts, strict=True):
            seen += count
            rows.append(f'{name}_bucket{{le="{bound}",{labels}}} {float(seen)}')
        return [*rows, f"{name}_count{{{labels}}} {float(seen)}", f"{name}_sum{{{labels}}} {self.total}"]


class ServeMetrics:
    """The metrics of an emulated trtllm-serve.

    Args:
        version: TensorRT-LLM version.
    """

    def __init__(self, version: str, model: str) -> None:
        self.version = version
        self._prefix = "" if version == "1.2" else PREFIX
        # In 1.2 a user's page shows "undefined" in both.
        names = ("undefined", "undefined") if version == "1.2" else (model, "trtllm")
        self._labels = f'engine_type="{names[1]}",model_name="{names[0]}"'
        self._histograms = {name: _Histogram(bounds) for name, bounds in BUCKETS.items()}
        self._reasons: Counter[str] = Counter()
        self._errors: Counter[int] = Counter()
        self._tokens = dict.fromkeys(TOKENS, 0)
        self._completed = 0

    @classmethod
    def of(cls, repository: RepositoryManifest) -> ServeMetrics:
        """Return the metrics of a repository's target version."""
        return cls(choices_of(repository.engine).version, repository.engine.model.name)

    def ended(self, reason: str, times: EngineTimes, *, prompt_tokens: int, tokens: int) -> None:
        """Count a request that succeeded; `reason` is `stop` or `length`."""
        self._reasons[reason] += 1
        self._completed += 1
        self._tokens["prompt_tokens_total"] += prompt_tokens
        self._tokens["generation_tokens_total"] += tokens
        self._histograms["e2e_request_latency_seconds"].observe(times.last_s)
        self._histograms["time_to_first_token_seconds"].observe(times.first_s)
        if tokens > 1:
            each_s = (times.last_s - times.first_s) / (tokens - 1)
            self._histograms["time_per_output_token_seconds"].observe(each_s)
        if times.queue_s or self.version != "1.2":  # 1.2 does not observe a wait of 0
            self._histograms["request_queue_time_seconds"].observe(times.queue_s)

    def failed(self, status: int) -> None:
        """Count a request that was answered with an HTTP error."""
        self._errors[status] += 1

    def page(self, triton: str) -> str:
        """Return `/prometheus/metrics`.

        Args:
            triton: The metrics page of the Triton behind the front.
        """
        lines: list[str] = []
        for name, histogram in self._histograms.items():
            lines += self._typed(name, "histogram", histogram.lines(self._prefix + name, self._labels))
        by_reason = [
            f'{self._prefix}{REQUESTS}{{finished_reason="{reason}",{self._labels}}} {float(count)}'
            for reason, count in sorted(self._reasons.items())
        ]
        lines += self._typed(REQUESTS, "counter", by_reason)
        if self.version != "1.2":
            by_code = [
                f'{self._prefix}{ERRORS}{{http_code="{code}",{self._labels}}} {float(count)}'
                for code, count in sorted(self._errors.items())
            ]
            lines += self._typed(ERRORS, "counter", by_code)
            counted = {name: ("counter", float(value)) for name, value in self._tokens.items()}
            gauges = {name: ("gauge", value) for name, value in _gauges(_values(triton)).items()}
            for name, (kind, value) in (counted | gauges).items():
                lines += self._typed(name, kind, [f"{self._prefix}{name}{{{self._labels}}} {value}"])
        return "\n".join(lines) + "\n"

    def iterations(self, triton: str) -> list[dict[str, Any]]:
        """Return `/metrics`: upstream's iteration statistics, here of the latest iteration only."""
        seen = _values(triton)
        gauges = _gauges(seen)
        blocks = {kind: int(seen.get((_KV, kind), 0)) for kind in ("max", "free", "used", "tokens_per")}
        completed, self._completed = self._completed, 0
        return [{
            "iter": int(seen.get(("nv_trt_llm_general_metrics", "iteration_counter"), 0)),
            "iterLatencyMS": 1000 * gauges["iteration_latency_seconds"],
            "numActiveRequests": int(gauges["num_requests_running"]),
            "numQueuedRequests": int(gauges["num_requests_waiting"]),
            "numCompletedRequests": completed,
            "maxNumActiveRequests": int(gauges["max_num_active_requests"]),
            "kvCacheStats": {
                "maxNumBlocks": blocks["max"], "freeNumBlocks": blocks["free"], "usedNumBlocks": blocks["used"],
                "tokensPerBlock": blocks["tokens_per"],
            },
            "inflightBatchingStats": {
                "numScheduledRequests": int(gauges["num_scheduled_requests"]),
                "numContextRequests": int(gauges["num_context_requests"]),
                "numGenRequests": int(gauges["num_generation_requests"]),
                "numPausedRequests": int(gauges["num_paused_requests"]),
            },
        }]  # fmt: skip

    def _typed(self, name: str, kind: str, lines: list[str]) -> list[str]:
        full = self._prefix + name
        return [f"# HELP {full} As TensorRT-LLM's of this name (emulated)", f"# TYPE {full} {kind}", *lines]


class MeasuredEngine(EngineClient):
    """An engine client that counts requests with the engine's own times."""

    def __init__(self, target: str, metrics: ServeMetrics) -> None:
        super().__init__(target)
        self._metrics = metrics

    def start(self, generation: Generation, request_id: str) -> Reply:
        """Send a request that also asks for the engine's times."""
        reply = super().start(replace(generation, return_perf_metrics=True), request_id)
        return MeasuredReply(reply, generation, self._metrics)


class MeasuredReply(Reply):
    """A reply that is counted when the engine ends it; a cancelled one is not."""

    def __init__(self, reply: Reply, generation: Generation, metrics: ServeMetrics) -> None:
        self._reply = reply
        self._asked = generation
        self._metrics = metrics
        self._made: list[int] = []

    async def read(self) -> list[int] | None:
        """Return the next tokens; counts the request at the last ones."""
        ids = await self._reply.read()
        self._made += ids or []
        if ids is not None and self._reply.times is not None:
            reason = "length" if len(self._made) >= self._asked.request_output_len and not self._stopped() else "stop"
            prompt = len(self._asked.input_ids)
            self._metrics.ended(reason, self._reply.times, prompt_tokens=prompt, tokens=len(self._made))
        return ids

    def cancel(self) -> None:
        """End the request."""
        self._reply.cancel()

    def _stopped(self) -> bool:
        end_id = self._asked.end_id
        ends = [*map(list, self._asked.stop_words), *([] if end_id is None else [[end_id]])]
        return any(self._made[-len(words) :] == words for words in ends if words)


_KV = "nv_trt_llm_kv_cache_block_metrics"
_LINE = re.compile(r"^(\w+)(?:\{([^}]*)\})? (\S+)$", re.MULTILINE)
_CATEGORY = re.compile(r'(?:request_type|kv_cache_block_type|inflight_batcher_specific_metric|general_type)="(\w+)"')


def _values(page: str) -> dict[tuple[str, str], float]:
    """Return the engine's metrics from Triton's page, by family and category.

    >>> _values('nv_trt_llm_request_metrics{model="tensorrt_llm",request_type="active"} 3')
    {('nv_trt_llm_request_metrics', 'active'): 3.0}
    """
    values = {}
    for name, labels, number in _LINE.findall(page):
        if name.startswith(("nv_trt_llm_", "emulator_")):
            category = _CATEGORY.search(labels)
            values[name, category.group(1) if category else ""] = float(number)
    return values


def _gauges(seen: Mapping[tuple[str, str], float]) -> dict[str, float]:
    """Return the gauges of trtllm-serve, computed from the engine's metrics."""
    requests = {kind: seen.get(("nv_trt_llm_request_metrics", kind), 0.0)
                for kind in ("active", "max", "scheduled", "context", "waiting")}  # fmt: skip
    batch = "nv_trt_llm_inflight_batcher_metrics"
    steps = seen.get(("emulator_steps_total", ""), 0.0)
    values = (
        requests["active"],
        seen.get(("emulator_waiting_requests", ""), 0.0) - requests["waiting"],  # the executor's queue only
        requests["max"],
        seen.get(("emulator_step_seconds_total", ""), 0.0) / steps if steps else 0.0,
        seen.get((_KV, "fraction"), 0.0),
        seen.get((_KV, "used"), 0.0),
        requests["scheduled"],
        requests["context"],
        seen.get((batch, "generation_requests"), 0.0),
        seen.get((batch, "paused_requests"), 0.0),
    )
    return dict(zip(GAUGES, values, strict=True))
