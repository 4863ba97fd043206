"""Requests that nobody would write: each is served or refused in OpenAI's shape, and none is a bug."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from triton_repo.openai_api.errors import ApiError
from triton_repo.openai_api.requests import ApiRequest, ChatRequest, CompletionRequest, read_request
from triton_repo.openai_api.service import Service, Work
from triton_repo.openai_api.triton_client import encode

CASES = 60  # of each kind of request, in every run of the tests
_KEYS = sorted({*ChatRequest.model_fields, *CompletionRequest.model_fields, "nonsense", ""})
_NUMBERS = st.one_of(st.integers(), st.floats(allow_nan=True), st.sampled_from([2**31, 2**63, 2**64, -1, 0, 1e308]))
_LEAVES = st.one_of(
    st.none(), st.booleans(), _NUMBERS, st.text(max_size=20), st.text(alphabet="<think>/|{}% ", max_size=20)
)
_VALUES = st.recursive(
    _LEAVES,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=6), inner, max_size=4)),
    max_leaves=8,
)
_CONTENT = st.one_of(
    st.text(max_size=40),
    _VALUES,
    st.lists(st.fixed_dictionaries({"type": st.just("text"), "text": st.text(max_size=9)})),
)
_MESSAGES = st.lists(
    st.dictionaries(
        st.sampled_from(["role", "content", "name", "tool_calls", "reasoning_content"]), _VALUES, max_size=4
    )
    | st.fixed_dictionaries(
        {"role": st.sampled_from(["user", "assistant", "system", "tool", "king"]), "content": _CONTENT}
    ),
    max_size=5,
)
_CHAT = st.fixed_dictionaries(
    {"model": st.just("r1"), "messages": _MESSAGES},
    optional={key: _VALUES for key in _KEYS if key not in {"model", "messages", "prompt"}},
)
_PROMPTS = st.one_of(st.text(max_size=40), st.lists(st.integers(-5, 400), max_size=9), _VALUES)
_COMPLETION = st.fixed_dictionaries(
    {"model": st.just("r1"), "prompt": _PROMPTS},
    optional={key: _VALUES for key in _KEYS if key not in {"model", "messages", "prompt"}},
)


def _served(body: bytes, schema: type[ApiRequest], prepare: Any) -> Work | None:
    """Return the work of a request; None where it was refused as it should be."""
    try:
        work: Work = prepare(read_request(body, schema))
    except ApiError as refused:
        problem = refused
    else:
        return work
    assert 400 <= problem.status < 500
    assert json.loads(problem.body())["error"]["message"]
    return None


@settings(max_examples=CASES, deadline=None)
@given(body=st.one_of(_CHAT, _COMPLETION))
def test_odd_requests_are_served_or_refused(service: Service, body: dict[str, Any]) -> None:
    """Whatever is left reaches the engine as a request that can be written, within its limits."""
    text = json.dumps(body).encode()
    for schema, prepare in ((ChatRequest, service.chat), (CompletionRequest, service.completion)):
        work = _served(text, schema, prepare)
        if work is not None:
            assert 1 <= work.prompt_tokens <= 64
            assert 1 <= work.generation.request_output_len <= 512 - work.prompt_tokens
            assert encode(work.generation, "tensorrt_llm", "fuzz")


@settings(max_examples=CASES, deadline=None)
@given(body=st.binary(max_size=200))
def test_odd_bytes_are_refused(service: Service, body: bytes) -> None:
    """They are no request."""
    assert _served(body, ChatRequest, service.chat) is None


@settings(max_examples=CASES, deadline=None)
@given(body=_CHAT, cut=st.integers(0, 400), put=st.binary(max_size=3))
def test_damaged_requests_are_served_or_refused(service: Service, body: dict[str, Any], cut: int, put: bytes) -> None:
    """A byte too few, or some too many."""
    text = json.dumps(body).encode()
    _served(text[:cut] + put + text[cut + 1 :], ChatRequest, service.chat)
