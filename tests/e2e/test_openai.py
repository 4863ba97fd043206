"""The OpenAI front before the real Triton: what its client sees, and what the engine's metrics say of it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from conftest import LOCAL_TRITON, command, free_ports, succeed

from tests.late import Late

openai = Late("openai", "dev")
pytest.importorskip("uvicorn", reason="the front extra is not installed")

pytestmark = pytest.mark.e2e
QWEN3 = Path(sys.prefix) / "share" / "tokenizers" / "qwen3"
# The emulated engine says its prompt again, so this template lets a message be the reply, begun inside its reasoning.
TEMPLATE = "{% for message in messages %}{{ message.content }}{% endfor %}<think>\n"
SLOTS, QUEUE = 2, 2


class Served:
    """A repository that is served with its front."""

    def __init__(self, repository: Path) -> None:
        self.repository = repository
        self.http, self.grpc, self.metrics = free_ports()
        self.front = free_ports()[0]
        ports = ["--http-port", self.http, "--grpc-port", self.grpc, "--metrics-port", self.metrics]
        more = ["--detach", "--stop-after", 300, "--tritonserver", "local"]
        self.printed = succeed(
            "serve-repo", repository, *ports, *more, "--openai", "--openai-port", self.front, "--openai-model", "r1"
        )

    def client(self, **more: Any) -> Any:
        """Make the official client."""
        settings = {"api_key": "none", "max_retries": 0, "timeout": 30, **more}
        return openai.OpenAI(base_url=f"http://127.0.0.1:{self.front}/v1", **settings)

    def metric(self, name: str, category: str) -> float:
        """Read one of Triton's gauges, through the front."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.front}/metrics", timeout=10) as reply:
            lines = reply.read().decode().splitlines()
        return next(float(line.split()[-1]) for line in lines if line.startswith(name) and f'"{category}"' in line)

    def blocks_used(self) -> float:
        """Return the KV blocks in use."""
        return self.metric("nv_trt_llm_kv_cache_block_metrics", "used")


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Serve an engine of two slots and a queue of two."""
    if not LOCAL_TRITON.is_dir() or not QWEN3.is_dir():
        pytest.skip("the local Triton or the Qwen3 tokenizer is not installed: make setup")
    folder = tmp_path_factory.mktemp("openai")
    shutil.copytree(QWEN3, folder / "tokenizer")
    config = json.loads((QWEN3 / "tokenizer_config.json").read_text()) | {"chat_template": TEMPLATE}
    (folder / "tokenizer" / "tokenizer_config.json").write_text(json.dumps(config))
    engine = ["--precision", "fp8", "--emulate", "--max-batch-size", SLOTS]
    succeed("build-engine", *engine, "--out", folder / "engine")
    repository = ["--tokenizer", folder / "tokenizer", "--max-queue-size", QUEUE, "--time-scale", 2]
    succeed("build-repo", folder / "engine", "--out", folder / "repository", *repository)
    running = Served(folder / "repository")
    yield running
    succeed("serve-repo", folder / "repository", "--stop")


def _chat(client: Any, text: str, **more: Any) -> Any:
    return client.chat.completions.create(model="r1", messages=[{"role": "user", "content": text}], **more)


def _settled(condition: Any, limit_s: float = 30.0) -> bool:
    end = time.monotonic() + limit_s
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.1)
    return False


def test_reasoning_and_answer_through_the_real_server(served: Served) -> None:
    """R1's way: the prompt opens the reasoning; whole and streamed are the same, with the engine's own token counts."""
    said = "Hm, 世界 👩‍🚀?</think>\n\nJa 🇩🇪 e\u0301.#end"
    with served.client() as client:
        whole = _chat(client, said, max_tokens=60, stop="#end")
        stream = _chat(client, said, max_tokens=60, stop="#end", stream=True, stream_options={"include_usage": True})
        *chunks, last = list(stream)
    message = whole.choices[0].message
    assert message.model_extra["reasoning_content"] == "Hm, 世界 👩‍🚀?"
    assert message.content == "\n\nJa 🇩🇪 \u00e9."  # the tokenizer composes what can be
    assert whole.choices[0].finish_reason == "stop"
    deltas = [chunk.choices[0].delta for chunk in chunks]
    assert "".join(delta.content or "" for delta in deltas) == message.content
    assert "".join((delta.model_extra or {}).get("reasoning_content", "") for delta in deltas) == "Hm, 世界 👩‍🚀?"
    assert last.usage.prompt_tokens == whole.usage.prompt_tokens
    assert 0 < last.usage.completion_tokens_details.reasoning_tokens < last.usage.completion_tokens


@pytest.mark.parametrize("protocol", ["openai-chat", "openai-completions"])
def test_it_is_loaded_as_any_openai_server(served: Served, tmp_path: Path, protocol: str) -> None:
    """run-load counts the front's tokens by its usage, takes thoughts for tokens, and says that they are emulated."""
    target = ["--url", f"http://127.0.0.1:{served.front}/v1", "--protocol", protocol, "--model", "r1"]
    load = ["--concurrency", SLOTS, "--requests", 6, "--isl", 40, "--osl", 24]
    tokenizer = ["--tokenizer", served.repository / "preprocessing/1/tokenizer"]
    succeed("run-load", *target, *load, *tokenizer, "--out", tmp_path / "run")
    run = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (run["kind"], run["time_scale"], run["interrupted"]) == ("emulated", 2.0, None)
    records = [json.loads(line) for line in (tmp_path / "run" / "requests.jsonl").read_text().splitlines()]
    measured = [record for record in records if record["phase"] == "measure"]
    assert {(each["outcome"], each["output_tokens"], each["finish_reason"]) for each in measured} == {
        ("ok", 24, "length")
    }
    assert all(each["prompt_tokens"] >= 40 for each in measured)


def test_the_kind_is_said(served: Served) -> None:
    """An emulated engine is never taken for a real one."""
    assert "OpenAI-compatible: http://127.0.0.1" in served.printed
    with served.client() as client:
        raw = client.completions.with_raw_response.create(model="r1", prompt="one two three", max_tokens=6)
        assert raw.headers["x-engine-kind"] == "emulated; time-scale=2"
        assert raw.parse().choices[0].finish_reason == "length"
        assert raw.parse().usage.completion_tokens == 6
        assert client.models.list().data[0].model_extra["engine"]["kind"] == "emulated"


def test_a_client_that_leaves_frees_its_blocks(served: Served) -> None:
    """Closing a stream cancels the request in Triton: its KV blocks are free long before its reply would have ended."""
    with served.client() as client:
        stream = _chat(client, "word " * 400, max_tokens=4000, stream=True)
        next(iter(stream))
        assert _settled(lambda: served.blocks_used() > 0)
        stream.close()
        assert _settled(lambda: served.blocks_used() == 0)
        with pytest.raises(openai.APITimeoutError):
            _chat(served.client(timeout=0.5), "word " * 400, max_tokens=4000)
        assert _settled(lambda: served.blocks_used() == 0)


def test_a_full_queue_is_429_and_says_when_to_try_again(served: Served) -> None:
    """Two run, two wait, the others are told; those that got in end well."""

    def one(client: Any) -> str:
        try:
            return str(_chat(client, "one two three", max_tokens=200).choices[0].finish_reason)
        except openai.RateLimitError as refused:
            return f"{refused.code}, again after {refused.response.headers['retry-after']} s"

    with served.client() as client, ThreadPoolExecutor(12) as pool:
        ends = list(pool.map(one, [client] * 12))
    assert set(ends) == {"length", "queue_full, again after 1 s"}
    assert ends.count("length") >= SLOTS


def test_a_prompt_above_the_engines_limit_is_400(served: Served) -> None:
    """The limit is named, and the engine is not asked."""
    limit = json.loads((served.repository / "manifest.json").read_text())["engine"]["limits"]["max_input_len"]
    with (
        served.client() as client,
        pytest.raises(openai.BadRequestError, match=f"the limit is {limit}") as refused,
    ):
        _chat(client, "word " * (limit + 10), max_tokens=1)
    assert refused.value.code == "context_length_exceeded"


def test_a_taken_port_is_refused_before_anything_starts(served: Served) -> None:
    """Where the front cannot listen, no server is started."""
    done = command("serve-repo", served.repository, "--openai", "--openai-port", served.front, "--detach")
    assert done.returncode == 2
    assert f"cannot listen on 127.0.0.1:{served.front}" in done.stderr
    assert "hint: choose another port with --openai-port" in done.stderr


def test_a_server_that_is_gone_is_503(served: Served) -> None:
    """The front stays, says so, and is stopped with --stop. Last, for it ends the server."""
    pid = json.loads((served.repository / "server.json").read_text())["pid"]
    os.killpg(pid, signal.SIGKILL)
    with served.client() as client:
        assert _settled(lambda: _status(client) == 503)
    front = json.loads((served.repository / "front.json").read_text())["pid"]
    succeed("serve-repo", served.repository, "--stop")
    assert not Path(f"/proc/{front}/cmdline").exists() or not Path(f"/proc/{front}/cmdline").read_bytes()


def _status(client: Any) -> int:
    try:
        _chat(client, "x", max_tokens=1)
    except openai.APIStatusError as error:
        return int(error.status_code)
    return 200
