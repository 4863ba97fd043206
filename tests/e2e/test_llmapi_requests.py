"""Requests to the LLM API's model as its clients send them, answered or refused as upstream does, on real Triton."""

from __future__ import annotations

import json
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from conftest import Server, start, succeed
from upstream_client import TIMES, answers_to, refusal_of

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def llmapi(tmp_path_factory: pytest.TempPathFactory, engine: Path) -> Iterator[Server]:
    """Serve the emulated twin of the LLM API's model, beside the other engine."""
    assert engine.is_dir()  # skips where there is no Triton
    folder = tmp_path_factory.mktemp("llmapi")
    succeed("build-engine", "--precision", "fp8", "--backend", "pytorch", "--emulate", "--out", folder / "engine")
    succeed("build-repo", folder / "engine", "--out", folder / "repository", "--time-scale", 2)
    assert "no errors" in succeed("check-repo", folder / "repository")
    running = start(folder / "repository")
    yield running
    running.end()


ASTRONAUT = {"text_input": "Hello there, astronaut 👩‍🚀", "sampling_param_max_tokens": 12}


def test_the_llm_api_answers_text(llmapi: Server) -> None:
    """Whole, with the LLM API's own length where none is asked for; streamed, each response has the text so far."""
    [reply] = answers_to(llmapi, "tensorrt_llm", ASTRONAUT)
    assert reply["text_output"] == "Hello there, astronaut 👩‍🚀Hello there,"
    [reply] = answers_to(llmapi, "tensorrt_llm", {"text_input": "x", "return_finish_reason": True})
    assert (reply["text_output"], reply["finish_reason"]) == ("x" * 32, "length")
    streamed = answers_to(llmapi, "tensorrt_llm", {**ASTRONAUT, "streaming": True}, stream=True)
    texts = [response["text_output"] for response in streamed]
    assert len(texts) == 12
    assert all(later.startswith(earlier) for earlier, later in pairwise(texts))
    assert not any("\ufffd" in text for text in texts)
    assert texts[-1] == "Hello there, astronaut 👩‍🚀Hello there,"


def test_the_llm_api_stops_at_text(llmapi: Server) -> None:
    """A stop string that lies inside a token ends the reply before it, and is named as the reason."""
    asked = {**ASTRONAUT, "sampling_param_stop": ["naut", "zzz"], "return_finish_reason": True}
    streamed = answers_to(llmapi, "tensorrt_llm", {**asked, "return_stop_reason": True, "streaming": True}, stream=True)
    assert streamed[-1]["text_output"] == "Hello there, astro"
    assert (streamed[-1]["finish_reason"], streamed[-1]["stop_reason"]) == ("stop", "naut")


def test_the_llm_api_tells_performance_as_text(llmapi: Server) -> None:
    """Upstream's model sends these values as strings, and so does its twin."""
    [reply] = answers_to(llmapi, "tensorrt_llm", {**ASTRONAUT, "sampling_param_return_perf_metrics": True})
    assert [int(reply[name]) for name in TIMES] == sorted(int(reply[name]) for name in TIMES)
    assert reply["kv_cache_alloc_new_blocks"] == "1"
    assert float(reply["kv_cache_hit_rate"]) == 0


def test_the_llm_api_refuses_as_upstream(llmapi: Server) -> None:
    """What is missing, too much or not emulated is one sentence with upstream's beginning."""
    cases = {
        "text_input is missing": {"sampling_param_max_tokens": 3},
        "sampling_param_best_of is not emulated": {**ASTRONAUT, "sampling_param_best_of": 2},
        "return_cumulative_logprob is not emulated": {**ASTRONAUT, "return_cumulative_logprob": True},
        "from 1 to 8192 is allowed": {**ASTRONAUT, "sampling_param_max_tokens": 10_000},
        "exceeds maximum input length (4096)": {**ASTRONAUT, "text_input": "a b " * 3000},
        "2097152 characters, more than fit the 4096": {**ASTRONAUT, "text_input": "a" * (2 << 20)},
        "sampling_param_stop has 2097152 characters": {**ASTRONAUT, "sampling_param_stop": ["a" * (2 << 20)]},
    }
    for said, body in cases.items():
        refused = refusal_of(llmapi, "tensorrt_llm", body)
        assert "Error generating request: " in refused
        assert said in refused
    assert "A request id must be provided" in refusal_of(llmapi, "tensorrt_llm", {**ASTRONAUT, "stop": True})


def test_the_llm_api_stops_a_request_by_its_id(llmapi: Server) -> None:
    """Both the stopped and the stopping request end with upstream's error, long before the reply would have."""
    long = {**ASTRONAUT, "sampling_param_max_tokens": 4000, "id": "long"}
    said: list[str] = []
    thread = threading.Thread(target=lambda: said.append(refusal_of(llmapi, "tensorrt_llm", long)))
    begun = time.monotonic()
    thread.start()
    stop = {**ASTRONAUT, "stop": True, "id": "long"}
    while thread.is_alive() and time.monotonic() - begun < 25:  # the first may come before the request it stops
        assert "Request cancelled by client" in refusal_of(llmapi, "tensorrt_llm", stop)
        thread.join(timeout=0.2)
    assert "Request cancelled by client" in said[0]
    assert time.monotonic() - begun < 25  # whole, it would take 4000 steps of about 9 ms
    assert answers_to(llmapi, "tensorrt_llm", ASTRONAUT)


def test_the_llm_api_is_load_tested(llmapi: Server, tmp_path: Path) -> None:
    """run-load sees what model it is, sends text, and counts a token for each event."""
    load = ["--concurrency", "1,4", "--isl", 64, "--osl", 16, "--requests", 6]
    succeed("run-load", "--url", llmapi.url, *load, "--out", tmp_path / "run")
    summary = json.loads(
        succeed("report-load", tmp_path / "run", "--out", tmp_path / "report", "--no-exports", "--json")
    )
    assert summary["kind"] == "emulated"
    assert [(level["requests"], level["errors"], level["osl"]) for level in summary["levels"]] == [(6, 0, 16)] * 2


# What upstream's model does with its files: helpers beside its code, model.yaml beside the entry point.
STAND_IN = """
import os
import numpy as np, yaml
import triton_python_backend_utils as pb_utils
from helpers import shout

class TritonPythonModel:
    def initialize(self, args):
        with open(os.path.join(pb_utils.get_model_dir(), "model.yaml")) as file:
            self.arguments = yaml.safe_load(file)

    def execute(self, requests):
        for request in requests:
            text = pb_utils.get_input_tensor_by_name(request, "text_input").as_numpy()[0].decode()
            said = shout(text) + str(self.arguments["max_batch_size"])
            output = pb_utils.Tensor("text_output", np.array([said.encode()], dtype=object))
            request.get_response_sender().send(
                pb_utils.InferenceResponse([output]), flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
"""


def test_code_from_the_image_runs_in_the_rendered_repository(llmapi: Server, tmp_path: Path) -> None:
    """A built engine's LLM API repository loads the code it is told of, which finds its model.yaml and its helpers."""
    shutil.copytree(llmapi.repository.parent / "engine", tmp_path / "engine")
    (tmp_path / "engine" / "checkpoint").mkdir()
    manifest = json.loads((tmp_path / "engine" / "manifest.json").read_text())
    manifest |= {"kind": "checkpoint", "checkpoint": "checkpoint"}
    (tmp_path / "engine" / "manifest.json").write_text(json.dumps(manifest))
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "helpers.py").write_text("def shout(text):\n    return text.upper()\n")
    (tmp_path / "code" / "model.py").write_text(STAND_IN)
    repository = tmp_path / "repository"
    code = f"llmapi.model_code={tmp_path / 'code'}"
    succeed("build-repo", tmp_path / "engine", "--set", code, "--out", repository)
    running = start(repository)
    try:
        [reply] = answers_to(running, "tensorrt_llm", {"text_input": "hi "})
        assert reply["text_output"] == f"HI {manifest['limits']['max_batch_size']}"
    finally:
        running.end()
