"""A deployment's files at work: its script serves and drains, its Prometheus rules and panels have data under load."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import pytest
import yaml

sys.path.insert(0, str(Path(__file__).parent))
from conftest import BIN, LOCAL_TRITON, succeed
from monitoring import Deployed, Prometheus, small_engine, wait_until
from streams import Stream, tokens

from engines.autoscaling import ScalingLaw, Signal
from tests.prometheus_adapter import adapter_query
from triton_repo.deploy.scaling import keda_query, planned_scaling

pytestmark = pytest.mark.e2e
# Triton 24.10, the local one, has no histogram of first responses; promtool fires that alert in tests/contract.
NOT_HERE = "first_response"
OVERLOAD = {"KvCacheNearlyFull", "KvCacheLimitsBatch", "RequestsFail"}
QUEUE = {
    "SlotsFull",
    "QueueGrows",
    "QueueLong",
    "InstancesShort",
}  # they need a minute of load: see test_queue_signals.py


@dataclass(frozen=True)
class Watched:
    """A served deployment under Prometheus and a load too large for it, with the alerts that load has raised."""

    folder: Path
    server: Deployed
    prometheus: Prometheus
    load: subprocess.Popen[bytes]
    told: set[str]


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    """Serve a small engine by the deployment's own script, watch it, and overload it."""
    if not LOCAL_TRITON.is_dir():
        pytest.skip("the local Triton is not installed: make setup, or install-triton")
    if not shutil.which("prometheus"):
        pytest.skip("no prometheus here: apt install prometheus")
    base = tmp_path_factory.mktemp("deployment")
    small_engine(base / "engine")
    queue = ["--max-queue-size", 20, "--time-scale", 2]
    succeed("build-repo", base / "engine", "--out", base / "repository", *queue)
    succeed("build-deployment", base / "repository", "--out", base / "files", "--name", "demo", "--longest-reply", 20)
    server = Deployed(base / "files", base)
    prometheus = run = None
    try:
        wait_until(lambda: server.control("probe") == 0)
        prometheus = Prometheus(base / "files", base, server.metrics)
        load = ["--isl", "128", "--osl", "128", "--rate", "30", "--duration", "100"]
        run = subprocess.Popen(
            [str(BIN / "run-load"), "--url", server.url, "--model", "ensemble", *load, "--out", str(base / "run")],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        told: set[str] = set()
        wait_until(lambda: told.update(prometheus.alerts()) or told >= OVERLOAD, 120)
        yield Watched(base / "files", server, prometheus, run, told)
    finally:
        if run is not None:
            run.terminate()
            run.wait(timeout=30)
        if prometheus is not None:
            prometheus.end()
        server.end()


def test_every_panel_has_data_under_load(watched: Watched) -> None:
    """Each query of the dashboard returns series, but for the histogram that this server is too old for."""
    dashboard = json.loads((watched.folder / "grafana" / "dashboard.json").read_text())
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    assert len(queries) > 12
    empty = [query for query in queries if not watched.prometheus.query(query)]
    assert empty == [query for query in queries if NOT_HERE in query]


def test_every_recorded_series_has_data_under_load(watched: Watched) -> None:
    """Each recording rule makes a series with labels, so that every alert has something to fire on."""
    groups = yaml.safe_load((watched.folder / "prometheus" / "rules.yml").read_text())["groups"]
    names = [rule["record"] for group in groups for rule in group["rules"] if "record" in rule]
    empty = [name for name in names if not watched.prometheus.query(name)]
    assert empty == [name for name in names if NOT_HERE in name]
    health = watched.prometheus.ask("rules")["groups"]
    assert {rule["health"] for group in health for rule in group["rules"]} == {"ok"}


def test_overload_raises_its_alerts(watched: Watched) -> None:
    """A full KV cache, a batch that it limits and refused requests are what Prometheus tells, and nothing else."""
    # Until the first scrape and the first rules, server and engine are missing; pauses are moments a scrape may miss.
    assert watched.told - QUEUE - {"TritonMissing", "EngineNotLoaded", "RequestsPaused"} == OVERLOAD


def test_what_the_autoscaler_asks_for_is_there(watched: Watched) -> None:
    """The adapter's expressions, with the labels it would put in, return the numbers the autoscaler compares."""
    rules = yaml.safe_load((watched.folder / "kubernetes/monitoring/prometheus-adapter.yaml").read_text())
    scaler = yaml.safe_load((watched.folder / "kubernetes/horizontalpodautoscaler.yaml").read_text())
    asked = {metric["pods"]["metric"]["name"] for metric in scaler["spec"]["metrics"]}
    assert asked == {rule["name"]["as"] for rule in rules["rules"]["custom"]}
    for rule in rules["rules"]["custom"]:
        assert watched.prometheus.query(adapter_query(rule, group="instance", matchers='job="demo"'))


@pytest.mark.parametrize("signal", get_args(Signal))
def test_a_plans_control_law_finds_its_signal(watched: Watched, signal: Signal) -> None:
    """KEDA's query and the adapter's, of each signal, on the real Triton under load; this one has no histogram."""
    law = ScalingLaw(controller="keda", signal=signal, target=1.0, min_replicas=1, max_replicas=4)
    [found] = watched.prometheus.query(keda_query(law, "demo"))
    scaling = planned_scaling(law)
    rule = {"seriesQuery": scaling.series, "metricsQuery": scaling.query}
    per_pod = watched.prometheus.query(adapter_query(rule, group="instance", matchers='job="demo"'))
    if signal == "ttft_p95":
        assert float(found["value"][1]) == 0
        assert not per_pod
    else:
        assert len(per_pod) == 1
        assert float(found["value"][1]) >= 0


def test_terminated_it_drains_and_leaves(watched: Watched) -> None:
    """SIGTERM to the script: readiness goes, a new request is refused, the reply in flight is whole, status 0."""
    watched.load.terminate()
    wait_until(lambda: watched.prometheus.query("triton:requests_active == 0"))
    flying = Stream(watched.server.grpc, "tensorrt_llm", tokens(200)).read(1)
    watched.server.terminate()
    wait_until(lambda: watched.server.control("probe") == 1)
    text = json.dumps({"text_input": "late", "max_tokens": 1, "stream": True}).encode()
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(f"{watched.server.url}/v2/models/ensemble/generate_stream", text, timeout=10)
    assert refused.value.code == 404
    assert "no available versions" in refused.value.read().decode()
    refused.value.close()
    assert len(flying.read().answered) == 200
    assert watched.server.process.wait(timeout=30) == 0
    wait_until(lambda: "TritonDown" in watched.prometheus.alerts())
