"""Serving settings around the engine: queues, processes, the models of text, length limits, emulation, the LLM API.

Source:
    TensorRT-LLM, triton_backend/all_models/inflight_batcher_llm/*/config.pbtxt and
    triton_backend/inflight_batcher_llm/src/model_instance_state.cc, 1.1 to 1.2.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from engines.files import Strict
from triton_repo.settings.setting import Amount, Auto, Count, Line, to

DEFAULT_TIME_SCALE = 4.0
UPSTREAM_LLMAPI = "/app/all_models/llmapi/tensorrt_llm/1"  # where Triton's TensorRT-LLM image has that model's code
WORKER_PATH = "/opt/tritonserver/backends/tensorrtllm/trtllmExecutorWorker"
GpuGroups = Annotated[str, StringConstraints(pattern=r"^\d+(,\d+)*(;\d+(,\d+)*)*$")]


class Queue(Strict):
    """How requests that cannot start at once wait, or are refused."""

    max_queue_size: Amount = to(
        0,
        "preprocessing, tensorrt_llm: dynamic_batching.default_queue_policy.max_queue_size",
        "none: must be given",
        (
            "Maximum queue size, in Triton's queue and in the executor's; further requests are refused at "
            "once. 0: no limit."
        ),
        emulated=True,
    )
    delay_us: Amount = to(
        0,
        "preprocessing, tensorrt_llm: dynamic_batching.max_queue_delay_microseconds",
        "none: must be given",
        "How long Triton's batcher may delay a request to batch it with others.",
        emulated=True,
    )
    priority_levels: Annotated[int, Field(ge=0, le=64)] = to(
        0,
        "preprocessing, tensorrt_llm: dynamic_batching.priority_levels",
        "0",
        "Number of priority levels, 1 first; 0: none. They order Triton's queue, not the executor's.",
        emulated=True,
    )
    default_priority: Annotated[int, Field(ge=1, le=64)] | None = to(
        None,
        "preprocessing, tensorrt_llm: dynamic_batching.default_priority_level",
        "none: must be given with priority_levels",
        "Priority of a request without one. Default: the middle level.",
        emulated=True,
    )
    timeout_us: Amount = to(
        0,
        "preprocessing, tensorrt_llm: dynamic_batching.default_queue_policy.default_timeout_microseconds",
        "0",
        "How long a request may wait in Triton's queue; 0: no limit. The executor's queue has no time-out.",
        emulated=True,
    )
    timeout_action: Literal["reject", "delay"] = to(
        "reject",
        "preprocessing, tensorrt_llm: dynamic_batching.default_queue_policy.timeout_action",
        "REJECT",
        "Refuse requests that waited too long, or delay them behind all others.",
        emulated=True,
    )
    allow_timeout_override: bool = to(
        False,
        "preprocessing, tensorrt_llm: dynamic_batching.default_queue_policy.allow_timeout_override",
        "false",
        "Let a request state a shorter time-out.",
        emulated=True,
    )


class Processes(Strict):
    """Which GPUs and processes serve the engine."""

    mode: Literal["leader", "orchestrator"] = to(
        "leader",
        "environment: TRTLLM_ORCHESTRATOR",
        "leader",
        "Leader: mpirun starts Triton once for each rank. Orchestrator: one Triton starts the workers itself.",
    )
    spawn_processes: bool = to(
        True,
        "environment: TRTLLM_ORCHESTRATOR_SPAWN_PROCESSES",
        "true",
        "Orchestrator mode only: whether Triton starts the workers; if not, participant_ids must name them.",
    )
    gpu_device_ids: GpuGroups | None = to(
        None,
        "tensorrt_llm: gpu_device_ids",
        "all that are visible",
        "GPUs of an instance, separated by commas; instances by semicolons.",
    )
    participant_ids: GpuGroups | None = to(
        None, "tensorrt_llm: participant_ids", "chosen at the start", "MPI ranks that serve the engine."
    )
    num_nodes: Count = to(1, "tensorrt_llm: num_nodes", "1", "Number of machines for the ranks.")
    worker_path: Line = to(
        WORKER_PATH, "tensorrt_llm: executor_worker_path", WORKER_PATH, "Program of an orchestrator's workers."
    )


class Text(Strict):
    """The models around the engine."""

    preprocessing_instances: Annotated[int, Field(ge=1, le=64)] | Auto = to(
        "auto",
        "preprocessing: instance_group.count",
        "none: must be given",
        "Number of tokenizing processes.",
        emulated=True,
    )
    postprocessing_instances: Annotated[int, Field(ge=1, le=64)] = to(
        1,
        "postprocessing: instance_group.count",
        "none: must be given",
        ("Number of detokenizing processes; with more than one, a process does not know the stream's earlier tokens."),
        emulated=True,
    )
    bls_instances: Annotated[int, Field(ge=1, le=1024)] | Auto = to(
        "auto",
        "tensorrt_llm_bls: instance_group.count",
        "none: must be given",
        "Requests that the business-logic model serves concurrently, each in a separate process.",
        emulated=True,
    )
    add_special_tokens: bool = to(
        True,
        "preprocessing: add_special_tokens",
        "true",
        "Let the tokenizer add special tokens, such as its begin token.",
        emulated=True,
    )
    skip_special_tokens: bool = to(
        True,
        "postprocessing: skip_special_tokens",
        "true",
        "Omit special tokens, such as end-of-text, from replies.",
        emulated=True,
    )
    accumulate_tokens: bool = to(
        False,
        "tensorrt_llm_bls: accumulate_tokens",
        "false",
        "Send the whole text so far with each token instead of the new text.",
        emulated=True,
    )
    draft_model: Line | None = to(
        None,
        "tensorrt_llm_bls: tensorrt_llm_draft_model_name",
        "none",
        ("Draft model, for speculative decoding by BLS."),
    )


class InputLimits(Strict):
    """What a request may ask for; refused before the engine sees it."""

    max_prompt_tokens: Count | Auto = to(
        "auto",
        "ours, in preprocessing and the emulated engine",
        "the engine's max_input_len",
        "Maximum prompt length.",
        emulated=True,
    )
    max_output_tokens: Count | Auto = to(
        "auto",
        "ours, in preprocessing and the emulated engine",
        "none: cut where the sequence would pass the engine's limit",
        "Maximum reply length; the rest of the sequence limit may reduce it further.",
        emulated=True,
    )


class Emulation(Strict):
    """Settings of the emulated engine."""

    time_scale: Annotated[float, Field(gt=0, le=10_000)] = to(
        DEFAULT_TIME_SCALE, "ours, emulated engines only", "-", "Wall seconds per engine second.", emulated=True
    )


class LlmApi(Strict):
    """The LLM API's model for engines of the PyTorch backend: what it adds to the engine's own arguments."""

    max_batch_size: Amount = to(
        0,
        "model.yaml: triton_config.max_batch_size",
        "none: must be given",
        "0: Triton batches nothing, the only value TensorRT-LLM supports.",
        emulated=True,
    )
    instances: Annotated[int, Field(ge=1, le=64)] = to(
        1, "tensorrt_llm: instance_group.count", "1", "Number of engine instances, each on separate GPUs."
    )
    postprocess_workers: Amount = to(
        0,
        "model.yaml: num_postprocess_workers",
        "0",
        ("Number of detokenizing processes; 0: the engine's own process."),
    )
    model_code: Line = to(
        UPSTREAM_LLMAPI,
        "ours, built engines only",
        "-",
        "Folder of TensorRT-LLM's own model.py for this model, where it is served.",
    )
