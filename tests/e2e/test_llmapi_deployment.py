"""The LLM API's twin under its own deployment on the real Triton: what its rules and panels read is there."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

sys.path.insert(0, str(Path(__file__).parent))
from conftest import BIN, LOCAL_TRITON, succeed
from monitoring import Deployed, Prometheus, wait_until

pytestmark = pytest.mark.e2e
QWEN3 = Path(sys.prefix) / "share" / "tokenizers" / "qwen3"
SINCE_24_11 = "first_response"  # the histogram; the local Triton is 24.10
TROUBLE = {"TritonDown", "TritonMissing", "EngineNotLoaded", "NoThroughput", "RequestsFail", "SlotsFull", "QueueLong"}


@dataclass(frozen=True)
class Watched:
    """A server that answers, under Prometheus."""

    deployment: Path
    server: Deployed
    prometheus: Prometheus


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    """Deploy the twin, and load it lightly."""
    if not LOCAL_TRITON.is_dir() or not QWEN3.is_dir() or not shutil.which("prometheus"):
        pytest.skip("the local Triton, the Qwen3 tokenizer or Prometheus is not installed")
    folder = tmp_path_factory.mktemp("llmapi")
    engine = ["--backend", "pytorch", "--precision", "fp8", "--max-batch-size", 8, "--emulate"]
    succeed("build-engine", *engine, "--out", folder / "engine")
    succeed("build-repo", folder / "engine", "--tokenizer", QWEN3, "--out", folder / "repository")
    succeed("build-deployment", folder / "repository", "--name", "chat", "--out", folder / "deployment")
    server = Deployed(folder / "deployment", folder)
    load = ["--isl", "32", "--osl", "16", "--concurrency", "4", "--requests", "5000"]
    users = prometheus = None
    try:
        wait_until(lambda: server.control("probe") == 0)
        prometheus = Prometheus(folder / "deployment", folder, server.metrics)
        users = subprocess.Popen(
            [str(BIN / "run-load"), "--url", server.url, "--tokenizer", str(QWEN3 / "tokenizer.json"), *load,
             "--out", str(folder / "run")], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        yield Watched(folder / "deployment", server, prometheus)
    finally:
        if users is not None:
            users.terminate()
            users.wait(timeout=30)
        if prometheus is not None:
            prometheus.end()
        server.end()


def test_every_rule_and_panel_has_a_value(watched: Watched) -> None:
    """But for the histogram that this Triton is too old for."""
    groups = yaml.safe_load((watched.deployment / "prometheus/rules.yml").read_text())["groups"]
    asked = {rule["record"] for rule in groups[0]["rules"]}
    dashboard = json.loads((watched.deployment / "grafana/dashboard.json").read_text())
    asked |= {target["expr"] for panel in dashboard["panels"] for target in panel["targets"]}
    asked = {expression for expression in asked if SINCE_24_11 not in expression}
    assert len(asked) >= 6
    # Nothing has failed, and 0 / 0 is no value.
    asked -= {"triton:failures:ratio5m"}
    wait_until(lambda: all(watched.prometheus.query(expression) for expression in asked))
    assert float(watched.prometheus.query("max(triton:replies:rate1m)")[0]["value"][1]) > 0


def test_a_server_that_answers_raises_nothing(watched: Watched) -> None:
    """No alert stands on a metric that is not published."""
    wait_until(lambda: watched.prometheus.query("triton:replies:rate1m"))
    assert not watched.prometheus.alerts() & TROUBLE


def test_the_twin_publishes_what_the_model_does(watched: Watched) -> None:
    """Nothing by the C++ backend's names."""
    with urllib.request.urlopen(f"http://127.0.0.1:{watched.server.metrics}/metrics", timeout=10) as reply:
        page = reply.read().decode()
    assert "nv_trt_llm_" not in page
    assert 'nv_inference_request_success{model="tensorrt_llm"' in page
