"""Tokenizing as TensorRT-LLM's own `preprocessing` model is known to do it: through transformers, request by request.

Written anew from its documented tensors and behaviour, for the bench alone; nothing that is served uses it.
"""

import json

import numpy as np
import triton_python_backend_utils as backend
from transformers import AutoTokenizer


class TritonPythonModel:
    """Entry point by the name Triton looks for."""

    def initialize(self, args):
        """Load the tokenizer as transformers does."""
        parameters = json.loads(args["model_config"])["parameters"]
        folder = parameters["tokenizer_dir"]["string_value"]
        self.tokenizer = AutoTokenizer.from_pretrained(folder, legacy=False, padding_side="left")
        if not self.tokenizer.pad_token:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        self.end_id = self.tokenizer.encode(self.tokenizer.eos_token, add_special_tokens=False)[0]
        self.pad_id = self.tokenizer.encode(self.tokenizer.pad_token, add_special_tokens=False)[0]

    def execute(self, requests):
        """Tokenize each request's prompts and its words."""
        return [self.respond(request) for request in requests]

    def respond(self, request):
        """Return all of the model's outputs."""
        query = backend.get_input_tensor_by_name(request, "QUERY").as_numpy()
        rows = [self.tokenizer.encode(row[0].decode(), add_special_tokens=True) for row in query]
        rows = [np.array(row).astype(int) for row in rows]
        lengths = np.array([[len(row)] for row in rows]).astype(int)
        longest = int(lengths.max())
        ids = np.stack([np.pad(row, (0, longest - len(row)), constant_values=self.pad_id) for row in rows])
        output_len = backend.get_input_tensor_by_name(request, "REQUEST_OUTPUT_LEN").as_numpy()
        outputs = {
            "INPUT_ID": ids.astype(np.int32),
            "REQUEST_INPUT_LEN": lengths.astype(np.int32),
            "DECODER_INPUT_ID": np.zeros((len(rows), 1), np.int32),
            "REQUEST_DECODER_INPUT_LEN": np.zeros((len(rows), 1), np.int32),
            "BAD_WORDS_IDS": self.words(backend.get_input_tensor_by_name(request, "BAD_WORDS_DICT"), len(rows)),
            "STOP_WORDS_IDS": self.words(backend.get_input_tensor_by_name(request, "STOP_WORDS_DICT"), len(rows)),
            "EMBEDDING_BIAS": np.zeros((len(rows), 0), np.float32),
            "REQUEST_OUTPUT_LEN": np.array(output_len),
            "OUT_END_ID": self.given(request, "END_ID", self.end_id, len(rows)),
            "OUT_PAD_ID": self.given(request, "PAD_ID", self.pad_id, len(rows)),
        }
        return backend.InferenceResponse([backend.Tensor(name, value) for name, value in outputs.items()])

    def words(self, tensor, count):
        """Return words as token ids, and where each ends."""
        rows = [[b""]] * count if tensor is None else tensor.as_numpy()
        flats, ends = [], []
        for row in rows:
            tokens = [self.tokenizer.encode(word.decode(), add_special_tokens=False) for word in row if word]
            flat = [token for word in tokens for token in word] or [0]
            end = np.cumsum([len(word) for word in tokens]).tolist() or [-1]
            flats.append(flat)
            ends.append(end + [-1] * (len(flat) - len(end)))
        return np.array([flats, ends], dtype="int32").transpose((1, 0, 2))

    @staticmethod
    def given(request, name, default, count):
        """Return an input's value, or the tokenizer's."""
        tensor = backend.get_input_tensor_by_name(request, name)
        return np.array([[default]] * count, np.int32) if tensor is None else tensor.as_numpy()
