"""The front before a real model: the same as the server behind it, to the official client and to LiteLLM's."""

from __future__ import annotations

import json
import subprocess
from typing import Any

import pytest

from tests.servers.endpoint import FRONT_KEY, MODEL, QUESTION, Endpoint, require

openai = pytest.importorskip("openai", reason="the dev extra is not installed")
pytestmark = pytest.mark.e2e
MESSAGES = [{"role": "user", "content": QUESTION}]
ANSWER = "The capital of France is Paris."


def _client(endpoint: Endpoint) -> Any:
    return openai.OpenAI(base_url=f"{endpoint.url}/v1", api_key=endpoint.key, max_retries=0, timeout=60)


def test_a_chat_has_the_text_of_the_server_behind(vllm: Endpoint, front: Endpoint) -> None:
    """Same text, same prompt, same reason; the end token is counted by vLLM, and not by TensorRT-LLM."""
    theirs, ours = vllm.chat(max_tokens=24), front.chat(max_tokens=24)
    assert ours["choices"][0]["message"]["content"] == theirs["choices"][0]["message"]["content"] == ANSWER
    assert ours["choices"][0]["finish_reason"] == theirs["choices"][0]["finish_reason"] == "stop"
    assert ours["usage"]["prompt_tokens"] == theirs["usage"]["prompt_tokens"]
    assert ours["usage"]["completion_tokens"] == theirs["usage"]["completion_tokens"] - 1


@pytest.mark.parametrize("stop", [" of", ["xyz", "France"]])
def test_stop_strings_end_a_reply_where_the_server_behind_ends_it(
    vllm: Endpoint, front: Endpoint, stop: str | list[str]
) -> None:
    """The stop string is not part of the text; what led to it is counted."""
    theirs, ours = vllm.chat(max_tokens=24, stop=stop), front.chat(max_tokens=24, stop=stop)
    assert ours["choices"][0]["message"]["content"] == theirs["choices"][0]["message"]["content"]
    assert ours["choices"][0]["finish_reason"] == "stop"
    assert ours["usage"]["completion_tokens"] == theirs["usage"]["completion_tokens"]


def test_a_completion_and_token_ids_are_continued_alike(vllm: Endpoint, front: Endpoint) -> None:
    """A text prompt and the same prompt as ids; the length that was asked for."""
    body = {"model": MODEL, "max_tokens": 6, "temperature": 0}
    prompts = ("The capital of France is", [504, 3575, 282, 4649, 314])
    replies = [each.post("completions", {**body, "prompt": prompt}) for prompt in prompts for each in (vllm, front)]
    assert {status for status, _ in replies} == {200}
    assert len({reply["choices"][0]["text"] for _, reply in replies}) == 1
    assert {reply["usage"]["completion_tokens"] for _, reply in replies} == {6}


def test_the_official_client_streams_it(front: Endpoint) -> None:
    """Deltas, the reason, the usage, and the list of models."""
    with _client(front) as client:
        assert [each.id for each in client.models.list()] == [MODEL]
        stream = client.chat.completions.create(
            model=MODEL, messages=MESSAGES, max_tokens=24, temperature=0, stream=True,
            stream_options={"include_usage": True},
        )  # fmt: skip
        *chunks, last = list(stream)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == ANSWER
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert (last.choices, last.usage.completion_tokens) == ([], 7)


def test_the_official_client_raises_its_own_errors(front: Endpoint) -> None:
    """Each error has the class that programs catch, and the code that they read."""
    with _client(front) as client:
        ask = client.chat.completions.create
        with pytest.raises(openai.NotFoundError) as unknown:
            ask(model="gpt-4", messages=MESSAGES)
        with pytest.raises(openai.BadRequestError) as long:
            ask(model=MODEL, messages=[{"role": "user", "content": "word " * 600}])
        with pytest.raises(openai.BadRequestError, match="logprobs"):
            ask(model=MODEL, messages=MESSAGES, logprobs=True)
    assert (unknown.value.code, long.value.code) == ("model_not_found", "context_length_exceeded")
    with _client(Endpoint(front.url, MODEL, "sk-wrong")) as stranger, pytest.raises(openai.AuthenticationError):
        stranger.models.list()


# Run by LiteLLM's own Python; prints one JSON object.
LITELLM = """
import json, sys, litellm
base, key, model, question = sys.argv[1:]
common = dict(model=f"openai/{model}", api_base=f"{base}/v1", api_key=key, num_retries=0, temperature=0)
messages = [{"role": "user", "content": question}]
found = {}
reply = litellm.completion(messages=messages, max_tokens=24, **common)
found["text"], found["reason"] = reply.choices[0].message.content, reply.choices[0].finish_reason
found["tokens"] = reply.usage.completion_tokens
chunks = list(litellm.completion(messages=messages, max_tokens=24, stream=True,
    stream_options={"include_usage": True}, **common))
found["streamed"] = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
found["usage"] = next(chunk.usage.completion_tokens for chunk in chunks if getattr(chunk, "usage", None))
text = litellm.text_completion(**{**common, "model": f"text-completion-openai/{model}"},
    prompt="The capital of France is", max_tokens=2)
found["completion"] = text.choices[0].text
stopped = litellm.completion(messages=messages, max_tokens=24, stop=[" of"], **common)
found["stopped"] = stopped.choices[0].message.content
for name, changes in {
    "long": {"messages": [{"role": "user", "content": "word " * 600}]},
    "model": {"model": "openai/gpt-4"}, "key": {"api_key": "sk-wrong"}, "logprobs": {"logprobs": True},
}.items():
    try:
        litellm.completion(**{**common, "messages": messages, "max_tokens": 2, **changes})
    except Exception as error:
        found[name] = type(error).__name__
print(json.dumps(found))
"""


def test_litellm_as_a_client_gets_the_same_and_its_own_errors(front: Endpoint) -> None:
    """A prompt that is too long is one to LiteLLM, too: its context-window fallbacks work."""
    python = require("litellm")
    done = subprocess.run(
        [python, "-c", LITELLM, front.url, FRONT_KEY, MODEL, QUESTION],
        env={"LITELLM_LOCAL_MODEL_COST_MAP": "True", "PATH": ""}, capture_output=True, text=True, timeout=180,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert (found["text"], found["streamed"], found["stopped"]) == (ANSWER, ANSWER, "The capital")
    assert (found["reason"], found["tokens"], found["usage"]) == ("stop", 7, 7)
    assert found["completion"] == " Paris."
    errors = {name: found.get(name) for name in ("long", "model", "key", "logprobs")}
    assert errors == {
        "long": "ContextWindowExceededError",
        "model": "NotFoundError",
        "key": "AuthenticationError",
        "logprobs": "BadRequestError",
    }
