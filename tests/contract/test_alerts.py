"""Prometheus' files against its own checker: each alert fires for its own problem, and the adapter finds its series."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from tests.deployments import KINDS, load_yaml
from tests.facts import read_facts
from tests.prometheus_adapter import adapter_query
from triton_repo.deploy.monitoring import rules_document
from triton_repo.deploy.plan import DeploymentPlan
from triton_repo.deploy.render import render_deployment

FACTS: dict[str, Any] = read_facts(Path(__file__).parent / "deployment_facts.yaml")
KUBERNETES = "1.31"


def _promtool(*arguments: object) -> str:
    if not shutil.which("promtool"):
        pytest.skip("no promtool here: apt install prometheus")
    done = subprocess.run(["promtool", *map(str, arguments)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("kind", KINDS)
def test_prometheus_takes_its_configuration(rendered: dict[str, Path], kind: str) -> None:
    """Promtool, with duplicates as errors; the operator's copy of the rules is the same."""
    _promtool("check", "config", "--lint=all", "--lint-fatal", rendered[kind] / "prometheus/prometheus.yml")
    rules = load_yaml(rendered[kind] / "prometheus/rules.yml")
    assert load_yaml(rendered[kind] / "kubernetes/monitoring/prometheusrule.yaml")["spec"] == rules


def test_rules_and_panels_ask_for_metrics_that_exist(rendered: dict[str, Path]) -> None:
    """Every name in an expression is a published metric, or recorded here from those."""
    for kind in KINDS:
        groups = load_yaml(rendered[kind] / "prometheus/rules.yml")["groups"]
        rules = [rule for group in groups for rule in group["rules"]]
        known = set(FACTS["metrics"]) | {rule["record"] for rule in rules if "record" in rule}
        dashboard = json.loads((rendered[kind] / "grafana/dashboard.json").read_text())
        asked = [rule["expr"] for rule in rules] + [t["expr"] for p in dashboard["panels"] for t in p["targets"]]
        for expression in asked:
            names = set(re.findall(r"\b(?:nv|triton|emulator)[\w:]*[_:]\w+", re.sub(r"\{[^}]*\}", "", expression)))
            assert names <= known, expression


ENGINE = 'instance="a",model="tensorrt_llm",version="1"'
MODEL = 'instance="a",model="ensemble",version="1"'
BLS = 'instance="a",model="tensorrt_llm_bls",version="1"'
STEP = 'instance="a",model="postprocessing",version="1"'
SLOTS = 384


def _gauge(family: str, label: str, category: str, values: str) -> dict[str, str]:
    return {"series": f'{family}{{{label}="{category}",{ENGINE}}}', "values": values}


def _in_flight(requests: Sequence[int]) -> str:
    """Return nv_inference_request_duration_us, every 15 s, where so many requests were in the server before each."""
    return " ".join(str(15_000_000 * total) for total in accumulate(requests, initial=0))


def _well(**changed: str) -> list[dict[str, str]]:
    """Return the series of a server at work, some of them changed; 80 samples of 15 s."""
    values = {
        "up": "1x80", "active": "10x80", "waiting": "0x80", "scheduled": "10x80", "max": "384x80", "paused": "0x80",
        "fraction": "0.3x80", "iterations": "0+100x80", "success": "0+10x80", "failure": "0x80", "fast": "0+10x80",
        "all": "0+10x80", "duration": _in_flight([10] * 80), "pending": "0x80",
    } | changed  # fmt: skip
    requests, buckets = "nv_trt_llm_request_metrics", "nv_inference_first_response_histogram_ms_bucket"
    series = [
        {"series": 'up{job="chat",instance="a"}', "values": values["up"]},
        *(_gauge(requests, "request_type", each, values[each]) for each in ("active", "waiting", "scheduled", "max")),
        _gauge(
            "nv_trt_llm_inflight_batcher_metrics",
            "inflight_batcher_specific_metric",
            "paused_requests",
            values["paused"],
        ),
        _gauge("nv_trt_llm_kv_cache_block_metrics", "kv_cache_block_type", "fraction", values["fraction"]),
        _gauge("nv_trt_llm_general_metrics", "general_type", "iteration_counter", values["iterations"]),
        {"series": f"nv_inference_request_success{{{MODEL}}}", "values": values["success"]},
        {"series": f"nv_inference_request_duration_us{{{MODEL}}}", "values": values["duration"]},
        {"series": f"nv_inference_request_duration_us{{{STEP}}}", "values": _in_flight([10_000] * 80)},
        {"series": f"nv_inference_pending_request_count{{{BLS}}}", "values": values["pending"]},
        {"series": f'nv_inference_request_failure{{reason="OTHER",{MODEL}}}', "values": values["failure"]},
        {"series": f'nv_inference_request_failure{{reason="CANCELED",{MODEL}}}', "values": "0+50x80"},
        {"series": f'{buckets}{{le="1000",{MODEL}}}', "values": values["fast"]},
        {
            "series": f'{buckets}{{le="5000",{MODEL}}}',
            "values": values["all"],
        },
        {
            "series": f'{buckets}{{le="+Inf",{MODEL}}}',
            "values": values["all"],
        },
    ]
    return [each for each in series if each["values"]]


# As upstream publishes it: `active` is at most max, `waiting` 0 with a full batch, and the queue in neither.
FULL = {"active": f"{SLOTS}x80", "scheduled": f"{SLOTS}x80", "waiting": "0x80"}
FIRES: dict[str, list[dict[str, str]]] = {
    "": _well(),
    "TritonDown": _well(up="1x20 0x60"),
    "TritonMissing": _well(up=""),
    "EngineNotLoaded": _well(active="", waiting="", scheduled="", max="", iterations=""),
    "NoThroughput": _well(iterations="0+100x20 2000x60"),
    "SlotsFull": _well(**FULL, duration=_in_flight([SLOTS] * 80)),
    "QueueGrows": _well(**FULL, duration=_in_flight([SLOTS + 5 * step for step in range(80)])),
    "QueueLong": _well(**FULL, duration=_in_flight([SLOTS + 200] * 80)),
    "InstancesShort": _well(pending="200x80"),
    "KvCacheNearlyFull": _well(fraction="0.97x80"),
    "KvCacheLimitsBatch": _well(waiting="20x80", active="30x80"),
    "RequestsPaused": _well(paused="0x20 3 0 0 1" + " 0 0 1 0" * 14),
    "RequestsFail": _well(failure="0+2x80"),
    "FirstResponseSlow": _well(fast="0x80"),
}
ALSO = {"QueueGrows": {"SlotsFull"}, "QueueLong": {"SlotsFull"}}  # where a queue is, no slot is free


def _fired(names: set[str]) -> dict[str, Any]:
    """Return promtool's test that these alerts fire at the end, and no others."""
    samples = [{"labels": f'{{alertname="{name}"}}', "value": 1} for name in sorted(names)]
    return {"expr": FIRED, "eval_time": "19m", "exp_samples": samples}


FIRED = 'count by (alertname) (ALERTS{alertstate="firing"})'


def _promtool_tests(rules: dict[str, Any], folder: Path, cases: list[tuple[list[dict[str, str]], list[Any]]]) -> None:
    """Hold rules to expectations: each case is the series that are scraped, and promtool's tests of expressions."""
    tests = [{"interval": "15s", "input_series": series, "promql_expr_test": found} for series, found in cases]
    document = {"rule_files": ["rules.yml"], "evaluation_interval": "15s", "tests": tests}
    (folder / "rules.yml").write_text(yaml.safe_dump(rules))
    (folder / "tests.yml").write_text(yaml.safe_dump(document))
    _promtool("test", "rules", folder / "tests.yml")


def test_every_alert_fires_on_its_own_trouble_and_none_on_another(rendered: dict[str, Path], tmp_path: Path) -> None:
    """Promtool's unit tests: a server at work raises nothing; each trouble raises its own alert and no other."""
    rules = load_yaml(rendered["built"] / "prometheus/rules.yml")
    names = {rule["alert"] for group in rules["groups"] for rule in group["rules"] if "alert" in rule}
    assert names == set(FIRES) - {""}
    cases = [(series, [_fired({name, *ALSO.get(name, ())} - {""})]) for name, series in FIRES.items()]
    _promtool_tests(rules, tmp_path, cases)


def _micro_batches(waiting: int) -> list[dict[str, str]]:
    """Return the metrics of two stages, 200 requests in each one's micro-batch and some in none."""
    taken = 400 + waiting
    return _well(
        active=f"{taken}x80", scheduled="200x80", waiting=f"{taken - 200}x80", max=f"{2 * SLOTS}x80",
        duration=_in_flight([taken] * 80),
    )  # fmt: skip


def test_the_other_stages_micro_batch_does_not_wait(rendered: dict[str, Path], tmp_path: Path) -> None:
    """With two pipeline stages upstream's `waiting` counts the other micro-batch too; ours does not."""
    plan = DeploymentPlan.model_validate_json((rendered["built"] / "manifest.json").read_text())
    rules = rules_document(plan.model_copy(update={"stages": 2, "slots": 2 * SLOTS}))
    waits = {"expr": "triton:requests_waiting", "eval_time": "19m"}
    name = 'triton:requests_waiting{instance="a"}'
    cases = [
        (_micro_batches(0), [_fired(set()), {**waits, "exp_samples": [{"labels": name, "value": 0}]}]),
        (
            _micro_batches(60),
            [_fired({"KvCacheLimitsBatch"}), {**waits, "exp_samples": [{"labels": name, "value": 60}]}],
        ),
    ]
    _promtool_tests(rules, tmp_path, cases)


@pytest.mark.parametrize(
    ("state", "values"),
    [("", (10, 10 / SLOTS, 0.3)), ("QueueLong", (SLOTS + 200, 1, 0.3)), ("KvCacheNearlyFull", (10, 10 / SLOTS, 0.97))],
)
def test_the_autoscaler_follows_a_queue(
    rendered: dict[str, Path], tmp_path: Path, state: str, values: tuple[float, ...]
) -> None:
    """The adapter's queries, as it would ask them: the requests in the server, slots and blocks, by pod."""
    folder = rendered["built"] / "kubernetes"
    scaler = {each["pods"]["metric"]["name"]: each["pods"]["target"]["averageValue"]
              for each in load_yaml(folder / "horizontalpodautoscaler.yaml")["spec"]["metrics"]}  # fmt: skip
    assert scaler == {
        "triton_requests_in_flight": "326", "triton_slots_taken_ratio": "850m", "triton_kv_used_ratio": "850m"
    }  # fmt: skip
    rules = load_yaml(folder / "monitoring/prometheus-adapter.yaml")["rules"]["custom"]
    assert [rule["name"]["as"] for rule in rules] == list(scaler)
    tests = [
        {"expr": adapter_query(rule, group="instance", matchers='version="1"'), "eval_time": "10m",
         "exp_samples": [{"labels": '{instance="a"}', "value": value}]}
        for rule, value in zip(rules, values, strict=True)
    ]  # fmt: skip
    _promtool_tests(load_yaml(rendered["built"] / "prometheus/rules.yml"), tmp_path, [(FIRES[state], tests)])


@pytest.fixture(scope="module")
def llmapi(rendered: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Render the deployment of the LLM API's model set."""
    plan = DeploymentPlan.model_validate_json((rendered["built"] / "manifest.json").read_text())
    folder = tmp_path_factory.mktemp("llmapi") / "files"
    render_deployment(plan.model_copy(update={"variant": "llmapi"}), folder, force=False)
    return folder


def test_nothing_is_asked_of_the_llm_api_that_it_does_not_publish(llmapi: Path) -> None:
    """Its model publishes nothing of the engine, and its durations end when it has taken a request."""
    watched = [path.read_text() for name in ("prometheus/rules.yml", "grafana/dashboard.json",
               "kubernetes/monitoring/prometheus-adapter.yaml") for path in [llmapi / name]]  # fmt: skip
    for text in watched:
        assert not re.search(
            r"nv_trt_llm_|nv_llm_|nv_inference_request_duration_us|triton:(requests_[^p]|kv|slots)", text
        )
    alerts = re.findall(r"alert: (\w+)", watched[0])
    assert alerts == ["TritonDown", "TritonMissing", "InstancesShort", "RequestsFail", "FirstResponseSlow"]
    assert len(json.loads(watched[1])["panels"]) >= 6
    kubernetes_validate.validate(load_yaml(llmapi / "kubernetes/horizontalpodautoscaler.yaml"), KUBERNETES, strict=True)


# 100 responses in 15 s: all within 1 s, 0.5 s in the mean; or none within 1 s and all within 5 s, 4 s in the mean.
FIRST_RESPONSES = {"": ("0+100x80", "0+50000x80", set()), "slow": ("0x80", "0+400000x80", {"FirstResponseSlow"})}


@pytest.mark.parametrize("state", FIRST_RESPONSES)
def test_the_llm_api_is_watched_by_its_first_responses(llmapi: Path, tmp_path: Path, state: str) -> None:
    """No metric of the engine raises no alert; slow first responses raise theirs, and the autoscaler sees them."""
    fast, total_ms, fired = FIRST_RESPONSES[state]
    name, labels = "nv_inference_first_response_histogram_ms", ENGINE
    series = [
        {"series": 'up{job="chat",instance="a"}', "values": "1x80"},
        {"series": f"nv_inference_request_success{{{labels}}}", "values": "0+100x80"},
        {"series": f"nv_inference_pending_request_count{{{labels}}}", "values": "0x80"},
        *({"series": f'{name}_bucket{{le="{le}",{labels}}}', "values": values}
          for le, values in {"1000": fast, "5000": "0+100x80", "+Inf": "0+100x80"}.items()),
        {"series": f"{name}_count{{{labels}}}", "values": "0+100x80"},
        {"series": f"{name}_sum{{{labels}}}", "values": total_ms},
    ]  # fmt: skip
    [rule] = load_yaml(llmapi / "kubernetes/monitoring/prometheus-adapter.yaml")["rules"]["custom"]
    query = adapter_query(rule, group="instance", matchers='version="1"')
    mean_s = 4 if fired else 0.5
    tests = [
        _fired(fired),
        {"expr": query, "eval_time": "10m", "exp_samples": [{"labels": '{instance="a"}', "value": mean_s}]},
    ]
    _promtool_tests(load_yaml(llmapi / "prometheus/rules.yml"), tmp_path, [(series, tests)])
