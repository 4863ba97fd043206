"""Single questions to a server, each with a deadline, and the errors for servers that do not answer."""

from __future__ import annotations

import json
import socket
import urllib.request
from http import HTTPStatus
from typing import Any

from engines.errors import MissingError
from engines.http_fetch import Answer, Deadline, bearer, connected, fetch, received
from loadtest.client.endpoint import Endpoint, tls_context
from loadtest.client.http1 import ProtocolError
from loadtest.client.http2 import GrpcSession, StatusError, call_headers
from loadtest.client.receiver import Pieces

ANSWER_WITHIN_S = 5.0
PROBE_WITHIN_S = 2.0
ANSWER_LIMIT_BYTES = 1 << 22
_UNTRUSTED = "CERTIFICATE_VERIFY_FAILED"  # in OpenSSL's text of the error
_NO_TLS = "WRONG_VERSION_NUMBER"  # likewise, of a server that answers in plain text
STATUS = "status "
NEEDS_KEY = (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN)
KEY_REFUSED = frozenset(f"{STATUS}{status.value}" for status in NEEDS_KEY)


class RefusedError(MissingError):
    """A server answered a question with an error."""

    def __init__(self, message: str) -> None:
        super().__init__(message, hint="check --url, --protocol and --model")


class TlsError(MissingError):
    """A server's certificate is not trusted, or it has none."""


def answer_of(endpoint: Endpoint, kind: str, path: str, headers: dict[str, str]) -> Answer:
    """Return a server's answer to a GET request, of any status.

    Raises:
        MissingError: No server answers; the message calls it a `kind` server.
    """
    request = urllib.request.Request(endpoint.url(path), headers=headers)
    try:
        return fetch(request, limit_s=ANSWER_WITHIN_S, limit_bytes=ANSWER_LIMIT_BYTES, context=tls_context(endpoint))
    except OSError as error:
        raise no_server(endpoint, kind, error) from error


def json_or_reason(endpoint: Endpoint, path: str, *, key: str | None = None, body: bytes | None = None) -> Any:
    """Return a page's JSON content; a string states why there is none."""
    request = urllib.request.Request(endpoint.url(path), data=body, headers=bearer(key))
    try:
        answer = fetch(request, limit_s=PROBE_WITHIN_S, limit_bytes=ANSWER_LIMIT_BYTES, context=tls_context(endpoint))
        if answer.status >= HTTPStatus.BAD_REQUEST:
            return f"{STATUS}{answer.status}"
        document = json.loads(answer.body)
    except OSError as error:
        return error.strerror or str(error)
    except (ValueError, RecursionError):  # thousands of nested brackets
        return "not JSON"
    return "a text" if isinstance(document, str) else document


def call(endpoint: Endpoint, method: str, request: bytes, *, limit_s: float = ANSWER_WITHIN_S) -> bytes:
    """Make one call to Triton's gRPC service and return its single response.

    Raises:
        MissingError: No server answers.
        RefusedError: It answers with an error.
    """
    path = f"/inference.GRPCInferenceService/{method}"
    session = GrpcSession(call_headers(path, endpoint.authority, tls=endpoint.tls))
    messages: list[bytes] = []

    def take(found: list[bytes], _: object) -> None:
        messages.extend(found[:2])  # a second one is an error, and a flood of them would fill the memory
        if len(messages) > 1:
            raise ProtocolError("more than one response to a call")

    deadline, buffer = Deadline(limit_s), bytearray(65_536)
    try:
        with _connected(endpoint, deadline) as connection:
            connection.sendall(session.begin(request, take))
            while not session.ended:
                count = received(connection, buffer, deadline)
                if not count:
                    session.close()
                session.take(Pieces.of(bytes(buffer[:count]), 0.0))
                connection.sendall(session.outgoing)
                session.outgoing = b""
    except StatusError as error:
        raise RefusedError(f"{endpoint.authority}: {method}: {error}") from error
    except (ProtocolError, OSError) as error:
        raise no_server(endpoint, "Triton", error) from error
    return messages[0] if messages else b""


def _connected(endpoint: Endpoint, deadline: Deadline) -> socket.socket:
    connection = connected(endpoint.host, endpoint.port, deadline)
    context = tls_context(endpoint, protocol="h2")
    if context is None:
        return connection
    try:
        return context.wrap_socket(connection, server_hostname=endpoint.host)
    except OSError:
        connection.close()
        raise


def refused_tls(endpoint: Endpoint, reason: str) -> TlsError | None:
    """Return the error for a server whose certificate is not trusted, or that has none; None for another reason."""
    if _NO_TLS in reason:
        return TlsError(f"{endpoint.authority}: the server does not use TLS", hint="use http:// or grpc://")
    if _UNTRUSTED not in reason:
        return None
    return TlsError(
        f"{endpoint.authority}: the certificate is not trusted: {reason}",
        hint="trust its issuer with --ca-file, or skip verification with --insecure",
    )


def no_server(endpoint: Endpoint, kind: str, error: Exception) -> MissingError:
    """Return the error for a server that does not answer, or not as a `kind` server does."""
    if (refused := refused_tls(endpoint, str(error))) is not None:
        return refused
    reason = error.strerror if isinstance(error, OSError) else None
    return MissingError(
        f"no {kind} server answers at {endpoint.authority}: {reason or str(error) or type(error).__name__}",
        hint="check that the server is running, and check --url and --protocol",
    )


def key_hint(endpoint: Endpoint, key: str | None) -> str:
    """Return what to try when a server refuses a request without a key, or with this one."""
    if key is None:
        return f"set {endpoint.api_key_env} to a key of this server, or name another variable with --api-key-env"
    return f"check the key in ${endpoint.api_key_env}"
