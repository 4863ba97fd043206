"""Detokenizing as TensorRT-LLM's own `postprocessing` model is known to do it: through transformers, call by call.

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
        self.skip = parameters["skip_special_tokens"]["string_value"].lower() in {"true", "1", "t", "y", "yes"}
        self.tokenizer = AutoTokenizer.from_pretrained(folder, legacy=False, padding_side="left")
        if not self.tokenizer.pad_token:
            self.tokenizer.pad_token = self.tokenizer.eos_token

    def execute(self, requests):
        """Decode the tokens of each request by themselves."""
        responses = []
        for request in requests:
            batch = backend.get_input_tensor_by_name(request, "TOKENS_BATCH").as_numpy()
            lengths = backend.get_input_tensor_by_name(request, "SEQUENCE_LENGTH").as_numpy()
            texts = [
                self.tokenizer.decode(tokens[: lengths[row][beam]], skip_special_tokens=self.skip).encode("utf8")
                for row, beams in enumerate(batch)
                for beam, tokens in enumerate(beams)
            ]
            output = backend.Tensor("OUTPUT", np.array(texts).astype(object))
            responses.append(backend.InferenceResponse([output]))
        return responses
