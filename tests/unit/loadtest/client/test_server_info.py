"""What servers say of themselves, and what becomes of those that say something else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from engines.errors import MissingError, UserError
from loadtest.client.endpoint import Endpoint, ProtocolName
from loadtest.client.server_info import server_facts

MODELS = {"object": "list", "data": [{"id": "llama"}, {"id": "qwen"}]}
ENGINE = {
    "input": [{"name": "input_ids"}, {"name": "return_perf_metrics"}],
    "parameters": {
        "emulated": {"string_value": "true"},
        "emulator_time_scale": {"string_value": "4"},
        "engine_name": {"string_value": "an engine"},
    },
}
Pages = dict[str, tuple[int, Any]]


def _endpoint(port: int, protocol: ProtocolName = "openai-chat", base_path: str = "") -> Endpoint:
    return Endpoint(host="127.0.0.1", port=port, protocol=protocol, base_path=base_path)


def test_an_openai_server_is_measured_unless_it_says_otherwise(serve: Callable[..., int]) -> None:
    """The list of models is asked for with the key; a header makes a server an emulated one."""
    plain = serve({"/gateway/v1/models": (200, MODELS)}, key="k")
    facts, tokenizer = server_facts(_endpoint(plain, base_path="/gateway/v1"), "u", "qwen", "k")
    assert (facts.emulated, facts.time_scale, tokenizer) == (False, 1.0, None)
    assert not facts.counts_are_exact  # the API states a reply's tokens once, at its end
    emulated = serve({"/v1/models": (200, MODELS)}, {"X-Engine-Kind": "emulated; time-scale=4"})
    facts, _ = server_facts(_endpoint(emulated), "u", "qwen")
    assert (facts.emulated, facts.time_scale) == (True, 4.0)
    wrong = serve({"/v1/models": (200, MODELS)}, {"X-Engine-Kind": "toy"})
    with pytest.raises(UserError, match="X-Engine-Kind says 'toy'"):
        server_facts(_endpoint(wrong), "u", "qwen")


@pytest.mark.parametrize("pages", [{}, {"/v1/models": (405, {})}, {"/v1/models": (500, {})}])
def test_a_server_that_lists_no_models_is_taken_at_its_word(serve: Callable[..., int], pages: Pages) -> None:
    """Without a list (gateways), or if it fails (transformers serve), requests show whether the model is there."""
    facts, _ = server_facts(_endpoint(serve(pages)), "u", "anything")
    assert (facts.model, facts.emulated) == ("anything", False)


@pytest.mark.parametrize(
    ("pages", "key", "text"),
    [
        ({"/v1/models": (200, MODELS)}, None, "no model 'other'"),
        ({"/v1/models": (200, MODELS)}, "k", "answered 401"),
        ({"/v1/models": (503, {})}, None, "answered 503"),
        ({"/v1/models": (200, b"<html>")}, None, "not a list of models"),
        ({"/v1/models": (200, {"data": [1]})}, None, "not a list of models"),
        *(
            ({"/v1/models": (200, {"data": [{"id": "other"}, {"id": name}]})}, None, "not a list of models")
            for name in (7, None, "", ["x"], "\x1b[2J")
        ),
    ],
)
def test_a_wrong_answer_is_one_clear_error(serve: Callable[..., int], pages: Pages, key: str | None, text: str) -> None:
    """Which names there are, where the key is looked for, what was asked: one line each."""
    with pytest.raises(MissingError, match=text):
        server_facts(_endpoint(serve(pages, key=key)), "u", "other")


def test_triton_says_what_its_engine_is(serve: Callable[..., int]) -> None:
    """The engine's parameters tell, whichever model is asked; the tokenizer is where preprocessing finds it."""
    pages = {
        "/v2": (200, {"version": "2.51.0"}),
        "/v2/models/ensemble/config": (200, {"input": []}),
        "/v2/models/tensorrt_llm/config": (200, ENGINE),
        "/v2/models/preprocessing/config": (200, {"parameters": {"tokenizer_dir": {"string_value": "/t"}}}),
    }
    endpoint = _endpoint(serve(pages), "triton-http")
    facts, tokenizer = server_facts(endpoint, "u", "ensemble")
    assert (facts.triton_version, facts.emulated, facts.time_scale, facts.engine) == ("2.51.0", True, 4.0, "an engine")
    assert (facts.perf_metrics, tokenizer, facts.counts_are_exact) == (False, "/t", True)
    assert server_facts(endpoint, "u", "tensorrt_llm")[0].perf_metrics


def test_a_model_that_triton_does_not_serve_is_met_with_those_it_does(serve: Callable[..., int]) -> None:
    """From its index; if that is restricted, from the usual models' own answers; else Triton's answer is the error."""
    version = {"/v2": (200, {"version": "2.51.0"})}
    index = {"/v2/repository/index": (200, [{"name": "mine"}, {"name": "preprocessing"}])}
    usual = {"/v2/models/ensemble/config": (200, {"input": []}), "/v2/repository/index": (403, {})}
    for pages, hint in ((index, "mine"), (usual, "ensemble")):
        with pytest.raises(MissingError, match=r"^u: no model 'an/other'$") as caught:
            server_facts(_endpoint(serve(version | pages), "triton-http"), "u", "an/other")
        assert caught.value.hint == f"--model: one of {hint}"
    with pytest.raises(MissingError, match="/v2/models/an%2Fother/config") as caught:
        server_facts(_endpoint(serve(version), "triton-http"), "u", "an/other")
    assert caught.value.hint == "check --url, --protocol and --model"
    many = [{"id": f"m{each}"} for each in range(9)]
    with pytest.raises(MissingError) as caught:
        server_facts(_endpoint(serve({"/v1/models": (200, {"data": many})})), "u", "other")
    assert caught.value.hint == "--model: one of m0, m1, m2, m3, m4, m5, m6, m7 and 1 more"
