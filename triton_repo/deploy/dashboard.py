"""The Grafana dashboard: panels over the recorded series."""

from __future__ import annotations

import json
from dataclasses import dataclass

from triton_repo.deploy.monitoring import BATCHER, KV, published_by
from triton_repo.deploy.monitoring_serve import engine_is_published
from triton_repo.deploy.plan import DeploymentPlan

DATASOURCE = "prometheus"
CALLED = '{model!~"preprocessing|postprocessing"}'  # each streamed token is a request to postprocessing


@dataclass(frozen=True, slots=True)
class Panel:
    """One chart of the dashboard; `queries` are (expression, legend)."""

    title: str
    unit: str
    queries: tuple[tuple[str, str], ...]
    meaning: str


def panels(plan: DeploymentPlan) -> list[Panel]:
    """Return the dashboard's panels for what this server publishes; GPU panels only with a GPU."""
    if plan.variant == "trtllm_serve":
        return _request_panels() + (_batch_panels() if engine_is_published(plan.llm_api) else [])
    there = published_by(plan)
    rows = [
        Panel("Requests in the engine", "short", (("triton:requests_scheduled", "in the batch {{instance}}"),
              ("triton:requests_waiting", "slot taken, not in the batch {{instance}}"),
              ("triton:requests_max", "slots {{instance}}")),
              "Requests with a slot but not in the batch wait for KV blocks. The engine's queue is not shown."),
        Panel("Requests in the server", "short", (("triton:requests_in_flight:mean1m", "in flight {{instance}}"),
              ("triton:requests_queued:mean1m", "queued {{instance}}")),
              "Computed from ended requests, so it lags by the duration of a request. With an emulated engine, "
              "requests sent directly to tensorrt_llm are missing."),
        Panel("Slots taken", "percentunit", (("triton:slots_taken:ratio1m", "{{instance}}"),),
              "At 100 % further requests queue in the engine."),
        Panel("KV cache in use", "percentunit", (("triton:kv_used:ratio", "{{instance}}"),),
              "When nearly full, requests wait."),
        Panel("Tokens per second", "short", (("triton:output_tokens:rate1m", "out, of finished replies {{instance}}"),
              ("triton:input_tokens:rate1m", "in {{instance}}")), "Output is counted when a reply ends."),
        Panel("Requests per second", "reqps", ((f"triton:replies:rate1m{CALLED}", "{{model}} {{instance}}"),),
              "Successful requests."),
        Panel("Failures per second", "reqps",
              (("max by (instance, reason) (triton:failures:rate1m)", "{{reason}} {{instance}}"),),
              "REJECTED: Triton's queue was full. CANCELED: the client left."),
        Panel("Time to first response, p95", "s", (("triton:first_response_seconds:p95_5m", "{{model}} {{instance}}"),),
              "Triton 24.11 and newer; empty on older servers. If not streamed: the whole reply."),
        Panel("Mean time of a request", "s", ((f"triton:request_seconds:mean1m{CALLED}", "{{model}} {{instance}}"),),
              "Includes the engine's queue. With an emulated tensorrt_llm, Triton counts only until it is accepted."),
        Panel("Requests in Triton's queues", "short", (("triton:requests_pending", "{{model}} {{instance}}"),),
              "For an instance of the models before and after the engine, without the engine's queue."),
        Panel("Mean wait in Triton's queues", "s", (("triton:queue_seconds:mean1m", "{{model}} {{instance}}"),),
              "For an instance of the models before and after the engine, without the engine's queue."),
        Panel("Engine steps per second", "short", (("triton:iterations:rate1m", "{{instance}}"),),
              "If 0 while requests wait, the engine is stuck."),
        Panel("Tokens per step", "short", ((BATCHER.format("total_context_tokens"), "of prompts {{instance}}"),
              (BATCHER.format("generation_requests"), "of replies {{instance}}")),
              "Tokens of prompts and of replies in an iteration."),
        Panel("Paused requests", "short", (("triton:requests_paused", "{{instance}}"),),
              "Paused by max_utilization because KV blocks ran out."),
        Panel("KV blocks reused", "short", ((f'sum by (instance) ({KV.format("reused")})', "{{instance}}"),),
              "By prompts that start like an earlier one."),
    ]  # fmt: skip
    rows += _gpu_panels() if plan.gpus else _emulator_panels()
    return [panel for panel in rows if all(there(query) for query, _ in panel.queries)]


def _request_panels() -> list[Panel]:
    """Return the panels of trtllm-serve's requests; it has no GPU metrics, which NVIDIA's dcgm-exporter provides."""
    each = "{{instance}}"
    return [
        Panel("Requests in the server", "short", (("trtllm:requests_in_flight:mean1m", each),),
              "Computed from ended requests, so it lags by the duration of a request."),
        Panel("Requests per second", "reqps", (("trtllm:replies:rate1m", "{{finished_reason}} {{instance}}"),),
              "Successful requests."),
        Panel("Time to first token, p95", "s", (("trtllm:first_token_seconds:p95_5m", each),), "The queue included."),
        Panel("Wait for the first step, p95", "s", (("trtllm:queue_seconds:p95_5m", each),),
              "Of requests that waited."),
        Panel("Mean time between tokens", "s", (("trtllm:token_seconds:mean1m", each),), "Mean over requests."),
        Panel("Mean time of a request", "s", (("trtllm:request_seconds:mean1m", each),), "The queue included."),
    ]  # fmt: skip


def _batch_panels() -> list[Panel]:
    """Return the panels of the engine, for versions since 1.3."""
    each = "{{instance}}"
    return [
        Panel("Requests in the engine", "short", (("trtllm:requests_scheduled", "in the batch {{instance}}"),
              ("trtllm:requests_running", "taken {{instance}}"), ("trtllm:requests_waiting", "queued {{instance}}"),
              ("trtllm:requests_max", "slots {{instance}}")),
              "Requests with a slot but not in the batch wait for KV blocks."),
        Panel("Slots taken", "percentunit", (("trtllm:slots_taken:ratio1m", each),),
              "At 100 % further requests queue."),
        Panel("KV cache in use", "percentunit", (("trtllm:kv_used:ratio", each),), "When nearly full, requests wait."),
        Panel("Tokens per second", "short", (("trtllm:output_tokens:rate1m", "out {{instance}}"),
              ("trtllm:input_tokens:rate1m", "in {{instance}}")), "Counted when a request ends."),
        Panel("Failures per second", "reqps", (("trtllm:failures:rate1m", "{{http_code}} {{instance}}"),),
              "By HTTP status."),
        Panel("Time of a step", "s", (("trtllm:iteration_seconds", each),), "The latest step."),
        Panel("Paused requests", "short", (("trtllm:requests_paused", each),),
              "Paused by max_utilization because KV blocks ran out."),
    ]  # fmt: skip


def _gpu_panels() -> list[Panel]:
    used = "nv_gpu_memory_used_bytes / nv_gpu_memory_total_bytes"
    return [
        Panel(
            "GPU utilization",
            "percentunit",
            (("nv_gpu_utilization", "{{gpu_uuid}}"),),
            "Share of time with a running kernel; it does not show efficiency.",
        ),
        Panel("GPU memory", "percentunit", ((used, "{{gpu_uuid}}"),), "Allocated once, at start."),
    ]


def _emulator_panels() -> list[Panel]:
    late = 'emulator_lateness_seconds{statistic="p99"}'
    return [
        Panel("Lateness of the emulated engine, p99", "s", ((late, "{{instance}}"),),
              "Above half a step, the figures are not valid."),
        Panel("CPU in use", "percentunit", (("nv_cpu_utilization", "{{instance}}"),), "Of the server's machine."),
    ]  # fmt: skip


def dashboard_json(plan: DeploymentPlan) -> str:
    """Return a Grafana dashboard, two panels per row."""
    source = {"type": "prometheus", "uid": DATASOURCE}
    charts = [
        {
            "id": number + 1,
            "type": "timeseries",
            "title": panel.title,
            "description": panel.meaning,
            "datasource": source,
            "gridPos": {"h": 8, "w": 12, "x": 12 * (number % 2), "y": 8 * (number // 2)},
            "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
            "options": {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi"}},
            "targets": [
                {"refId": chr(65 + index), "datasource": source, "expr": expr, "legendFormat": legend}
                for index, (expr, legend) in enumerate(panel.queries)
            ],
        }
        for number, panel in enumerate(panels(plan))
    ]
    document = {
        "uid": plan.deployment.name,
        "title": f"{plan.deployment.name}: {plan.model}{' (emulated)' if plan.kind == 'emulated' else ''}",
        "tags": ["triton", "tensorrt-llm", plan.kind],
        "timezone": "utc",
        "schemaVersion": 39,
        "refresh": "10s",
        "time": {"from": "now-30m", "to": "now"},
        "panels": charts,
    }
    return json.dumps(document, indent=2) + "\n"
