"""TensorRT-LLM's Prometheus metrics with its names, labels and semantics, and the emulator's own metrics.

TensorRT-LLM publishes no queue depth. A request is *active* once the batch manager has taken it from the executor's
queue; the batch manager takes at most *max*. *waiting* counts active requests that the latest step did not run: with a
full batch it is 0 regardless of the queue. `emulator_waiting_requests` includes the queue; a real engine has no such
gauge.
"""

from __future__ import annotations

import threading
from collections.abc import Hashable
from functools import partial
from typing import Any

from engines.emulator import BatcherState
from triton_repo.models.engine_clock import Lateness

CPP_PREFIX, EMULATOR_PREFIX = "nv_trt_llm_", "emulator_"
ENERGY_NAME = "emulator_gpu_energy_joules_total"
LENGTH_BUCKETS = [10, 50, 100, 500, 1000]
# family -> (help, category label, {category: value of the state})
GAUGES: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "nv_trt_llm_request_metrics": (
        "TRT LLM request metrics",
        "request_type",
        ("active", "max", "scheduled", "context", "waiting"),
    ),
    "nv_trt_llm_kv_cache_block_metrics": (
        "TRT LLM KV cache block metrics",
        "kv_cache_block_type",
        ("max", "free", "used", "tokens_per", "reused", "fraction"),
    ),
    "nv_trt_llm_inflight_batcher_metrics": (
        "TRT LLM inflight_batcher-specific metrics",
        "inflight_batcher_specific_metric",
        ("total_context_tokens", "generation_requests", "micro_batch_id", "paused_requests"),
    ),
    "nv_trt_llm_general_metrics": ("General TRT LLM metrics", "general_type", ("iteration_counter",)),
}


def gauge_values(state: BatcherState) -> dict[tuple[str, str], float]:
    """Return every gauge by family and category, computed as TensorRT-LLM's backend does."""
    return {
        ("nv_trt_llm_request_metrics", "active"): state.active,
        ("nv_trt_llm_request_metrics", "max"): state.max_requests,
        ("nv_trt_llm_request_metrics", "scheduled"): state.scheduled,
        ("nv_trt_llm_request_metrics", "context"): state.context,
        ("nv_trt_llm_request_metrics", "waiting"): state.waiting,
        ("nv_trt_llm_kv_cache_block_metrics", "max"): state.kv_max_blocks,
        ("nv_trt_llm_kv_cache_block_metrics", "free"): state.kv_free_blocks,
        ("nv_trt_llm_kv_cache_block_metrics", "used"): state.kv_used_blocks,
        ("nv_trt_llm_kv_cache_block_metrics", "tokens_per"): state.kv_tokens_per_block,
        ("nv_trt_llm_kv_cache_block_metrics", "reused"): state.kv_reused_blocks,
        ("nv_trt_llm_kv_cache_block_metrics", "fraction"): state.kv_used_blocks / state.kv_max_blocks,
        ("nv_trt_llm_inflight_batcher_metrics", "total_context_tokens"): state.total_context_tokens,
        ("nv_trt_llm_inflight_batcher_metrics", "generation_requests"): state.generation_requests,
        ("nv_trt_llm_inflight_batcher_metrics", "micro_batch_id"): 0,
        ("nv_trt_llm_inflight_batcher_metrics", "paused_requests"): state.paused,
        ("nv_trt_llm_general_metrics", "iteration_counter"): state.iteration_counter,
    }


class EngineMetrics:
    """Publishes a batcher's numbers, those that have changed; publish on a period and from one thread.

    Each number is a message to Triton's process and back. A counter is only ever raised by what it grew: Triton's
    process can die of a negative increment.

    Args:
        cpp_backend: Whether the C++ backend's families are published. The LLM API's model publishes none of them: its
            emulated twin has the gauges under `emulator_` names, for the load tester alone.
    """

    def __init__(self, backend: Any, labels: dict[str, str], *, cpp_backend: bool = True) -> None:
        family, self._families = backend.MetricFamily, []
        self._lock = threading.Lock()
        self._gauges: dict[tuple[str, str], Any] = {}
        for name, (text, label, categories) in GAUGES.items():
            published = name if cpp_backend else name.replace(CPP_PREFIX, EMULATOR_PREFIX)
            made = family(name=published, description=text, kind=family.GAUGE)
            self._families.append(made)
            for category in categories:
                self._gauges[name, category] = made.Metric(labels={label: category, **labels})
        late = family(
            name="emulator_lateness_seconds", description="How late recent steps ended, wall time", kind=family.GAUGE
        )
        self._late = {name: late.Metric(labels={"statistic": name, **labels}) for name in ("p50", "p99", "max")}
        waiting = family(
            name="emulator_waiting_requests",
            description="Requests that no step runs, those in the executor's queue included",
            kind=family.GAUGE,
        )
        self._waiting = waiting.Metric(labels=labels)
        self._families += [late, waiting]
        self._make_counter = partial(self._counter, family, labels)
        self._counters = {name: self._make_counter(name, text) for name, text in _COUNTERS.items()}
        self._seen = dict.fromkeys(_COUNTERS, 0.0)
        self._published: dict[Hashable, float] = {}
        lengths = _LENGTHS if cpp_backend else {}
        self._lengths = {name: self._histogram(family, name, kind, labels) for name, kind in lengths.items()}

    def ended(self, *, prompt_tokens: int, output_tokens: int) -> None:
        """Count the lengths of a Triton request that has ended, cancelled or not, as upstream does."""
        with self._lock:
            for name, histogram in self._lengths.items():
                histogram.observe(prompt_tokens if name == "nv_llm_input_token_len" else output_tokens)

    def publish(self, state: BatcherState, lateness: Lateness, *, energy_j: float | None = None) -> None:
        """Set every gauge and raise every counter that has changed.

        Args:
            energy_j: Joules of the emulated GPUs since the start; None: unknown, and not published.
        """
        for key, value in gauge_values(state).items():
            self._set(("gauge", *key), self._gauges[key], value)
        self._set("waiting", self._waiting, state.queued + state.waiting)
        for name, value in lateness.statistics().items():
            self._set(("late", name), self._late[name], value)
        totals = {
            "emulator_steps_total": float(lateness.steps),
            "emulator_step_seconds_total": lateness.step_seconds,
            "emulator_lateness_seconds_total": lateness.late_seconds,
            "emulator_draft_steps_total": float(state.draft_steps_total),
            "emulator_draft_tokens_total": float(state.drafted_total),
            "emulator_accepted_tokens_total": float(state.accepted_total),
        }
        if energy_j is not None:
            totals[ENERGY_NAME] = energy_j
        for name, total in totals.items():
            grown = total - self._seen.setdefault(name, 0.0)
            if grown > 0:
                if name not in self._counters:
                    self._counters[name] = self._make_counter(
                        name, "Joules that the power model gives the emulated GPUs"
                    )
                self._counters[name].increment(grown)
                self._seen[name] = total

    def _set(self, key: Hashable, gauge: Any, value: float) -> None:
        if self._published.get(key) != value:
            gauge.set(float(value))
            self._published[key] = value

    def _counter(self, family: Any, labels: dict[str, str], name: str, text: str) -> Any:
        made = family(name=name, description=text, kind=family.COUNTER)
        self._families.append(made)
        return made.Metric(labels=labels)

    def _histogram(self, family: Any, name: str, kind: str, labels: dict[str, str]) -> Any:
        made = family(name=name, description="TRT LLM response metrics", kind=family.HISTOGRAM)
        self._families.append(made)
        return made.Metric(labels={"response_metric_type": kind, **labels}, buckets=LENGTH_BUCKETS)


_COUNTERS = {
    "emulator_steps_total": "Engine steps taken",
    "emulator_step_seconds_total": "Wall seconds those steps were meant to take",
    "emulator_lateness_seconds_total": "Wall seconds by which they ended late, summed",
    "emulator_draft_steps_total": "Decode steps of sequences that verified drafts",
    "emulator_draft_tokens_total": "Draft tokens they verified",
    "emulator_accepted_tokens_total": "Draft tokens that were accepted and emitted",
}
_LENGTHS = {"nv_llm_input_token_len": "total_input_tokens", "nv_llm_output_token_len": "total_output_tokens"}
