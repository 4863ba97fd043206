"""Monitoring of `trtllm-serve`, based on the metrics on its `/prometheus/metrics`.

From 1.3 on it publishes its queue, its batch, its KV blocks and its tokens. 1.2 publishes five metrics of requests that
have ended, with or without the prefix (a user's page shows none): its rules take both, and know of no queue, slot or
block. `triton_repo.openai_api.serve_metrics` says from where the names are; the twin
publishes them.
"""

from __future__ import annotations

from triton_repo.deploy.plan import DeploymentPlan
from triton_repo.deploy.rules import BUSY, POD, Alert, Recorded, Scaling


def engine_is_published(version: str | None) -> bool:
    """Return whether a version publishes queue, slots and blocks, not requests alone."""
    return version != "1.2"


def recorded(version: str | None, job: str) -> list[Recorded]:
    """Return the recording rules; `by (instance)` leaves out labels that change when a model is rolled."""
    requests = [
        Recorded("trtllm:requests_in_flight:mean1m",
                 f"sum by (instance) ({_rate(version, job, 'e2e_request_latency_seconds_sum')})",
                 "requests in the server, the queue included: seconds of ended requests, per second (Little's law); "
                 "lags by the duration of a request"),
        Recorded("trtllm:replies:rate1m",
                 f"sum by (instance, finished_reason) ({_rate(version, job, 'request_success_total')})",
                 "successful requests per second, by finish reason"),
        Recorded("trtllm:first_token_seconds:p95_5m", _p95(version, job, "time_to_first_token_seconds"),
                 "95th percentile of the time to the first token, the queue included"),
        Recorded("trtllm:queue_seconds:p95_5m", _p95(version, job, "request_queue_time_seconds"),
                 "95th percentile of the wait for the first step, of requests that waited"),
        Recorded("trtllm:token_seconds:mean1m", _mean(version, job, "time_per_output_token_seconds"),
                 "mean TPOT of requests"),
        Recorded("trtllm:request_seconds:mean1m", _mean(version, job, "e2e_request_latency_seconds"),
                 "mean duration of a request, the queue included"),
    ]  # fmt: skip
    return requests + (_of_engine() if engine_is_published(version) else [])


def _of_engine() -> list[Recorded]:
    total = "sum by (instance) ({})"
    lost, done = (f"sum by (instance) (rate(trtllm_{name}[5m]))"
                  for name in ('request_error_total{http_code=~"5.."}', "request_success_total"))  # fmt: skip
    return [
        Recorded("trtllm:requests_running", total.format("trtllm_num_requests_running"), "requests with a slot"),
        Recorded("trtllm:requests_waiting", total.format("trtllm_num_requests_waiting"), "requests in the queue"),
        Recorded("trtllm:requests_max", total.format("trtllm_max_num_active_requests"), "the engine's slots"),
        Recorded("trtllm:requests_scheduled", total.format("trtllm_num_scheduled_requests"),
                 "requests in the latest step"),
        Recorded("trtllm:requests_paused", total.format("trtllm_num_paused_requests"),
                 "requests paused because KV blocks ran out"),
        Recorded("trtllm:slots_taken:ratio1m", "avg_over_time(trtllm:requests_running[1m]) / trtllm:requests_max",
                 "share of the slots taken; at 1 further requests queue"),
        Recorded("trtllm:kv_used:ratio", "max by (instance) (trtllm_kv_cache_utilization)",
                 "share of the KV blocks in use"),
        Recorded("trtllm:iteration_seconds", "max by (instance) (trtllm_iteration_latency_seconds)",
                 "duration of the latest step"),
        Recorded("trtllm:output_tokens:rate1m", total.format("rate(trtllm_generation_tokens_total[1m])"),
                 "tokens of replies per second"),
        Recorded("trtllm:input_tokens:rate1m", total.format("rate(trtllm_prompt_tokens_total[1m])"),
                 "prompt tokens per second"),
        Recorded("trtllm:failures:rate1m", "sum by (instance, http_code) (rate(trtllm_request_error_total[1m]))",
                 "failed requests per second, by HTTP status"),
        Recorded("trtllm:failures:ratio5m", f"{lost} / ({done} + {lost} > 0)",
                 "share of requests with status 500 or above"),
    ]  # fmt: skip


def alerts(plan: DeploymentPlan) -> list[Alert]:
    """Return the alerts, with this engine's limits in them."""
    job, objective_s = plan.deployment.name, plan.deployment.ttft_objective_s
    always = [
        Alert("ServerDown", f'up{{job="{job}"}} == 0', 1, "critical",
              "{{ $labels.instance }} does not answer at /prometheus/metrics.", "debug.md: the server ended"),
        Alert("ServerMissing", f'absent(up{{job="{job}"}})', 1, "critical",
              "Prometheus finds no server.", "check the scrape targets"),
        Alert("FirstTokenSlow", f"trtllm:first_token_seconds:p95_5m > {objective_s:g}", 5, "warning",
              f"One request in twenty to {{{{ $labels.instance }}}} waits over {objective_s:g} s for its first token.",
              "if trtllm:queue_seconds:p95_5m is high, they queue: add replicas; otherwise prompts fill the batch"),
    ]  # fmt: skip
    return always + (_engine_alerts(plan) if engine_is_published(plan.llm_api) else [])


def _engine_alerts(plan: DeploymentPlan) -> list[Alert]:
    waiting = f"trtllm:requests_waiting > {plan.queue_alarm}"
    return [
        Alert("SlotsFull", "trtllm:slots_taken:ratio1m > 0.99", 10, "warning",
              "For ten minutes every slot of {{ $labels.instance }} was taken: further requests queue.",
              "add replicas; trtllm:requests_waiting is the queue"),
        Alert("QueueGrows", f"{waiting} and deriv(trtllm:requests_waiting[5m]) > 0", 5, "warning",
              "{{ $value }} requests queue on {{ $labels.instance }}, and the queue grows.", "add replicas"),
        Alert("QueueLong", f"min_over_time(trtllm:requests_waiting[1m]) > {plan.queue_alarm}", 15, "warning",
              "For a quarter of an hour {{ $value }} requests or more have queued on {{ $labels.instance }}.",
              "add replicas"),
        Alert("KvCacheNearlyFull", "avg_over_time(trtllm:kv_used:ratio[2m]) > 0.9", 5, "warning",
              "{{ $value | humanizePercentage }} of the KV cache of {{ $labels.instance }} is in use: requests wait "
              "for blocks, not for compute.", "fewer requests at once, shorter ones, or a smaller KV format"),
        Alert("RequestsFail", "trtllm:failures:ratio5m > 0.05", 5, "critical",
              "{{ $value | humanizePercentage }} of the requests to {{ $labels.instance }} fail.",
              "trtllm:failures:rate1m has the statuses; the server's log has the errors"),
        Alert("RequestsPaused", "max_over_time(trtllm:requests_paused[2m]) > 0", 2, "warning",
              "{{ $value }} requests are paused on {{ $labels.instance }}: their KV blocks were taken and will be "
              "computed again.", "guaranteed_no_evict, or fewer requests at once"),
    ]  # fmt: skip


def scaling(plan: DeploymentPlan) -> list[Scaling]:
    """Return the autoscaler's metrics; it follows the one that requires the most servers."""
    name, target = "trtllm_requests_in_flight", str(plan.in_flight_per_replica)
    if not engine_is_published(plan.llm_api):
        series = f'{{__name__=~"^(trtllm_)?e2e_request_latency_seconds_sum$",{POD}'
        query = "sum(rate(<<.Series>>{<<.LabelMatchers>>}[1m])) by (<<.GroupBy>>)"
        return [
            Scaling(
                name, series, query, target, "requests in the server, queue included; lags by the duration of a request"
            )
        ]
    mean = "sum(avg_over_time({}{{<<.LabelMatchers>>}}[1m])) by (<<.GroupBy>>)"
    both = f"{mean.format('<<.Series>>')} + {mean.format('trtllm_num_requests_waiting')}"
    return [
        Scaling(name, f"trtllm_num_requests_running{{{POD}", both, target, "requests in the server, queue included"),
        Scaling("trtllm_kv_used_ratio", f"trtllm_kv_cache_utilization{{{POD}",
                "max(<<.Series>>{<<.LabelMatchers>>}) by (<<.GroupBy>>)", BUSY, "KV blocks in use"),
    ]  # fmt: skip


def _series(version: str | None, job: str, name: str) -> str:
    """Return a metric of requests; of 1.2 with or without the prefix, and of this job: others may use the names."""
    if engine_is_published(version):
        return f"trtllm_{name}"
    return f'{{__name__=~"(trtllm_)?{name}",job="{job}"}}'


def _rate(version: str | None, job: str, name: str, window: str = "1m") -> str:
    return f"rate({_series(version, job, name)}[{window}])"


def _p95(version: str | None, job: str, name: str) -> str:
    return f"histogram_quantile(0.95, sum by (instance, le) ({_rate(version, job, name + '_bucket', '5m')}))"


def _mean(version: str | None, job: str, name: str) -> str:
    total, count = (f"sum by (instance) ({_rate(version, job, name + end)})" for end in ("_sum", "_count"))
    return f"{total} / ({count} > 0)"
