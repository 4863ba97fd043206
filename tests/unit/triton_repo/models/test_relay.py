"""The relayed engine with a stand-in for the server behind it: what it is asked, what comes back, how requests end."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.fake_completions import MODEL, CompletionsStandIn, serving
from tests.fake_triton import FakeBackend, FakeRequest
from triton_repo.models.completions import CompletionsServer, RelayError
from triton_repo.models.relay import RelayModel

LIMIT_S = 20


@pytest.fixture
def url() -> Iterator[str]:
    """Serve the stand-in."""
    with serving() as found:
        yield found


def _config(url: str, model: str = MODEL) -> dict[str, str]:
    parameters = {
        "engine_url": url,
        "engine_model": model,
        "vocabulary": "1000",
        "max_output_tokens": "64",
        "max_prompt_tokens": "8",
        "stats_check_period_ms": "10",
    }
    config = {
        "max_batch_size": 4,
        "parameters": {key: {"string_value": value} for key, value in parameters.items()},
        "model_transaction_policy": {"decoupled": True},
    }
    return {"model_config": json.dumps(config), "model_name": "tensorrt_llm", "model_version": "1"}


@pytest.fixture
def model(url: str) -> Iterator[RelayModel]:
    """Load the model."""
    made = RelayModel()
    made.backend = FakeBackend
    made.initialize(_config(url))
    yield made
    made.finalize()


def _request(ids: list[int], output: int, request_id: str = "", *, streaming: bool = True, **more: Any) -> FakeRequest:
    given = {
        "input_ids": [ids],
        "input_lengths": [[len(ids)]],
        "request_output_len": [[output]],
        "streaming": [[streaming]],
    }
    return FakeRequest(request_id, **given, **{name: [[value]] for name, value in more.items()})


def _pieces(request: FakeRequest) -> list[list[int]]:
    assert request.sender.ended.wait(LIMIT_S)
    return [response.outputs["output_ids"].reshape(-1).tolist() for response in request.sender.sent]


def test_tokens_stream_as_the_server_makes_them(model: RelayModel) -> None:
    """One response for each of the server's, the last of them final; the end of the prompt is not touched."""
    request = _request([1, 2, 3], 16)
    model.execute([request])
    assert _pieces(request) == [[2, 3], [4], []]
    [asked] = CompletionsStandIn.asked
    assert asked == {
        "model": MODEL,
        "prompt": [1, 2, 3],
        "max_tokens": 16,
        "stream": True,
        "return_token_ids": True,
        "ignore_eos": True,
        "stop_token_ids": [],
        "temperature": 0.0,
    }


def test_sampling_goes_by_the_servers_names(model: RelayModel) -> None:
    """A top k of one is greedy, an end token stops and is not given out."""
    request = _request([1, 2], 5, end_id=7, runtime_top_k=1, runtime_top_p=0.5, seed=3, repetition_penalty=1.5)
    model.execute([request])
    assert _pieces(request) == [[2, 3], []]
    [asked] = CompletionsStandIn.asked
    assert (asked["stop_token_ids"], asked["seed"], asked["temperature"]) == ([7], 3, 0.0)
    assert (asked["top_k"], asked["top_p"], asked["repetition_penalty"]) == (1, 0.5, 1.5)


def test_a_whole_reply_comes_in_one_response(model: RelayModel) -> None:
    """With the prompt before it, as TensorRT-LLM does unless told otherwise, and its lengths where they are wanted."""
    request = _request([1, 2, 3], 9, streaming=False, return_num_input_tokens=True)
    model.execute([request])
    assert _pieces(request) == [[1, 2, 3, 2, 3, 4]]
    assert request.sender.sent[0].outputs["num_input_tokens"].tolist() == [[3]]


def test_a_stop_word_ends_a_reply_and_the_servers_work(model: RelayModel) -> None:
    """The word's last token is the reply's last, though the server had more."""
    request = _request([999], 64)
    request.inputs |= FakeRequest("", stop_words_list=[[[5, 5, 2, -1]]]).inputs
    model.execute([request])
    tokens = [token for piece in _pieces(request) for token in piece]
    assert tokens == [1000, 5, 5]
    assert CompletionsStandIn.left.wait(LIMIT_S)


@pytest.mark.parametrize("how", ["leaves", "stops", "unloads"])
def test_the_server_sees_a_client_leave(model: RelayModel, how: str) -> None:
    """A cancelled request, a stopped one and an unloaded model end the exchange."""
    request = _request([999], 64, request_id="one")
    model.execute([request])
    assert request.sender.begun.wait(LIMIT_S)
    if how == "leaves":
        request.sender.cancelled = True
    elif how == "stops":
        stopping = _request([1], 1, request_id="one", stop=True)
        model.execute([stopping])
        assert stopping.sender.ended.wait(LIMIT_S)
    else:
        model.finalize()
    assert request.sender.ended.wait(LIMIT_S)
    assert CompletionsStandIn.left.wait(LIMIT_S)


@pytest.mark.parametrize(
    ("request_", "complaint"),
    [
        (_request([400], 4), "HTTP 400: too long for me"),
        (_request([500], 4), "the response ended without [DONE]"),
        (_request([1] * 9, 4), "the prompt has 9 tokens; at most 8"),
        (_request([1], 65), "request_output_len is 65; at most 64"),
        (_request([1000], 1), "input_ids holds 1000; the model's tokens are 0 to 999"),
        (_request([1], 1, beam_width=2), "beam_width above 1 is not relayed"),
        (_request([1], 1, return_log_probs=True), "return_log_probs is not relayed"),
    ],
)
def test_what_cannot_be_relayed_ends_with_an_error(model: RelayModel, request_: FakeRequest, complaint: str) -> None:
    """The server's own words where it refuses, ours where it cannot be asked; the next request is answered."""
    model.execute([request_])
    assert request_.sender.ended.wait(LIMIT_S)
    assert complaint in str(request_.sender.sent[-1].error)
    following = _request([1, 2], 2)
    model.execute([following])
    assert _pieces(following) == [[2, 3], []]


def test_a_model_that_is_not_served_is_not_loaded(url: str) -> None:
    """Triton shows what the server has instead; a server that is not there is named."""
    made = RelayModel()
    made.backend = FakeBackend
    with pytest.raises(RelayError, match="serves smollm2, not llama"):
        made.initialize(_config(url, "llama"))
    with pytest.raises(RelayError, match=r"http://127\.0\.0\.1:9/v1/models"):
        made.initialize(_config("http://127.0.0.1:9"))
    assert CompletionsServer(url).models() == [MODEL]


@pytest.mark.parametrize(
    "listed", [[{"id": 7}], [{"id": None}], [{"id": ""}], [{"id": "a\nb"}], ["x"], [None], None, 5, {}]
)
def test_only_names_are_models(url: str, listed: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that lists something else is refused, not relayed to under the name "7"."""
    assert CompletionsServer(url).models() == [MODEL]
    monkeypatch.setattr(CompletionsStandIn, "listed", [{"id": MODEL}, *listed] if isinstance(listed, list) else listed)
    with pytest.raises(RelayError, match="not a list of model names"):
        CompletionsServer(url).models()
