"""The ASGI application: HTTP around the service and the engine."""

from __future__ import annotations

import asyncio
import json
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from triton_repo.front.asked import Asked, ChatAsked, CompletionAsked, read_asked
from triton_repo.front.chunks import DONE, ChatShape, ChunkWriter, CompletionShape, Head, Shape, usage_of
from triton_repo.front.engine import Engine, Reply
from triton_repo.front.keys import is_key
from triton_repo.front.problems import ApiError, bad_request, engine_gone
from triton_repo.front.reasoning import Piece
from triton_repo.front.service import Service, Work

BODY_LIMIT_BYTES = 8 * 1024 * 1024
BODY_WITHIN_S = 30.0
KIND_HEADER = "x-engine-kind"
_JSON = "application/json"


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


def make_app(
    service: Service, engine: Engine, access: Access, *, metrics_url: str | None, clock: Callable[[], float] = time.time
) -> ASGIApp:
    """Return the application; it opens the engine's channel when it starts."""
    front = _Front(service, engine, access, metrics_url, clock)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        engine.open()
        yield
        await engine.close()

    return Starlette(
        lifespan=lifespan,
        routes=[
            Route("/v1/chat/completions", _Generating(front, ChatAsked, service.chat, ChatShape()), methods=["POST"]),
            Route(
                "/v1/completions",
                _Generating(front, CompletionAsked, service.completion, CompletionShape()),
                methods=["POST"],
            ),
            Route("/v1/models", front.models),
            Route("/v1/models/{name:path}", front.model),
            Route("/health", front.health),
            Route("/metrics", front.metrics),
        ],
        exception_handlers={HTTPException: front.not_served, ApiError: front.problem, Exception: front.bug},
    )


class _Front:
    """What the endpoints share."""

    def __init__(
        self, service: Service, engine: Engine, access: Access, metrics_url: str | None, clock: Callable[[], float]
    ) -> None:
        self.service = service
        self.engine = engine
        self.access = access
        self.clock = clock
        self.headers = {KIND_HEADER: service.kind}
        self._metrics_url = metrics_url
        self._since = int(clock())

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
        if name != self.service.model:
            message = f"the model {name[:200]!r} is not served here; {self.service.model!r} is"
            raise ApiError(404, message, code="model_not_found", param="model")

    async def models(self, request: Request) -> Response:
        """GET /v1/models."""
        self.admit(request)
        return self._json({"object": "list", "data": [self._described()]})

    async def model(self, request: Request) -> Response:
        """GET /v1/models/NAME."""
        self.admit(request)
        self.known_model(request.path_params["name"])
        return self._json(self._described())

    async def health(self, _: Request) -> Response:
        """GET /health: 200 when the engine can be asked; open to all."""
        if await self.engine.is_ready():
            return self._json({"status": "ok"})
        raise engine_gone("the model is not ready")

    async def metrics(self, request: Request) -> Response:
        """GET /metrics: Triton's own."""
        self.admit(request)
        if self._metrics_url is None:
            raise ApiError(404, "this front was started without a metrics address", code="not_found")
        try:
            text = await asyncio.to_thread(_fetch, self._metrics_url)
        except (urllib.error.URLError, OSError) as error:
            raise engine_gone(str(error)) from error
        return Response(text, media_type="text/plain; version=0.0.4", headers=self.headers)

    async def not_served(self, request: Request, error: Exception) -> Response:
        """Answer for a path or method that is not here."""
        if not isinstance(error, HTTPException):
            raise error
        known = "/v1/chat/completions, /v1/completions, /v1/models, /health, /metrics"
        message = f"{request.method} {request.url.path[:200]}: {error.detail}; here are {known}"
        return self.answer(ApiError(error.status_code, message, code="not_found", headers=dict(error.headers or {})))

    async def problem(self, _: Request, error: Exception) -> Response:
        """Answer with an ApiError."""
        if not isinstance(error, ApiError):
            raise error
        return self.answer(error)

    async def bug(self, _: Request, error: Exception) -> Response:
        """Answer for what should not happen; its traceback goes to the log, not to the client."""
        return self.answer(
            ApiError(500, f"a bug of this server: {type(error).__name__}", kind="server_error", code="bug")
        )

    def answer(self, problem: ApiError) -> Response:
        """Return the reply of an ApiError."""
        return Response(problem.body(), problem.status, {**self.headers, **problem.headers}, _JSON)

    def _described(self) -> dict[str, Any]:
        repository = self.service.repository
        limits = repository.engine.limits
        return {
            "id": self.service.model,
            "object": "model",
            "created": self._since,
            "owned_by": "triton",
            "max_model_len": limits.max_seq_len,
            "engine": {
                "kind": repository.kind,
                "time_scale": repository.settings.emulation.time_scale if repository.kind == "emulated" else None,
                "model": repository.engine.model.name,
                "precision": repository.engine.precision.name,
                "gpu": repository.engine.gpu.name,
                "max_input_len": limits.max_input_len,
                "max_batch_size": limits.max_batch_size,
            },
        }

    def _json(self, value: Any) -> Response:
        return Response(json.dumps(value).encode(), headers=self.headers, media_type=_JSON)


class _Generating:
    """An endpoint that generates; a class, so that Starlette hands it the raw connection.

    Args:
        prepare: Makes the work of a request.
    """

    def __init__(self, front: _Front, schema: type[Any], prepare: Callable[[Any], Work], shape: Shape) -> None:
        self._front = front
        self._schema = schema
        self._prepare = prepare
        self._shape = shape

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        front = self._front
        front.admit(request)
        asked: Asked = read_asked(await _body(request, front.access.body_limit_bytes), self._schema)
        front.known_model(asked.model)
        work = self._prepare(asked)
        name = uuid.uuid4().hex
        head = Head(self._shape.prefix + name, int(front.clock()), front.service.model)
        reply = front.engine.start(work.generation, name)
        watch = asyncio.create_task(_cancel_when_gone(receive, reply))
        stall = _Stall(front.access.stall_limit_s, reply)
        try:
            if asked.stream:
                await self._stream(work, reply, stall, head, asked, send)
            else:
                await self._whole(work, reply, stall, head, scope, receive, send)
        except asyncio.CancelledError:
            if stall.over:
                raise stall.problem() from None
            if not watch.done():
                raise
        finally:
            stall.stop()
            watch.cancel()
            reply.cancel()

    async def _whole(
        self, work: Work, reply: Reply, stall: _Stall, head: Head, scope: Scope, receive: Receive, send: Send
    ) -> None:
        reasoning, answer, last = [], [], None
        while not work.text.stopped and (ids := await reply.read()) is not None:
            stall.seen()
            piece = work.text.push(ids)
            reasoning.append(piece.reasoning)
            answer.append(piece.answer)
            last = ids[-1] if ids else last
        rest = work.text.finish()
        whole = Piece("".join([*reasoning, rest.reasoning]), "".join([*answer, rest.answer]))
        usage = usage_of(work.prompt_tokens, work.text)
        body = self._shape.whole(head, whole, self._front.service.why_ended(work, last), usage)
        await Response(body, headers=self._front.headers, media_type=_JSON)(scope, receive, send)

    async def _stream(self, work: Work, reply: Reply, stall: _Stall, head: Head, asked: Asked, send: Send) -> None:
        ids = await reply.read()  # a refusal comes before the first byte, and so with its own HTTP status
        writer = self._shape.stream(head, with_usage=asked.wants_usage)
        await send(_begin(self._front.headers))
        try:
            await self._chunks(ids, work, reply, stall, writer, send)
        except ApiError as problem:
            await _end(send, b"data: " + problem.body() + b"\n\n")
            return
        except asyncio.CancelledError:
            if not stall.over:
                raise
            await _end(send, b"data: " + stall.problem().body() + b"\n\n")
            return
        usage = writer.usage(usage_of(work.prompt_tokens, work.text)) if asked.wants_usage else b""
        await _end(send, usage + DONE)

    async def _chunks(
        self, ids: list[int] | None, work: Work, reply: Reply, stall: _Stall, writer: ChunkWriter, send: Send
    ) -> None:
        """Send a chunk for each message of the engine that completes some text, and the one that says why it ended."""
        data = self._shape.first(writer)
        last = None
        while ids is not None:
            stall.seen()
            last = ids[-1] if ids else last
            data += b"".join(map(writer.chunk, self._shape.texts(work.text.push(ids))))
            if data:
                await send({"type": "http.response.body", "body": data, "more_body": True})
                data = b""
            if work.text.stopped:
                break
            ids = await reply.read()
        data += b"".join(map(writer.chunk, self._shape.texts(work.text.finish())))
        data += writer.last(self._shape.last, self._front.service.why_ended(work, last))
        await send({"type": "http.response.body", "body": data, "more_body": True})


class _Stall:
    """Gives a silent engine up; one timer a request, looked at again only when it rings."""

    def __init__(self, limit_s: float, reply: Reply) -> None:
        self.over = False
        self._limit_s = limit_s
        self._reply = reply
        self._loop = asyncio.get_running_loop()
        self._last_s = self._loop.time()
        self._timer = self._loop.call_later(limit_s, self._ring)

    def problem(self) -> ApiError:
        """Return what the client is told."""
        message = f"the engine sent nothing for {self._limit_s:g} s; the request was cancelled"
        return ApiError(504, message, kind="server_error", code="engine_stalled")

    def seen(self) -> None:
        """Note that the engine said something."""
        self._last_s = self._loop.time()

    def stop(self) -> None:
        """Stop the timer."""
        self._timer.cancel()

    def _ring(self) -> None:
        left_s = self._last_s + self._limit_s - self._loop.time()
        if left_s > 0:
            self._timer = self._loop.call_later(left_s, self._ring)
            return
        self.over = True
        self._reply.cancel()


async def _cancel_when_gone(receive: Callable[[], Awaitable[Any]], reply: Reply) -> None:
    """Cancel a request in the engine as soon as its client has left."""
    while (await receive())["type"] != "http.disconnect":
        pass
    reply.cancel()


async def _body(request: Request, limit_bytes: int) -> bytes:
    """Return a request's body; an ApiError where it is too large or does not come."""
    too_large = ApiError(413, f"the body is larger than {limit_bytes} bytes", code="request_too_large")
    stated = request.headers.get("content-length", "")
    if stated.isdigit() and int(stated) > limit_bytes:
        raise too_large
    parts: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(BODY_WITHIN_S):
            async for part in request.stream():
                size += len(part)
                if size > limit_bytes:
                    raise too_large
                parts.append(part)
    except TimeoutError as error:
        raise ApiError(408, f"the body did not come within {BODY_WITHIN_S:g} s", code="request_timeout") from error
    if not size:
        raise bad_request("the request has no body")
    return b"".join(parts)


def _begin(headers: dict[str, str]) -> dict[str, Any]:
    shown = {"content-type": "text/event-stream; charset=utf-8", "cache-control": "no-cache", **headers}
    pairs = [(name.encode(), value.encode()) for name, value in shown.items()]
    return {"type": "http.response.start", "status": 200, "headers": pairs}


async def _end(send: Send, data: bytes) -> None:
    await send({"type": "http.response.body", "body": data, "more_body": False})


def _fetch(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=5) as reply:
        return bytes(reply.read())
