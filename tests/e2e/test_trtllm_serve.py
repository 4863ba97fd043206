"""trtllm-serve's twin on the real Triton, under Prometheus with the rules of trtllm-serve's own deployment."""

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
from typing import Any

import pytest
import yaml

sys.path.insert(0, str(Path(__file__).parent))
from conftest import BIN, LOCAL_TRITON, command, free_ports, succeed
from monitoring import Prometheus, wait_until

from tests.prometheus_adapter import adapter_query

pytest.importorskip("uvicorn", reason="the front extra is not installed")
pytestmark = pytest.mark.e2e
QWEN3 = Path(sys.prefix) / "share" / "tokenizers" / "qwen3"
SLOTS, USERS = 8, 24


@dataclass(frozen=True)
class Watched:
    """A twin whose slots are all taken and whose queue is twice as long, under Prometheus."""

    folder: Path
    url: str
    prometheus: Prometheus

    def page(self, path: str) -> str:
        """Return one of its pages."""
        with urllib.request.urlopen(self.url + path, timeout=10) as reply:
            text: str = reply.read().decode()
        return text

    def value(self, expression: str) -> float | None:
        """Return the one value an expression has now."""
        found = self.prometheus.query(expression)
        return float(found[0]["value"][1]) if found else None


def _engine(folder: Path, version: str) -> None:
    """Plan an engine of eight slots, as an emulated one and as a checkpoint."""
    limits = ["--max-batch-size", SLOTS, "--max-seq-len", 512, "--isl", 256, "--osl", 256]
    more = ["--backend", "pytorch", "--trtllm-version", version, "--emulate"]
    succeed("build-engine", "--precision", "fp8", *limits, *more, "--out", folder / "emulated")
    manifest = json.loads((folder / "emulated" / "manifest.json").read_text())
    (folder / "checkpoint").mkdir()
    (folder / "checkpoint" / "manifest.json").write_text(json.dumps(manifest | {"kind": "checkpoint"}))


@pytest.fixture(scope="module", params=["1.2", "1.3"])
def watched(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    """Serve the twin, load it, and watch it by the deployment that a checkpoint of the same plan gets."""
    if not LOCAL_TRITON.is_dir() or not QWEN3.is_dir() or not shutil.which("prometheus"):
        pytest.skip("the local Triton, the Qwen3 tokenizer or Prometheus is not installed")
    folder = tmp_path_factory.mktemp("serve")
    _engine(folder, request.param)
    server = ["--server", "trtllm-serve", "--tokenizer", QWEN3]
    # a reply takes as long as one of 60 tokens at the usual scale, for less than half of the work
    succeed("build-repo", folder / "emulated", *server, "--time-scale", 10, "--out", folder / "twin")
    succeed("build-repo", folder / "checkpoint", "--server", "trtllm-serve", "--out", folder / "repository")
    succeed("build-deployment", folder / "repository", "--name", "chat", "--out", folder / "deployment")
    http, grpc, metrics = free_ports()
    ports = ["--http-port", http, "--grpc-port", grpc, "--metrics-port", metrics, "--tritonserver", "local"]
    printed = succeed("serve-repo", folder / "twin", *ports, "--detach", "--stop-after", 300)
    url = f"http://127.0.0.1:{http}"
    assert f"{url}/prometheus/metrics" in printed
    load = ["--isl", "64", "--osl", "24", "--concurrency", str(USERS), "--requests", "5000"]
    where = [
        "--url",
        url,
        "--protocol",
        "openai-completions",
        "--model",
        "deepseek-r1-0528-qwen3-8b",
        "--tokenizer",
        str(QWEN3 / "tokenizer.json"),
    ]
    with (folder / "users.log").open("wb") as output:
        users = subprocess.Popen(
            [str(BIN / "run-load"), *where, *load, "--out", str(folder / "run")],
            stdout=output, stderr=subprocess.STDOUT,
        )  # fmt: skip
    prometheus = Prometheus(folder / "deployment", folder, http)
    try:
        yield Watched(folder, url, prometheus)
    finally:
        still_loading = users.poll() is None
        users.terminate()
        users.wait(timeout=30)
        prometheus.end()
        for log in (folder / "users.log", *sorted((folder / "twin").glob("*.log"))):
            # pytest shows it if the test fails
            sys.stdout.write(f"--- {log.name}\n{log.read_text(errors='replace')[-4000:]}\n")
        succeed("serve-repo", folder / "twin", "--stop")
        assert still_loading, "run-load ended before the tests did"


def _version(watched: Watched) -> str:
    manifest = json.loads((watched.folder / "twin" / "manifest.json").read_text())
    return str(manifest["engine"]["llm_api"]["version"])


def test_the_pages_show_the_queue(watched: Watched) -> None:
    """JSON of the latest iteration in either version; gauges only from 1.3 on."""

    def queued() -> dict[str, Any] | None:
        [iteration] = json.loads(watched.page("/metrics"))
        return iteration if iteration["numQueuedRequests"] >= USERS - SLOTS - 2 else None

    iteration = wait_until(queued)
    assert iteration["numActiveRequests"] == iteration["maxNumActiveRequests"] == SLOTS
    page = watched.page("/prometheus/metrics")
    assert ("trtllm_num_requests_waiting{" in page) == (_version(watched) == "1.3")
    assert ("trtllm_" in page) == (_version(watched) == "1.3")


def test_rules_are_computed_from_the_twins_metrics(watched: Watched) -> None:
    """Every recorded series has a value under load; but for failures, of which there were none."""
    [series, _] = yaml.safe_load((watched.folder / "deployment/prometheus/rules.yml").read_text())["groups"]
    names = {rule["record"] for rule in series["rules"] if "failures" not in rule["record"]}

    def all_there() -> bool:
        return all(watched.value(name) is not None for name in names)

    wait_until(all_there)
    waited_s = watched.value("trtllm:queue_seconds:p95_5m")
    whole_s, first_s = (watched.value(f"trtllm:{n}") for n in ("request_seconds:mean1m", "first_token_seconds:p95_5m"))
    assert waited_s is not None
    assert whole_s is not None
    assert first_s is not None
    assert waited_s > 0
    assert whole_s > 0
    assert first_s > 0


def test_alerts_and_the_autoscaler_see_the_queue(watched: Watched) -> None:
    """Requests in the server, as the adapter asks for them; from 1.3 on the alerts of slots and queue hold."""
    rules = yaml.safe_load((watched.folder / "deployment/kubernetes/monitoring/prometheus-adapter.yaml").read_text())
    rule = dict(rules["rules"]["custom"][0])
    if _version(watched) == "1.2":
        rule["seriesQuery"] = "e2e_request_latency_seconds_sum{"
    query = adapter_query(rule, group="instance", matchers='job="chat"')
    wait_until(lambda: 0.7 * USERS < (watched.value(query) or 0) < 1.3 * USERS, 90)
    if _version(watched) == "1.3":
        wait_until(lambda: watched.prometheus.alerts() >= {"SlotsFull", "QueueLong"}, 90)
    else:
        assert not watched.prometheus.alerts() & {"SlotsFull", "QueueLong"}


def test_an_error_is_counted_by_its_status(watched: Watched) -> None:
    """A model that is not there, from 1.3 on."""
    body = json.dumps({"model": "none", "prompt": "a", "max_tokens": 1}).encode()
    request = urllib.request.Request(watched.url + "/v1/completions", body, {"content-type": "application/json"})
    with pytest.raises(urllib.error.HTTPError, match="404"):
        urllib.request.urlopen(request, timeout=10)
    found = 'trtllm_request_error_total{http_code="404"' in watched.page("/prometheus/metrics")
    assert found == (_version(watched) == "1.3")


def test_the_load_tester_reads_the_page(watched: Watched) -> None:
    """The queue in its samples, from 1.3 on."""
    samples = watched.folder / "run" / "samples.jsonl"
    if _version(watched) == "1.3":
        wait_until(lambda: samples.is_file() and "trtllm_num_requests_waiting" in samples.read_text())


def test_without_trtllm_serve_its_container_is_named(watched: Watched) -> None:
    """A checkpoint's repository is not served by anything else."""
    if shutil.which("trtllm-serve"):
        pytest.skip("trtllm-serve is installed here")
    done = command("serve-repo", watched.folder / "repository")
    assert done.returncode == 1
    assert "nvcr.io/nvidia/tensorrt-llm/release" in done.stderr
