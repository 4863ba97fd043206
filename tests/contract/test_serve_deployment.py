"""trtllm-serve's deployment against what reads it, and its rules against what each version publishes."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from engines.errors import UserError
from engines.files import Document, MadeBy, write_json
from engines.manifest import EngineManifest
from engines.planning import emulated_manifest
from engines.planning.plan import make_plan
from engines.planning.recipe import resolve_recipe
from tests.deployments import load_yaml
from tests.facts import read_facts
from triton_repo.deploy.plan import Deployment, plan_deployment
from triton_repo.deploy.render import render_deployment
from triton_repo.repository.render import render_repository
from triton_repo.settings.repository_manifest import ServingSettings

HEAD = MadeBy(command="build-engine --backend pytorch --out here", version="0")
FACTS: dict[str, Any] = read_facts(Path(__file__).parent / "deployment_facts.yaml")
METRICS: dict[str, list[str]] = read_facts(Path(__file__).parent / "serve_metrics.yaml")["versions"]
VERSIONS = ("1.2", "1.3", "1.4rc")
SLOTS = 384


def _manifest(version: str, **keys: Any) -> EngineManifest:
    asked = resolve_recipe(
        None, {"backend": "pytorch", "trtllm_version": version, "limits.max_batch_size": SLOTS, **keys}
    )
    manifest = emulated_manifest(make_plan(asked, head=Document(made_by=HEAD)), asked.recipe)
    return manifest.model_copy(update={"kind": "checkpoint"})


def _repository(base: Path, manifest: EngineManifest) -> Path:
    write_json(base / "engine" / "manifest.json", manifest)
    tokenizer = base / "tokenizer"
    tokenizer.mkdir()
    (tokenizer / "tokenizer.json").write_text('{"version": "1.0", "model": {"type": "BPE", "vocab": {}, "merges": []}}')
    render_repository(
        base / "engine",
        base / "repository",
        settings=ServingSettings(),
        tokenizer=tokenizer,
        served_at=Path("/models/repository"),
        force=False,
        made_by=HEAD,
        server="trtllm-serve",
    )
    return base / "repository"


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Render the deployment for each version."""
    folders = {}
    for version in VERSIONS:
        base = tmp_path_factory.mktemp("serve")
        repository = _repository(base, _manifest(version))
        plan = plan_deployment(repository, Path("/models/checkpoint"), Deployment(name="chat"), made_by=HEAD)
        render_deployment(plan, base / "files", force=False)
        folders[version] = base / "files"
    return folders


@pytest.mark.parametrize("version", VERSIONS)
def test_kubernetes_and_the_operator_take_its_manifests(rendered: dict[str, Path], version: str) -> None:
    """One port, scraped where trtllm-serve publishes; probed where it says that it is well."""
    folder = rendered[version] / "kubernetes"
    for path in folder.glob("*.yaml"):
        kubernetes_validate.validate(load_yaml(path), "1.31", strict=True)
    for name in ("servicemonitor", "prometheusrule"):
        jsonschema.validate(load_yaml(folder / f"monitoring/{name}.yaml"), FACTS[name])
    [container] = load_yaml(folder / "deployment.yaml")["spec"]["template"]["spec"]["containers"]
    assert (container["name"], container["ports"]) == ("trtllm-serve", [{"name": "http", "containerPort": 8000}])
    assert container["readinessProbe"]["httpGet"] == {"path": "/health", "port": "http"}
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 1
    [scraped] = load_yaml(folder / "monitoring/servicemonitor.yaml")["spec"]["endpoints"]
    assert (scraped["port"], scraped["path"]) == ("http", "/prometheus/metrics")
    assert [port["port"] for port in load_yaml(folder / "service.yaml")["spec"]["ports"]] == [8000]


@pytest.mark.parametrize("version", VERSIONS)
def test_compose_serves_and_scrapes_it(rendered: dict[str, Path], version: str) -> None:
    """NVIDIA's container of the version; Prometheus asks it by its name and path."""
    compose = load_yaml(rendered[version] / "compose.yaml")["services"]
    server = compose["trtllm-serve"]
    assert set(server) <= set(FACTS["compose_service_keys"])
    assert server["image"].startswith(f"nvcr.io/nvidia/tensorrt-llm/release:{version[:3]}")
    assert "TRITON_ADMIN_KEY" not in server["environment"]
    assert server["ports"] == ["127.0.0.1:8000:8000"]
    [job] = load_yaml(rendered[version] / "prometheus/prometheus.yml")["scrape_configs"]
    assert job["metrics_path"] == "/prometheus/metrics"
    assert job["static_configs"] == [{"targets": ["trtllm-serve:8000"]}]


def test_the_script_becomes_trtllm_serve(rendered: dict[str, Path], tmp_path: Path) -> None:
    """With the repository's YAML as it is mounted; under another version it says so first."""
    script = rendered["1.2"] / "server" / "serve.sh"
    assert [path.name for path in script.parent.iterdir()] == ["serve.sh"]
    for name, text in {
        "python3": f"#!/bin/sh\ncat {tmp_path}/version\n",
        "trtllm-serve": '#!/bin/sh\nprintf "%s\\n" "$@"\n',
    }.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "HTTP_PORT": "9000"}
    command = ["sh", str(script), "--more"]
    (tmp_path / "version").write_text("1.2.0")
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert "this image holds 1.2.0" in done.stderr
    (tmp_path / "version").write_text("1.2.1")
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    words = done.stdout.split()
    assert words[0] == "serve"
    assert words[2:] == [
        "--host", "0.0.0.0", "--port", "9000", "--config", "/models/repository/trtllm-serve.yaml", "--more"
    ]  # fmt: skip


def _named(expression: str) -> set[str]:
    """Return the metrics an expression asks for; of a pattern of names, the one without the prefix."""
    patterns = set(re.findall(r'__name__=~"\(trtllm_\)\?(\w+)"', expression))
    return patterns | set(re.findall(r"\btrtllm[_:][\w:]+", re.sub(r"\{[^}]*\}", "", expression)))


@pytest.mark.parametrize("version", VERSIONS)
def test_rules_and_panels_ask_for_what_the_version_publishes(rendered: dict[str, Path], version: str) -> None:
    """And for nothing of Triton's."""
    rules = [
        rule for group in load_yaml(rendered[version] / "prometheus/rules.yml")["groups"] for rule in group["rules"]
    ]
    dashboard = json.loads((rendered[version] / "grafana/dashboard.json").read_text())
    known = {name + end for name in METRICS[version] for end in ("", "_bucket", "_sum", "_count")}
    known |= {rule["record"] for rule in rules if "record" in rule}
    asked = [rule["expr"] for rule in rules] + [t["expr"] for p in dashboard["panels"] for t in p["targets"]]
    for expression in asked:
        assert "nv_" not in expression
        assert "triton:" not in expression
        assert _named(expression) <= known, expression
    assert len(dashboard["panels"]) == (6 if version == "1.2" else 13)


def _promtool(*arguments: object) -> None:
    if not shutil.which("promtool"):
        pytest.skip("no promtool here: apt install prometheus")
    done = subprocess.run(["promtool", *map(str, arguments)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("version", VERSIONS)
def test_prometheus_takes_its_configuration(rendered: dict[str, Path], version: str) -> None:
    """Promtool, with duplicates as errors."""
    _promtool("check", "config", "--lint=all", "--lint-fatal", rendered[version] / "prometheus/prometheus.yml")


LABELS = 'job="chat",instance="a",model_name="m",engine_type="e"'


def _in_flight(requests: Sequence[int]) -> str:
    """Return the seconds that ended requests took, every 15 s, where so many were in the server before each."""
    return " ".join(str(15 * total) for total in accumulate(requests, initial=0))


def _well(version: str, **changed: str) -> list[dict[str, str]]:
    """Return the series of a server at work, some of them changed; 80 samples of 15 s."""
    values = {
        "up": "1x80", "num_requests_running": "10x80", "num_requests_waiting": "0x80",
        "max_num_active_requests": f"{SLOTS}x80", "num_paused_requests": "0x80", "kv_cache_utilization": "0.3x80",
        "failed": "0+0x80", "refused": "0+50x80", "success": "0+10x80", "fast": "0+10x80",
        "seconds": _in_flight([10] * 80),
    } | changed  # fmt: skip
    prefix = "" if version == "1.2" else "trtllm_"
    first = f"{prefix}time_to_first_token_seconds_bucket"
    series = [
        {"series": 'up{job="chat",instance="a"}', "values": values["up"]},
        {"series": f"{prefix}e2e_request_latency_seconds_sum{{{LABELS}}}", "values": values["seconds"]},
        {"series": f'{first}{{le="1.0",{LABELS}}}', "values": values["fast"]},
        {"series": f'{first}{{le="5.0",{LABELS}}}', "values": "0+10x80"},
        {"series": f'{first}{{le="+Inf",{LABELS}}}', "values": "0+10x80"},
    ]
    if version != "1.2":
        series += [
            {"series": f'trtllm_request_error_total{{http_code="500",{LABELS}}}', "values": values["failed"]},
            {"series": f'trtllm_request_error_total{{http_code="400",{LABELS}}}', "values": values["refused"]},
            {"series": f'trtllm_request_success_total{{finished_reason="stop",{LABELS}}}', "values": values["success"]},
        ]
        gauges = [name for name in values if name.startswith(("num", "max", "kv"))]
        series += [{"series": f"trtllm_{name}{{{LABELS}}}", "values": values[name]} for name in gauges]
    return [each for each in series if each["values"]]


FULL = {"num_requests_running": f"{SLOTS}x80"}
FIRES: dict[str, dict[str, str]] = {
    "": {},
    "ServerDown": {"up": "1x20 0x60"},
    "ServerMissing": {"up": ""},
    "FirstTokenSlow": {"fast": "0x80"},
    "SlotsFull": FULL,
    "QueueGrows": {**FULL, "num_requests_waiting": "0+5x80"},
    "QueueLong": {**FULL, "num_requests_waiting": "200x80"},
    "KvCacheNearlyFull": {"kv_cache_utilization": "0.97x80"},
    "RequestsFail": {"failed": "0+2x80"},
    "RequestsPaused": {"num_paused_requests": "0x20 3 0 0 1" + " 0 0 1 0" * 14},
}
OF_REQUESTS = ("", "ServerDown", "ServerMissing", "FirstTokenSlow")


@pytest.mark.parametrize("version", VERSIONS)
def test_every_alert_fires_on_its_own_trouble_and_none_on_another(
    rendered: dict[str, Path], tmp_path: Path, version: str
) -> None:
    """Promtool's unit tests; a long queue takes every slot, so `SlotsFull` comes with it."""
    rules = load_yaml(rendered[version] / "prometheus/rules.yml")
    states = OF_REQUESTS if version == "1.2" else tuple(FIRES)
    assert {rule["alert"] for group in rules["groups"] for rule in group["rules"] if "alert" in rule} | {""} == set(
        states
    )
    tests = []
    for name in states:
        fired = {name, *({"SlotsFull"} if name.startswith("Queue") else ())} - {""}
        samples = [{"labels": f'{{alertname="{each}"}}', "value": 1} for each in sorted(fired)]
        expression = 'count by (alertname) (ALERTS{alertstate="firing"})'
        found = [{"expr": expression, "eval_time": "19m", "exp_samples": samples}]
        tests.append({"interval": "15s", "input_series": _well(version, **FIRES[name]), "promql_expr_test": found})
    _test_rules(rules, tests, tmp_path)


def _test_rules(rules: Any, tests: list[dict[str, Any]], folder: Path) -> None:
    (folder / "rules.yml").write_text(yaml.safe_dump(rules))
    document = {"rule_files": ["rules.yml"], "evaluation_interval": "15s", "tests": tests}
    (folder / "tests.yml").write_text(yaml.safe_dump(document))
    _promtool("test", "rules", folder / "tests.yml")


@pytest.mark.parametrize("version", VERSIONS)
def test_the_autoscaler_sees_a_queue(rendered: dict[str, Path], tmp_path: Path, version: str) -> None:
    """The adapter's queries as it would ask them: requests in the server, queue included."""
    folder = rendered[version] / "kubernetes"
    rules = load_yaml(folder / "monitoring/prometheus-adapter.yaml")["rules"]["custom"]
    targets = [
        each["pods"]["metric"]["name"] for each in load_yaml(folder / "horizontalpodautoscaler.yaml")["spec"]["metrics"]
    ]
    assert targets == [rule["name"]["as"] for rule in rules]
    plain = "e2e_request_latency_seconds_sum" if version == "1.2" else "trtllm_num_requests_running"
    names = {"<<.Series>>": plain, "<<.LabelMatchers>>": 'model_name="m"', "<<.GroupBy>>": "instance"}
    query = str(rules[0]["metricsQuery"])
    for name, value in names.items():
        query = query.replace(name, value)
    queue = {**FULL, "num_requests_waiting": "200x80", "seconds": _in_flight([SLOTS + 200] * 80)}
    sample = {"labels": '{instance="a"}', "value": SLOTS + 200}
    test = {"expr": query, "eval_time": "10m", "exp_samples": [sample]}
    cases = [{"interval": "15s", "input_series": _well(version, **queue), "promql_expr_test": [test]}]
    _test_rules(load_yaml(rendered[version] / "prometheus/rules.yml"), cases, tmp_path)


def test_the_twin_and_what_would_be_downloaded_are_refused(tmp_path: Path) -> None:
    """No container holds the twin; and the pods reach nobody."""
    for name, manifest, words in (
        ("twin", _manifest("1.3").model_copy(update={"kind": "emulated"}), "no container holds it"),
        ("hub", _manifest("1.3", published_checkpoint="nvidia/Qwen3-8B-FP8"), "would be downloaded"),
    ):
        repository = _repository(tmp_path / name, manifest)
        with pytest.raises(UserError, match=words):
            plan_deployment(repository, None, Deployment(name="chat"), made_by=HEAD)
