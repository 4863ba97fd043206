"""The generating endpoints: a request becomes work for the engine, its tokens become a reply or a stream."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.types import Receive, Scope, Send

from triton_repo.openai_api.access import JSON_TYPE, AdmissionLimits
from triton_repo.openai_api.errors import ApiError, bad_request
from triton_repo.openai_api.reasoning import Piece
from triton_repo.openai_api.requests import ApiRequest, read_request
from triton_repo.openai_api.responses import DONE, ChunkWriter, Head, Shape, usage_of
from triton_repo.openai_api.service import Service, Work
from triton_repo.openai_api.triton_client import EngineClient, Reply

BODY_WITHIN_S = 30.0
LONG_BODY_BYTES = 65_536


class Generating:
    """A generating endpoint; a class, so that Starlette passes the raw connection.

    Args:
        schema: Schema of the request's body.
        prepare: Turns a request into work for the engine.
        shape: Format of the replies.
    """

    def __init__(
        self,
        service: Service,
        engine: EngineClient,
        gate: AdmissionLimits,
        *,
        schema: type[Any],
        prepare: Callable[[Any], Work],
        shape: Shape,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._service = service
        self._engine = engine
        self._gate = gate
        self._schema = schema
        self._prepare = prepare
        self._shape = shape
        self._clock = clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request; in every case, the engine has stopped working on it afterwards."""
        request = Request(scope, receive)
        self._gate.admit(request)
        try:
            body = await _body(request, self._gate.access.body_limit_bytes)
        except ClientDisconnect:  # the client left before sending its request
            return
        # a very long prompt takes a tenth of a second to tokenize; in a thread, so that streams continue meanwhile
        if len(body) > LONG_BODY_BYTES:
            api_request, work = await asyncio.to_thread(self._understand, body)
        else:
            api_request, work = self._understand(body)
        name = uuid.uuid4().hex
        reply = self._engine.start(work.generation, name)
        watch = asyncio.create_task(_cancel_when_gone(receive, reply))
        stall = _Stall(self._gate.access.stall_limit_s, reply)
        head = Head(self._shape.prefix + name, int(self._clock()), self._service.model)
        exchange = _Exchange(work, reply, stall, self._shape, head, self._gate.headers, send)
        try:
            await (exchange.stream(with_usage=api_request.wants_usage) if api_request.stream else exchange.whole())
        except asyncio.CancelledError:
            if stall.over:
                raise stall.problem() from None
            if not watch.done():  # the client has not disconnected: the server is stopping
                raise
        finally:
            stall.stop()
            watch.cancel()
            reply.cancel()

    def _understand(self, body: bytes) -> tuple[ApiRequest, Work]:
        api_request: ApiRequest = read_request(body, self._schema)
        self._gate.known_model(api_request.model)
        return api_request, self._prepare(api_request)


@dataclass(slots=True)
class _Exchange:
    """One reply on its way from the engine to its client."""

    work: Work
    reply: Reply
    stall: _Stall
    shape: Shape
    head: Head
    headers: dict[str, str]
    send: Send
    last_token: int | None = None

    async def read(self) -> Piece | None:
        """Return the text of the engine's next message; None once the reply has ended."""
        if self.work.text.stopped:
            return None
        ids = await self.reply.read()
        self.stall.seen()
        if ids is None:
            return None
        self.last_token = ids[-1] if ids else self.last_token
        return self.work.text.push(ids)

    async def whole(self) -> None:
        """Send the reply once it is complete."""
        pieces = []
        while (piece := await self.read()) is not None:
            pieces.append(piece)
        pieces.append(self.work.text.finish())
        whole = Piece("".join(piece.reasoning for piece in pieces), "".join(piece.answer for piece in pieces))
        usage = usage_of(self.work.prompt_tokens, self.work.text)
        body = self.shape.whole(self.head, whole, self.work.why_ended(self.last_token), usage)
        await self._begin(JSON_TYPE, {"content-length": str(len(body))})
        await self._put(body, more=False)

    async def stream(self, *, with_usage: bool) -> None:
        """Send the reply as server-sent events; an error after the first event is itself an event."""
        first = await self.read()  # an error before the first byte has its own HTTP status
        writer = self.shape.stream(self.head, with_usage=with_usage)
        await self._begin("text/event-stream; charset=utf-8", {"cache-control": "no-cache"})
        try:
            await self._events(writer, first)
        except ApiError as problem:
            await self._put(b"data: " + problem.body() + b"\n\n", more=False)
            return
        except asyncio.CancelledError:
            if not self.stall.over:
                raise
            await self._put(b"data: " + self.stall.problem().body() + b"\n\n", more=False)
            return
        usage = writer.usage(usage_of(self.work.prompt_tokens, self.work.text)) if with_usage else b""
        await self._put(usage + DONE, more=False)

    async def _events(self, writer: ChunkWriter, piece: Piece | None) -> None:
        """Send a chunk for each message that completes some text, and the final one with the finish reason."""
        data = self.shape.first(writer)
        while piece is not None:
            data += b"".join(map(writer.chunk, self.shape.texts(piece)))
            if data:
                await self._put(data, more=True)
                data = b""
            piece = await self.read()
        data += b"".join(map(writer.chunk, self.shape.texts(self.work.text.finish())))
        await self._put(data + writer.last(self.shape.last, self.work.why_ended(self.last_token)), more=True)

    async def _begin(self, content_type: str, headers: dict[str, str]) -> None:
        shown = {"content-type": content_type, **headers, **self.headers}
        pairs = [(name.encode(), value.encode()) for name, value in shown.items()]
        await self.send({"type": "http.response.start", "status": 200, "headers": pairs})

    async def _put(self, data: bytes, *, more: bool) -> None:
        await self.send({"type": "http.response.body", "body": data, "more_body": more})


class _Stall:
    """Cancels a request whose engine is silent; one timer per request, re-armed only when it fires."""

    def __init__(self, limit_s: float, reply: Reply) -> None:
        self.over = False
        self._limit_s = limit_s
        self._reply = reply
        self._loop = asyncio.get_running_loop()
        self._last_s = self._loop.time()
        self._timer = self._loop.call_later(limit_s, self._ring)

    def problem(self) -> ApiError:
        """Return the error for the client."""
        message = f"the engine sent nothing for {self._limit_s:g} s; the request was cancelled"
        return ApiError(504, message, kind="server_error", code="engine_stalled")

    def seen(self) -> None:
        """Note a message from the engine."""
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
    """Cancel a request in the engine as soon as its client disconnects."""
    while (await receive())["type"] != "http.disconnect":
        pass
    reply.cancel()


async def _body(request: Request, limit_bytes: int) -> bytes:
    """Return a request's body; an ApiError if it is too large, empty or does not arrive in time."""
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
        raise ApiError(408, f"the body did not arrive within {BODY_WITHIN_S:g} s", code="request_timeout") from error
    if not size:
        raise bad_request("the request has no body")
    return b"".join(parts)
