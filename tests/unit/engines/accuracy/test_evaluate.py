"""What a server says of itself before it is evaluated, and how long it may take to."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from engines.accuracy import Questions, Server, evaluate, evaluate_server
from engines.errors import CommandError, ToolError, UserError
from tests.unit.conftest import OK, Answering


def _refusal(url: str, model: str | None = None) -> CommandError:
    with pytest.raises(CommandError) as refused:
        evaluate_server(Server(url, model), Path("no-tokenizer"), Questions(tasks=()), progress=lambda _: None)
    return refused.value


def _page(document: Any) -> list[bytes]:
    body = json.dumps(document).encode()
    return [OK + b"Content-Length: %d\r\n\r\n" % len(body) + body]


def test_a_server_that_lists_its_models_byte_by_byte_is_given_up(
    answering: Answering, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The limit counts for the whole list."""
    monkeypatch.setattr(evaluate, "_LIST_WITHIN_S", 0.3)
    url = "http://" + answering([OK + b"\r\n", *[b" "] * 200], pause_s=0.05)
    began_s = time.monotonic()
    assert "no complete answer within 0.3 s" in str(_refusal(url))
    assert time.monotonic() - began_s < 2


@pytest.mark.parametrize("name", [7, None, "", ["x"], "\x1b[2J"])
@pytest.mark.parametrize("model", [None, "7", "None"])
def test_only_text_is_a_models_name(answering: Answering, name: Any, model: str | None) -> None:
    """A model 7 is not the model "7", and null is not "None"."""
    refused = _refusal("http://" + answering(_page({"data": [{"id": name}]})), model)
    assert isinstance(refused, ToolError)
    assert "/v1/models: not a list of model names" in str(refused)


@pytest.mark.parametrize(
    ("entry", "model", "kind", "text"),
    [
        ({"engine": {"kind": "emulated"}}, None, UserError, "emulated"),
        ({}, "b", UserError, "serves a, not b"),
        ({"max_model_len": "long"}, None, ToolError, "max_model_len is 'long'"),
        ({"max_model_len": [4096]}, None, ToolError, "max_model_len is '[4096]'"),
        ({"max_model_len": True}, None, ToolError, "max_model_len is 'True'"),
        ({"max_model_len": -1}, None, ToolError, "max_model_len is '-1'"),
    ],
)
def test_what_a_server_says_of_its_model_is_checked(
    answering: Answering, entry: dict[str, Any], model: str | None, kind: type[CommandError], text: str
) -> None:
    """One line each, before the harness is loaded."""
    refused = _refusal("http://" + answering(_page({"data": [{"id": "a"} | entry]})), model)
    assert isinstance(refused, kind)
    assert text in str(refused)


@pytest.mark.parametrize(
    "reply",
    [
        {},
        {"choices": []},
        {"choices": [None]},
        *({"choices": [{"logprobs": each}]} for each in (None, "abc", {})),
        *(
            {"choices": [{"logprobs": {"token_logprobs": each}}]}
            for each in (None, 7, "abc", {"0": -1.0}, [None, -1.0], [None, "a", "b"], [None, None, -1.0])
        ),
    ],
)
def test_a_reply_without_log_probabilities_says_that_there_are_none(answering: Answering, reply: Any) -> None:
    """Whatever it has in their place."""
    assert not evaluate._returns_probabilities("http://" + answering(_page(reply)), "a", _Words())


def test_log_probabilities_of_the_prompt_are_recognized(answering: Answering) -> None:
    """The first token has none."""
    found = {"choices": [{"logprobs": {"token_logprobs": [None, -1.0, -2, -0.5]}}]}
    assert evaluate._returns_probabilities("http://" + answering(_page(found)), "a", _Words())


@pytest.mark.parametrize("status", ["400 Bad Request", "422 Unprocessable Entity", "501 Not Implemented"])
def test_a_server_that_refuses_the_request_as_such_has_no_log_probabilities(answering: Answering, status: str) -> None:
    """It knows no `echo`, or no `logprobs`."""
    page = f"HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n".encode()
    assert not evaluate._returns_probabilities("http://" + answering([page]), "a", _Words())


@pytest.mark.parametrize("status", ["401 Unauthorized", "404 Not Found", "429 Too Many Requests", "503 Unavailable"])
def test_another_refusal_does_not_pass_for_missing_log_probabilities(answering: Answering, status: str) -> None:
    """A key, an overload or a failure has nothing to do with what the server can return."""
    page = f"HTTP/1.1 {status}\r\nContent-Length: 4\r\n\r\nbusy".encode()
    with pytest.raises(ToolError, match=f"/v1/completions: status {status[:3]}: busy"):
        evaluate._returns_probabilities("http://" + answering([page]), "a", _Words())


class _Words:
    """A tokenizer of four tokens."""

    def encode(self, _text: str, *, add_special_tokens: bool) -> list[int]:
        """Return them."""
        assert not add_special_tokens
        return [1, 2, 3, 4]
