"""What each protocol sends, and what it makes of a message."""

from __future__ import annotations

import json
import re
import struct
from array import array
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2

from engines.errors import UserError
from loadtest.client.endpoint import Endpoint, ProtocolName, endpoint_of
from loadtest.client.http1 import CutError, ProtocolError
from loadtest.client.protocols import protocol_for, shape, takes_ids
from loadtest.client.protocols.base import Protocol, Reply, RequestSpec, read_messages
from loadtest.client.server_info import engine_kind
from loadtest.traffic.prompts import Prompt

PROMPT = Prompt(tokens=2, ids=(7, 8), text="hi")
ASKED = RequestSpec("r1", PROMPT, 5)


def _dialect(protocol: ProtocolName, model: str = "m", *, perf_metrics: bool = False, **extra: Any) -> Protocol:
    endpoint = Endpoint(
        host="h", port=1, protocol=protocol, base_path="/b", perf_metrics=perf_metrics, kv_block_tokens=64
    )
    return protocol_for(endpoint, model, environment={"OPENAI_API_KEY": "k"}, extra=extra)


def _read(protocol: Protocol, *messages: object) -> Reply:
    answer = Reply()
    data = [message if isinstance(message, bytes) else json.dumps(message).encode() for message in messages]
    read_messages(protocol, data, [float(second) for second in range(len(data))], answer)
    return answer


def _chat(**delta: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": None}]}


def test_the_engine_takes_tokens_and_the_text_models_text() -> None:
    """Both are told to reply to the full length; a free reply has no least one."""
    engine = _dialect("triton-http", "tensorrt_llm", perf_metrics=True)
    assert engine.path == "/b/v2/models/tensorrt_llm/generate_stream"
    assert json.loads(engine.body(ASKED)) == {
        "id": "r1",
        "input_ids": [7, 8],
        "input_lengths": 2,
        "request_output_len": 5,
        "min_tokens": 5,
        "streaming": True,
        "return_perf_metrics": True,
    }
    text = json.loads(
        _dialect("triton-http", "ensemble", temperature=0.5).body(RequestSpec("r1", PROMPT, 5, exact=False))
    )
    assert text == {"id": "r1", "text_input": "hi", "max_tokens": 5, "stream": True, "temperature": 0.5}


def test_the_llm_apis_model_takes_text_and_sends_it_whole_each_time() -> None:
    """Its inputs have names of their own, an event is a token, and its performance comes as text."""
    endpoint = Endpoint(host="h", port=1, protocol="triton-http", base_path="/b", llm_api=True, kv_block_tokens=64)
    assert not takes_ids(endpoint, "tensorrt_llm")
    protocol = protocol_for(endpoint, "tensorrt_llm", environment={}, extra={"sampling_param_seed": 3})
    assert json.loads(protocol.body(ASKED)) == {
        "id": "r1",
        "text_input": "hi",
        "streaming": True,
        "sampling_param_max_tokens": 5,
        "sampling_param_return_perf_metrics": True,
        "sampling_param_seed": 3,
    }
    answer = Reply(content=[])
    last = {"arrival_time_ns": "1000", "first_scheduled_time_ns": "2001000", "kv_cache_reused_block": "2"}
    messages = [json.dumps(each).encode() for each in ({"text_output": "a"}, {"text_output": "ab", **last})]
    read_messages(protocol, messages, [0.0, 1.0], answer)
    assert list(answer.times_s) == [0.0, 1.0]
    assert answer.content == ["ab"]
    assert answer.queue_s == pytest.approx(2e-3)
    assert answer.cached_tokens == 128
    with pytest.raises(ProtocolError, match="Error generating request"):
        read_messages(protocol, [b'{"error": "Error generating request: x"}'], [0.0], Reply())


def test_tensors_are_the_same_inputs() -> None:
    """Over gRPC each input is a tensor of its type, the batch's dimension first."""
    request = service_pb2.ModelInferRequest.FromString(
        _dialect("triton-grpc", "tensorrt_llm", temperature=0.5).body(ASKED)
    )
    sent = {each.name: (each.datatype, list(each.shape)) for each in request.inputs}
    assert sent["input_ids"] == ("INT32", [1, 2])
    assert sent["streaming"] == ("BOOL", [1, 1])
    assert sent["temperature"] == ("FP32", [1, 1])
    assert request.raw_input_contents[0] == struct.pack("<2i", 7, 8)
    request = service_pb2.ModelInferRequest.FromString(_dialect("triton-grpc", "ensemble").body(ASKED))
    assert request.raw_input_contents[0] == b"\2\0\0\0hi"


def test_what_cannot_be_a_tensor_is_refused_beforehand() -> None:
    """A list laid over gRPC requests is an error of the scenario; a null takes an input away."""
    with pytest.raises(UserError, match="extra_body: stop_words"):
        _dialect("triton-grpc", stop_words=["a"])
    request = service_pb2.ModelInferRequest.FromString(_dialect("triton-grpc", "m", min_tokens=None).body(ASKED))
    assert "min_tokens" not in {each.name for each in request.inputs}


def test_a_key_is_taken_without_its_line_end_and_refused_in_two_lines() -> None:
    """A file's last line end is no part of a key; a key that would break its header is refused, unshown."""
    endpoint = Endpoint(host="h", port=1, protocol="openai-chat", api_key_env="KEY")
    assert protocol_for(endpoint, "m", environment={"KEY": "k\n"}).headers() == {"Authorization": "Bearer k"}
    assert protocol_for(endpoint, "m", environment={"KEY": ""}).headers() == {}
    with pytest.raises(UserError, match="KEY") as refused:
        protocol_for(endpoint, "m", environment={"KEY": "secret\nX-More: 1"})
    assert "secret" not in str(refused.value)


def test_openai_is_asked_for_exactly_so_many_tokens_and_their_count() -> None:
    """A free reply is asked for with OpenAI's own fields alone; a null takes one away."""
    chat = _dialect("openai-chat")
    assert chat.path == "/b/v1/chat/completions"
    assert chat.headers() == {"Authorization": "Bearer k"}
    assert json.loads(chat.body(ASKED)) == {
        "model": "m",
        "messages": [{"role": "user", "content": "hi"}],
        "max_tokens": 5,
        "min_tokens": 5,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    free = _dialect("openai-completions", max_tokens=None, max_completion_tokens=5)
    assert json.loads(free.body(RequestSpec("r1", PROMPT, 5, exact=False))) == {
        "model": "m",
        "prompt": [7, 8],
        "max_completion_tokens": 5,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def test_tritons_events_say_how_many_tokens_they_hold() -> None:
    """Three of one event came together; queue time is between the engine's own two marks."""
    answer = _read(
        _dialect("triton-http", "tensorrt_llm"),
        {"output_ids": [5], "sequence_length": 1},
        {
            "output_ids": [6, 7, 8],
            "sequence_length": 3,
            "arrival_time_ns": 10**9,
            "first_scheduled_time_ns": 2 * 10**9,
            "kv_cache_reused_blocks": 2,
        },
    )
    assert list(answer.times_s) == [0.0, 1.0, 1.0, 1.0]
    assert (answer.bundled_tokens, answer.queue_s, answer.cached_tokens) == (2, 1.0, 128)


def test_tritons_messages_say_the_same() -> None:
    """Outputs are read by name and type; the empty final response is no token."""
    reply = service_pb2.ModelStreamInferResponse()
    for name, datatype, contents in (
        ("output_ids", "INT32", struct.pack("<2i", 6, 7)),
        ("sequence_length", "INT32", struct.pack("<i", 2)),
        ("arrival_time_ns", "INT64", struct.pack("<q", 10**9)),
        ("first_scheduled_time_ns", "INT64", struct.pack("<q", 10**9 + 5 * 10**8)),
        ("kv_cache_reused_blocks", "INT32", struct.pack("<i", 1)),
    ):
        reply.infer_response.outputs.add(name=name, datatype=datatype)
        reply.infer_response.raw_output_contents.append(contents)
    empty = service_pb2.ModelStreamInferResponse()
    answer = _read(_dialect("triton-grpc"), reply.SerializeToString(), empty.SerializeToString())
    assert list(answer.times_s) == [0.0, 0.0]
    assert (answer.bundled_tokens, answer.queue_s, answer.cached_tokens) == (1, 0.5, 64)
    failed = service_pb2.ModelStreamInferResponse(error_message="[request id: r1] Exceeds maximum queue size")
    with pytest.raises(ProtocolError) as refused:
        _read(_dialect("triton-grpc"), failed.SerializeToString())
    assert refused.value.rejected


def test_thoughts_and_calls_are_tokens_and_roles_are_not() -> None:
    """Whatever a delta carries counts; an empty one, and the last with usage, do not."""
    protocol = _dialect("openai-chat")
    answer = _read(
        protocol,
        _chat(role="assistant", content=""),
        _chat(reasoning_content="hm"),
        _chat(reasoning="hm", content=None),
        _chat(content="a"),
        _chat(tool_calls=[{"function": {"arguments": "{"}}]),
        {"choices": [{"index": 0, "delta": {}, "finish_reason": "length"}]},
        {
            "choices": [],
            "usage": {
                "prompt_tokens": 9,
                "completion_tokens": 4,
                "prompt_tokens_details": {"cached_tokens": 6},
                "queue_time": 0.25,
            },
        },
        b"[DONE]",
    )
    protocol.settle(answer)
    assert list(answer.times_s) == [1.0, 2.0, 3.0, 4.0]
    assert (answer.prompt_tokens, answer.cached_tokens, answer.queue_s) == (9, 6, 0.25)
    assert (answer.finish_reason, answer.bundled_tokens) == ("length", 0)


def test_chunks_without_a_text_are_none_of_the_reply() -> None:
    """LiteLLM's proxy leaves `text` out of the chunks that hold the reason and the usage (1.108, seen)."""
    protocol = _dialect("openai-completions")
    answer = _read(
        protocol,
        {"choices": [{"index": 0, "text": " Paris"}]},
        {"choices": [{"finish_reason": "length", "index": 0}]},
        {"choices": [{"index": 0}], "usage": {"completion_tokens": 1, "prompt_tokens": 5}},
        b"[DONE]",
    )
    protocol.settle(answer)
    assert (list(answer.times_s), answer.finish_reason, answer.prompt_tokens) == ([0.0], "length", 5)


@pytest.mark.parametrize(
    "usage",
    [
        {"completion_tokens": -7, "prompt_tokens": 5},
        {"completion_tokens": 10**30, "prompt_tokens": 5},
        {"completion_tokens": float("inf"), "prompt_tokens": 5},
        {"completion_tokens": 1 << 24, "prompt_tokens": 5},
        {"completion_tokens": 1, "queue_time": 1e300},
        {"completion_tokens": 1, "prompt_tokens": -5},
        {"completion_tokens": 1, "prompt_tokens": 5, "prompt_tokens_details": {"cached_tokens": -1}},
        {"completion_tokens": 1, "prompt_tokens": 5, "queue_time": -1.0},
    ],
)
def test_a_usage_that_no_reply_has_is_an_error(usage: dict[str, Any]) -> None:
    """A negative or an endless count was an internal error of the load generator, and ended the run."""
    with pytest.raises(ProtocolError, match="the server states"):
        _read(_dialect("openai-completions"), {"choices": [{"text": "a"}], "usage": usage})


def test_a_message_of_tritons_has_no_less_than_no_token() -> None:
    """`sequence_length` is a count, too."""
    for count in (-5, 10**30, 1 << 24, float("inf"), float("nan")):
        with pytest.raises(ProtocolError, match="the server states"):
            Reply().add(1.0, count)


def test_a_reply_of_millions_of_tokens_is_an_error() -> None:
    """However many messages they are stated in: the time of each is kept, and writing them took minutes."""
    answer = Reply()
    answer.add(1.0, 1 << 19)
    with pytest.raises(ProtocolError, match="the server states"):
        answer.add(2.0, 1 + (1 << 19))
    assert len(answer.times_s) == answer.bundled_tokens + 1 == 1 << 19


NUMBER = "1" * 400


@pytest.mark.parametrize(
    ("protocol", "message", "complaint"),
    [
        ("openai-chat", '{"choices": [{"delta": {}, "finish_reason": 1}]}', "malformed message"),
        ("openai-chat", f'{{"choices": [], "usage": {{"completion_tokens": 1, "queue_time": {NUMBER}}}}}', "malformed"),
        ("triton-http", '{"sequence_length": 1e999}', "the server states inf tokens"),
        ("triton-http", f'{{"arrival_time_ns": 1, "first_scheduled_time_ns": {NUMBER}}}', "malformed message"),
        ("triton-http", '{"arrival_time_ns": 1, "first_scheduled_time_ns": 1e300}', "a queue time of 1e+291 s"),
        ("triton-http", '{"arrival_time_ns": 2000000000, "first_scheduled_time_ns": 1}', "a queue time of -2 s"),
        ("triton-http", '{"kv_cache_reused_blocks": ["a"]}', "malformed message"),
        ("triton-http", '{"kv_cache_reused_blocks": -1}', "the server states -1 tokens"),
        ("triton-http", '{"output_ids": [1, "2"]}', "the server states a token"),
        ("triton-http", '{"output_ids": -1}', "the server states a token"),
    ],
)
def test_a_value_that_no_reply_has_is_an_error_of_the_request(
    protocol: ProtocolName, message: str, complaint: str
) -> None:
    """Each had ended the run, with all requests in flight lost: no record takes it."""
    with pytest.raises(ProtocolError, match=re.escape(complaint)):
        read_messages(_dialect(protocol), [message.encode()], [0.0], Reply(content=[]))


def test_text_that_cannot_be_written_is_replaced() -> None:
    """Half a surrogate pair in a reason to end or an error had ended the run: no file takes it."""
    answer = _read(_dialect("openai-chat"), b'{"choices": [{"delta": {"content": "a"}, "finish_reason": "\\ud800x"}]}')
    assert answer.finish_reason == "?x"
    with pytest.raises(ProtocolError) as caught:
        _read(_dialect("openai-chat"), b'{"error": {"message": "no \\ud83d room"}}')
    assert str(caught.value) == "no ? room"


def test_a_tensor_that_is_too_short_is_an_error_of_the_request() -> None:
    """It had ended the run."""
    response = service_pb2.ModelStreamInferResponse()
    response.infer_response.outputs.add(name="sequence_length", datatype="INT32", shape=[1])
    response.infer_response.raw_output_contents.append(b"")
    with pytest.raises(ProtocolError, match="malformed message"):
        _read(_dialect("triton-grpc"), response.SerializeToString())


def test_text_cut_between_the_halves_of_a_surrogate_pair_is_read() -> None:
    """Pydantic's parser refuses such JSON, which servers that cut UTF-16 text send; the standard library's does not."""
    halves = [b'{"choices": [{"index": 0, "delta": {"content": "\\u%s"}}]}' % half for half in (b"d83d", b"de00")]
    answer = _read(_dialect("openai-chat"), *halves, b"[DONE]")
    assert (list(answer.times_s), list(answer.sizes), answer.finished) == ([0.0, 1.0], [1, 1], True)


def test_a_stream_without_its_mark_of_the_end_was_cut() -> None:
    """Neither a reason to end nor [DONE]: the reply is not whole, however well its bytes ended."""
    protocol = _dialect("openai-completions")
    answer = _read(protocol, {"choices": [{"text": "a"}]})
    with pytest.raises(CutError):
        protocol.settle(answer)


@pytest.mark.parametrize(
    ("sizes", "told", "times"),
    [
        ([4, 4], 4, [0, 0, 1, 1]),
        ([30, 10], 6, [0, 0, 0, 0, 1, 1]),
        ([1, 1, 1], 3, [0, 1, 2]),
        ([1, 1, 1, 1], 3, [0, 1, 3]),
        ([1, 1], 0, [0, 1]),
        ([1], 3, [0, 0, 0]),
    ],
)
def test_told_tokens_are_shared_out_by_the_text(sizes: list[int], told: int, times: list[int]) -> None:
    """Each message has one token at least, the others by its characters; one too many is left out before the last."""
    answer = Reply(times_s=array("d", range(len(sizes))), sizes=sizes, stated_tokens=told)
    answer.spread_stated_tokens()
    assert list(answer.times_s) == times
    assert answer.bundled_tokens == max(0, told - len(sizes))


@pytest.mark.parametrize("protocol", ["openai-chat", "openai-completions", "triton-http", "triton-grpc"])
@pytest.mark.parametrize(
    "message", [b"", b"{", b"[]", b"null", b'"x"', b'{"choices": [1]}', b'{"choices": 5}', b"\xff\xfe", b"[" * 100_000]
)
def test_nonsense_is_one_error_without_its_text(protocol: ProtocolName, message: bytes) -> None:
    """Whatever a server sends, a message of the wrong shape is an error of the request, never of the program."""
    try:
        _read(_dialect(protocol), message)
    except ProtocolError as error:
        assert "malformed message of" in str(error)  # noqa: PT017 (some of these are well-formed in some protocols)


def test_outcomes_say_what_became_of_a_request() -> None:
    """Whole and short, whole and empty, cancelled, and free to be short."""
    whole = Reply(times_s=array("d", [1.0]), whole=True)
    assert whole.outcome(ASKED) == ("cut", "1 tokens of 5")
    assert whole.outcome(RequestSpec("r1", PROMPT, 5, exact=False)) == ("ok", None)
    assert Reply(whole=True).outcome(ASKED)[0] == "empty"
    assert Reply().outcome(ASKED) == ("cancelled", None)
    late = Reply(failure=TimeoutError("nothing for 1 s"), reason="nothing for 1 s")
    assert late.outcome(ASKED) == ("timeout", "nothing for 1 s")
    assert Reply(failure=CutError("closed")).outcome(ASKED)[0] == "error"
    assert Reply(failure=ConnectionResetError()).outcome(ASKED) == ("error", "ConnectionResetError")


def test_urls_are_read_and_refused() -> None:
    """Schemes say whether there is TLS; what is no address is refused in words."""
    assert endpoint_of("h:5", "triton-grpc").port == 5
    assert (endpoint_of("grpcs://h", "triton-grpc").port, endpoint_of("http://h", "triton-grpc").port) == (443, 8001)
    assert endpoint_of("https://h/v1/", "openai-chat").tls
    assert takes_ids(endpoint_of("h", "triton-http"), "tensorrt_llm")
    assert not takes_ids(endpoint_of("h", "openai-chat"), "tensorrt_llm")
    for url in ("ftp://h", "http://", "http://h:99999", "http://user:secret@h", "8000"):
        with pytest.raises(UserError, match="--url"):
            endpoint_of(url, "openai-chat")


def test_an_emulated_engines_header_is_read_and_nothing_else_guessed() -> None:
    """A header that says something unknown is an error: a wrong kind would mislabel every figure."""
    assert engine_kind("emulated; time-scale=2.5") == (True, 2.5)
    assert engine_kind("emulated") == (True, 1.0)
    assert engine_kind("measured") == (False, 1.0)
    for said in ("simulated", "emulated; time-scale=fast", "emulated; time-scale=0", "emulated; speed=2"):
        with pytest.raises(UserError, match="X-Engine-Kind"):
            engine_kind(said)


def _kept(protocol: Protocol, *messages: bytes) -> list[Any] | None:
    answer = Reply(content=[])
    read_messages(protocol, list(messages), array("d", bytes(8 * len(messages))), answer)
    return answer.content


def test_a_reply_that_is_to_be_repeated_is_kept_as_prompts_are() -> None:
    """Tokens from the engine, text from the others; thoughts are not said again, and nothing is kept unasked."""
    engine, ensemble = _dialect("triton-http", "tensorrt_llm"), _dialect("triton-http", "ensemble")
    one, two = b'{"output_ids": [5, 6], "sequence_length": 2}', b'{"output_ids": 7, "sequence_length": 1}'
    assert _kept(engine, one, two) == [5, 6, 7]
    assert _kept(ensemble, b'{"text_output": " a"}', b'{"text_output": " b"}') == [" a", " b"]
    chat = _dialect("openai-chat")
    thought, said = _chat(reasoning_content="hm"), _chat(content=" yes")
    assert "".join(_kept(chat, json.dumps(thought).encode(), json.dumps(said).encode()) or []) == " yes"
    plain = {"choices": [{"index": 0, "text": " so", "finish_reason": None}]}
    assert _kept(_dialect("openai-completions"), json.dumps(plain).encode()) == [" so"]
    assert _read(engine, one).content is None


def test_tensors_of_a_reply_are_kept_too() -> None:
    """Over gRPC the same: ids from their bytes, text from behind its length."""
    reply = service_pb2.ModelStreamInferResponse()
    for name, datatype, contents in (
        ("output_ids", "INT32", struct.pack("<3i", 5, 6, 7)),
        ("sequence_length", "INT32", struct.pack("<i", 3)),
    ):
        reply.infer_response.outputs.add(name=name, datatype=datatype, shape=[1])
        reply.infer_response.raw_output_contents.append(contents)
    assert _kept(_dialect("triton-grpc", "tensorrt_llm"), reply.SerializeToString()) == [5, 6, 7]
    text = service_pb2.ModelStreamInferResponse()
    text.infer_response.outputs.add(name="text_output", datatype="BYTES", shape=[1])
    text.infer_response.raw_output_contents.append(struct.pack("<I", 5) + " über".encode()[:5])
    assert _kept(_dialect("triton-grpc", "ensemble"), text.SerializeToString()) == [" übe"]


def test_a_conversation_is_sent_as_who_said_what() -> None:
    """A chat takes the shared beginning, prompts and replies as messages; others take them as one text."""
    said = (("system", "Be brief."), ("user", " Hi"), ("assistant", " Hello"), ("user", " So?"))
    prompt = Prompt(tokens=9, text="Be brief. Hi Hello So?", messages=said)
    body = json.loads(_dialect("openai-chat").body(RequestSpec("r1", prompt, 5)))
    assert [(each["role"], each["content"]) for each in body["messages"]] == list(said)
    assert json.loads(_dialect("openai-completions").body(RequestSpec("r1", prompt, 5)))["prompt"] == prompt.text


def test_the_engine_is_told_what_ends_a_free_reply() -> None:
    """It takes tokens and knows no end of its own; the text models' preprocessing tells it."""
    asked = RequestSpec("r1", PROMPT, 5, exact=False, end_id=42)
    engine = json.loads(_dialect("triton-http", "tensorrt_llm").body(asked))
    assert engine["end_id"] == 42
    assert "min_tokens" not in engine
    assert "end_id" not in json.loads(_dialect("triton-http", "ensemble").body(asked))
    assert "end_id" not in json.loads(_dialect("triton-http", "tensorrt_llm").body(ASKED))


_WORDS = st.text(st.characters(codec="utf-8"), max_size=6) | st.sampled_from(
    [" the", "", '"', "\\n", "\n", "\u00e9", "content"]
)
_DELTAS = st.fixed_dictionaries(
    {},
    optional={
        "role": st.sampled_from(["assistant", None]),
        "content": _WORDS | st.none(),
        "reasoning_content": _WORDS | st.none(),
        "reasoning": _WORDS,
        "tool_calls": st.sampled_from([None, [], [{"function": {"name": "content", "arguments": "{}"}}]]),
    },
)
_CHOICES = st.builds(
    lambda delta, text, reason: {"index": 0, "delta": delta, "text": text, "finish_reason": reason},
    st.fixed_dictionaries({"content": _WORDS}) | _DELTAS,
    _WORDS,
    st.sampled_from([None, None, "stop"]),
)
_EVENTS = st.builds(
    lambda choices, usage, name: {"id": name, "choices": choices, "usage": usage},
    st.lists(_CHOICES, min_size=1, max_size=1) | st.lists(_CHOICES, max_size=2),
    st.sampled_from([None, None, None, {"completion_tokens": 3, "prompt_tokens": 2}]),
    st.sampled_from(["c", "c", "content", 'x"content":"y']),
)


# The name that does not count has as many characters as all that counts.
BOTH_NAMES = [
    {"choices": [{"delta": {"reasoning_content": "four", "reasoning": text, "content": "3rd"}}]}
    for text in ("seven..", "1")
]

# The same bytes before and after the texts also state the usage.
USAGE_IN_EACH = [
    {"choices": [{"text": text}], "usage": {"completion_tokens": 3, "prompt_tokens": 2}} for text in ("one", "two")
]


@given(
    st.lists(_EVENTS, max_size=12),
    st.sampled_from(["openai-chat", "openai-completions"]),
    st.booleans(),
    st.sampled_from([(",", ":"), (", ", ": "), (" ,", " :\t")]),
    st.booleans(),
)
@example(BOTH_NAMES, "openai-chat", True, (",", ":"), False)
@example(USAGE_IN_EACH, "openai-completions", True, (",", ":"), False)
def test_events_that_are_not_parsed_count_as_if_they_were(
    events: list[dict[str, Any]], name: ProtocolName, ascii_only: bool, between: tuple[str, str], kept: bool
) -> None:
    """Whatever texts, fields and ways of writing JSON follow each other, shapes change nothing, nor do earlier ones."""
    protocol = _dialect(name)
    messages = [json.dumps(each, ensure_ascii=ascii_only, separators=between).encode() for each in events]
    times_s = array("d", range(len(messages)))
    first, second, apart = (Reply(content=[] if kept else None) for _ in range(3))
    read_messages(protocol, messages, times_s, first)
    read_messages(protocol, messages, times_s, second)
    for message, arrived_s in zip(messages, times_s, strict=True):
        protocol.take(message, arrived_s, apart)
    assert first == second == apart


@pytest.mark.parametrize(
    ("name", "event"), [("openai-chat", _chat(content=" a")), ("openai-completions", {"choices": [{"text": " a"}]})]
)
def test_nearly_all_events_of_a_reply_are_not_parsed(
    name: ProtocolName, event: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a hundred that differ in their text alone, a few are."""
    protocol, parsed = _dialect(name), 0

    def counted(message: bytes) -> Any:
        nonlocal parsed
        parsed += 1
        return json.loads(message)

    monkeypatch.setattr("loadtest.client.protocols.openai.json_of", counted)
    messages = [json.dumps(event).replace(" a", f" word {number}").encode() for number in range(100)]
    answer = Reply()
    read_messages(protocol, messages, array("d", bytes(800)), answer)
    assert (len(answer.times_s), answer.sizes[-1]) == (100, len(" word 99"))
    assert parsed <= 10


def test_a_malformed_event_among_others_of_its_shape_is_one() -> None:
    """What JSON does not allow in a text is not taken for one; the tokens before it count."""
    protocol, answer = _dialect("openai-chat"), Reply()
    event = json.dumps(_chat(content="@")).encode()
    messages = [event, event, event.replace(b"@", b"\n"), event]
    with pytest.raises(ProtocolError, match="malformed message"):
        read_messages(protocol, messages, array("d", [1.0, 2.0, 3.0, 4.0]), answer)
    assert list(answer.times_s) == [1.0, 2.0]


PARTS = st.sampled_from([b'{"a":"', b'"}', b"x", b" the", b"\\n", b'"', b"\xc3\xa9", b"\x7f", b"~", b""])


@given(st.lists(st.lists(PARTS, max_size=5).map(b"".join), max_size=8), st.integers(0, 8), PARTS, PARTS)
def test_the_compiled_form_finds_the_same_plain_texts(
    events: list[bytes], place: int, head: bytes, tail: bytes
) -> None:
    """In any events, from any place, between any bytes."""
    assert shape.plain_sizes(events, place, head, tail) == shape._plain_sizes(events, place, head, tail)
