"""Names in Triton and TensorRT-LLM: tensors, parameters, configuration. May import `settings` only."""

from triton_repo.interface.llmapi import (
    HEADER,
    SERVE_HEADER,
    llm_document,
    llmapi_inputs,
    takes_adapters,
    trtllm_serve_document,
)
from triton_repo.interface.parameters import MUST_BE_THERE, NEVER_WRITTEN, limit_parameters, model_parameters, written
from triton_repo.interface.tensors import Tensor

__all__ = [
    "HEADER",
    "MUST_BE_THERE",
    "NEVER_WRITTEN",
    "SERVE_HEADER",
    "Tensor",
    "limit_parameters",
    "llm_document",
    "llmapi_inputs",
    "model_parameters",
    "takes_adapters",
    "trtllm_serve_document",
    "written",
]
