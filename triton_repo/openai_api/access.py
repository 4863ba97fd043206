"""Who is let in, what is served here, and how a refusal looks."""

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
    """Who may ask, and how much at once.

    Attributes:
        keys: API keys that are let in; empty: everybody is.
        stall_limit_s: How long an engine may be silent in the middle of a request before that is given up.
    """

    keys: Sequence[str] = ()
    body_limit_bytes: int = BODY_LIMIT_BYTES
    stall_limit_s: float = 600.0


class AdmissionLimits:
    """What every endpoint asks first.

    Args:
        model: The one model's name.
        kind: What all replies say of the engine behind them.

    Attributes:
        headers: Of every reply.
    """

    def __init__(self, access: Access, *, model: str, kind: str) -> None:
        self.access = access
        self.headers = {KIND_HEADER: kind}
        self._model = model

    def admit(self, request: Request) -> None:
        """Let a request with one of the keys in."""
        keys = self.access.keys
        given = request.headers.get("authorization", "").removeprefix("Bearer ").strip()
        if keys and not is_key(given, keys):
            said = "no API key was sent" if not given else "the API key is not one of this server's"
            message = f"{said}; send it as 'Authorization: Bearer KEY'"
            headers = {"www-authenticate": "Bearer"}
            raise ApiError(401, message, code="invalid_api_key", headers=headers)

    def known_model(self, name: str) -> None:
        """Raise an ApiError for any model but the one served."""
        if name != self._model:
            message = f"the model {name[:200]!r} is not served here; {self._model!r} is"
            raise ApiError(404, message, code="model_not_found", param="model")

    def answer(self, problem: ApiError) -> Response:
        """Return the reply of an ApiError."""
        return Response(problem.body(), problem.status, {**self.headers, **problem.headers}, JSON_TYPE)
