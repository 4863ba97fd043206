"""Text in, text out in one model: calls preprocessing and the engine, and detokenizes itself.

Each instance serves one request at a time, and each streamed token costs a round trip. It is convenient for clients
that want a single model, but unsuitable for load tests.
"""

from __future__ import annotations

import json
import uuid
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from triton_repo.models.sending import send_response
from triton_repo.models.text import Detokenizer, TextStream, load_tokenizer

TO_PREPROCESSING = {
    "text_input": "QUERY",
    "max_tokens": "REQUEST_OUTPUT_LEN",
    "bad_words": "BAD_WORDS_DICT",
    "stop_words": "STOP_WORDS_DICT",
    "end_id": "END_ID",
    "pad_id": "PAD_ID",
    "embedding_bias_words": "EMBEDDING_BIAS_WORDS",
    "embedding_bias_weights": "EMBEDDING_BIAS_WEIGHTS",
}
FROM_PREPROCESSING = {
    "INPUT_ID": "input_ids",
    "REQUEST_INPUT_LEN": "input_lengths",
    "REQUEST_OUTPUT_LEN": "request_output_len",
    "OUT_END_ID": "end_id",
    "OUT_PAD_ID": "pad_id",
    "STOP_WORDS_IDS": "stop_words_list",
    "BAD_WORDS_IDS": "bad_words_list",
    "EMBEDDING_BIAS": "embedding_bias",
}
TO_ENGINE = {"top_k": "runtime_top_k", "top_p": "runtime_top_p", "length_penalty": "len_penalty", "stream": "streaming"}
SAME_NAME = (
    "temperature",
    "repetition_penalty",
    "min_tokens",
    "presence_penalty",
    "frequency_penalty",
    "seed",
    "beam_width",
    "num_return_sequences",
    "exclude_input_in_output",
    "return_log_probs",
    "return_context_logits",
    "return_generation_logits",
    "return_perf_metrics",
    "return_num_input_tokens",
    "return_num_output_tokens",
    "lora_task_id",
    "lora_weights",
    "lora_config",
    "guided_decoding_guide_type",
    "guided_decoding_guide",
)
PASSED_ON = (
    "cum_log_probs", "output_log_probs", "context_logits", "generation_logits", "batch_index", "sequence_index",
    "kv_cache_alloc_new_blocks", "kv_cache_reused_blocks", "kv_cache_alloc_total_blocks", "arrival_time_ns",
    "first_scheduled_time_ns", "first_token_time_ns", "last_token_time_ns", "acceptance_rate",
    "total_accepted_draft_tokens", "total_draft_tokens", "num_input_tokens", "num_output_tokens",
)  # fmt: skip
# Inputs of upstream's model that need another model or a multimodal one, with the reason for refusing them.
REFUSED = {
    "num_draft_tokens": "no draft model is served beside this one",
    "use_draft_logits": "no draft model is served beside this one",
    "image_input": "the engine accepts text only",
    "image_bytes_input": "the engine accepts text only",
    "image_url_input": "the engine accepts text only",
    "video_bytes_input": "the engine accepts text only",
}


class TextModel:
    """Triton Python-backend model; `backend` is Triton's own module, set by the entry point."""

    backend: Any = None

    def initialize(self, args: dict[str, str]) -> None:
        """Load the tokenizer and read the engine model's name."""
        config = json.loads(args["model_config"])
        parameters = {key: value.get("string_value", "") for key, value in config["parameters"].items()}
        self._engine = parameters["tensorrt_llm_model_name"]
        self._accumulates = parameters.get("accumulate_tokens", "").lower() == "true"
        self._decoupled = bool(config.get("model_transaction_policy", {}).get("decoupled"))
        self._detokenizer = Detokenizer(load_tokenizer(Path(parameters["tokenizer_dir"])))

    def execute(self, requests: list[Any]) -> list[Any] | None:
        """Serve requests one after another."""
        if not self._decoupled:
            return [self._only_response(request) for request in requests]
        for request in requests:
            sender = request.get_response_sender()
            called = request.request_id() or f"bls-{uuid.uuid4()}"
            try:
                for response in self._responses(request, called):
                    if sender.is_cancelled():
                        self._stop(called)
                        break
                    send_response(sender, response)
            except _FailedError as error:
                sender.send(self._error(error))
            sender.send(flags=self.backend.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
        return None

    def _only_response(self, request: Any) -> Any:
        try:
            return next(self._responses(request, request.request_id()), self.backend.InferenceResponse([]))
        except _FailedError as error:
            return self._error(error)

    def _stop(self, called: str) -> None:
        """Stop a request in the engine by its id; otherwise it would generate to the end unread."""
        one = np.ones((1, 1), np.int32)
        tensors = [("input_ids", one), ("input_lengths", one), ("request_output_len", one), ("stop", one.astype(bool))]
        inputs = [self.backend.Tensor(name, value) for name, value in tensors]
        call = self.backend.InferenceRequest(
            model_name=self._engine, request_id=called, requested_output_names=["output_ids"], inputs=inputs
        )
        for _ in call.exec(decoupled=True):
            pass

    def _responses(self, request: Any, called: str) -> Iterator[Any]:
        """Yield the responses to a request; without streaming, one response with the whole text."""
        if not self._streams(request):
            for reply in self._replies(request, called):
                text = self._detokenizer.text(_tokens(self.backend, reply))
                yield self.backend.InferenceResponse([_text(self.backend, text), *_passed_on(reply)])
            return
        streams: defaultdict[int, TextStream] = defaultdict(self._detokenizer.stream)  # one per return sequence
        so_far: defaultdict[int, str] = defaultdict(str)
        for reply in self._replies(request, called):
            index = _sequence_index(self.backend, reply)
            text = streams[index].push(_tokens(self.backend, reply))
            so_far[index] += text
            text_so_far = so_far[index] if self._accumulates else text
            yield self.backend.InferenceResponse([_text(self.backend, text_so_far), *_passed_on(reply)])
        for index, stream in streams.items():
            rest = stream.finish()
            if rest:
                text_so_far = so_far[index] + rest if self._accumulates else rest
                yield self.backend.InferenceResponse([_text(self.backend, text_so_far)])

    def _streams(self, request: Any) -> bool:
        tensor = self.backend.get_input_tensor_by_name(request, "stream")
        return tensor is not None and bool(tensor.as_numpy().reshape(-1)[0])

    def _replies(self, request: Any, called: str) -> Iterator[Any]:
        """Yield the engine's responses."""
        backend = self.backend
        for name, why in REFUSED.items():
            tensor = backend.get_input_tensor_by_name(request, name)
            if tensor is not None and tensor.as_numpy().any():
                raise _FailedError(f"{name} is not served: {why}")
        prepared = self._call("preprocessing", self._renamed(request, TO_PREPROCESSING), list(FROM_PREPROCESSING))
        inputs = [_named(backend, prepared, theirs, ours) for theirs, ours in FROM_PREPROCESSING.items()]
        inputs += self._renamed(request, TO_ENGINE | {name: name for name in SAME_NAME})
        call = backend.InferenceRequest(
            model_name=self._engine,
            request_id=called,
            requested_output_names=["output_ids", "sequence_length", *PASSED_ON],
            inputs=[_scalar(backend, tensor) for tensor in inputs if tensor is not None],
        )
        replies = call.exec(decoupled=True) if self._decoupled else [call.exec()]
        for reply in replies:
            if reply.has_error():
                raise _FailedError(reply.error().message())
            if reply.output_tensors():
                yield reply

    def _error(self, error: Exception) -> Any:
        return self.backend.InferenceResponse(error=self.backend.TritonError(str(error)))

    def _renamed(self, request: Any, names: dict[str, str]) -> list[Any]:
        found = [_named_input(self.backend, request, theirs, ours) for theirs, ours in names.items()]
        return [tensor for tensor in found if tensor is not None]

    def _call(self, model: str, inputs: list[Any], outputs: list[str]) -> Any:
        reply = self.backend.InferenceRequest(model_name=model, requested_output_names=outputs, inputs=inputs).exec()
        if reply.has_error():
            raise _FailedError(reply.error().message())
        return reply


class _FailedError(Exception):
    """A called model returned an error; its text is passed on."""


def _named_input(backend: Any, request: Any, theirs: str, ours: str) -> Any:
    tensor = backend.get_input_tensor_by_name(request, theirs)
    return None if tensor is None else backend.Tensor(ours, tensor.as_numpy())


def _named(backend: Any, reply: Any, theirs: str, ours: str) -> Any:
    return backend.Tensor(ours, backend.get_output_tensor_by_name(reply, theirs).as_numpy())


def _scalar(backend: Any, tensor: Any) -> Any:
    """Return a tensor in the engine's shape [1, 1]: batch and value."""
    values = tensor.as_numpy()
    return tensor if values.ndim > 1 else backend.Tensor(tensor.name(), values.reshape(1, -1))


def _tokens(backend: Any, reply: Any) -> list[int]:
    length = int(backend.get_output_tensor_by_name(reply, "sequence_length").as_numpy().reshape(-1)[0])
    ids = backend.get_output_tensor_by_name(reply, "output_ids").as_numpy().reshape(-1)[:length]
    return [int(token) for token in ids]


def _sequence_index(backend: Any, reply: Any) -> int:
    tensor = backend.get_output_tensor_by_name(reply, "sequence_index")
    return 0 if tensor is None else int(tensor.as_numpy().reshape(-1)[0])


def _text(backend: Any, text: str) -> Any:
    return backend.Tensor("text_output", np.array([[text.encode("utf-8")]], dtype=object))


def _passed_on(reply: Any) -> list[Any]:
    return [tensor for tensor in reply.output_tensors() if tensor.name() in PASSED_ON]
