"""What a client of TensorRT-LLM sends to Triton, over HTTP and over a gRPC stream, and how a request is refused."""

from __future__ import annotations

import json
import queue
import sys
import urllib.error
import urllib.request
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton

sys.path.insert(0, str(Path(__file__).parent))
from conftest import Server

PROMPT = [1005, 1006, 1007, 1008]
BASE: dict[str, Any] = {"input_ids": PROMPT, "input_lengths": 4, "request_output_len": 6}
TEXT: dict[str, Any] = {"text_input": "Hello there", "max_tokens": 5}
TIMES = ("arrival_time_ns", "first_scheduled_time_ns", "first_token_time_ns", "last_token_time_ns")


def answers_to(server: Server, model: str, body: dict[str, Any], *, stream: bool = False) -> list[dict[str, Any]]:
    """Return the responses to a request over HTTP, streamed or the only one."""
    url = f"{server.url}/v2/models/{model}/generate{'_stream' if stream else ''}"
    with urllib.request.urlopen(urllib.request.Request(url, json.dumps(body).encode()), timeout=30) as reply:
        lines = [line.decode().removeprefix("data: ").strip() for line in reply]
    return [json.loads(line) for line in lines if line]


def streamed_tokens(server: Server, body: dict[str, Any]) -> list[list[int]]:
    """Return the tokens of each streamed response of the engine."""
    responses = answers_to(server, "tensorrt_llm", {**body, "streaming": True}, stream=True)
    return [[ids] if isinstance(ids := response["output_ids"], int) else ids for response in responses]


def joined(responses: list[list[int]]) -> list[int]:
    """Return the tokens of all responses."""
    return list(chain.from_iterable(responses))


def refusal_of(server: Server, model: str, body: dict[str, Any], *, stream: bool = False) -> str:
    """Return the error a request ends with."""
    with pytest.raises(urllib.error.HTTPError) as refused:
        answers_to(server, model, body, stream=stream)
    with refused.value:
        return refused.value.read().decode()


class Client:
    """One gRPC stream, as upstream's inflight_batcher_llm_client.py keeps it; tensors are [batch, ...] arrays."""

    def __init__(self, server: Server) -> None:
        self._client = triton.InferenceServerClient(f"127.0.0.1:{server.grpc}")
        self._responses: queue.Queue[tuple[Any, Any]] = queue.Queue()
        self._client.start_stream(lambda result, error: self._responses.put((result, error)))

    def send(self, tensors: dict[str, np.ndarray[Any, Any]], *, request_id: str = "") -> None:
        """Send a request to the engine's model."""
        inputs = []
        for name, values in tensors.items():
            made = triton.InferInput(name, list(values.shape), triton.np_to_triton_dtype(values.dtype))
            made.set_data_from_numpy(values)
            inputs.append(made)
        self._client.async_stream_infer("tensorrt_llm", inputs, request_id=request_id, enable_empty_final_response=True)

    def receive(self) -> tuple[Any, Any]:
        """Return the next response, or the error, of any request."""
        return self._responses.get(timeout=30)

    def until_final(self) -> list[Any]:
        """Return the responses up to the final one, which is left out where it is empty."""
        found = []
        while True:
            result, error = self.receive()
            assert error is None, error
            if result.get_response().outputs:
                found.append(result)
            if result.get_response().parameters["triton_final_response"].bool_param:
                return found

    def close(self) -> None:
        """End the stream and whatever is still coming in by it."""
        self._client.stop_stream(cancel_requests=True)
        self._client.close()


def request_tensors(rows: list[list[int]], **more: Any) -> dict[str, np.ndarray[Any, Any]]:
    """Return the tensors of a request of several prompts, padded to the longest."""
    longest = max(map(len, rows))
    ids = np.array([row + [0] * (longest - len(row)) for row in rows], np.int32)
    tensors = {
        "input_ids": ids,
        "input_lengths": np.array([[len(row)] for row in rows], np.int32),
        "request_output_len": np.full((len(rows), 1), 3, np.int32),
        "streaming": np.full((len(rows), 1), True),
    }
    return tensors | {name: np.array([[value]] * len(rows)) for name, value in more.items()}


def unary_inputs(rows: list[list[int]]) -> list[triton.InferInput]:
    """Return the inputs of a request that is not streamed."""
    tensors = request_tensors(rows)
    del tensors["streaming"]
    inputs = []
    for name, values in tensors.items():
        made = triton.InferInput(name, list(values.shape), "INT32")
        made.set_data_from_numpy(values)
        inputs.append(made)
    return inputs
