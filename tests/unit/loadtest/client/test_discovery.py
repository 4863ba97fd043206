"""What a server speaks and which models it serves, found by asking it."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

import pytest

from engines.errors import MissingError
from loadtest.client.discovery import discover_protocol
from loadtest.client.endpoint import ProtocolName, endpoint_of
from loadtest.client.served_models import ServedModel, default_model, ready_models, served_models

TRITON = {"/v2": (200, {"name": "triton", "version": "2.51.0", "extensions": []})}
OPENAI = {"/v1/models": (200, {"object": "list", "data": [{"id": "q", "root": "Qwen/Qwen3-8B"}]})}


@pytest.mark.parametrize(
    ("pages", "path", "protocol"),
    [
        (TRITON, "", "triton-http"),
        (OPENAI, "", "openai-chat"),
        (OPENAI, "/v1", "openai-chat"),
        (TRITON | OPENAI, "", "triton-http"),
        ({"/v1/models": (401, {})}, "", "openai-chat"),
        ({"/v2": (200, {}), "/v1/models": (200, [])}, "", None),
    ],
)
def test_a_server_is_known_by_its_answer(
    serve: Callable[..., int], pages: dict[str, Any], path: str, protocol: str | None
) -> None:
    """Triton names itself, an OpenAI server lists models or asks for a key; anything else stays unknown."""
    found = discover_protocol(f"http://127.0.0.1:{serve(pages)}{path}")
    assert found.protocol == protocol
    assert found.is_reachable
    assert len(found.tried) == {"triton-http": 0, "openai-chat": 1, None: 3}[protocol]


def test_a_closed_port_is_not_asked_three_times() -> None:
    """One reason, not one for each protocol."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        found = discover_protocol(f"http://127.0.0.1:{closed.getsockname()[1]}")
    assert (found.is_reachable, found.tried) == (False, ("Connection refused",))


@pytest.mark.parametrize("url", ["https://127.0.0.1:{}", "grpcs://127.0.0.1:{}"])
def test_a_server_without_tls_is_named_as_such(serve: Callable[..., int], url: str) -> None:
    """One reason and one remedy, not OpenSSL's words three times."""
    with pytest.raises(MissingError, match="the server does not use TLS") as caught:
        discover_protocol(url.format(serve(OPENAI)))
    assert caught.value.hint == "use http:// or grpc://"


def test_models_are_listed_by_every_kind_of_server(serve: Callable[..., int]) -> None:
    """An OpenAI server may say where a model is from; of Triton's, those that serve others are left out."""
    openai = endpoint_of(f"http://127.0.0.1:{serve(OPENAI)}", "openai-chat")
    assert served_models(openai, None) == [ServedModel("q", "Qwen/Qwen3-8B")]
    index = [{"name": name} for name in ("ensemble", "postprocessing", "preprocessing", "tensorrt_llm")]
    triton = endpoint_of(f"http://127.0.0.1:{serve({'/v2/repository/index': (200, index)})}", "triton-http")
    found = served_models(triton, None)
    assert [each.name for each in found] == ["ensemble", "tensorrt_llm"]
    assert default_model(found, is_openai=False) == "tensorrt_llm"
    assert default_model([ServedModel("vllm_model")], is_openai=False) == "vllm_model"
    assert served_models(endpoint_of(f"http://127.0.0.1:{serve({})}", "openai-chat"), None) == []
    ready = {f"/v2/models/{name}/config": (200, {"name": name}) for name in ("ensemble", "tensorrt_llm")}
    private = endpoint_of(f"http://127.0.0.1:{serve(ready)}", "triton-http")
    assert (served_models(private, None), ready_models(private)) == ([], ["tensorrt_llm", "ensemble"])


@pytest.mark.parametrize(
    "answer",
    [b"[" * 100_000, b"\xff\xfe", b"", {"data": 5}, {"data": [None, 1, {}, {"id": 3}, {"id": "\x1b[2J"}]}, [1], "text"],
)
@pytest.mark.parametrize(("protocol", "path"), [("openai-chat", "/v1/models"), ("triton-http", "/v2/repository/index")])
def test_a_hostile_list_holds_no_model(
    serve: Callable[..., int], answer: Any, protocol: ProtocolName, path: str
) -> None:
    """Nothing that a server answers ends in a traceback, or in control characters on the terminal."""
    port = serve({path: (200, answer), "/v2": (200, answer)})
    assert served_models(endpoint_of(f"http://127.0.0.1:{port}", protocol), None) == []
    assert discover_protocol(f"http://127.0.0.1:{port}").is_reachable
