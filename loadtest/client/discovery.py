"""Detects a server's protocol."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from engines.errors import MissingError
from engines.http_fetch import Deadline, connected
from loadtest.client.endpoint import Endpoint, ProtocolName, endpoint_of
from loadtest.client.queries import KEY_REFUSED, PROBE_WITHIN_S, TlsError, call, json_or_reason, refused_tls


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


def discover_protocol(url: str, *, ca_file: Path | None = None, insecure: bool = False) -> Discovery:
    """Detect a server's protocol: try Triton's HTTP, OpenAI's list of models, and Triton's gRPC, in that order.

    Raises:
        UserError: As `endpoint_of` does.
        MissingError: The server's certificate is not trusted, or it does not use TLS.
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
        if (refused := refused_tls(endpoint, response)) is not None:
            raise refused
        tried.append(f"{name.format(base=endpoint.base_path, v1=endpoint.v1_path)}: {response}")
    return Discovery(None, tuple(tried), True)


def _refusal(endpoint: Endpoint) -> str:
    """Return why connections are refused; empty if they are accepted."""
    try:
        connected(endpoint.host, endpoint.port, Deadline(PROBE_WITHIN_S)).close()
    except OSError as error:
        return error.strerror or str(error)
    return ""


def _probe_triton(endpoint: Endpoint) -> str:
    document = json_or_reason(endpoint, f"{endpoint.base_path}/v2")
    if isinstance(document, str):
        return document
    return "" if isinstance(document, dict) and {"name", "version"} <= set(document) else "not Triton's answer"


def _probe_openai(endpoint: Endpoint) -> str:
    document = json_or_reason(endpoint, f"{endpoint.v1_path}/models")
    if isinstance(document, str):
        return "" if document in KEY_REFUSED else document  # a list that requires a key is still a list
    return "" if isinstance(document, dict) and isinstance(document.get("data"), list) else "not a list of models"


def _probe_grpc(endpoint: Endpoint) -> str:
    try:
        call(endpoint, "ServerMetadata", b"", limit_s=PROBE_WITHIN_S)
    except TlsError:
        raise
    except MissingError as error:
        return error.message
    return ""
