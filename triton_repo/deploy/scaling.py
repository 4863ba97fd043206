"""A planned control law as Kubernetes objects: its metric for prometheus-adapter, its query for KEDA, its limits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from engines.autoscaling import AutoscalingFile, ScalingLaw, ScalingRules, Signal, simulated_engine
from engines.errors import UserError
from engines.files import read_json
from engines.manifest import EngineManifest
from triton_repo.deploy.rules import POD, Scaling

MILLI = 1000
WHOLE = 'model=~"ensemble|tensorrt_llm|tensorrt_llm_bls"'  # one of them takes each request whole
DURATION, ACTIVE = "nv_inference_request_duration_us", "nv_trt_llm_request_metrics"
BLOCKS, FIRST = "nv_trt_llm_kv_cache_block_metrics", "nv_inference_first_response_histogram_ms_bucket"


def read_law(path: Path, *, variant: str) -> AutoscalingFile:
    """Read the law that `plan-capacity` chose.

    Raises:
        MissingError, UserError: As `files.read_json` does; or the server does not publish what laws follow.
    """
    found = read_json(path, AutoscalingFile)
    if variant != "inflight_batcher_llm":
        raise UserError(
            f"{path}: its law follows metrics of Triton's TensorRT-LLM backend, and this repository is {variant}",
            hint="omit --autoscaling: the autoscaler then follows what this server publishes",
        )
    return found


def require_planned_engine(found: AutoscalingFile, engine: EngineManifest, *, path: Path) -> None:
    """Refuse a law that was simulated with another engine; other weights of the same geometry are none.

    Raises:
        UserError: The model's geometry, the GPU, a format, the parallelism or a limit differs.
    """
    has = simulated_engine(engine)
    keys = found.engine.differences(has)
    if keys:
        raise UserError(
            f"{path}: its law was simulated with {found.engine.named(keys)}; this repository's engine has "
            f"{has.named(keys)}",
            hint=f"build-engine --recipe {path.parent / 'recipe.yaml'} builds the plan's engine; or plan with this one",
        )


def planned_scaling(law: ScalingLaw) -> Scaling:
    """Return a law's metric per pod, for prometheus-adapter."""
    names: dict[Signal, tuple[str, str, str]] = {
        "in_flight": ("triton_requests_in_flight", f"{DURATION}{{{WHOLE},{POD}", "requests in the server"),
        "queue": ("triton_requests_queued", f"{DURATION}{{{WHOLE},{POD}", "requests not yet in the batch"),
        "kv_used": ("triton_kv_used_ratio", f'{BLOCKS}{{kv_cache_block_type="fraction",{POD}', "KV blocks in use"),
        "ttft_p95": ("triton_first_response_p95_seconds", f"{FIRST}{{{WHOLE},{POD}", "95th percentile of TTFT"),
    }
    name, series, meaning = names[law.signal]
    return Scaling(name, series, _per_server(law.signal, "<<.LabelMatchers>>", "<<.GroupBy>>"), quantity(law), meaning)


def quantity(law: ScalingLaw) -> str:
    """Return a law's target as a Kubernetes quantity."""
    return f"{law.target:.0f}" if law.target == round(law.target) else f"{round(law.target * MILLI)}m"


def keda_query(law: ScalingLaw, job: str) -> str:
    """Return a law's query over all servers of a Prometheus job.

    It returns nothing if no server is scraped, and KEDA's autoscaler then changes nothing. TTFT is 0 without traffic.
    """
    per_server = _per_server(law.signal, f'job="{job}"', "instance")
    if law.signal == "ttft_p95":
        return f'max({per_server} >= 0) or sum(up{{job="{job}"}} == 1) * 0'
    return f"sum({per_server})"


def _per_server(signal: Signal, labels: str, by: str) -> str:
    in_flight = f"max(sum(rate({DURATION}{{{WHOLE},{labels}}}[1m])) by (model, {by})) by ({by}) / 1e6"
    queries: dict[Signal, Callable[[], str]] = {
        "in_flight": lambda: in_flight,
        "queue": lambda: (
            f'clamp_min({in_flight} - sum(avg_over_time({ACTIVE}{{request_type="active",{labels}}}[1m])) by ({by}), 0)'
        ),
        "kv_used": lambda: f'max({BLOCKS}{{kv_cache_block_type="fraction",{labels}}}) by ({by})',
        "ttft_p95": lambda: (
            f"max(histogram_quantile(0.95, sum(rate({FIRST}{{{WHOLE},{labels}}}[5m])) by (model, le, {by}))) by ({by})"
            f" / {MILLI}"
        ),
    }
    return queries[signal]()


def behavior(law: ScalingLaw) -> dict[str, Any]:
    """Return a law's limits as the `behavior` of autoscaling/v2."""
    return {"scaleUp": _rules(law.up), "scaleDown": _rules(law.down)}


def _rules(rules: ScalingRules) -> dict[str, Any]:
    return {
        "stabilizationWindowSeconds": rules.stabilization_s,
        "selectPolicy": rules.select,
        "policies": [
            {"type": policy.type, "value": policy.value, "periodSeconds": policy.period_s} for policy in rules.policies
        ],
    }
