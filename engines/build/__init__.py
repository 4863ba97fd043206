"""Running a build plan: stages, TensorRT-LLM's commands, the LLM API's model.

May import `planning` and `checkpoint`.
"""

from engines.build.llmapi import (
    MODEL_YAML,
    SERVE_PORT,
    SERVE_YAML,
    LlmRuntime,
    choices_of,
    llm_arguments,
    model_document,
    pytorch_refusal,
    serve_command,
    serve_document,
    serve_image,
    served_model,
)
from engines.build.pipeline import Job, Kind, inspect_in_stages, run_job
from engines.build.stages import Stages, available_memory_bytes
from engines.build.trtllm import visible_gpu

__all__ = [
    "MODEL_YAML",
    "SERVE_PORT",
    "SERVE_YAML",
    "Job",
    "Kind",
    "LlmRuntime",
    "Stages",
    "available_memory_bytes",
    "choices_of",
    "inspect_in_stages",
    "llm_arguments",
    "model_document",
    "pytorch_refusal",
    "run_job",
    "serve_command",
    "serve_document",
    "serve_image",
    "served_model",
    "visible_gpu",
]
