"""What a client is told when a request cannot be served: OpenAI's error shape, with the HTTP status that fits."""

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
        message: For a person: what is wrong, the limit, one thing to try.
        kind: `type` of OpenAI's error object.
        code: `code` of it, for a program; None where there is none.
        param: The request's key at fault.
        headers: More headers of the reply.
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
    """Return the problem of a request that asks for what cannot be."""
    return ApiError(400, message, param=param, code=code)


def engine_gone(detail: str) -> ApiError:
    """Return the problem of a Triton that does not answer."""
    message = f"the engine cannot be asked now ({detail}); try again once it is back"
    headers = {"retry-after": str(RETRY_AFTER_S)}
    return ApiError(503, message, kind="server_error", code="engine_unavailable", headers=headers)


def engine_refused(message: str) -> ApiError:
    """Return the problem behind an engine's error text: a full queue, the client's request, or the engine itself."""
    if any(mark in message for mark in QUEUE_FULL):
        headers = {"retry-after": str(RETRY_AFTER_S)}
        return ApiError(429, message, kind="rate_limit_error", code="queue_full", headers=headers)
    if any(mark in message for mark in _GONE):  # unloaded: the server drains, or an engine is being replaced
        return engine_gone(message)
    text = _EXECUTOR.sub("", message)
    if any(mark in text for mark in _CLIENTS_FAULT):
        return bad_request(text)
    return ApiError(500, text, kind="server_error", code="engine_error")
