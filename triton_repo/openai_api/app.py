"""The ASGI application: HTTP endpoints on top of the service and the engine."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from engines.http_fetch import FetchError, fetch
from triton_repo.openai_api.access import JSON_TYPE, Access, AdmissionLimits
from triton_repo.openai_api.endpoints import Generating
from triton_repo.openai_api.errors import ApiError, engine_gone
from triton_repo.openai_api.requests import ChatRequest, CompletionRequest
from triton_repo.openai_api.responses import ChatShape, CompletionShape
from triton_repo.openai_api.serve_metrics import ServeMetrics
from triton_repo.openai_api.service import Service
from triton_repo.openai_api.triton_client import EngineClient

METRICS_WITHIN_S = 5.0
METRICS_LIMIT_BYTES = 1 << 24
PROMETHEUS_TYPE = "text/plain; version=0.0.4"


def make_app(
    service: Service,
    engine: EngineClient,
    access: Access,
    *,
    metrics_url: str | None,
    serve: ServeMetrics | None = None,
) -> ASGIApp:
    """Return the application; it opens the engine's channel on startup.

    Args:
        serve: Metrics of an emulated trtllm-serve; metrics pages then have trtllm-serve's paths.
    """
    gate = AdmissionLimits(access, model=service.model, kind=service.kind)
    pages = _Pages(service, engine, gate, metrics_url)
    metrics = [Route("/metrics", pages.metrics)] if serve is None else pages.of_trtllm_serve(serve)
    chat = Generating(service, engine, gate, schema=ChatRequest, prepare=service.chat, shape=ChatShape())
    completion = Generating(
        service, engine, gate, schema=CompletionRequest, prepare=service.completion, shape=CompletionShape()
    )

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        engine.open()
        yield
        await engine.close()

    return Starlette(
        lifespan=lifespan,
        routes=[
            Route("/v1/chat/completions", chat, methods=["POST"]),
            Route("/v1/completions", completion, methods=["POST"]),
            Route("/v1/models", pages.models),
            Route("/v1/models/{name:path}", pages.model),
            Route("/health", pages.health),
            *metrics,
        ],
        exception_handlers={HTTPException: pages.not_served, ApiError: pages.problem, Exception: pages.bug},
    )


class _Pages:
    """Endpoints that generate nothing, and error replies."""

    def __init__(self, service: Service, engine: EngineClient, gate: AdmissionLimits, metrics_url: str | None) -> None:
        self._service = service
        self._engine = engine
        self._gate = gate
        self._metrics_url = metrics_url
        self._since_s = int(time.time())
        self._serve: ServeMetrics | None = None

    async def models(self, request: Request) -> Response:
        """GET /v1/models."""
        self._gate.admit(request)
        return self._json({"object": "list", "data": [self._described()]})

    async def model(self, request: Request) -> Response:
        """GET /v1/models/NAME."""
        self._gate.admit(request)
        self._gate.known_model(request.path_params["name"])
        return self._json(self._described())

    async def health(self, _: Request) -> Response:
        """GET /health: 200 if the engine is ready; no key required."""
        if await self._engine.is_ready():
            return self._json({"status": "ok"})
        raise engine_gone("the model is not ready")

    async def metrics(self, request: Request) -> Response:
        """GET /metrics: Triton's own metrics."""
        self._gate.admit(request)
        return Response(await self._triton(), media_type=PROMETHEUS_TYPE, headers=self._gate.headers)

    def of_trtllm_serve(self, serve: ServeMetrics) -> list[Route]:
        """Return the routes of trtllm-serve's metrics pages."""
        self._serve = serve

        async def prometheus(request: Request) -> Response:
            self._gate.admit(request)
            text = serve.page((await self._triton()).decode())
            return Response(text, media_type=PROMETHEUS_TYPE, headers=self._gate.headers)

        async def iterations(request: Request) -> Response:
            self._gate.admit(request)
            return self._json(serve.iterations((await self._triton()).decode()))

        return [Route("/prometheus/metrics", prometheus), Route("/metrics", iterations)]

    async def _triton(self) -> bytes:
        """Return Triton's own metrics."""
        if self._metrics_url is None:
            raise ApiError(404, "this front was started without a metrics address", code="not_found")
        try:
            page = await asyncio.to_thread(
                fetch, self._metrics_url, limit_s=METRICS_WITHIN_S, limit_bytes=METRICS_LIMIT_BYTES
            )
        except FetchError as error:
            raise engine_gone(str(error)) from error
        if page.status != HTTPStatus.OK:
            raise engine_gone(f"its metrics page answered {page.status}")
        return page.body

    async def not_served(self, request: Request, error: Exception) -> Response:
        """Reply for an unknown path or method."""
        if not isinstance(error, HTTPException):
            raise error
        known = "/v1/chat/completions, /v1/completions, /v1/models, /health, /metrics"
        message = f"{request.method} {request.url.path[:200]}: {error.detail}; known paths: {known}"
        return self._gate.answer(
            ApiError(error.status_code, message, code="not_found", headers=dict(error.headers or {}))
        )

    async def problem(self, _: Request, error: Exception) -> Response:
        """Reply with an ApiError."""
        if not isinstance(error, ApiError):
            raise error
        if self._serve is not None:
            self._serve.failed(error.status)
        return self._gate.answer(error)

    async def bug(self, _: Request, error: Exception) -> Response:
        """Reply to an unexpected exception; its traceback goes to the log, not to the client."""
        return self._gate.answer(
            ApiError(500, f"internal server error: {type(error).__name__}", kind="server_error", code="bug")
        )

    def _described(self) -> dict[str, Any]:
        repository = self._service.repository
        limits = repository.engine.limits
        return {
            "id": self._service.model,
            "object": "model",
            "created": self._since_s,
            "owned_by": "triton",
            "max_model_len": limits.max_seq_len,
            "engine": {
                "kind": repository.kind,
                "time_scale": repository.resolved.emulation.time_scale if repository.kind == "emulated" else None,
                "model": repository.engine.model.name,
                "precision": repository.engine.precision.name,
                "gpu": repository.engine.gpu.name,
                "max_input_len": limits.max_input_len,
                "max_batch_size": limits.max_batch_size,
            },
        }

    def _json(self, value: Any) -> Response:
        return Response(json.dumps(value).encode(), headers=self._gate.headers, media_type=JSON_TYPE)
