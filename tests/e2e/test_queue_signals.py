"""A full batch and a long queue on the real Triton: which metrics move, which alerts hold, what the autoscaler sees.

TensorRT-LLM's `waiting` stays 0 and Triton's queue for the engine stays empty; what is watched must move all the same.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

sys.path.insert(0, str(Path(__file__).parent))
from conftest import BIN, LOCAL_TRITON, succeed
from monitoring import Deployed, Prometheus, wait_until
from streams import Stream, text

from tests.prometheus_adapter import adapter_query

# quiet: on busy cores requests are seen now and then between Triton's scheduler and the model, which are pending
pytestmark = [pytest.mark.e2e, pytest.mark.quiet]
SLOTS, USERS, BLS_USERS, BLS_INSTANCES = 8, 48, 10, 2
LOADED_S = 120
WINDOW_S, REQUEST_S = 15, 5  # of a rate; and longer than a request takes, queue included
QUEUE = {"SlotsFull", "QueueGrows", "QueueLong", "InstancesShort"}


@dataclass(frozen=True)
class Queueing:
    """A server whose slots are all taken and whose queue is several times as long, under Prometheus."""

    folder: Path
    server: Deployed
    prometheus: Prometheus
    told: set[str]
    watched_from_s: float

    def value(self, expression: str) -> float:
        """Return the one value an expression has now."""
        [found] = self.prometheus.query(expression)
        return float(found["value"][1])


def _published(server: Deployed) -> dict[str, float]:
    """Return the server's metrics page."""
    with urllib.request.urlopen(f"http://127.0.0.1:{server.metrics}/metrics", timeout=10) as reply:
        lines = [line for line in reply.read().decode().splitlines() if not line.startswith("#")]
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines}


def _load(server: Deployed, model: str, users: int, out: Path) -> subprocess.Popen[bytes]:
    lengths = ["--isl", "64", "--osl", "32", "--concurrency", str(users), "--requests", "5000"]
    command = [str(BIN / "run-load"), "--url", server.url, "--model", model, *lengths, "--out", str(out)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


@pytest.fixture(scope="module")
def queueing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Queueing]:
    """Serve an engine of eight slots and KV blocks for all of them, fill it, and then begin to watch."""
    if not LOCAL_TRITON.is_dir():
        pytest.skip("the local Triton is not installed: make setup, or install-triton")
    if not shutil.which("prometheus"):
        pytest.skip("no prometheus here: apt install prometheus")
    base = tmp_path_factory.mktemp("queueing")
    limits = ["--max-batch-size", SLOTS, "--max-seq-len", 512, "--isl", 256, "--osl", 256]
    succeed("build-engine", "--precision", "fp8", "--emulate", *limits, "--out", base / "engine")
    settings = ["--time-scale", 4, "--set", f"text.bls_instances={BLS_INSTANCES}"]
    succeed("build-repo", base / "engine", "--out", base / "repository", *settings)
    succeed("build-deployment", base / "repository", "--out", base / "files", "--name", "demo", "--longest-reply", 20)
    server = Deployed(base / "files", base)
    prometheus = None
    loads: list[subprocess.Popen[bytes]] = []
    try:
        wait_until(lambda: server.control("probe") == 0)
        loads = [
            _load(server, "ensemble", USERS, base / "ensemble"),
            _load(server, "tensorrt_llm_bls", BLS_USERS, base / "bls"),
        ]
        wait_until(lambda: sum(_named(_published(server), "emulator_waiting_requests").values()) > USERS - SLOTS - 5)
        prometheus = Prometheus(base / "files", base, server.metrics)
        watched_from_s = time.monotonic()
        told: set[str] = set()
        wait_until(lambda: told.update(prometheus.alerts()) or told >= QUEUE, LOADED_S)
        yield Queueing(base / "files", server, prometheus, told, watched_from_s)
    finally:
        for load in loads:
            load.terminate()
            load.wait(timeout=30)
        if prometheus is not None:
            prometheus.end()
        server.end()


def _named(page: dict[str, float], name: str) -> dict[str, float]:
    return {series: value for series, value in page.items() if series.startswith(name)}


def test_waiting_and_tritons_queue_stay_0(queueing: Queueing) -> None:
    """The engine's slots are full; its queue is in no TensorRT-LLM category, nor in Triton's pending requests."""
    requests = 'nv_trt_llm_request_metrics{{request_type="{}"}}'
    assert queueing.value(f"max_over_time({requests.format('waiting')}[1m])") == 0
    assert queueing.value(f"max_over_time({requests.format('active')}[1m])") == SLOTS
    for model in ("tensorrt_llm", "ensemble"):
        pending = f'triton:requests_pending{{model="{model}"}}[1m]'
        assert queueing.value(f"quantile_over_time(0.5, {pending})") == 0
        assert queueing.value(f"max_over_time({pending})") <= 1  # a page may be read while a request passes through
    assert queueing.value("max_over_time(emulator_waiting_requests[1m])") >= USERS - SLOTS - 5


def test_every_alert_of_a_queue_holds(queueing: Queueing) -> None:
    """Those four and no other; until the first rules were evaluated the server is missing."""
    assert queueing.told - {"TritonMissing", "EngineNotLoaded"} == QUEUE


def test_the_autoscaler_asks_for_more_servers(queueing: Queueing) -> None:
    """Requests in the server and slots are past their targets, KV blocks are not: by the adapter's own queries."""
    rules = yaml.safe_load((queueing.folder / "kubernetes/monitoring/prometheus-adapter.yaml").read_text())
    scaler = yaml.safe_load((queueing.folder / "kubernetes/horizontalpodautoscaler.yaml").read_text())
    targets = {each["pods"]["metric"]["name"]: each["pods"]["target"]["averageValue"]
               for each in scaler["spec"]["metrics"]}  # fmt: skip
    values = {rule["name"]["as"]: queueing.value(adapter_query(rule, group="instance", matchers='job="demo"'))
              for rule in rules["rules"]["custom"]}  # fmt: skip
    assert values.keys() == targets.keys()
    assert values["triton_requests_in_flight"] > int(targets["triton_requests_in_flight"])
    assert values["triton_slots_taken_ratio"] == pytest.approx(1, abs=0.02)
    assert values["triton_kv_used_ratio"] < 0.85


def test_requests_in_flight_are_the_clients_users(queueing: Queueing) -> None:
    """Little's law holds: the recorded series, over a window that has been watched, counts the ensemble's users."""
    groups = yaml.safe_load((queueing.folder / "prometheus/rules.yml").read_text())["groups"]
    rules = {rule["record"]: rule["expr"] for group in groups for rule in group["rules"] if "record" in rule}
    # Requests of the time in which the queue grew took less.
    time.sleep(max(0.0, queueing.watched_from_s + WINDOW_S + REQUEST_S - time.monotonic()))
    found = queueing.value(rules["triton:requests_in_flight:mean1m"].replace("[1m]", f"[{WINDOW_S}s]"))
    assert found == pytest.approx(USERS, rel=0.15)


def test_a_client_waits_for_its_first_token(queueing: Queueing) -> None:
    """It is what a queue means to a client: no gauge of the engine shows it, the time to the first response does."""
    begin_s = time.monotonic()
    stream = Stream(queueing.server.grpc, "ensemble", text(2)).read(1)
    assert time.monotonic() - begin_s > 2.0
    assert len(stream.read().answered) >= 2
