"""The whole road on real parts: emulated engine, real Triton, Locust, report; and everything that can break on it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from conftest import BIN, COMMAND_LIMIT_S, LOCAL_TRITON, Server, command, free_ports, start, succeed, timely
from monitoring import wait_until

pytestmark = pytest.mark.e2e
ROOT = Path(__file__).parents[2]


def _post(server: Server, model: str, body: dict[str, Any], *, stream: bool = True) -> list[dict[str, Any]]:
    """Return the events of a streamed reply, or the one reply."""
    url = f"{server.url}/v2/models/{model}/generate{'_stream' if stream else ''}"
    with urllib.request.urlopen(urllib.request.Request(url, json.dumps(body).encode()), timeout=30) as reply:
        lines = [line.decode().removeprefix("data: ").strip() for line in reply]
    return [json.loads(line) for line in lines if line]


def _metric(server: Server, name: str, category: str) -> float:
    with urllib.request.urlopen(f"http://127.0.0.1:{server.metrics}/metrics", timeout=10) as reply:
        lines = reply.read().decode().splitlines()
    return next(float(line.split()[-1]) for line in lines if line.startswith(name) and f'"{category}"' in line)


def _gone(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return True
    return state == "Z"


def _reported(folder: Path, *load: object) -> dict[str, Any]:
    """Return the summary of a load that is run into a folder."""
    succeed("run-load", *load, "--out", folder / "run")
    return dict(
        json.loads(succeed("report-load", folder / "run", "--out", folder / "report", "--no-exports", "--json"))
    )


@pytest.mark.quiet
@pytest.mark.parametrize("protocol", ["triton-http", "triton-grpc"])
@pytest.mark.parametrize("model", ["tensorrt_llm", "ensemble"])
def test_a_sweep_becomes_a_summary(server: Server, tmp_path: Path, protocol: str, model: str) -> None:
    """Both protocols and both models give the levels asked for, without errors, at physically possible latencies."""
    url = server.url if protocol == "triton-http" else f"127.0.0.1:{server.grpc}"
    lengths = [
        "--isl",
        64,
        "--osl",
        16,
        "--requests",
        24,
    ]  # three a user: begun one after the other, one is no full batch
    target = ["--url", url, "--protocol", protocol, "--model", model]
    summary = timely(lambda out: _reported(out, *target, "--concurrency", "1,8", *lengths), tmp_path)
    assert summary["kind"] == "emulated"
    assert [level["concurrency"] for level in summary["levels"]] == [1, 8]
    for level in summary["levels"]:
        assert (level["requests"], level["errors"], level["osl"]) == (24, 0, 16)
        floor_s = 8.19e9 / 3.35e12  # the FP8 weights a step reads, at the H100's peak bandwidth
        assert floor_s < level["itl_s"]["p50"] < 4 * floor_s
        assert level["e2e_s"]["p50"] >= level["ttft_s"]["p50"] + 14 * floor_s
    assert summary["levels"][1]["output_tokens_per_s"] > 3 * summary["levels"][0]["output_tokens_per_s"]
    assert abs(summary["levels"][1]["batch_size_client"]["mean"] - 7.5) < 1.5
    assert len(list(tmp_path.glob("attempt-*/report/report.html"))) > 0


@pytest.mark.quiet
def test_wall_clock_and_virtual_clock_agree(server: Server, engine: Path, tmp_path: Path) -> None:
    """The emulated run and the predicted one are one batcher: a real server around it changes little."""
    load = ["--concurrency", "1,8", "--isl", 128, "--osl", 32, "--requests", 16]
    emulated = timely(lambda out: _reported(out, "--url", server.url, *load), tmp_path)
    predicted = json.loads(succeed("predict-load", engine, *load, "--json"))
    assert predicted["kind"] == "predicted"
    host = json.loads((engine / "manifest.json").read_text())["step_time"]["host"]
    server_s = host["latency_s"] + host["request_s"]  # TensorRT-LLM's own server, predicted: here a real one stands in
    for wall, virtual in zip(emulated["levels"], predicted["levels"], strict=True):
        assert wall["itl_s"]["p50"] == pytest.approx(virtual["itl_s"]["p50"], rel=0.15)
        assert wall["output_tokens_per_s"] == pytest.approx(virtual["output_tokens_per_s"], rel=0.2)
        assert virtual["ttft_s"]["p50"] - server_s <= wall["ttft_s"]["p50"] * 1.1
        assert wall["energy"]["method"] == virtual["energy"]["method"] == "power model"
        assert wall["energy"]["power_w"] == pytest.approx(virtual["energy"]["power_w"], rel=0.15)
        assert wall["energy"]["j_per_output_token"] == pytest.approx(virtual["energy"]["j_per_output_token"], rel=0.2)


@pytest.mark.quiet
def test_an_open_loop_sends_by_the_clock(server: Server, engine: Path, tmp_path: Path) -> None:
    """Requests go out at the times drawn for them, and latencies are what the virtual clock says of the same times."""
    asked = ["--rate", "12", "--duration", "2", "--isl", 64, "--osl", 16, "--seed", 3]
    summary = timely(lambda out: _reported(out, "--url", server.url, *asked), tmp_path)
    [measured] = summary["levels"]
    *_, run = sorted(tmp_path.glob("attempt-*/run"))
    records = [json.loads(line) for line in (run / "requests.jsonl").read_text().splitlines()]
    scale = json.loads((run / "run.json").read_text())["time_scale"]
    assert all(record["outcome"] == "ok" for record in records)
    assert len(records) > 10
    predicted = json.loads(succeed("predict-load", engine, *asked, "--json"))["levels"][0]
    assert measured["rate_per_s"] == predicted["rate_per_s"] == 12
    assert measured["requests"] == predicted["requests"]
    late_s = sorted(record["sent_s"] - record["scheduled_s"] for record in records)
    assert late_s[len(late_s) // 2] < 0.02 * scale
    assert measured["itl_s"]["p50"] == pytest.approx(predicted["itl_s"]["p50"], rel=0.1)


def test_a_trace_is_replayed_with_its_lengths(server: Server, tmp_path: Path) -> None:
    """Every row of a trace becomes one request at its time, with its own prompt and reply lengths."""
    trace = tmp_path / "trace.csv"
    trace.write_text("at_s,isl,osl\n0,20,5\n0.3,64,9\n0.35,40,3\n0.9,10,1\n")
    scenario = tmp_path / "replay.yaml"
    scenario.write_text(f"arrivals: {{process: trace, path: {trace}}}\nwarmup_ratio: 0\n")
    succeed("run-load", "--url", server.url, "--scenario", scenario, "--out", tmp_path / "run")
    records = [json.loads(line) for line in (tmp_path / "run" / "requests.jsonl").read_text().splitlines()]
    seen = sorted((each["id"], each["prompt_tokens"], each["output_tokens"], each["outcome"]) for each in records)
    assert seen == [(0, 20, 5, "ok"), (1, 64, 9, "ok"), (2, 40, 3, "ok"), (3, 10, 1, "ok")]


def test_streamed_text_is_whole_characters(server: Server) -> None:
    """An emoji spread over tokens comes out as itself, streamed or not, through the ensemble and the BLS model."""
    said = "Hi 👩‍🚀 世界"
    body = {"text_input": said, "max_tokens": 24}
    for model in ("ensemble", "tensorrt_llm_bls"):
        streamed = "".join(e["text_output"] for e in _post(server, model, {**body, "id": f"x-{model}", "stream": True}))
        assert streamed.startswith(said)
        assert "\ufffd" not in streamed.removesuffix("\ufffd")


def test_metrics_carry_tensorrt_llms_names(server: Server) -> None:
    """The batch limit and the KV pool of the engine's manifest are what the server publishes."""
    manifest = json.loads((server.repository / "manifest.json").read_text())["engine"]
    _post(
        server, "tensorrt_llm", {"input_ids": [1, 2, 3], "input_lengths": 3, "request_output_len": 2, "streaming": True}
    )
    wait_until(lambda: _metric(server, "nv_trt_llm_kv_cache_block_metrics", "used") == 0)
    assert _metric(server, "nv_trt_llm_request_metrics", "max") == manifest["limits"]["max_batch_size"]
    assert _metric(server, "nv_trt_llm_kv_cache_block_metrics", "max") == manifest["kv_cache"]["blocks"]


def test_a_client_that_leaves_frees_its_blocks(server: Server) -> None:
    """A dropped connection cancels the request: its KV blocks are free long before its reply would have ended."""
    body = {"input_ids": list(range(1000, 1400)), "input_lengths": 400, "request_output_len": 4000, "streaming": True}
    url = f"{server.url}/v2/models/tensorrt_llm/generate_stream"
    reply = urllib.request.urlopen(urllib.request.Request(url, json.dumps(body).encode()), timeout=30)
    reply.readline()
    wait_until(lambda: _metric(server, "nv_trt_llm_kv_cache_block_metrics", "used") > 0)
    reply.close()
    wait_until(lambda: _metric(server, "nv_trt_llm_kv_cache_block_metrics", "used") == 0, 30)  # the reply takes 48 s


def test_what_is_not_emulated_is_refused(server: Server) -> None:
    """Log probabilities of an engine without numbers are an error, not an invention."""
    body = {"input_ids": [1], "input_lengths": 1, "request_output_len": 1, "streaming": True, "return_log_probs": True}
    with pytest.raises(urllib.error.HTTPError) as refused:
        _post(server, "tensorrt_llm", body)
    assert "return_log_probs is not emulated" in refused.value.read().decode()
    refused.value.close()


def test_a_second_server_on_one_repository_is_refused(server: Server) -> None:
    """Two servers cannot share a repository's log and record."""
    done = command("serve-repo", server.repository, "--http-port", free_ports()[0], "--detach")
    assert done.returncode == 2
    assert "already running" in done.stderr


def test_a_taken_port_is_named(server: Server, engine: Path, tmp_path: Path) -> None:
    """A port somebody listens on is refused before anything is started."""
    succeed("build-repo", engine, "--out", tmp_path / "repository")
    done = command("serve-repo", tmp_path / "repository", "--http-port", server.http, "--detach")
    assert done.returncode == 2
    assert f"127.0.0.1:{server.http}" in done.stderr
    assert not (tmp_path / "repository" / "server.json").exists()


def test_a_wrong_port_is_one_clear_error(tmp_path: Path) -> None:
    """Where nobody listens, run-load says so and writes nothing."""
    done = command("run-load", "--url", f"http://127.0.0.1:{free_ports()[0]}", "--out", tmp_path / "run")
    assert done.returncode == 1
    assert "no server answers" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


def test_a_killed_server_ends_the_run_and_keeps_what_was_measured(engine: Path, tmp_path: Path) -> None:
    """The first level's figures survive the server's death in the second; no process and no shared memory stay."""
    succeed("build-repo", engine, "--out", tmp_path / "repository", "--time-scale", 2)
    doomed = start(tmp_path / "repository")
    pid = doomed.pid
    load = ["--concurrency", "4,8", "--isl", "32", "--osl", "32", "--requests", "40"]
    run = subprocess.Popen(
        [str(BIN / "run-load"), "--url", doomed.url, "--out", str(tmp_path / "run"), *load],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    assert run.stderr is not None
    for line in run.stderr:
        if line.startswith("concurrency 4"):
            break
    wait_until(lambda: '"level":1' in (tmp_path / "run" / "requests.jsonl").read_text())
    os.killpg(pid, signal.SIGKILL)
    errors = run.stderr.read()
    run.stderr.close()
    assert run.wait(timeout=COMMAND_LIMIT_S) == 1
    assert "the run ended early" in errors
    assert "Traceback" not in errors
    manifest = json.loads((tmp_path / "run" / "run.json").read_text())
    assert manifest["interrupted"]
    assert manifest["levels"][0]["complete"]
    summary = json.loads(
        succeed("report-load", tmp_path / "run", "--out", tmp_path / "report", "--no-exports", "--json")
    )
    assert not summary["valid"]
    assert summary["levels"][0]["requests"] == 40
    prefix = json.loads((tmp_path / "repository" / "server.json").read_text())["shared_memory_prefix"]
    succeed("serve-repo", tmp_path / "repository", "--stop")
    assert _gone(pid)
    assert not list(Path("/dev/shm").glob(f"{prefix}*"))


def test_a_model_that_cannot_load_shows_its_traceback(engine: Path, tmp_path: Path) -> None:
    """A server that fails to start is one error with the lines of its log that tell why, and leaves no process."""
    succeed("build-repo", engine, "--out", tmp_path / "repository")
    (tmp_path / "repository" / "tensorrt_llm" / "1" / "engine.json").write_text("{")
    http, grpc, metrics = free_ports()
    ports = ["--http-port", http, "--grpc-port", grpc, "--metrics-port", metrics]
    done = command("serve-repo", tmp_path / "repository", *ports, "--detach", "--tritonserver", "local")
    assert done.returncode == 1
    assert "engine.json: not valid JSON" in done.stderr
    assert not (tmp_path / "repository" / "server.json").exists()


def test_a_misspelled_key_is_suggested(engine: Path, tmp_path: Path) -> None:
    """Serving settings, scenarios and recipes name the key they do not know and the one that was meant."""
    (tmp_path / "x.yaml").write_text("queue: {max_queue_sise: 1}\n")
    done = command("build-repo", engine, "--serving", tmp_path / "x.yaml", "--out", tmp_path / "repository")
    assert done.returncode == 2
    assert "did you mean 'max_queue_size'?" in done.stderr
    assert not (tmp_path / "repository").exists()
    (tmp_path / "y.yaml").write_text("concurency: [1]\n")
    done = command("run-load", "--scenario", tmp_path / "y.yaml", "--out", tmp_path / "run")
    assert done.returncode == 2
    assert "did you mean 'concurrency'?" in done.stderr


def test_fp8_on_an_a100_is_refused_with_the_nearest_choice(tmp_path: Path) -> None:
    """The A100 has no FP8 arithmetic: refused before any work, int8_sq named."""
    done = command("build-engine", "--precision", "fp8", "--gpu", "a100-sxm-80gb", "--emulate", "--out", tmp_path / "e")
    assert done.returncode == 2
    assert "int8_sq" in done.stderr
    assert not (tmp_path / "e").exists()


def test_a_real_build_says_what_this_machine_lacks(tmp_path: Path) -> None:
    """Without TensorRT-LLM a real build ends before any work, and names the container that has it."""
    if shutil.which("trtllm-build"):
        pytest.skip("TensorRT-LLM is installed here")
    done = command("build-engine", "--precision", "fp8", "--out", tmp_path / "e")
    assert done.returncode == 1
    assert "TensorRT-LLM" in done.stderr
    assert "docker run" in done.stderr
    assert not (tmp_path / "e").exists()


def test_an_interrupted_run_keeps_what_was_measured(server: Server, tmp_path: Path) -> None:
    """Ctrl-C ends a run with status 130; its records and what it was are on disk."""
    load = ["--concurrency", "4,2", "--isl", "32", "--osl", "32", "--requests", "20", "--out", str(tmp_path / "run")]
    command = [str(BIN / "run-load"), "--url", server.url, *load]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as run:
        assert run.stderr is not None
        assert any(line.startswith("concurrency 4: measured") for line in run.stderr)
        run.send_signal(signal.SIGINT)
        assert "interrupted" in run.stderr.read()
        assert run.wait(timeout=COMMAND_LIMIT_S) == 130
    manifest = json.loads((tmp_path / "run" / "run.json").read_text())
    assert manifest["interrupted"] == "interrupted by the user"
    assert manifest["levels"][0]["complete"]


def test_the_models_python_has_the_measured_kernels() -> None:
    """An engine of measured kernels runs where Triton's models run: same tables, same seconds."""
    code = (
        "from engines.spec.gpu import gpu_named\n"
        "from engines.spec.model import model_named\n"
        "from engines.spec.placed_model import PlacedModel\n"
        "from engines.steptime.shape import StepShape\n"
        "from engines.steptime.silicon import Silicon\n"
        "placed = PlacedModel(model_named('llama-3-8b'), gpu_named('h100-sxm-80gb'), 'fp8', 'fp8')\n"
        "times = Silicon(placed)\n"
        "print(repr(times.seconds(StepShape(decode_sequences=8, decode_context_tokens=4000))))\n"
    )
    programs = {"models": LOCAL_TRITON / "py" / "bin" / "python", "commands": Path(sys.executable)}
    seconds = {}
    for name, program in programs.items():
        done = subprocess.run([program, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr
        seconds[name] = float(done.stdout)
    assert seconds["models"] == seconds["commands"] > 0
