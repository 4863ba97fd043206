"""Errors for clients: OpenAI's error object with a suitable HTTP status."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field

QUEUE_FULL = ("Maximum queue size", "Exceeds maximum queue size", "Request timeout expired")
_GONE = ("unknown model", "has no available versions", "is not ready", "is not found", "unavailable")
_CLIENTS_FAULT = ("exceeds", "Prompt length", "is not emulated", "is not supported", "request_output_len")
_EXECUTOR = re.compile(r"^Executor failed process requestId \d+ due to the following error:\s*")
RETRY_AFTER_S = 1


@dataclass(eq=False)
class ApiError(Exception):
    """A request that ends in an error.

    Attributes:
        status: HTTP status.
        message: For people: the problem, the limit, one thing to try.
        kind: `type` of OpenAI's error object.
        code: `code` of it, for programs; None if there is none.
        param: The request's key at fault.
        headers: Further headers of the reply.
    """

    status: int
    message: str
    kind: str = "invalid_request_error"
    code: str | None = None
    param: str | None = None
    headers: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        """Return the message."""
        return self.message

    def body(self) -> bytes:
        """Return OpenAI's error object as JSON."""
        error = {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}
        return json.dumps({"error": error}).encode()


def bad_request(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    """Return the error for an invalid request."""
    return ApiError(400, message, param=param, code=code)


def engine_gone(detail: str) -> ApiError:
    """Return the error for a Triton that does not answer."""
    message = f"the engine is not available ({detail}); try again later"
    headers = {"retry-after": str(RETRY_AFTER_S)}
    return ApiError(503, message, kind="server_error", code="engine_unavailable", headers=headers)


def engine_refused(message: str) -> ApiError:
    """Return the error for an engine's error text: a full queue, an invalid request, or an engine failure."""
    if any(mark in message for mark in QUEUE_FULL):
        headers = {"retry-after": str(RETRY_AFTER_S)}
        return ApiError(429, message, kind="rate_limit_error", code="queue_full", headers=headers)
    if any(mark in message for mark in _GONE):  # unloaded: the server is draining, or an engine is being replaced
        return engine_gone(message)
    text = _EXECUTOR.sub("", message)
    if any(mark in text for mark in _CLIENTS_FAULT):
        return bad_request(text)
    return ApiError(500, text, kind="server_error", code="engine_error")
