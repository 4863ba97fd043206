"""From text to tokens: TensorRT-LLM's `preprocessing` model, with the `tokenizers` library alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from triton_repo.models.text import load_tokenizer, special_tokens, word_list

Array = np.ndarray[Any, Any]


class Preprocessing:
    """Triton Python-backend model; `backend` is Triton's own module, set by the entry point."""

    backend: Any = None

    def initialize(self, args: dict[str, str]) -> None:
        """Load the tokenizer named by the model's parameters."""
        parameters = json.loads(args["model_config"])["parameters"]
        folder = Path(parameters["tokenizer_dir"]["string_value"])
        self._add_special = parameters["add_special_tokens"]["string_value"].lower() not in {
            "false",
            "0",
            "f",
            "n",
            "no",
        }
        self._tokenizer = load_tokenizer(folder)
        self._special = special_tokens(folder, self._tokenizer)

    def execute(self, requests: list[Any]) -> list[Any]:
        """Tokenize each request's prompt."""
        return [self._respond(request) for request in requests]

    def _respond(self, request: Any) -> Any:
        try:
            outputs = self._outputs(request)
        except ValueError as error:
            return self.backend.InferenceResponse(error=self.backend.TritonError(str(error)))
        return self.backend.InferenceResponse([self.backend.Tensor(name, value) for name, value in outputs.items()])

    def _outputs(self, request: Any) -> dict[str, Array]:
        texts = _texts(self._tensor(request, "QUERY"))
        output_len = self._tensor(request, "REQUEST_OUTPUT_LEN")
        if len(texts) != 1 or output_len is None:
            raise ValueError(f"one prompt and its max_tokens are needed, found {len(texts)} prompts")
        ids = self._tokenizer.encode(texts[0], add_special_tokens=self._add_special).ids
        if not ids:
            raise ValueError("the prompt has no tokens")
        empty = np.zeros((1, 0), np.int32)
        return {
            "INPUT_ID": np.array([ids], np.int32),
            "DECODER_INPUT_ID": empty,
            "REQUEST_INPUT_LEN": np.array([[len(ids)]], np.int32),
            "REQUEST_DECODER_INPUT_LEN": np.array([[0]], np.int32),
            "BAD_WORDS_IDS": self._word_list(self._tensor(request, "BAD_WORDS_DICT")),
            "STOP_WORDS_IDS": self._word_list(self._tensor(request, "STOP_WORDS_DICT")),
            "EMBEDDING_BIAS": np.zeros((1, 0), np.float32),
            "REQUEST_OUTPUT_LEN": output_len.reshape(1, -1).astype(np.int32),
            "OUT_END_ID": self._token_id(request, "END_ID", self._special.end_id),
            "OUT_PAD_ID": self._token_id(request, "PAD_ID", self._special.pad_id),
            "OUT_PROMPT_TABLE_EXTRA_IDS": np.zeros((1, 0), np.uint64),
        }

    def _tensor(self, request: Any, name: str) -> Array | None:
        tensor = self.backend.get_input_tensor_by_name(request, name)
        return None if tensor is None else np.asarray(tensor.as_numpy())

    def _token_id(self, request: Any, name: str, default: int | None) -> Array:
        given = self._tensor(request, name)
        value = int(given.reshape(-1)[0]) if given is not None and given.size else (-1 if default is None else default)
        return np.array([[value]], np.int32)

    def _word_list(self, words: Array | None) -> Array:
        """Return words in TensorRT-LLM's form: all tokens in a row, and below them where each word ends."""
        found = [self._tokenizer.encode(word, add_special_tokens=False).ids for word in _texts(words) if word]
        flat, ends = word_list(found)
        return np.array([[flat, ends]] if flat else [[[0], [-1]]], np.int32)


def _texts(tensor: Array | None) -> list[str]:
    if tensor is None:
        return []
    return [item.decode("utf-8", "replace") if isinstance(item, bytes) else str(item) for item in tensor.reshape(-1)]
