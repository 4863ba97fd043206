"""One gRPC stream to a model: what tests count tokens by; Triton 2.51's HTTP may lose the end of a starved reply."""

from __future__ import annotations

import queue
import time
from typing import Any

import numpy as np
import tritonclient.grpc as triton

LIMIT_S = 60
Tensors = dict[str, np.ndarray[Any, Any]]


def tokens(length: int, prompt_tokens: int = 64) -> Tensors:
    """Return the tensors of a streamed request to the engine's model."""
    return {
        "input_ids": np.arange(1000, 1000 + prompt_tokens, dtype=np.int32).reshape(1, -1),
        "input_lengths": np.array([[prompt_tokens]], np.int32),
        "request_output_len": np.array([[length]], np.int32),
        "streaming": np.array([[True]]),
    }


def text(length: int) -> Tensors:
    """Return the tensors of a streamed request to a text model."""
    return {
        "text_input": np.array([[b"hello there"]], object),
        "max_tokens": np.array([[length]], np.int32),
        "stream": np.array([[True]]),
    }


class Stream:
    """A request on a stream of its own, and what came of it.

    Attributes:
        answered: Responses with outputs so far, each with its model version.
        error: The error it ended with; None while there is none.
        done: Whether its final response came.
    """

    def __init__(self, port: int, model: str, tensors: Tensors) -> None:
        self._client = triton.InferenceServerClient(f"127.0.0.1:{port}")
        self._came: queue.Queue[tuple[Any, Any]] = queue.Queue()
        self._client.start_stream(lambda result, error: self._came.put((result, error)))
        self.answered: list[str] = []
        self.error: str | None = None
        self.done = False
        self.ask(model, tensors)

    def ask(self, model: str, tensors: Tensors) -> None:
        """Send a request on the stream."""
        inputs = []
        for name, values in tensors.items():
            made = triton.InferInput(name, list(values.shape), triton.np_to_triton_dtype(values.dtype))
            made.set_data_from_numpy(values)
            inputs.append(made)
        self.done, self.error = False, None
        self._client.async_stream_infer(model, inputs, enable_empty_final_response=True)

    def read(self, count: int | None = None) -> Stream:
        """Read until `count` answers are there, or to the end."""
        end = time.monotonic() + LIMIT_S
        while not self.done and (count is None or len(self.answered) < count):
            result, error = self._came.get(timeout=max(0.1, end - time.monotonic()))
            if error is not None:
                self.error, self.done = str(error), True
                continue
            response = result.get_response()
            if response.outputs:
                self.answered.append(response.model_version)
            self.done = response.parameters["triton_final_response"].bool_param
        return self

    def leave(self) -> None:
        """Go as a client does that wants no more: whatever is in flight is cancelled."""
        self._client.stop_stream(cancel_requests=True)
        self._client.close()
