"""Detects a server's protocol and the models it serves."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any

from engines.errors import MissingError
from engines.http_fetch import Deadline, bearer, connected, fetch
from engines.model_list import is_model_name
from loadtest.client.endpoint import Endpoint, ProtocolName, endpoint_of, tls_context
from loadtest.client.protocols.triton_http import ENGINE_MODEL
from loadtest.client.server_info import ANSWER_LIMIT_BYTES, NEEDS_KEY, UNTRUSTED, call, key_hint, untrusted

PROBE_WITHIN_S = 2.0
_PARTS = frozenset({"preprocessing", "postprocessing"})
_STATUS = "status "
_KEY_REFUSED = frozenset(f"{_STATUS}{status.value}" for status in NEEDS_KEY)


@dataclass(frozen=True, slots=True)
class Discovery:
    """The requests made to detect a server's protocol, and its answers.

    Attributes:
        protocol: None if no answer identifies it.
        tried: Each request with its answer, for a message.
        is_reachable: Whether any connection was accepted.
    """

    protocol: ProtocolName | None
    tried: tuple[str, ...]
    is_reachable: bool


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model that a server lists.

    Attributes:
        root: Folder or published name that an OpenAI server says it was loaded from; empty if not stated.
    """

    name: str
    root: str = ""


def discover_protocol(url: str, *, ca_file: Path | None = None, insecure: bool = False) -> Discovery:
    """Detect a server's protocol: try Triton's HTTP, OpenAI's list of models, and Triton's gRPC, in that order.

    Raises:
        UserError: As `endpoint_of` does.
        MissingError: The server's certificate is not trusted.
    """
    tried: list[str] = []
    is_grpc = url.partition("://")[0] in {"grpc", "grpcs"}
    probes: list[tuple[ProtocolName, str, Callable[[Endpoint], str]]] = [
        ("triton-http", "GET {base}/v2", _probe_triton),
        ("openai-chat", "GET {v1}/models", _probe_openai),
        ("triton-grpc", "gRPC ServerMetadata", _probe_grpc),
    ]
    chosen = probes[2:] if is_grpc else probes
    refusal = _refusal(endpoint_of(url, chosen[0][0], ca_file=ca_file, insecure=insecure))
    if refusal:
        return Discovery(None, (refusal,), False)
    for protocol, name, probe in chosen:
        endpoint = endpoint_of(url, protocol, ca_file=ca_file, insecure=insecure)
        response = probe(endpoint)
        if not response:
            return Discovery(protocol, tuple(tried), True)
        if UNTRUSTED in response:
            raise untrusted(endpoint, response)
        tried.append(f"{name.format(base=endpoint.base_path, v1=endpoint.v1_path)}: {response}")
    return Discovery(None, tuple(tried), True)


def served_models(endpoint: Endpoint, key: str | None) -> list[ServedModel]:
    """Return the models that a server lists, in its order; empty if it lists none.

    Triton's models that only preprocess or postprocess text are omitted.

    Raises:
        MissingError: The list needs a key, and none was given or it was refused.
    """
    if endpoint.is_openai:
        path = f"{endpoint.v1_path}/models"
        document = _json(endpoint, path, key=key)
        if isinstance(document, str) and document in _KEY_REFUSED:
            raise MissingError(
                f"{endpoint.url('')}: GET {path} answered {document.removeprefix(_STATUS)}",
                hint=key_hint(endpoint, key),
            )
        data = document.get("data") if isinstance(document, dict) else None
        return _models(data, "id")
    if endpoint.protocol == "triton-grpc":
        return _grpc_models(endpoint)
    document = _json(endpoint, f"{endpoint.base_path}/v2/repository/index", body=b"{}")
    return [each for each in _models(document, "name") if each.name not in _PARTS]


def _models(listed: Any, key: str) -> list[ServedModel]:
    """Return the models of a list, without entries that are malformed or have unprintable names."""
    found = [each for each in listed if isinstance(each, dict)] if isinstance(listed, list) else []
    pairs = [(each.get(key), each.get("root")) for each in found]
    return [
        ServedModel(name, root if isinstance(root, str) and root.isprintable() else "")
        for name, root in pairs
        if is_model_name(name)
    ]


def default_model(models: list[ServedModel], *, is_openai: bool) -> str | None:
    """Return the default model: the engine's own, or the only one; None if there is no such model.

    >>> default_model([ServedModel("ensemble"), ServedModel("tensorrt_llm")], is_openai=False)
    'tensorrt_llm'
    >>> default_model([ServedModel("a"), ServedModel("b")], is_openai=True) is None
    True
    """
    names = [each.name for each in models]
    if not is_openai and ENGINE_MODEL in names:
        return ENGINE_MODEL
    return names[0] if len(names) == 1 else None


def _refusal(endpoint: Endpoint) -> str:
    """Return why connections are refused; empty if they are accepted."""
    try:
        connected(endpoint.host, endpoint.port, Deadline(PROBE_WITHIN_S)).close()
    except OSError as error:
        return error.strerror or str(error)
    return ""


def _probe_triton(endpoint: Endpoint) -> str:
    document = _json(endpoint, f"{endpoint.base_path}/v2")
    if isinstance(document, str):
        return document
    return "" if isinstance(document, dict) and {"name", "version"} <= set(document) else "not Triton's answer"


def _probe_openai(endpoint: Endpoint) -> str:
    document = _json(endpoint, f"{endpoint.v1_path}/models")
    if isinstance(document, str):
        return "" if document in _KEY_REFUSED else document  # a list that requires a key is still a list
    return "" if isinstance(document, dict) and isinstance(document.get("data"), list) else "not a list of models"


def _probe_grpc(endpoint: Endpoint) -> str:
    try:
        call(endpoint, "ServerMetadata", b"", limit_s=PROBE_WITHIN_S)
    except MissingError as error:
        return error.message
    return ""


def _grpc_models(endpoint: Endpoint) -> list[ServedModel]:
    from tritonclient.grpc import service_pb2 as triton  # noqa: PLC0415 (loads protobuf, which only this needs)

    try:
        response = call(endpoint, "RepositoryIndex", triton.RepositoryIndexRequest().SerializeToString())
    except MissingError:
        return []
    models = triton.RepositoryIndexResponse.FromString(response).models
    return [ServedModel(each.name) for each in models if each.name not in _PARTS]


def _json(endpoint: Endpoint, path: str, *, key: str | None = None, body: bytes | None = None) -> Any:
    """Return a page's JSON content; a string states why there is none."""
    request = urllib.request.Request(endpoint.url(path), data=body, headers=bearer(key))
    try:
        answer = fetch(request, limit_s=PROBE_WITHIN_S, limit_bytes=ANSWER_LIMIT_BYTES, context=tls_context(endpoint))
        if answer.status >= HTTPStatus.BAD_REQUEST:
            return f"{_STATUS}{answer.status}"
        document = json.loads(answer.body)
    except OSError as error:
        return error.strerror or str(error)
    except (ValueError, RecursionError):  # thousands of nested brackets
        return "not JSON"
    return "a text" if isinstance(document, str) else document
