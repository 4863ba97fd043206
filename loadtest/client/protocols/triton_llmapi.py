"""The LLM API's model over Triton's HTTP `generate_stream`: text in, the whole text so far in every event."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from loadtest.client.endpoint import Endpoint
from loadtest.client.http1 import ProtocolError, error_text
from loadtest.client.protocols.base import Protocol, Reply, RequestSpec
from loadtest.client.protocols.triton_http import note_perf_metrics

_TIMES = ("arrival_time_ns", "first_scheduled_time_ns")


class TritonLlmApi(Protocol):
    """One event per token, provided the model sends each separately: it reports no count.

    The model has no input for a minimum length: a reply that a real engine ends early counts as cut, unless the
    scenario has free replies.
    """

    def __init__(self, endpoint: Endpoint, model: str, extra: Mapping[str, Any]) -> None:
        self.model = model
        self.path = f"{endpoint.base_path}/v2/models/{model}/generate_stream"
        self._kv_block_tokens = endpoint.kv_block_tokens
        self._extra = extra

    def body(self, spec: RequestSpec) -> bytes:
        """Return the JSON of a request."""
        values = {
            "id": spec.id,
            "text_input": spec.prompt.text,
            "streaming": True,
            "sampling_param_max_tokens": spec.output_tokens,
            "sampling_param_return_perf_metrics": True,
            **self._extra,
        }
        return json.dumps(values, separators=(",", ":")).encode()

    def take(self, message: bytes, arrived_s: float, reply: Reply) -> None:
        """Count an event as a token; its performance values are text."""
        document = json.loads(message.decode())
        if "error" in document:
            raise ProtocolError(error_text(message) or "an error without text")
        reply.add(arrived_s)
        if reply.content is not None:
            reply.content[:] = [document["text_output"]]
        if _TIMES[0] in document:
            times = {name: int(document[name]) for name in _TIMES if name in document}
            if "kv_cache_reused_block" in document:
                times["kv_cache_reused_blocks"] = int(document["kv_cache_reused_block"])
            note_perf_metrics(times, reply, self._kv_block_tokens)
