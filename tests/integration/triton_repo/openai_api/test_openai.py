"""The official OpenAI client against the front: what it asks for it gets, and what it cannot have it is told."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import socket
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

from tests.late import Late

if TYPE_CHECKING:
    from openai import AsyncOpenAI, OpenAI

openai = Late("openai", "dev")
USER = [{"role": "user", "content": "Wie geht es dir? 👩‍🚀"}]
KIND = "emulated; time-scale=4"
KEY = "sk-of-a-test"


@pytest.fixture
def client(front: Any) -> Iterator[OpenAI]:
    """Make a client that does not try again by itself."""
    with openai.OpenAI(base_url=f"{front.url}/v1", api_key=KEY, max_retries=0, timeout=20) as made:
        yield made


def _chat(client: OpenAI, **more: Any) -> Any:
    return client.chat.completions.create(model="r1", messages=USER, **more)  # type: ignore[arg-type]


def _waits(condition: Any, limit_s: float = 30.0) -> bool:
    end = time.monotonic() + limit_s
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.02)
    return False


def test_a_chat_is_answered_with_its_reasoning_apart(front: Any, client: OpenAI) -> None:
    """The reasoning is in `reasoning_content`, the answer in `content`, and the token counts are the engine's."""
    front.triton.said("<think>Er fragt 世界.</think>Gut 👩‍🚀!<｜end▁of▁sentence｜>")
    reply = _chat(client, max_tokens=60)
    message = reply.choices[0].message
    assert message.content == "Gut 👩‍🚀!"
    assert message.model_extra["reasoning_content"] == "Er fragt 世界."
    assert reply.choices[0].finish_reason == "stop"
    ids = front.triton.script.token_ids
    assert reply.usage.completion_tokens == len(ids)
    assert reply.usage.completion_tokens_details.reasoning_tokens == len("<think>Er fragt 世界.</think>".encode())
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + len(ids)


@pytest.mark.parametrize("split", [1, 2, 3, 7])
def test_a_stream_is_the_whole_reply_in_pieces(front: Any, client: OpenAI, split: int) -> None:
    """However many tokens a message of the engine has, the stream's text is the whole's, and no tag leaks."""
    front.triton.said("<think>a 世界 </thin> b</think>\n\nGut 👩‍🚀 e\u0301!")
    front.triton.script.split = split
    chunks = list(_chat(client, stream=True, stream_options={"include_usage": True}))
    deltas = [chunk.choices[0].delta for chunk in chunks if chunk.choices]
    assert deltas[0].role == "assistant"
    assert "".join(delta.content or "" for delta in deltas) == "\n\nGut 👩‍🚀 e\u0301!"
    reasoning = "".join((delta.model_extra or {}).get("reasoning_content", "") for delta in deltas)
    assert reasoning == "a 世界 </thin> b"
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "stop"
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == len(front.triton.script.token_ids)
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert len({chunk.id for chunk in chunks}) == 1


def test_r1_begins_inside_its_reasoning_when_the_prompt_opened_it(front: Any, client: OpenAI) -> None:
    """A template that ends with the opening tag makes the reply begin as reasoning."""
    front.triton.said("Hm.</think>Ja.")
    message = _chat(client, extra_body={"chat_template_kwargs": {"force_think": True}}).choices[0].message
    assert (message.model_extra["reasoning_content"], message.content) == ("Hm.", "Ja.")


def test_without_tags_all_is_answer(front: Any, client: OpenAI) -> None:
    """No reasoning, no `reasoning_content`."""
    front.triton.said("  Ja.")
    message = _chat(client).choices[0].message
    assert message.content == "  Ja."
    assert "reasoning_content" not in (message.model_extra or {})


def test_the_prompt_is_the_templates(front: Any, client: OpenAI) -> None:
    """Special tokens are single tokens, and the checkpoint's sampling is used where the request gives none."""
    _chat(client)
    asked = front.triton.last
    begin, user, assistant = 256, 257, 258
    assert asked["input_ids"][:2] == [begin, user]
    assert asked["input_ids"][-1] == assistant
    assert bytes(int(token) for token in asked["input_ids"][2:-1]).decode() == USER[0]["content"]
    assert asked["input_lengths"] == [len(asked["input_ids"])]
    assert asked["temperature"] == [pytest.approx(0.6)]
    assert asked["runtime_top_p"] == [pytest.approx(0.95)]
    assert asked["end_id"] == [259]
    assert asked["exclude_input_in_output"] == [1]
    assert asked["request_output_len"] == [512 - len(asked["input_ids"])]


def test_sampling_is_passed_on(front: Any, client: OpenAI) -> None:
    """What a client sets reaches the engine by TensorRT-LLM's names."""
    _chat(
        client, temperature=0.25, top_p=0.5, seed=2**63 + 1, presence_penalty=-1.0, frequency_penalty=0.5,
        max_completion_tokens=9, stop=["ab", "c"],
        extra_body={"min_tokens": 3, "ignore_eos": True, "top_k": 7, "repetition_penalty": 1.5},
    )  # fmt: skip
    asked = front.triton.last
    assert asked["temperature"] == [0.25]
    assert asked["runtime_top_p"] == [0.5]
    assert asked["seed"] == [2**63 + 1]
    assert (asked["presence_penalty"], asked["frequency_penalty"]) == ([-1.0], [0.5])
    assert (asked["min_tokens"], asked["runtime_top_k"], asked["repetition_penalty"]) == ([3], [7], [1.5])
    assert (asked["end_id"], asked["request_output_len"]) == ([-1], [9])
    assert asked["stop_words_list"] == [97, 98, 99, 2, 3, -1]


def test_every_end_token_of_the_checkpoint_ends_a_reply(front: Any, client: OpenAI) -> None:
    """Llama 3 ends at one of three tokens: the tokenizer names one, generation_config.json the others."""
    front.triton.said("Hi<｜begin▁of▁sentence｜>")
    assert _chat(client, max_tokens=3, stop="abc").choices[0].finish_reason == "stop"
    assert front.triton.last["stop_words_list"] == [97, 98, 99, 256, 3, 4, -1, -1]
    assert front.triton.last["end_id"] == [259]
    reply = _chat(client, max_tokens=3)
    assert (reply.choices[0].message.content, reply.choices[0].finish_reason) == ("Hi", "stop")
    _chat(client, max_tokens=3, extra_body={"ignore_eos": True})
    assert "stop_words_list" not in front.triton.last


def test_temperature_nought_is_the_most_likely_token(front: Any, client: OpenAI) -> None:
    """TensorRT-LLM takes no temperature of 0; the most likely of one is the same."""
    _chat(client, temperature=0)
    asked = front.triton.last
    assert asked["runtime_top_k"] == [1]
    assert "temperature" not in asked


def test_a_stop_string_over_tokens_ends_the_reply_and_the_request(front: Any, client: OpenAI) -> None:
    """Every byte is a token; the stop string is not given out, and the engine is told to stop."""
    front.triton.said("eins zwei drei 世界 vier fünf sechs")
    front.triton.script.hang = True
    reply = _chat(client, stop="世界")
    assert reply.choices[0].message.content == "eins zwei drei "
    assert reply.choices[0].finish_reason == "stop"
    assert _waits(lambda: front.triton.cancelled == 1)
    chunks = list(_chat(client, stop=[" vier", "nein"], stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "eins zwei drei 世界"
    assert chunks[-1].choices[0].finish_reason == "stop"


def test_a_reply_as_long_as_allowed_ended_by_length(front: Any, client: OpenAI) -> None:
    """`length` where the limit was reached and the last token does not end text."""
    front.triton.said("abc")
    assert _chat(client, max_tokens=3).choices[0].finish_reason == "length"
    assert _chat(client, max_tokens=4).choices[0].finish_reason == "stop"
    front.triton.said("ab<｜end▁of▁sentence｜>")
    assert _chat(client, max_tokens=3).choices[0].finish_reason == "stop"


def test_special_tokens_are_left_out_unless_asked_for(front: Any, client: OpenAI) -> None:
    """`skip_special_tokens: false` shows them."""
    front.triton.said("ab<｜end▁of▁sentence｜>")
    assert _chat(client).choices[0].message.content == "ab"
    shown = _chat(client, extra_body={"skip_special_tokens": False})
    assert shown.choices[0].message.content == "ab<｜end▁of▁sentence｜>"


def test_completions_take_text_or_tokens(front: Any, client: OpenAI) -> None:
    """/v1/completions, whole and streamed; tags are text there."""
    front.triton.said("<think>x</think>y")
    reply = client.completions.create(model="r1", prompt="Hallo")
    assert reply.choices[0].text == "<think>x</think>y"
    assert front.triton.last["input_ids"] == list(b"Hallo")
    assert front.triton.last["request_output_len"] == [16]
    chunks = list(client.completions.create(model="r1", prompt=[72, 97], stream=True, max_tokens=40))
    assert "".join(chunk.choices[0].text for chunk in chunks) == "<think>x</think>y"
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert front.triton.last["input_ids"] == [72, 97]
    with pytest.raises(openai.BadRequestError, match="2 prompts in one request"):
        client.completions.create(model="r1", prompt=["a", "b"])
    with pytest.raises(openai.BadRequestError, match="token id 100000 is not in the vocabulary"):
        client.completions.create(model="r1", prompt=[100_000])


def test_a_long_body_is_served_beside_the_others(front: Any, client: OpenAI) -> None:
    """It is read in a thread of its own: what it is refused for, and what it is answered, is the same."""
    many = [{"role": "user", "content": ""}] * 1_900 + USER
    with pytest.raises(openai.BadRequestError, match="too many for the limit of 64 tokens"):
        client.chat.completions.create(model="r1", messages=many)  # type: ignore[arg-type]
    padded = [{"role": "user", "content": "x", "name": "n" * 90_000}]
    assert client.chat.completions.create(model="r1", messages=padded).choices[0].message.content == "hi"  # type: ignore[arg-type]
    assert front.triton.last["input_ids"][-2:] == [120, 258]


def test_models_say_what_they_are(client: OpenAI) -> None:
    """The list holds the one model, with its limits and its kind; another name is 404."""
    listed = client.models.list().data
    assert [model.id for model in listed] == ["r1"]
    extra = client.models.retrieve("r1").model_extra
    assert extra is not None
    assert extra["max_model_len"] == 512
    assert (extra["engine"]["kind"], extra["engine"]["time_scale"]) == ("emulated", 4.0)
    with pytest.raises(openai.NotFoundError, match="'gpt' is not served here; the served model is 'r1'") as missing:
        client.models.retrieve("gpt")
    assert missing.value.response.headers["x-engine-kind"] == KIND


def test_every_reply_says_its_kind(front: Any, client: OpenAI) -> None:
    """Whole, streamed and refused: the header is on all."""
    for more in ({}, {"stream": True}):
        raw = client.chat.completions.with_raw_response.create(model="r1", messages=USER, **more)  # type: ignore[call-overload]
        assert raw.headers["x-engine-kind"] == KIND
        raw.http_response.close()
    connection = http.client.HTTPConnection("127.0.0.1", front.port, timeout=10)
    for method, path, status in (("GET", "/nowhere", 404), ("GET", "/v1/completions", 405), ("GET", "/health", 200)):
        connection.request(method, path)
        answer = connection.getresponse()
        body = json.loads(answer.read())
        assert answer.status == status
        assert answer.headers["x-engine-kind"] == KIND
        assert status == 200 or body["error"]["type"] == "invalid_request_error"
    connection.close()


@pytest.mark.parametrize(
    ("more", "message", "param"),
    [
        ({"n": 2}, "n is 2; one reply a request is served", "n"),
        ({"logprobs": True}, "log probabilities are not served", "logprobs"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "calling tools is not served", "tools"),
        ({"response_format": {"type": "json_object"}}, "only type 'text' is served", "response_format"),
        ({"logit_bias": {"5": 1}}, "logit_bias is not served", "logit_bias"),
        ({"temperature": 3}, "temperature: Input should be less than or equal to 2, got 3", "temperature"),
        ({"max_tokens": 0}, "max_tokens: Input should be greater than or equal to 1, got 0", "max_tokens"),
        ({"seed": -1}, "seed: Input should be greater than or equal to 0", "seed"),
        ({"stop": ["x"] * 17}, "at most 16 items", "stop"),
        ({"stream_options": {"include_usage": True}}, "set stream to true", "stream_options"),
        ({"extra_body": {"min_tokens": 9}, "max_tokens": 3}, "min_tokens is 9, above max_tokens, 3", "min_tokens"),
        ({"extra_body": {"temprature": 1}}, "unknown key 'temprature'", "temprature"),
        ({"max_tokens": 500}, "maximum context length is 512 tokens. The prompt of", "max_tokens"),
        (
            {"messages": [{"role": "user", "content": "x" * 600}]},
            "maximum context length is 512 tokens. The prompt has 60",
            "messages",
        ),
        ({"messages": [{"role": "king", "content": "x"}]}, "messages[0].role is 'king'", "messages[0]"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "reads text only", "messages[0]"),
        ({"messages": []}, "messages: List should have at least 1 item", "messages"),
    ],
)
def test_what_is_not_served_is_refused_clearly(
    front: Any, client: OpenAI, more: dict[str, Any], message: str, param: str
) -> None:
    """400 in OpenAI's shape: what, where, the limit; the engine is not asked."""
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(**{"model": "r1", "messages": USER, **more})
    assert message in str(refused.value.body["message"])  # type: ignore[index]
    assert refused.value.param == param
    assert refused.value.type == "invalid_request_error"
    assert front.triton.asked == []


def test_a_prompt_that_is_too_long_has_its_own_code(client: OpenAI) -> None:
    """Clients look for `context_length_exceeded`."""
    with pytest.raises(openai.BadRequestError) as refused:
        _chat(client, max_tokens=511)
    assert refused.value.code == "context_length_exceeded"


@pytest.mark.parametrize("key", ["", "wrong", "sk-of-a-tes", "sk-of-a-test1", "schlüssel"])
def test_a_wrong_key_is_401(front: Any, key: str) -> None:
    """In OpenAI's words, and without a hint of which keys there are."""
    connection = http.client.HTTPConnection("127.0.0.1", front.port, timeout=10)
    headers = {"Authorization": f"Bearer {key}".encode()} if key else {}
    connection.request("POST", "/v1/chat/completions", b"{}", headers)
    answer = connection.getresponse()
    error = json.loads(answer.read())["error"]
    connection.close()
    assert answer.status == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    assert (error["type"], error["code"]) == ("invalid_request_error", "invalid_api_key")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("said", "status", "kind"),
    [
        ("Maximum queue size of 2 has been reached, please try again later", 429, "RateLimitError"),
        ("[request id: x] Exceeds maximum queue size", 429, "RateLimitError"),
        ("Executor failed process requestId 7 due to the following error: Prompt length (9) exceeds maximum input "
         "length (8)", 400, "BadRequestError"),
        ("Request for unknown model: 'tensorrt_llm' is not found", 503, "InternalServerError"),
        ("Executor failed process requestId 7 due to the following error: CUDA", 500, "InternalServerError"),
    ],
)  # fmt: skip
def test_the_engines_refusals_have_their_status(
    front: Any, client: OpenAI, said: str, status: int, kind: str, stream: bool
) -> None:
    """Also of a stream: the engine is heard before the first byte is sent. A full queue says when to try again."""
    front.triton.script.error = said
    with pytest.raises(getattr(openai, kind)) as refused:
        list(_chat(client, stream=stream)) if stream else _chat(client)
    assert refused.value.status_code == status
    assert (refused.value.response.headers.get("retry-after") == "1") == (status in {429, 503})


def test_an_error_in_the_middle_of_a_stream_is_an_event(front: Any, client: OpenAI) -> None:
    """The client raises it after the text that came before."""
    front.triton.said("abc")
    front.triton.script.error, front.triton.script.error_after = "Executor failed: lost", 2
    got: list[str] = []
    with pytest.raises(openai.APIError, match="lost"):
        got.extend(chunk.choices[0].delta.content or "" for chunk in _chat(client, stream=True))
    assert "".join(got) == "ab"


def test_a_client_that_leaves_cancels_its_request(front: Any, client: OpenAI) -> None:
    """In the middle of a stream, and while it waits for its first token."""
    front.triton.script.hang = True
    stream = _chat(client, stream=True)
    next(iter(stream))
    stream.close()
    assert _waits(lambda: front.triton.cancelled == 1)
    front.triton.script.pause_s = 30
    with pytest.raises(openai.APITimeoutError):
        _chat(client.with_options(timeout=1.5))
    assert _waits(lambda: front.triton.cancelled == 2)


@pytest.mark.parametrize("stream", [False, True])
def test_a_silent_engine_is_given_up(front: Any, client: OpenAI, stream: bool) -> None:
    """504, or an event where the stream had begun; the engine is told."""
    front.triton.script.hang = True
    with pytest.raises(openai.APIError, match=r"sent nothing for 3 s"):
        list(_chat(client, stream=True)) if stream else _chat(client)
    assert _waits(lambda: front.triton.cancelled == 1)


def test_the_async_client_streams_side_by_side(front: Any) -> None:
    """Twenty streams at once, each whole."""
    front.triton.said("<think>x</think>Gut 👩‍🚀")

    async def one(client: AsyncOpenAI) -> str:
        stream = await client.chat.completions.create(model="r1", messages=USER, stream=True)  # type: ignore[call-overload]
        return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    async def run() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{front.url}/v1", api_key=KEY, max_retries=0, timeout=20) as client:
            return await asyncio.gather(*(one(client) for _ in range(20)))

    assert asyncio.run(run()) == ["Gut 👩‍🚀"] * 20


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        (b"", 400, "no body"),
        (b"{", 400, "the body is not JSON"),
        (b"[1]", 400, "the body: Input should be an object"),
        (b'{"model": "r1"}', 400, "the key 'messages' is missing"),
        (b"x" * 100_001, 413, "larger than 100000 bytes"),
        (b'{"model": "r1", "messages": [{"role": "user", "content": "\xff"}]}', 400, "the body is not JSON"),
    ],
)
def test_malformed_bodies_are_refused(front: Any, body: bytes, status: int, message: str) -> None:
    """Each with one clear sentence."""
    connection = http.client.HTTPConnection("127.0.0.1", front.port, timeout=10)
    connection.request("POST", "/v1/chat/completions", body, {"Authorization": f"Bearer {KEY}"})
    answer = connection.getresponse()
    error = json.loads(answer.read())["error"]
    connection.close()
    assert answer.status == status
    assert message in error["message"]


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"\x00\xff garbage\r\n\r\n", 400),
        (b"POST /v1/chat/completions HTTP/1.1\r\nContent-Length: -5\r\n\r\n", 400),
        (b"POST /v1/chat/completions HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n", 400),
        (
            b"POST /v1/chat/completions HTTP/1.1\r\nAuthorization: Bearer sk-other\r\nContent-Length: 99999999\r\n\r\n",
            413,
        ),
        (b"GET /health HTTP/1.1\r\nX: " + b"a" * 2_000_000 + b"\r\n\r\n", 400),
    ],
)
def test_what_is_no_request_ends_the_connection(front: Any, sent: bytes, status: int) -> None:
    """Neither garbage nor a head without an end is kept."""
    with socket.create_connection(("127.0.0.1", front.port), timeout=10) as connection:
        with contextlib.suppress(ConnectionError):  # it may have been closed before all was sent
            connection.sendall(sent)
        try:
            answer = connection.recv(100)
        except ConnectionResetError:
            answer = b"HTTP/1.1 400"
    assert answer.startswith(f"HTTP/1.1 {status}".encode())


def test_a_client_that_leaves_while_it_speaks_is_no_error(front: Any, client: OpenAI) -> None:
    """Half a body, then nothing: the next request is served."""
    head = b"POST /v1/chat/completions HTTP/1.1\r\nAuthorization: Bearer sk-other\r\nContent-Length: 500\r\n\r\n{"
    with socket.create_connection(("127.0.0.1", front.port), timeout=10) as connection:
        connection.sendall(head)
    assert _chat(client).choices[0].message.content == "hi"
