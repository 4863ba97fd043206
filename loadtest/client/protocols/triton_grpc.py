"""Triton's gRPC streaming (`ModelStreamInfer`): the same models and inputs as over HTTP, as tensors."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any

from google.protobuf.message import DecodeError
from tritonclient.grpc import service_pb2

from engines.errors import UserError
from loadtest.client.endpoint import Endpoint
from loadtest.client.http1 import ProtocolError
from loadtest.client.protocols.base import Protocol, Reply, RequestSpec, merged_over
from loadtest.client.protocols.triton_http import generate_values, note_perf_metrics

_SCALARS = {"INT32": "<i", "INT64": "<q"}
_READ = {
    "sequence_length": "INT32",
    "arrival_time_ns": "INT64",
    "first_scheduled_time_ns": "INT64",
    "kv_cache_reused_blocks": "INT32",
}


class TritonGrpc(Protocol):
    """One message per response; otherwise like `TritonHttp`.

    Raises:
        UserError: A merged field cannot be a tensor.
    """

    grpc = True
    path = "/inference.GRPCInferenceService/ModelStreamInfer"

    def __init__(self, endpoint: Endpoint, model: str, extra: Mapping[str, Any]) -> None:
        self.model = model
        self._endpoint = endpoint
        for name, value in extra.items():
            if not isinstance(value, str | int | float | None):
                raise UserError(f"extra_body: {name}: gRPC supports numbers, booleans and strings only")
        self._extra = extra

    def body(self, spec: RequestSpec) -> bytes:
        """Return a `ModelInferRequest` with its tensors' raw contents."""
        request = service_pb2.ModelInferRequest(model_name=self.model, id=spec.id)
        values = generate_values(self.model, spec, perf_metrics=self._endpoint.perf_metrics)
        for name, value in merged_over(values, self._extra).items():
            datatype, count, contents = _tensor(value)
            request.inputs.add(name=name, datatype=datatype, shape=[1, count])
            request.raw_input_contents.append(contents)
        return bytes(request.SerializeToString())

    def take(self, message: bytes, arrived_s: float, reply: Reply) -> None:
        """Count a response's tokens; one without outputs marks the end."""
        try:
            stream_response = service_pb2.ModelStreamInferResponse.FromString(message)
        except DecodeError as error:
            raise ValueError(str(error)) from error
        if stream_response.error_message:
            raise ProtocolError(stream_response.error_message)
        response = stream_response.infer_response
        if not response.outputs:
            return
        scalars = {}
        for output, contents in zip(response.outputs, response.raw_output_contents, strict=True):
            datatype = _READ.get(output.name)
            if datatype is not None and output.datatype == datatype:
                scalars[output.name] = struct.unpack_from(_SCALARS[datatype], contents)[0]
            if reply.content is not None:
                reply.content += _words_of(output.name, contents)
        reply.add(arrived_s, scalars.get("sequence_length", 1))
        note_perf_metrics(scalars, reply, self._endpoint.kv_block_tokens)


def _words_of(name: str, contents: bytes) -> list[int] | list[str]:
    """Return an output's part of the reply: token ids, text, or nothing."""
    if name == "output_ids":
        return list(struct.unpack(f"<{len(contents) // 4}i", contents))
    return [contents[4:].decode("utf-8", "replace")] if name == "text_output" else []  # after its length


def _tensor(value: Any) -> tuple[str, int, bytes]:
    """Return a value's Triton datatype, number of elements and bytes; the caller puts the batch dimension first."""
    if isinstance(value, str):
        text = value.encode()
        return "BYTES", 1, struct.pack("<I", len(text)) + text
    if isinstance(value, bool):
        return "BOOL", 1, struct.pack("<?", value)
    if isinstance(value, float):
        return "FP32", 1, struct.pack("<f", value)
    values = value if isinstance(value, list) else [value]
    return "INT32", len(values), struct.pack(f"<{len(values)}i", *values)
