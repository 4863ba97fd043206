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

    def body(self, asked: RequestSpec) -> bytes:
        """Return the JSON of a request."""
        values = {
            "id": asked.id,
            "text_input": asked.prompt.text,
            "streaming": True,
            "sampling_param_max_tokens": asked.output_tokens,
            "sampling_param_return_perf_metrics": True,
            **self._extra,
        }
        return json.dumps(values, separators=(",", ":")).encode()

    def take(self, message: bytes, arrived_s: float, answer: Reply) -> None:
        """Count an event as a token; its performance values are text."""
        said = json.loads(message.decode())
        if "error" in said:
            raise ProtocolError(error_text(message) or "an error without text")
        answer.add(arrived_s)
        if answer.reply is not None:
            answer.reply[:] = [said["text_output"]]
        if _TIMES[0] in said:
            told = {name: int(said[name]) for name in _TIMES if name in said}
            if "kv_cache_reused_block" in said:
                told["kv_cache_reused_blocks"] = int(said["kv_cache_reused_block"])
            note_perf_metrics(told, answer, self._kv_block_tokens)
