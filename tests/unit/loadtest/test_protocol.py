"""The lean reader of Triton's event stream, fed every way a network can."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.prompts import Prompt
from loadtest.protocol import ProtocolError, StreamReader, generate_body, generate_request, outcome_of

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


def _chunk(data: bytes) -> bytes:
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


def _event(**values: object) -> bytes:
    return b"data: " + json.dumps(values).encode() + b"\n\n"


REPLY = (
    HEAD
    + _chunk(_event(output_ids=5, sequence_length=1))
    + _chunk(_event(output_ids=[6, 7, 8], sequence_length=3) + _event(output_ids=9, sequence_length=1))
    + _chunk(_event(text_output=""))
    + b"0\r\n\r\n"
)


@given(st.lists(st.integers(1, len(REPLY) - 1), max_size=12))
def test_however_the_bytes_are_cut_the_tokens_are_the_same(cuts: list[int]) -> None:
    """Six tokens in three chunks, whatever pieces they arrive in."""
    places = [0, *sorted(set(cuts)), len(REPLY)]
    reader = StreamReader()
    tokens = sum(reader.feed(REPLY[begin:end]) for begin, end in pairwise(places))
    assert tokens == 6
    assert reader.ended
    assert reader.keeps_connection


def test_a_connection_closed_early_is_an_error() -> None:
    """A stream without its last chunk was cut, however many tokens came."""
    reader = StreamReader()
    assert reader.feed(REPLY[:-5]) == 6
    with pytest.raises(ProtocolError, match="before the end of the reply"):
        reader.close()


def test_an_error_event_is_an_error() -> None:
    """An error inside a stream that began well is raised in the server's words."""
    reader = StreamReader()
    with pytest.raises(ProtocolError, match="Maximum queue size of 2"):
        reader.feed(HEAD + _chunk(_event(error="Maximum queue size of 2 has been reached, please try again later")))


def test_an_error_status_carries_the_servers_words() -> None:
    """A 400 with a JSON body says what the body says."""
    body = b'{"error":"request_output_len is 0"}'
    head = f"HTTP/1.1 400 Bad Request\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    with pytest.raises(ProtocolError, match="request_output_len is 0"):
        StreamReader().feed(head + body)


def test_an_error_with_status_200_is_an_error() -> None:
    """Triton answers some failures with 200 and a JSON error."""
    body = b'{"error":"generate expects model to produce exactly 1 response"}'
    head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    with pytest.raises(ProtocolError, match="exactly 1 response"):
        StreamReader().feed(head + body)


@pytest.mark.parametrize(
    "junk", [b"SSH-2.0-OpenSSH\r\n\r\n", HEAD + b"xyz\r\n", b"HTTP/1.1 200 OK\r\n\r\n", b"x" * 70_000]
)
def test_what_is_no_such_stream_is_refused(junk: bytes) -> None:
    """Another protocol, a broken chunk, a body without length, headers without end."""
    with pytest.raises(ProtocolError):
        StreamReader().feed(junk)


def test_a_full_queue_is_a_rejection() -> None:
    """Both Triton's and TensorRT-LLM's words for it."""
    assert outcome_of("[request id: r1] Exceeds maximum queue size") == "rejected"
    assert outcome_of("Maximum queue size of 2 has been reached, please try again later") == "rejected"
    assert outcome_of("anything else") == "error"


def test_requests_carry_what_the_models_take() -> None:
    """The engine takes tokens, the text models text; both are told to reply to the full length."""
    prompt = Prompt(tokens=2, ids=(7, 8), text="hi")
    engine = generate_body("tensorrt_llm", prompt, 5, "r1")
    assert (engine["input_ids"], engine["input_lengths"], engine["request_output_len"]) == ([7, 8], 2, 5)
    text = generate_body("ensemble", prompt, 5, "r1")
    assert (text["text_input"], text["max_tokens"], text["min_tokens"]) == ("hi", 5, 5)
    sent = generate_request("h:1", "ensemble", text)
    head, _, body = sent.partition(b"\r\n\r\n")
    assert head.startswith(b"POST /v2/models/ensemble/generate_stream HTTP/1.1\r\nHost: h:1")
    assert f"Content-Length: {len(body)}".encode() in head
