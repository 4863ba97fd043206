"""From text to tokens: TensorRT-LLM's `preprocessing` model, with the `tokenizers` library alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from triton_repo.models.encoding import Encoder
from triton_repo.models.limits import InputLimits
from triton_repo.models.text import load_tokenizer, special_tokens, word_list

Array = np.ndarray[Any, Any]
NO_WORDS = np.array([[[0], [-1]]], np.int32)


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
        tokenizer = load_tokenizer(folder)
        self._encoder = Encoder(tokenizer)
        self._limits = InputLimits({key: value["string_value"] for key, value in parameters.items()}, tokenizer)
        self._vocabulary = tokenizer.get_vocab_size(with_added_tokens=True)
        special = special_tokens(folder, tokenizer)
        # The same for nearly every request; a cached tensor costs nothing to send again.
        self._usual = {
            "DECODER_INPUT_ID": self._made("DECODER_INPUT_ID", np.zeros((1, 0), np.int32)),
            "REQUEST_DECODER_INPUT_LEN": self._made("REQUEST_DECODER_INPUT_LEN", np.zeros((1, 1), np.int32)),
            "BAD_WORDS_IDS": self._made("BAD_WORDS_IDS", NO_WORDS),
            "STOP_WORDS_IDS": self._made("STOP_WORDS_IDS", NO_WORDS),
            "EMBEDDING_BIAS": self._made("EMBEDDING_BIAS", np.zeros((1, 0), np.float32)),
            "OUT_END_ID": self._made("OUT_END_ID", _id(special.end_id)),
            "OUT_PAD_ID": self._made("OUT_PAD_ID", _id(special.pad_id)),
            "OUT_PROMPT_TABLE_EXTRA_IDS": self._made("OUT_PROMPT_TABLE_EXTRA_IDS", np.zeros((1, 0), np.uint64)),
        }

    def execute(self, requests: list[Any]) -> list[Any]:
        """Tokenize each request's prompt."""
        return [self._respond(request) for request in requests]

    def _respond(self, request: Any) -> Any:
        try:
            own = self._outputs(request)
        except ValueError as error:
            return self.backend.InferenceResponse(error=self.backend.TritonError(str(error)))
        made = {name: self._made(name, value) for name, value in own.items()}
        return self.backend.InferenceResponse(list((self._usual | made).values()))

    def _outputs(self, request: Any) -> dict[str, Array]:
        """Return the request's individual outputs."""
        texts = _texts(self._tensor(request, "QUERY"))
        output_len = self._tensor(request, "REQUEST_OUTPUT_LEN")
        if len(texts) != 1 or output_len is None or not output_len.size:
            raise ValueError(f"one prompt and its max_tokens are needed, found {len(texts)} prompts")
        self._limits.require_reply(int(output_len.reshape(-1)[0]), "max_tokens")
        ids = self._ids(texts[0])
        own = {
            "INPUT_ID": np.array([ids], np.int32),
            "REQUEST_INPUT_LEN": np.array([[len(ids)]], np.int32),
            "REQUEST_OUTPUT_LEN": output_len.reshape(1, -1).astype(np.int32),
        }
        for theirs, ours in (("BAD_WORDS_DICT", "BAD_WORDS_IDS"), ("STOP_WORDS_DICT", "STOP_WORDS_IDS")):
            words = [word for word in _texts(self._tensor(request, theirs)) if word]
            if words:
                self._limits.require_text(words, theirs.lower())
                own[ours] = np.array([word_list([self._encoder.encode(word) for word in words])], np.int32)
        for theirs, ours in (("END_ID", "OUT_END_ID"), ("PAD_ID", "OUT_PAD_ID")):
            given = self._tensor(request, theirs)
            if given is not None and given.size:
                own[ours] = _id(int(given.reshape(-1)[0]))
        bias = self._embedding_bias(request)
        if bias is not None:
            own["EMBEDDING_BIAS"] = bias
        return own

    def _ids(self, text: str) -> list[int]:
        self._limits.require_text([text], "the prompt")
        ids = self._encoder.encode(text, add_special_tokens=self._add_special)
        self._limits.require_prompt(ids)
        return ids

    def _embedding_bias(self, request: Any) -> Array | None:
        """Return the value added to each token's logit; None without bias words.

        Raises:
            ValueError: The numbers of words and weights differ.
        """
        words = _texts(self._tensor(request, "EMBEDDING_BIAS_WORDS"))
        weights = self._tensor(request, "EMBEDDING_BIAS_WEIGHTS")
        values = [] if weights is None else weights.reshape(-1).tolist()
        if len(words) != len(values):
            raise ValueError(f"{len(words)} embedding_bias_words and {len(values)} embedding_bias_weights")
        if not words:
            return None
        bias = np.zeros((1, self._vocabulary), np.float32)
        for word, value in zip(words, values, strict=True):
            for token in self._encoder.encode(word):
                bias[0, token] += value
        return bias

    def _tensor(self, request: Any, name: str) -> Array | None:
        tensor = self.backend.get_input_tensor_by_name(request, name)
        return None if tensor is None else np.asarray(tensor.as_numpy())

    def _made(self, name: str, value: Array) -> Any:
        return self.backend.Tensor(name, value)


def _id(token_id: int | None) -> Array:
    return np.array([[-1 if token_id is None else token_id]], np.int32)


def _texts(tensor: Array | None) -> list[str]:
    if tensor is None:
        return []
    return [item.decode("utf-8", "replace") if isinstance(item, bytes) else str(item) for item in tensor.reshape(-1)]
