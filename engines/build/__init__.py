"""Running a build plan: stages, TensorRT-LLM's commands, the LLM API's model; imports `planning` and `checkpoint`."""

from engines.build.llmapi import pytorch_refusal
from engines.build.pipeline import Job, Kind, emulated_manifest, inspect_in_stages, run_job
from engines.build.stages import Stages, available_memory_bytes
from engines.build.trtllm import visible_gpu

__all__ = [
    "Job",
    "Kind",
    "Stages",
    "available_memory_bytes",
    "emulated_manifest",
    "inspect_in_stages",
    "pytorch_refusal",
    "run_job",
    "visible_gpu",
]
