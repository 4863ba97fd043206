"""From tokens to text: TensorRT-LLM's `postprocessing` model, byte-exact over a stream.

The ensemble calls it once per streamed token, without marking where a reply starts or ends. Tokens are grouped by the
request's id. Without an id, every token is decoded alone, and a character that spans several tokens becomes U+FFFD.
Clients that stream text should send an id.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from triton_repo.models.text import Detokenizer, StreamsById, load_tokenizer

KEPT_TENSORS = 4096  # each holds about a hundred bytes of Triton's shared memory


class Postprocessing:
    """Triton Python-backend model; `backend` is Triton's own module, set by the entry point."""

    backend: Any = None

    def initialize(self, args: dict[str, str]) -> None:
        """Load the tokenizer named by the model's parameters."""
        parameters = json.loads(args["model_config"])["parameters"]
        skip = parameters["skip_special_tokens"]["string_value"].lower() not in {"false", "0"}
        tokenizer = load_tokenizer(Path(parameters["tokenizer_dir"]["string_value"]))
        self._detokenizer = Detokenizer(tokenizer, skip_special_tokens=skip)
        self._streams = StreamsById(self._detokenizer)
        # Cache of tensors for tokens that are whole characters: creating a tensor is most of a token's cost.
        self._alone: dict[int, Any] = {}

    def execute(self, requests: list[Any]) -> list[Any]:
        """Return the text each request's tokens complete."""
        return [self._respond(request) for request in requests]

    def _respond(self, request: Any) -> Any:
        backend = self.backend
        tokens = backend.get_input_tensor_by_name(request, "TOKENS_BATCH").as_numpy()
        if tokens.size == 1:
            return backend.InferenceResponse([self._streamed(request, int(tokens.item()))])
        length = int(backend.get_input_tensor_by_name(request, "SEQUENCE_LENGTH").as_numpy().reshape(-1)[0])
        ids = tokens.reshape(-1)[:length].tolist()
        name = request.request_id()
        text = self._streams.push(name, ids) if name and length == 1 else self._detokenizer.text(ids)
        return backend.InferenceResponse([self._tensor(text)])

    def _streamed(self, request: Any, token_id: int) -> Any:
        """Return the text that a token completes.

        An empty reply cannot occur: the engine produces at least one token.
        """
        name = request.request_id()
        if name in self._streams:
            return self._tensor(self._streams.push(name, (token_id,)))
        known = self._alone.get(token_id)
        if known is not None:
            return known
        text = self._detokenizer.text_alone(token_id)
        if text is not None and len(self._alone) < KEPT_TENSORS:
            return self._alone.setdefault(token_id, self._tensor(text))
        ids = (token_id,)
        return self._tensor(self._streams.push(name, ids) if name else self._detokenizer.text(ids))

    def _tensor(self, text: str) -> Any:
        return self.backend.Tensor("OUTPUT", np.array([[text.encode("utf-8")]], dtype=object))
