"""Triton's HTTP `generate_stream`: the engine with tokens, the ensemble or BLS model with text."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from loadtest.client.endpoint import Endpoint
from loadtest.client.http1 import ProtocolError, error_text
from loadtest.client.protocols.base import (
    Protocol,
    Reply,
    RequestSpec,
    json_of,
    merged_over,
    stated_count,
    stated_ids,
    stated_queue_s,
)

ENGINE_MODEL = "tensorrt_llm"


class TritonHttp(Protocol):
    """One event per response; the engine states how many tokens each has, the text models send one per event."""

    def __init__(self, endpoint: Endpoint, model: str, extra: Mapping[str, Any]) -> None:
        self.model = model
        self.path = f"{endpoint.base_path}/v2/models/{model}/generate_stream"
        self._endpoint = endpoint
        self._extra = extra

    def body(self, spec: RequestSpec) -> bytes:
        """Return the JSON of a request."""
        values = generate_values(self.model, spec, perf_metrics=self._endpoint.perf_metrics)
        values = merged_over({"id": spec.id, **values}, self._extra)
        return json.dumps(values, separators=(",", ":")).encode()

    def take(self, message: bytes, arrived_s: float, reply: Reply) -> None:
        """Count an event's tokens."""
        document = json_of(message)
        if "error" in document:
            raise ProtocolError(error_text(message) or "an error without text")
        reply.add(arrived_s, document.get("sequence_length", 1))
        if reply.content is not None:
            is_text = "text_output" in document
            reply.content += [document["text_output"]] if is_text else stated_ids(document.get("output_ids", []))
        note_perf_metrics(document, reply, self._endpoint.kv_block_tokens)


def generate_values(model: str, spec: RequestSpec, *, perf_metrics: bool) -> dict[str, Any]:
    """Return a model's inputs for one request; an exact reply also sets the minimum length."""
    values: dict[str, Any]
    if model == ENGINE_MODEL:
        values = {
            "input_ids": list(spec.prompt.ids),
            "input_lengths": spec.prompt.tokens,
            "request_output_len": spec.output_tokens,
            "streaming": True,
        }
    else:
        values = {"text_input": spec.prompt.text, "max_tokens": spec.output_tokens, "stream": True}
    if spec.exact:
        values["min_tokens"] = spec.output_tokens
    elif model == ENGINE_MODEL and spec.end_id is not None:
        values["end_id"] = spec.end_id
    if perf_metrics:
        values["return_perf_metrics"] = True
    return values


def note_perf_metrics(document: Mapping[str, Any], reply: Reply, kv_block_tokens: int) -> None:
    """Record TensorRT-LLM's own timings, in nanoseconds of its clock, and the KV blocks it found."""
    arrived_ns, scheduled_ns = document.get("arrival_time_ns"), document.get("first_scheduled_time_ns")
    if arrived_ns and scheduled_ns:
        reply.queue_s = stated_queue_s((scheduled_ns - arrived_ns) * 1e-9)
    if kv_block_tokens and "kv_cache_reused_blocks" in document:
        reply.cached_tokens = stated_count(document["kv_cache_reused_blocks"]) * kv_block_tokens
