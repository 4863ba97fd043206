"""gRPC client for Triton's `tensorrt_llm` model: token ids in and out, one small message per token.

The stream is called with raw bytes on one channel: the overhead of `tritonclient.grpc.aio` (a queue and a task per
call, an object per response) exceeds the cost of reading the message.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import grpc
import grpc.aio
from tritonclient.grpc import service_pb2

from triton_repo.models.text import word_list
from triton_repo.openai_api.errors import ApiError, engine_gone, engine_refused

STREAM = "/inference.GRPCInferenceService/ModelStreamInfer"
READY = "/inference.GRPCInferenceService/ModelReady"
NO_END = -1  # TensorRT-LLM's value for "no end token"
_OPTIONS = (
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
)
_GONE = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.NOT_FOUND, grpc.StatusCode.UNIMPLEMENTED}


@dataclass(frozen=True, slots=True)
class Generation:
    """A reply to generate, by tensor names; None omits the tensor.

    Attributes:
        stop_words: Token ids of each stop string: the engine stops if it generates exactly these tokens.
        streaming: One message per token; otherwise one for the whole reply.
        return_perf_metrics: Send the engine's times with the last message.
    """

    input_ids: Sequence[int]
    request_output_len: int
    streaming: bool
    end_id: int | None = None
    pad_id: int | None = None
    stop_words: Sequence[Sequence[int]] = ()
    temperature: float | None = None
    runtime_top_k: int | None = None
    runtime_top_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    min_tokens: int | None = None
    seed: int | None = None
    return_perf_metrics: bool = False


class EngineTimes(NamedTuple):
    """Seconds from a request's arrival at the engine to its first step, first token and last token."""

    queue_s: float
    first_s: float
    last_s: float


class EngineClient:
    """A channel to Triton.

    Args:
        target: Host and port of its gRPC endpoint.
        model: Name of the engine's model.
    """

    def __init__(self, target: str, model: str = "tensorrt_llm") -> None:
        self._target = target
        self._model = model

    def open(self) -> None:
        """Open the channel, which belongs to the current event loop; Triton need not be running yet."""
        self._channel = grpc.aio.insecure_channel(self._target, options=_OPTIONS)
        self._stream = self._channel.unary_stream(STREAM)
        self._ready = self._channel.unary_unary(READY)

    def start(self, generation: Generation, request_id: str) -> Reply:
        """Send a request; read its reply from the returned object."""
        return Reply(self._stream(encode(generation, self._model, request_id)))

    async def is_ready(self) -> bool:
        """Whether Triton answers and the engine's model is loaded."""
        request = service_pb2.ModelReadyRequest(name=self._model).SerializeToString()
        try:
            answer = await self._ready(request, timeout=2)
        except grpc.aio.AioRpcError:
            return False
        return bool(service_pb2.ModelReadyResponse.FromString(answer).ready)

    async def close(self) -> None:
        """Close the channel."""
        await self._channel.close()


class Reply:
    """A reply in progress.

    Attributes:
        times: The engine's times once the reply has ended; None if not requested.
    """

    times: EngineTimes | None = None

    def __init__(self, call: grpc.aio.UnaryStreamCall[bytes, bytes]) -> None:
        self._call = call

    async def read(self) -> list[int] | None:
        """Return the next tokens, possibly none; None once the reply has ended.

        Raises:
            ApiError: The engine refused or failed, or Triton is unreachable.
            asyncio.CancelledError: `cancel` was called.
        """
        try:
            message = await self._call.read()
        except grpc.aio.AioRpcError as error:
            raise _problem(error) from error
        if message is grpc.aio.EOF:
            await self._require_good_end()
            return None
        response = service_pb2.ModelStreamInferResponse.FromString(message)
        if response.error_message:
            self._call.cancel()
            raise engine_refused(response.error_message)
        self.times = _times(response.infer_response)
        return _tokens(response.infer_response)

    def cancel(self) -> None:
        """Cancel the request; Triton notifies the engine at its next check."""
        self._call.cancel()

    async def _require_good_end(self) -> None:
        code = await self._call.code()
        if code is not grpc.StatusCode.OK:
            raise _problem_of(code, await self._call.details())


def encode(generation: Generation, model: str, request_id: str) -> bytes:
    """Return a request in Triton's gRPC encoding; every tensor has a leading batch dimension of one."""
    request = service_pb2.ModelInferRequest(model_name=model, id=request_id)

    def add(name: str, datatype: str, shape: Sequence[int], raw: bytes) -> None:
        request.inputs.add(name=name, datatype=datatype, shape=shape)
        request.raw_input_contents.append(raw)

    add("input_ids", "INT32", (1, len(generation.input_ids)), array("i", generation.input_ids).tobytes())
    add("input_lengths", "INT32", (1, 1), struct.pack("<i", len(generation.input_ids)))
    add("request_output_len", "INT32", (1, 1), struct.pack("<i", generation.request_output_len))
    add("streaming", "BOOL", (1, 1), struct.pack("<?", generation.streaming))
    add("exclude_input_in_output", "BOOL", (1, 1), b"\x01")
    for name, datatype, form in _SCALARS:
        value = getattr(generation, name)
        if value is not None:
            add(name, datatype, (1, 1), struct.pack(form, value))
    if generation.stop_words:
        flat, ends = word_list(generation.stop_words)
        add("stop_words_list", "INT32", (1, 2, len(flat)), array("i", flat + ends).tobytes())
    if generation.return_perf_metrics:
        add("return_perf_metrics", "BOOL", (1, 1), b"\x01")
    for name in ("output_ids", "sequence_length", *(_TIMES if generation.return_perf_metrics else ())):
        request.outputs.add(name=name)
    return bytes(request.SerializeToString())


_TIMES = ("arrival_time_ns", "first_scheduled_time_ns", "first_token_time_ns", "last_token_time_ns")
_SCALARS = (
    ("end_id", "INT32", "<i"),
    ("pad_id", "INT32", "<i"),
    ("temperature", "FP32", "<f"),
    ("runtime_top_k", "INT32", "<i"),
    ("runtime_top_p", "FP32", "<f"),
    ("repetition_penalty", "FP32", "<f"),
    ("presence_penalty", "FP32", "<f"),
    ("frequency_penalty", "FP32", "<f"),
    ("min_tokens", "INT32", "<i"),
    ("seed", "UINT64", "<Q"),
)


def _tokens(response: service_pb2.ModelInferResponse) -> list[int]:
    """Return the tokens of one message: `output_ids` up to `sequence_length`."""
    raw = {output.name: index for index, output in enumerate(response.outputs)}
    if "output_ids" not in raw:
        return []  # the empty final message of a cancelled request
    contents = response.raw_output_contents
    ids = array("i", contents[raw["output_ids"]])
    length = array("i", contents[raw["sequence_length"]])
    return ids[: length[0]].tolist()


def _times(response: service_pb2.ModelInferResponse) -> EngineTimes | None:
    """Return the request's times in the engine; None if the message has none."""
    raw = {output.name: index for index, output in enumerate(response.outputs)}
    if not raw.keys() >= set(_TIMES):
        return None
    came, *later = (int(array("q", response.raw_output_contents[raw[name]])[0]) for name in _TIMES)
    return EngineTimes(*(max(each - came, 0) / 1e9 for each in later))


def _problem(error: grpc.aio.AioRpcError) -> ApiError:
    return _problem_of(error.code(), error.details())


def _problem_of(code: grpc.StatusCode, details: str | None) -> ApiError:
    text = details or code.name
    refused = engine_refused(text)
    if refused.status != 500:  # noqa: PLR2004 (the text states the cause)
        return refused
    return engine_gone(text) if code in _GONE else refused
