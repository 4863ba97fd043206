"""Running a build plan: stages, TensorRT-LLM's commands, the LLM API's model.

May import `planning` and `checkpoint`.
"""

from typing import TYPE_CHECKING, Any

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
from engines.build.stages import Stages, available_memory_bytes
from engines.build.trtllm import visible_gpu

if TYPE_CHECKING:
    from engines.build.pipeline import Job, Kind, inspect_in_stages, run_job

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


def __getattr__(name: str) -> Any:
    """Return a name of the pipeline, imported at its first use: commands that serve an engine need no NumPy."""
    if name not in {"Job", "Kind", "inspect_in_stages", "run_job"}:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from engines.build import pipeline  # noqa: PLC0415

    return getattr(pipeline, name)
