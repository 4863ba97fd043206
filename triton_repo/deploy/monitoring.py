"""Monitoring of a server: recording rules, alerts and autoscaling metrics, based on metrics it actually publishes.

Metrics are TensorRT-LLM's and Triton's own (an emulated engine publishes the same names). Alerts and panels use the
recorded series, so that their definitions are the same everywhere.

No metric counts the requests in the queue of TensorRT-LLM's executor: its `waiting` excludes them, and Triton's own
queue is empty because the C++ backend takes every request at once. Metrics that respond to a queue: the durations of
ended requests (by Little's law, the requests in the server), the engine's slots, and the time to the first response.

The LLM API's model publishes no engine metrics, and Triton counts a request as done once that model, which uses the
Python backend, has taken it. Series based on either are omitted there; the time to the first response remains.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from triton_repo.deploy import monitoring_serve
from triton_repo.deploy.plan import DeploymentPlan
from triton_repo.deploy.rules import BUSY, POD, Alert, Recorded, Scaling
from triton_repo.deploy.scaling import planned_scaling

# Models whose requests include an engine's request from start to end. One request may be counted by two of them.
WHOLE = '{model=~"ensemble|tensorrt_llm|tensorrt_llm_bls"}'
# Since Triton 24.11, with histogram_latencies: not in the local server of install-triton (24.10).
HISTOGRAM = "nv_inference_first_response_histogram_ms"
REQUESTS = 'nv_trt_llm_request_metrics{{request_type="{}"}}'
BATCHER = 'nv_trt_llm_inflight_batcher_metrics{{inflight_batcher_specific_metric="{}"}}'
KV = 'nv_trt_llm_kv_cache_block_metrics{{kv_cache_block_type="{}"}}'

# Series published, or meaningful, only with the C++ backend's model.
CPP_BACKEND = ("nv_trt_llm_", "nv_llm_", "nv_inference_request_duration_us")


def recorded(stages: int = 1) -> list[Recorded]:
    """Return the recording rules; `by (instance)` drops the version, which changes when an engine is replaced.

    Args:
        stages: Pipeline stages of the engine. Each has a micro-batch in flight, and the metrics show only one.
    """
    rate = "sum by (instance, model) (rate({}[5m]))"
    done = rate.format("nv_inference_request_success")
    lost = rate.format('nv_inference_request_failure{reason!="CANCELED"}')
    waiting = _sum(REQUESTS.format("waiting"))
    if stages > 1:
        waiting = f"clamp_min(triton:requests_active - {stages} * triton:requests_scheduled, 0)"
    return [
        Recorded("triton:requests_active", _sum(REQUESTS.format("active")),
                 "requests with a slot, at most triton:requests_max"),
        Recorded("triton:requests_scheduled", _sum(REQUESTS.format("scheduled")), "requests in the latest step"),
        Recorded("triton:requests_waiting", waiting,
                 "requests with a slot but in no step, because KV blocks or the token budget ran out"),
        Recorded("triton:requests_max", _max(REQUESTS.format("max")), "the engine's slots"),
        Recorded("triton:requests_paused", _sum(BATCHER.format("paused_requests")),
                 "requests paused because KV blocks ran out"),
        Recorded("triton:slots_taken:ratio1m", "avg_over_time(triton:requests_active[1m]) / triton:requests_max",
                 "share of the slots taken; at 1 further requests queue"),
        Recorded("triton:requests_in_flight:mean1m", f"max by (instance) ({_seconds_per_second()})",
                 "requests in the server, the engine's queue included: seconds of ended requests, per second (Little's "
                 "law); lags by the duration of a request"),
        Recorded("triton:requests_queued:mean1m",
                 "clamp_min(triton:requests_in_flight:mean1m - avg_over_time(triton:requests_active[1m]), 0)",
                 "of those, requests without a slot"),
        Recorded("triton:requests_pending", "sum by (instance, model) (nv_inference_pending_request_count)",
                 "requests that wait for an instance of the models before and after the engine"),
        Recorded("triton:kv_used:ratio", _max(KV.format("fraction")), "share of the KV blocks in use"),
        Recorded(
            "triton:iterations:rate1m",
            'sum by (instance) (rate(nv_trt_llm_general_metrics{general_type="iteration_counter"}[1m]))',
            "engine steps per second",
        ),
        Recorded("triton:replies:rate1m", done.replace("5m", "1m"), "successful requests per second, by model"),
        Recorded(
            "triton:failures:rate1m",
            "sum by (instance, model, reason) (rate(nv_inference_request_failure[1m]))",
            "failed requests per second, by model and reason",
        ),
        Recorded(
            "triton:failures:ratio5m", f"{lost} / ({done} + {lost} > 0)", "share of failed, not cancelled requests"
        ),
        Recorded("triton:queue_seconds:mean1m", _mean("nv_inference_queue_duration_us"),
                 "mean wait in Triton's queue of a model, without the engine's queue"),
        Recorded("triton:request_seconds:mean1m", _mean("nv_inference_request_duration_us"),
                 "mean duration of a request, the engine's queue included"),
        Recorded(
            "triton:output_tokens:rate1m", "sum by (instance) (rate(nv_llm_output_token_len_sum[1m]))",
            "tokens of finished replies per second",
        ),
        Recorded(
            "triton:input_tokens:rate1m", "sum by (instance) (rate(nv_llm_input_token_len_sum[1m]))",
            "prompt tokens per second",
        ),
        Recorded(
            "triton:first_response_seconds:p95_5m",
            f"histogram_quantile(0.95, sum by (instance, model, le) (rate({HISTOGRAM}_bucket[5m]))) / 1000",
            "95th percentile of the time to the first response, the engine's queue included",
        ),
    ]  # fmt: skip


def alerts(plan: DeploymentPlan) -> list[Alert]:
    """Return the alerts, with this engine's limits in them."""
    job, objective_s = plan.deployment.name, plan.deployment.ttft_objective_s
    scheduled = f"{plan.stages} * " * (plan.stages > 1) + "avg_over_time(triton:requests_scheduled[2m])"
    return [
        Alert("TritonDown", f'up{{job="{job}"}} == 0', 1, "critical",
              "{{ $labels.instance }} does not answer on its metrics port.", "debug.md: the server ended"),
        Alert("TritonMissing", f'absent(up{{job="{job}"}})', 1, "critical",
              "Prometheus finds no server.", "check the scrape targets"),
        Alert("EngineNotLoaded", f'up{{job="{job}"}} == 1 unless on (instance) triton:requests_max', 5, "critical",
              "{{ $labels.instance }} runs without an engine.", "debug.md: a model does not load"),
        Alert("NoThroughput", "triton:requests_active > 0 and on (instance) triton:iterations:rate1m == 0", 1,
              "critical", "{{ $labels.instance }} has requests, but its engine runs no steps.",
              "debug.md: requests wait and none progresses"),
        Alert("SlotsFull", "triton:slots_taken:ratio1m > 0.99", 10, "warning",
              "For ten minutes every slot of {{ $labels.instance }} was taken: further requests queue in the engine.",
              "add replicas; triton:requests_queued:mean1m and the clients' TTFT show the queue"),
        Alert("QueueGrows",
              f"triton:requests_queued:mean1m > {plan.queue_alarm} and deriv(triton:requests_queued:mean1m[5m]) > 0",
              5, "warning", "{{ $value }} requests queue on {{ $labels.instance }}, and the queue grows.",
              "add replicas, or admit less: max_queue_size"),
        Alert("QueueLong", f"triton:requests_queued:mean1m > {plan.queue_alarm}", 15, "warning",
              "For a quarter of an hour {{ $value }} requests or more have queued on {{ $labels.instance }}.",
              "add replicas, or admit less: max_queue_size"),
        Alert("InstancesShort", f"min_over_time(triton:requests_pending[1m]) > {plan.queue_alarm}", 5, "warning",
              "{{ $value }} requests wait on {{ $labels.instance }} for an instance of {{ $labels.model }}.",
              "more text.bls_instances or text.preprocessing_instances"),
        Alert("KvCacheNearlyFull", "avg_over_time(triton:kv_used:ratio[2m]) > 0.9", 5, "warning",
              "{{ $value | humanizePercentage }} of the KV cache of {{ $labels.instance }} is in use: requests wait "
              "for blocks, not for compute.", "fewer requests at once, shorter ones, or a smaller KV format"),
        Alert("KvCacheLimitsBatch",
              "avg_over_time(triton:requests_waiting[2m]) > 0.05 * triton:requests_max and on (instance) "
              f"{scheduled} < 0.85 * triton:requests_max", 5, "warning",
              "{{ $labels.instance }} has requests in slots but in no step, although its batch has room: KV blocks are "
              "reserved or in use.",
              "shorter max_tokens (guaranteed_no_evict reserves all), more KV memory, max_utilization"),
        Alert("RequestsPaused", "max_over_time(triton:requests_paused[2m]) > 0", 2, "warning",
              "{{ $value }} requests are paused on {{ $labels.instance }}: their KV blocks were taken and will be "
              "computed again.", "guaranteed_no_evict, or fewer requests at once"),
        Alert("RequestsFail", "triton:failures:ratio5m > 0.05", 5, "critical",
              "{{ $value | humanizePercentage }} of the requests to {{ $labels.model }} on {{ $labels.instance }} "
              "fail.", "triton:failures:rate1m has the reasons; the server's log has the errors"),
        Alert("FirstResponseSlow", f"triton:first_response_seconds:p95_5m > {objective_s:g}", 5, "warning",
              f"One request in twenty to {{{{ $labels.model }}}} waits over {objective_s:g} s for its first response.",
              "check the queue, and the context tokens that fill the batch"),
    ]  # fmt: skip


def scaling(plan: DeploymentPlan) -> list[Scaling]:
    """Return the autoscaler's metrics; it follows the one that requires the most servers."""
    if plan.variant == "trtllm_serve":
        return monitoring_serve.scaling(plan)
    if plan.variant == "inflight_batcher_llm" and plan.scaling is not None:
        return [planned_scaling(plan.scaling.law)]
    return _llmapi_scaling(plan) if plan.variant == "llmapi" else _engine_scaling(plan)


def _engine_scaling(plan: DeploymentPlan) -> list[Scaling]:
    whole = WHOLE.rstrip("}")
    rate = f"sum(rate(<<.Series>>{whole},<<.LabelMatchers>>}}[1m])) by (model, <<.GroupBy>>)"
    return [
        Scaling("triton_requests_in_flight", f"nv_inference_request_duration_us{whole},{POD}",
                f"max({rate}) by (<<.GroupBy>>) / 1e6", str(plan.in_flight_per_replica),
                "requests in the server, queue included: servers that the load needs; lags by a request's duration"),
        Scaling("triton_slots_taken_ratio", f'nv_trt_llm_request_metrics{{request_type="active",{POD}',
                'sum(avg_over_time(<<.Series>>{request_type="active",<<.LabelMatchers>>}[1m])) by (<<.GroupBy>>) '
                '/ sum(<<.Series>>{request_type="max",<<.LabelMatchers>>}) by (<<.GroupBy>>)', BUSY,
                "slots taken: reacts at once, but shows only that requests queue, not how many"),
        Scaling("triton_kv_used_ratio", f'nv_trt_llm_kv_cache_block_metrics{{kv_cache_block_type="fraction",{POD}',
                'max(<<.Series>>{kv_cache_block_type="fraction",<<.LabelMatchers>>}) by (<<.GroupBy>>)', BUSY,
                "KV blocks in use"),
    ]  # fmt: skip


def _llmapi_scaling(plan: DeploymentPlan) -> list[Scaling]:
    each = '{model="tensorrt_llm",<<.LabelMatchers>>}[1m])) by (<<.GroupBy>>)'
    query = f"sum(rate({HISTOGRAM}_sum{each} / clamp_min(sum(rate({HISTOGRAM}_count{each}, 1e-9) / 1000"
    target = f"{plan.deployment.ttft_objective_s * 500:.0f}m"
    return [
        Scaling("triton_first_response_seconds", f'{HISTOGRAM}_sum{{model="tensorrt_llm",{POD}', query, target,
                "mean time to the first response; target: half the objective of its 95th percentile")
    ]  # fmt: skip


def published_by(plan: DeploymentPlan) -> Callable[[str], bool]:
    """Return whether an expression stands on nothing that this server lacks, by way of recorded series too."""
    lacking = list(CPP_BACKEND) if plan.variant == "llmapi" else []
    for rule in recorded(plan.stages):
        if any(name in rule.expr for name in lacking):
            lacking.append(rule.name)
    return lambda expression: not any(name in expression for name in lacking)


def rules_document(plan: DeploymentPlan) -> dict[str, Any]:
    """Return the groups of a Prometheus rules file."""
    rules, alarming = _watched(plan)
    records: list[dict[str, Any]] = [{"record": rule.name, "expr": rule.expr} for rule in rules]
    alarms = [
        {
            "alert": alert.name,
            "expr": alert.expr,
            "for": f"{alert.minutes}m",
            "labels": {"severity": alert.severity},
            "annotations": {"summary": alert.summary, "todo": alert.todo},
        }
        for alert in alarming
    ]
    return {"groups": [{"name": f"{plan.deployment.name}-series", "rules": records},
                       {"name": f"{plan.deployment.name}-alerts", "rules": alarms}]}  # fmt: skip


def _watched(plan: DeploymentPlan) -> tuple[list[Recorded], list[Alert]]:
    """Return the recording rules and alerts of what this server publishes."""
    if plan.variant == "trtllm_serve":
        return monitoring_serve.recorded(plan.llm_api, plan.deployment.name), monitoring_serve.alerts(plan)
    there = published_by(plan)
    rules = [rule for rule in recorded(plan.stages) if there(rule.expr)]
    return rules, [alert for alert in alerts(plan) if there(alert.expr)]


def _sum(series: str) -> str:
    return f"sum by (instance) ({series})"


def _max(series: str) -> str:
    return f"max by (instance) ({series})"


def _seconds_per_second() -> str:
    """Return, by server and model, the seconds that ended requests took, per second: how many there were."""
    return f"sum by (instance, model) (rate(nv_inference_request_duration_us{WHOLE}[1m])) / 1e6"


def _mean(duration_us: str) -> str:
    total = f"sum by (instance, model) (rate({duration_us}[1m]))"
    count = "sum by (instance, model) (rate(nv_inference_request_success[1m]))"
    return f"{total} / ({count} > 0) / 1e6"
