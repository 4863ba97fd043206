"""LiteLLM's proxy as the gateway before the front and before vLLM."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.servers.endpoint import GATEWAY_KEY, QUESTION, Endpoint
from tests.servers.loads import load

openai = pytest.importorskip("openai", reason="the dev extra is not installed")
pytestmark = pytest.mark.e2e
MESSAGES = [{"role": "user", "content": QUESTION}]


def test_a_gateway_serves_both_by_its_own_names(gateway: Endpoint, front: Endpoint, vllm: Endpoint) -> None:
    """Each model answers as it does without the gateway, under the gateway's name and key."""
    with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key=GATEWAY_KEY, max_retries=0) as client:
        assert {each.id for each in client.models.list()} == {"front", "vllm"}
        for name, direct in (("front", front), ("vllm", vllm)):
            reply = client.chat.completions.create(model=name, messages=MESSAGES, max_tokens=24, temperature=0)
            expected = direct.chat(max_tokens=24)
            assert (reply.model, reply.choices[0].finish_reason) == (name, "stop")
            assert reply.choices[0].message.content == expected["choices"][0]["message"]["content"]
            assert reply.usage.completion_tokens == expected["usage"]["completion_tokens"]


def test_a_stream_through_a_gateway_keeps_each_token(gateway: Endpoint) -> None:
    """One delta a token, the usage at the end, stop strings honoured."""
    with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key=GATEWAY_KEY, max_retries=0) as client:
        stream = client.chat.completions.create(
            model="front", messages=MESSAGES, max_tokens=24, temperature=0, stream=True, stop=" Paris",
            stream_options={"include_usage": True},
        )  # fmt: skip
        chunks = list(stream)
    deltas = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices and chunk.choices[0].delta.content]
    assert deltas == ["The", " capital", " of", " France", " is"]
    assert [chunk.usage.completion_tokens for chunk in chunks if chunk.usage] == [6]


def test_the_fronts_errors_keep_their_status_through_a_gateway(gateway: Endpoint) -> None:
    """The front's own message reaches the client; a prompt that is too long is recognized as one."""
    body = {"model": "front", "max_tokens": 2}
    status, reply = gateway.post("chat/completions", {**body, "messages": [{"role": "user", "content": "word " * 600}]})
    assert status == 400
    assert "ContextWindowExceededError" in reply["error"]["message"]
    assert "the limit is 511" in reply["error"]["message"]
    status, reply = gateway.post("chat/completions", {**body, "messages": MESSAGES, "n": 2})
    assert status == 400
    assert "one reply a request is served" in reply["error"]["message"]
    status, _ = gateway.post("chat/completions", {**body, "messages": MESSAGES, "model": "unknown"})
    assert status == 400
    status, _ = gateway.post("chat/completions", {**body, "messages": MESSAGES}, key="wrong")
    assert status in {400, 401}  # without a database of keys, LiteLLM 1.108 says 400


@pytest.mark.parametrize("model", ["front", "vllm"])
@pytest.mark.parametrize("protocol", ["openai-chat", "openai-completions"])
def test_a_load_through_a_gateway_is_recorded_token_by_token(
    gateway: Endpoint, checkpoint: Path, tmp_path: Path, model: str, protocol: str
) -> None:
    """Exact lengths pass the gateway, and its chunks without a text are no error."""
    endpoint = Endpoint(gateway.url, model, GATEWAY_KEY)
    asked = ("--isl", 32, "--osl", 12, "--concurrency", 2, "--requests", 4)
    records = load(endpoint, tmp_path / "run", *asked, protocol=protocol, tokenizer=checkpoint)
    measured = [record for record in records if record.phase == "measure"]
    assert {(record.outcome, record.output_tokens, record.finish_reason) for record in measured} == {
        ("ok", 12, "length")
    }
    assert all(len(set(record.token_times_s)) == 12 for record in measured)  # each token has a time of its own
