"""The server of a run: what is found, and what is asked for at once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from engines.errors import MissingError, UserError
from engines.files import source_of, write_json
from loadtest.run.target import TargetOptions, target_of
from loadtest.run.tokenizer import find_tokenizer, of_earlier_runs
from tests.unit.loadtest.made import manifest

MODEL = {"id": "my-model", "root": "owner/name"}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Lay a tokenizer where Hugging Face's library keeps those it downloads."""
    file = tmp_path / "hub/models--owner--name/snapshots/abc/tokenizer.json"
    file.parent.mkdir(parents=True)
    file.write_text("{}")
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    return file


def test_a_url_is_enough(serve: Callable[..., int], cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Protocol, the only model, its tokenizer and the metrics page are found and printed."""
    port = serve({"/v1/models": (200, {"data": [MODEL]}), "/metrics": (200, b"vllm:num_requests_running 1\n")})
    found = target_of(TargetOptions(f"http://127.0.0.1:{port}"), "tensorrt_llm")
    assert (found.facts.protocol, found.facts.model, found.tokenizer) == ("openai-chat", "my-model", cache)
    said = capsys.readouterr().err
    assert "openai-chat, model my-model" in said
    assert f"tokenizer: {cache} (Hugging Face cache)" in said
    assert "metrics: " in said


@pytest.mark.usefixtures("cache")
def test_a_server_that_requires_a_key_is_found_with_it_and_its_metrics_page_is_read(
    serve: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The page is the server's own: it gets the key, and a page elsewhere that would take it does not."""
    pages = {"/v1/models": (200, {"data": [MODEL]}), "/metrics": (200, b"vllm:num_requests_running 1\n")}
    url = f"http://127.0.0.1:{serve(pages, key='k')}"
    monkeypatch.setenv("MY_KEY", "k")
    found = target_of(TargetOptions(url, api_key_env="MY_KEY"), "tensorrt_llm")
    assert (found.facts.model, found.metrics_urls) == ("my-model", (f"{url}/metrics",))
    elsewhere = f"http://127.0.0.1:{serve(pages, key='k')}/metrics"
    with pytest.raises(MissingError, match="the metrics page cannot be read: status 401"):
        target_of(TargetOptions(url, api_key_env="MY_KEY", metrics_url=(elsewhere,)), "tensorrt_llm")


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("", "set MY_KEY to a key of this server, or name another variable with --api-key-env"),
        ("wrong", "check the key in $MY_KEY"),
    ],
)
def test_without_its_key_a_server_s_refusal_is_the_error(
    serve: Callable[..., int], monkeypatch: pytest.MonkeyPatch, key: str, hint: str
) -> None:
    """It is not taken for a server without models."""
    url = f"http://127.0.0.1:{serve({'/v1/models': (200, {'data': [MODEL]})}, key='k')}"
    monkeypatch.setenv("MY_KEY", key)
    with pytest.raises(MissingError) as refused:
        target_of(TargetOptions(url, api_key_env="MY_KEY"), "tensorrt_llm")
    assert str(refused.value) == f"{url}: GET /v1/models answered 401"
    assert refused.value.hint == hint


@pytest.mark.parametrize(
    ("page", "reason"),
    [
        ("http://127.0.0.1:1/metrics", "Connection refused"),
        ("{served}/nothing", "status 404"),
        ("metrics", "unknown url"),
    ],
)
def test_a_given_metrics_page_must_answer(serve: Callable[..., int], cache: Path, page: str, reason: str) -> None:
    """A run without the server's own batch sizes is not what was asked for."""
    served = f"http://127.0.0.1:{serve({'/v1/models': (200, {'data': [MODEL]})})}"
    options = TargetOptions(served, tokenizer=cache, metrics_url=(page.format(served=served),))
    with pytest.raises(MissingError, match=rf"the metrics page cannot be read: {reason}"):
        target_of(options, "tensorrt_llm")


def test_everything_missing_is_asked_for_at_once(serve: Callable[..., int]) -> None:
    """One error names the protocol, the model and the tokenizer, and one hint all three flags."""
    with pytest.raises(MissingError, match=r"protocol \(GET /v2: status 404; .*model \(.*tokenizer \(") as caught:
        target_of(TargetOptions(f"http://127.0.0.1:{serve({})}"), "tensorrt_llm")
    assert caught.value.hint is not None
    assert [flag in caught.value.hint for flag in ("--protocol", "--model", "--tokenizer")] == [True] * 3


def test_a_path_below_the_api_is_the_error(serve: Callable[..., int]) -> None:
    """The URL of one request, as in a curl command, is answered with the root of the server, not with three flags."""
    url = f"http://127.0.0.1:{serve({'/v1/models': (200, {'data': [MODEL]})})}/v1/chat/completions"
    with pytest.raises(MissingError, match="no known API below this path") as caught:
        target_of(TargetOptions(url), "tensorrt_llm")
    assert caught.value.hint is not None
    assert caught.value.hint.startswith("give the URL without the path")


def test_a_protocol_that_the_server_does_not_speak_is_the_error(serve: Callable[..., int]) -> None:
    """Not a tokenizer that would not help: Triton's own port has no chats."""
    url = f"http://127.0.0.1:{serve({'/v2': (200, {'name': 'triton', 'version': '2.51'})})}"
    with pytest.raises(UserError, match=f"{url} answers as triton-http, not as openai-chat") as caught:
        target_of(TargetOptions(url, protocol="openai-chat", model="m"), "tensorrt_llm")
    assert caught.value.hint is not None
    assert caught.value.hint.startswith("omit --protocol")
    with pytest.raises(MissingError, match="no tokenizer"):  # a server without a list of models may have chats
        target_of(TargetOptions(f"http://127.0.0.1:{serve({})}", protocol="openai-chat", model="m"), "tensorrt_llm")


def test_one_of_several_models_is_never_guessed(serve: Callable[..., int], cache: Path) -> None:
    """The names are listed; a stated tokenizer is not asked for again."""
    port = serve({"/v1/models": (200, {"data": [MODEL, {"id": "other"}]})})
    with pytest.raises(MissingError, match=r"model \(my-model, other\)$") as caught:
        target_of(TargetOptions(f"http://127.0.0.1:{port}", tokenizer=cache), "tensorrt_llm")
    assert caught.value.hint == "--model NAME"
    found = target_of(TargetOptions(f"http://127.0.0.1:{port}", model="other", tokenizer=cache), "tensorrt_llm")
    assert found.facts.model == "other"


def test_a_scenario_s_own_model_is_kept(serve: Callable[..., int], cache: Path) -> None:
    """Only the default gives way to what the server serves."""
    port = serve({"/v1/models": (200, {"data": [MODEL]})})
    with pytest.raises(MissingError, match="no model 'ensemble'"):
        target_of(TargetOptions(f"http://127.0.0.1:{port}", tokenizer=cache), "ensemble")


def test_nobody_listening_is_one_reason() -> None:
    """Not a list of everything that is then unknown."""
    with pytest.raises(MissingError, match=r"no server answers at http://127.0.0.1:1: Connection refused"):
        target_of(TargetOptions("http://127.0.0.1:1"), "tensorrt_llm")


def test_the_tokenizer_of_an_earlier_run_against_the_same_model_is_used_again(
    serve: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Only if server, model and file are the same, and not for a Triton engine whose name is unknown."""
    given = tmp_path / "given" / "tokenizer.json"
    given.parent.mkdir()
    given.write_text("{}")
    url = f"http://127.0.0.1:{serve({'/v1/models': (200, {'data': [{'id': 'mine'}]})})}"
    facts = manifest().server.model_copy(update={"url": url, "model": "mine", "protocol": "openai-chat"})
    run = manifest().model_copy(update={"server": facts, "made_from": [source_of(given)]})
    (tmp_path / "runs" / "first").mkdir(parents=True)
    write_json(tmp_path / "runs" / "first" / "run.json", run)
    options = TargetOptions(url, earlier_runs=tmp_path / "runs")
    assert target_of(options, "tensorrt_llm").tokenizer == given
    assert f"tokenizer: {given} (used by an earlier run against this model)" in capsys.readouterr().err
    for other in ({"model": "other"}, {"url": "http://127.0.0.1:1"}, {"engine": "another"}):
        assert not list(of_earlier_runs(facts.model_copy(update=other), tmp_path / "runs"))
    any_engine = facts.model_copy(update={"model": "tensorrt_llm"})
    write_json(tmp_path / "runs" / "first" / "run.json", run.model_copy(update={"server": any_engine}))
    assert not list(of_earlier_runs(any_engine, tmp_path / "runs"))
    write_json(tmp_path / "runs" / "first" / "run.json", run)
    given.write_text("{ }")
    with pytest.raises(MissingError, match="tokenizer"):
        target_of(options, "tensorrt_llm")


def test_a_tokenizer_is_looked_for_where_the_model_is(tmp_path: Path) -> None:
    """The server's folder first, then the folder the model is served from; every place tried is named."""
    (tmp_path / "tokenizer.json").write_text("{}")
    assert find_tokenizer(str(tmp_path), "m").origin == "named by the server"
    found = find_tokenizer("/no/such/folder", "m", root=str(tmp_path))
    assert (found.path, found.origin) == (tmp_path / "tokenizer.json", "the model's folder")
    assert find_tokenizer("/no/such/folder", "m").tried == ("/no/such/folder (named by the server)",)
