"""Access control, the served model's name, and error replies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import Response

from triton_repo.openai_api.api_keys import is_key
from triton_repo.openai_api.errors import ApiError

BODY_LIMIT_BYTES = 8 * 1024 * 1024
KIND_HEADER = "x-engine-kind"
JSON_TYPE = "application/json"


@dataclass(frozen=True, slots=True)
class Access:
    """Access rules and limits.

    Attributes:
        keys: Valid API keys; empty: no key is required.
        stall_limit_s: How long the engine may be silent during a request before the request is cancelled.
    """

    keys: Sequence[str] = ()
    body_limit_bytes: int = BODY_LIMIT_BYTES
    stall_limit_s: float = 600.0


class AdmissionLimits:
    """Checks shared by all endpoints.

    Args:
        model: Name of the served model.
        kind: Description of the engine, sent with every reply.

    Attributes:
        headers: Headers of every reply.
    """

    def __init__(self, access: Access, *, model: str, kind: str) -> None:
        self.access = access
        self.headers = {KIND_HEADER: kind}
        self._model = model

    def admit(self, request: Request) -> None:
        """Raise an ApiError unless the request has a valid key."""
        keys = self.access.keys
        given = request.headers.get("authorization", "").removeprefix("Bearer ").strip()
        if keys and not is_key(given, keys):
            said = "no API key was sent" if not given else "the API key is not one of this server's"
            message = f"{said}; send it as 'Authorization: Bearer KEY'"
            headers = {"www-authenticate": "Bearer"}
            raise ApiError(401, message, code="invalid_api_key", headers=headers)

    def known_model(self, name: str) -> None:
        """Raise an ApiError for any model other than the served one."""
        if name != self._model:
            message = f"the model {name[:200]!r} is not served here; the served model is {self._model!r}"
            raise ApiError(404, message, code="model_not_found", param="model")

    def answer(self, problem: ApiError) -> Response:
        """Return the reply for an ApiError."""
        return Response(problem.body(), problem.status, {**self.headers, **problem.headers}, JSON_TYPE)
