"""What is done to a server with requests in flight: its engine replaced, drained, overloaded, left by its clients."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from conftest import BIN, Server, command, free_ports, start, succeed
from monitoring import gone, wait_until
from streams import Stream, text, tokens

from engines.autoscaling import START_NAME, ServerStart
from engines.files import read_json
from loadtest.client.http1 import QUEUE_FULL

pytestmark = pytest.mark.e2e
USED = 'nv_trt_llm_kv_cache_block_metrics{kv_cache_block_type="used"'


def _metric(server: Server, name: str) -> float:
    with urllib.request.urlopen(f"http://127.0.0.1:{server.metrics}/metrics", timeout=10) as reply:
        lines = reply.read().decode().splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith(name))


def _status(url: str, body: dict[str, Any] | None = None) -> tuple[int, str]:
    data = None if body is None else json.dumps(body).encode()
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data), timeout=60) as reply:
            return reply.status, reply.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def _generate(server: Server, model: str = "ensemble", length: int = 1) -> tuple[int, str]:
    body = {"text_input": "hello", "max_tokens": length, "stream": True}
    return _status(f"{server.url}/v2/models/{model}/generate_stream", body)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory, engine: Path) -> Iterator[Server]:  # noqa: ARG001 (skips as it does)
    """Serve an engine of one slot and a queue of two."""
    base = tmp_path_factory.mktemp("small")
    succeed("build-engine", "--precision", "fp8", "--emulate", "--max-batch-size", 1, "--out", base / "engine")
    flags = ["--max-queue-size", 2, "--time-scale", 2]
    succeed("build-repo", base / "engine", "--out", base / "repository", *flags)
    running = start(base / "repository")
    yield running
    running.end()


@pytest.mark.parametrize("model", ["tensorrt_llm", "tensorrt_llm_bls"])
def test_a_client_that_leaves_gives_its_slot_and_blocks_away(small: Server, model: str) -> None:
    """The one slot goes to the request that waits, long before the reply of the client that left would have ended."""
    first = Stream(small.grpc, model, tokens(4000) if model == "tensorrt_llm" else text(4000)).read(5)
    wait_until(lambda: _metric(small, USED) > 0)
    waiting = Stream(small.grpc, "tensorrt_llm", tokens(3))
    first.leave()
    assert len(waiting.read().answered) == 3
    wait_until(lambda: _metric(small, USED) == 0, 30)
    waiting.leave()


def test_a_client_that_leaves_over_http_gives_its_slot_away(small: Server) -> None:
    """A closed connection is a cancelled request too."""
    body = json.dumps({"text_input": "x", "max_tokens": 4000, "stream": True})
    with socket.create_connection(("127.0.0.1", small.http)) as client:
        head = f"POST /v2/models/tensorrt_llm_bls/generate_stream HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}"
        client.sendall(f"{head}\r\n\r\n{body}".encode())
        assert b"200 OK" in client.recv(1000)
    assert len(Stream(small.grpc, "tensorrt_llm", tokens(3)).read().answered) == 3
    wait_until(lambda: _metric(small, USED) == 0, 30)


def test_an_ensemble_generates_on_for_a_client_that_left(small: Server) -> None:
    """Triton does not tell an ensemble's models that its client is gone: the slot stays taken to the end (a limit)."""
    left = Stream(small.grpc, "ensemble", text(500)).read(5)
    wait_until(lambda: _metric(small, USED) > 0)
    left.leave()
    with pytest.raises(AssertionError):
        wait_until(lambda: _metric(small, USED) == 0, 0.5)
    wait_until(lambda: _metric(small, USED) == 0)


def test_a_full_queue_is_said_in_words_to_both_protocols(small: Server) -> None:
    """Three requests are in; every other one is refused at once with what to do, and the three are answered."""
    taken = [Stream(small.grpc, "tensorrt_llm", tokens(600)).read(1)]
    taken += [Stream(small.grpc, "tensorrt_llm", tokens(2)) for _ in range(2)]
    wait_until(lambda: _metric(small, "emulator_waiting_requests") == 2)
    for category, count in {"active": 1, "max": 1, "waiting": 0}.items():  # as upstream: the queue is in none of them
        assert _metric(small, f'nv_trt_llm_request_metrics{{model="tensorrt_llm",request_type="{category}"') == count
    late = Stream(small.grpc, "tensorrt_llm", tokens(2)).read()
    assert "Maximum queue size of 2 has been reached, please try again later" in str(late.error)
    code, said = _generate(small)
    assert code == 400
    assert "please try again later" in said
    assert [len(stream.read().answered) for stream in taken] == [600, 2, 2]
    assert _generate(small)[0] == 200


def test_a_full_queue_rejects_and_the_run_goes_on(small: Server, tmp_path: Path) -> None:
    """With one slot and a queue of two, the others are rejected in the server's words and counted as errors."""
    load = ["--concurrency", 8, "--isl", 32, "--osl", 16, "--requests", 150]
    succeed("run-load", "--url", small.url, *load, "--out", tmp_path / "run")
    records = [json.loads(line) for line in (tmp_path / "run" / "requests.jsonl").read_text().splitlines()]
    rejected = [record for record in records if record["outcome"] == "rejected"]
    assert rejected
    assert any(words in rejected[0]["error"] for words in QUEUE_FULL)
    report = ["--out", tmp_path / "report", "--no-exports", "--json"]
    summary = json.loads(succeed("report-load", tmp_path / "run", *report))
    assert 0 < summary["levels"][0]["errors"] < 150


def test_the_engine_is_replaced_under_load(engine: Path, tmp_path: Path) -> None:
    """Requests in flight end on the old engine, new ones begin on the new one; a broken one changes nothing."""
    other = tmp_path / "other"
    succeed("build-engine", "--precision", "int4_awq", "--emulate", "--max-batch-size", 64, "--out", other)
    succeed("build-repo", engine, "--out", tmp_path / "repository", "--time-scale", 2)
    server = start(tmp_path / "repository")
    try:
        flying = [Stream(server.grpc, m, tokens(600) if m == "tensorrt_llm" else text(600)).read(1)
                  for m in ("tensorrt_llm", "ensemble", "tensorrt_llm_bls")]  # fmt: skip
        failed: list[tuple[int, str]] = []
        stop = threading.Event()

        def go_on() -> None:
            while not stop.is_set():
                code, said = _generate(server, length=2)
                if code != 200 or "error" in said:
                    failed.append((code, said))

        client = threading.Thread(target=go_on)
        client.start()
        told = json.loads(succeed("roll-engine", tmp_path / "repository", other, "--json"))
        assert told["version"] == 2
        assert Stream(server.grpc, "tensorrt_llm", tokens(2)).read().answered == ["2", "2"]
        stop.set()
        client.join()
        assert failed == []
        assert [len(stream.read().answered) for stream in flying] == [600, 600, 600]
        assert set(flying[0].answered) == {"1"}
        assert _metric(server, 'nv_trt_llm_request_metrics{model="tensorrt_llm",request_type="max",version="2"') == 64
        succeed("check-repo", tmp_path / "repository")
        _roll_a_broken_one(engine, tmp_path, server)
    finally:
        server.end()


def _roll_a_broken_one(engine: Path, tmp_path: Path, server: Server) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    manifest = json.loads((engine / "manifest.json").read_text())
    manifest["kv_cache"]["blocks"] = 0
    (broken / "manifest.json").write_text(json.dumps(manifest | {"tokenizer": None}))
    done = command("roll-engine", tmp_path / "repository", broken)
    assert done.returncode == 1, done.stderr
    assert "the old one keeps serving" in done.stderr
    assert Stream(server.grpc, "tensorrt_llm", tokens(2)).read().answered == ["2", "2"]
    assert _generate(server)[0] == 200
    assert not (tmp_path / "repository" / "tensorrt_llm" / "3").exists()
    succeed("check-repo", tmp_path / "repository")


class Attended:
    """A `serve-repo` that stays with its server, as a service manager runs it."""

    def __init__(self, repository: Path, *flags: str) -> None:
        http, grpc, metrics = free_ports()
        ports = ["--http-port", str(http), "--grpc-port", str(grpc), "--metrics-port", str(metrics)]
        more = ["--tritonserver", "local", "--stop-after", "120", *flags]
        self.process = subprocess.Popen(
            [str(BIN / "serve-repo"), str(repository), *ports, *more],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.server = Server(repository, http, grpc, metrics)
        assert self.process.stdout is not None
        assert any(line.startswith("next:") for line in self.process.stdout), self.process.communicate()[1]
        self.pid = self.server.pid

    def end(self) -> tuple[int, str]:
        """Wait for it to go; return its status and what it said."""
        _, said = self.process.communicate(timeout=60)
        assert gone(self.pid)
        assert not (self.server.repository / "server.json").exists()
        assert not (self.server.repository / "server.key").exists()
        return self.process.returncode, said


def test_sigterm_drains(engine: Path, tmp_path: Path) -> None:
    """Readiness goes first, new requests are refused in words, replies in flight are whole, idle streams do no harm."""
    succeed("build-repo", engine, "--out", tmp_path / "repository", "--time-scale", 2)
    attended = Attended(tmp_path / "repository")
    server = attended.server
    idle = Stream(server.grpc, "ensemble", text(1)).read()
    flying = [Stream(server.grpc, m, tokens(500) if m == "tensorrt_llm" else text(500)).read(1)
              for m in ("tensorrt_llm", "ensemble", "tensorrt_llm_bls")]  # fmt: skip
    attended.process.send_signal(signal.SIGTERM)
    wait_until(lambda: _status(f"{server.url}/v2/health/ready")[0] == 400)
    assert _status(f"{server.url}/v2/health/live")[0] == 200
    code, said = _generate(server)
    assert (code, "no available versions" in said) == (404, True)
    idle.ask("ensemble", text(1))
    assert "no available versions" in str(idle.read().error)
    assert [len(stream.read().answered) for stream in flying] == [500, 500, 500]
    status, said = attended.end()
    assert status == 0, said
    assert "draining" in said


def test_what_is_not_done_in_time_is_cut_off_and_said(engine: Path, tmp_path: Path) -> None:
    """Past --drain-within the server ends all the same; the status and the words are those of a failure."""
    succeed("build-repo", engine, "--out", tmp_path / "repository", "--time-scale", 2)
    attended = Attended(tmp_path / "repository", "--drain-within", "1")
    flying = Stream(attended.server.grpc, "tensorrt_llm", tokens(4000)).read(1)
    attended.process.send_signal(signal.SIGTERM)
    status, said = attended.end()
    assert status == 1
    assert "1 requests were still in flight after 1 s and were cancelled" in said
    assert flying.read().error


def test_ready_means_that_a_request_was_answered(engine: Path, tmp_path: Path) -> None:
    """A server that says READY while every request fails is not served: the error is the request's own."""
    repository = tmp_path / "repository"
    succeed("build-repo", engine, "--out", repository)
    model = repository / "preprocessing" / "1" / "model.py"
    model.write_text(model.read_text() + "\n    def execute(self, requests):\n        raise ValueError('numpy 2')\n")
    http, grpc, metrics = free_ports()
    ports = ["--http-port", http, "--grpc-port", grpc, "--metrics-port", metrics]
    done = command("serve-repo", repository, *ports, "--detach", "--tritonserver", "local", "--stop-after", 60)
    assert done.returncode == 1
    assert "reports that it is ready but does not answer" in done.stderr
    assert "numpy 2" in done.stderr
    assert not (repository / "server.json").exists()


def test_the_start_is_recorded_as_emulated(small: Server) -> None:
    """The emulated engine loads no weights: its start is a figure of Triton alone, and says so."""
    start = read_json(small.repository / START_NAME, ServerStart)
    assert start.kind == "emulated"
    assert 0 < start.loading_s < 120


def test_the_secret_is_its_owners(small: Server) -> None:
    """Loading, shared memory, traces and logs ask for a secret that others on this machine cannot read."""
    key = small.repository / "server.key"
    assert key.stat().st_mode & 0o077 == 0
    assert len(key.read_text()) >= 16
    for path in ("repository/index", "repository/models/tensorrt_llm/unload", "systemsharedmemory/region/x/register",
                 "trace/setting", "logging"):  # fmt: skip
        assert _status(f"{small.url}/v2/{path}", {})[0] == 403, path
    wrong = urllib.request.Request(f"{small.url}/v2/repository/index", b"{}", {"admin-key": "x" * 32})
    with pytest.raises(urllib.error.HTTPError, match="403"):
        urllib.request.urlopen(wrong, timeout=10)


def test_a_weak_secret_is_refused(engine: Path, tmp_path: Path) -> None:
    """A secret that could be guessed, or would not pass as a header, is one clear error before anything is started."""
    succeed("build-repo", engine, "--out", tmp_path / "repository")
    done = subprocess.run(
        [str(BIN / "serve-repo"), str(tmp_path / "repository"), "--detach", "--tritonserver", "local",
         "--http-port", str(free_ports()[0])],
        env={**os.environ, "TRITON_ADMIN_KEY": "sesame"}, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 2
    assert "TRITON_ADMIN_KEY" in done.stderr
    assert not (tmp_path / "repository" / "server.json").exists()
