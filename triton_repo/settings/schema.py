"""The schema of a serving YAML: how an engine is served.

Every setting states the model and parameter of TensorRT-LLM that it sets, TensorRT-LLM's default, and whether an
emulated engine is affected by it. Tables, `--explain` and checks read them from here.

Source:
    TensorRT-LLM, triton_backend/all_models/inflight_batcher_llm/*/config.pbtxt and
    triton_backend/inflight_batcher_llm/src/model_instance_state.cc, 1.1 to 1.2.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, Field, StringConstraints

from engines.files import Strict

DEFAULT_TIME_SCALE = 4.0
UPSTREAM_LLMAPI = "/app/all_models/llmapi/tensorrt_llm/1"  # where Triton's TensorRT-LLM image has that model's code
WORKER_PATH = "/opt/tritonserver/backends/tensorrtllm/trtllmExecutorWorker"

Auto = Literal["auto"]
Count = Annotated[int, Field(ge=1)]
Amount = Annotated[int, Field(ge=0)]
Fraction = Annotated[float, Field(gt=0, lt=1)]
# Text for use inside the quotes of a text protobuf: a single line.
Line = Annotated[str, StringConstraints(pattern=r"^[^\r\n\x00]*$", max_length=4096)]
GpuGroups = Annotated[str, StringConstraints(pattern=r"^\d+(,\d+)*(;\d+(,\d+)*)*$")]
Choices = Annotated[str, StringConstraints(pattern=r"^\{\s*\d+(\s*,\s*\d+)*\s*\}(\s*,\s*\{\s*\d+(\s*,\s*\d+)*\s*\})*$")]


class Target(NamedTuple):
    """What a setting sets.

    Attributes:
        place: Model and parameter, or field of config.pbtxt; `ours` if TensorRT-LLM has none.
        upstream_default: TensorRT-LLM's behaviour if the parameter is omitted, as text.
        emulated: Whether an emulated engine, or the Triton around it, is affected.
    """

    place: str
    upstream_default: str
    emulated: bool


def _to(default: Any, place: str, upstream_default: str, text: str, *, emulated: bool = False) -> Any:
    """Return a field with its target; see `Target`."""
    extra: dict[str, Any] = {"place": place, "upstream_default": upstream_default, "emulated": emulated}
    return Field(default, description=text, json_schema_extra=extra)


class Scheduling(Strict):
    """How requests share iterations, and how replies are returned."""

    policy: Literal["auto", "guaranteed_no_evict", "max_utilization"] = _to(
        "auto",
        "tensorrt_llm: batch_scheduler_policy",
        "guaranteed_no_evict",
        "Whether a running request may be paused when KV blocks run out (max_utilization) or is never paused.",
        emulated=True,
    )
    batching: Literal["auto", "inflight_fused_batching", "inflight_batching", "v1"] = _to(
        "auto",
        "tensorrt_llm: gpt_model_type",
        "none: must be given",
        "In-flight batching, by either of its names, or static batches (v1).",
        emulated=True,
    )
    chunked_context: bool | Auto = _to(
        "auto",
        "tensorrt_llm: enable_chunked_context",
        "false",
        "Compute long prompts in pieces; the engine must be built with paged context attention.",
        emulated=True,
    )
    streaming: bool = _to(
        True,
        "tensorrt_llm, tensorrt_llm_bls: model_transaction_policy.decoupled",
        "none: must be given",
        "Decoupled mode: a request may have many responses. Required for streaming.",
        emulated=True,
    )
    exclude_input_in_output: bool = _to(
        False,
        "tensorrt_llm: exclude_input_in_output",
        "false",
        "Omit the prompt from replies that are not streamed; a request can override this.",
        emulated=True,
    )


class Queue(Strict):
    """How requests that cannot start at once wait, or are refused."""

    max_queue_size: Amount = _to(
        0,
        "preprocessing, tensorrt_llm: dynamic_batching.default_queue_policy.max_queue_size",
        "none: must be given",
        (
            "Maximum queue size, in Triton's queue and in the executor's; further requests are refused at "
            "once. 0: no limit."
        ),
        emulated=True,
    )
    delay_us: Amount = _to(
        0,
        "preprocessing, tensorrt_llm: dynamic_batching.max_queue_delay_microseconds",
        "none: must be given",
        "How long Triton's batcher may delay a request to batch it with others.",
        emulated=True,
    )
    priority_levels: Annotated[int, Field(ge=0, le=64)] = _to(
        0,
        "preprocessing, tensorrt_llm: dynamic_batching.priority_levels",
        "0",
        "Number of priority levels, 1 first; 0: none. They order Triton's queue, not the executor's.",
        emulated=True,
    )
    default_priority: Annotated[int, Field(ge=1, le=64)] | None = _to(
        None,
        "preprocessing, tensorrt_llm: dynamic_batching.default_priority_level",
        "none: must be given with priority_levels",
        "Priority of a request without one. Default: the middle level.",
        emulated=True,
    )
    timeout_us: Amount = _to(
        0,
        "preprocessing, tensorrt_llm: dynamic_batching.default_queue_policy.default_timeout_microseconds",
        "0",
        "How long a request may wait in Triton's queue; 0: no limit. The executor's queue has no time-out.",
        emulated=True,
    )
    timeout_action: Literal["reject", "delay"] = _to(
        "reject",
        "preprocessing, tensorrt_llm: dynamic_batching.default_queue_policy.timeout_action",
        "REJECT",
        "Refuse requests that waited too long, or delay them behind all others.",
        emulated=True,
    )
    allow_timeout_override: bool = _to(
        False,
        "preprocessing, tensorrt_llm: dynamic_batching.default_queue_policy.allow_timeout_override",
        "false",
        "Let a request state a shorter time-out.",
        emulated=True,
    )


class KvCacheSettings(Strict):
    """The paged KV cache at run time."""

    free_gpu_mem_fraction: Fraction | Auto = _to(
        "auto",
        "tensorrt_llm: kv_cache_free_gpu_mem_fraction",
        "0.9",
        "Share of the GPU memory left free by the engine to use as KV cache.",
        emulated=True,
    )
    max_tokens: Count | None = _to(
        None,
        "tensorrt_llm: max_tokens_in_paged_kv_cache",
        "no limit",
        "Maximum tokens in the cache, regardless of the fraction.",
        emulated=True,
    )
    reuse: bool | Auto = _to(
        "auto",
        "tensorrt_llm: enable_kv_cache_reuse",
        "true",
        "Keep blocks of ended requests for prompts with the same prefix.",
        emulated=True,
    )
    host_bytes: Amount = _to(
        0,
        "tensorrt_llm: kv_cache_host_memory_bytes",
        "0",
        "Host memory for evicted blocks; needs reuse.",
        emulated=True,
    )
    onboard_blocks: bool = _to(
        True,
        "tensorrt_llm: kv_cache_onboard_blocks",
        "true",
        "Copy a block found in host memory back to the GPU before use.",
    )
    max_attention_window: tuple[Count, ...] = _to(
        (),
        "tensorrt_llm: max_attention_window_size",
        "the longest sequence",
        "Attention window in tokens; one number, or one per layer, repeated.",
    )
    sink_tokens: Amount | None = _to(
        None,
        "tensorrt_llm: sink_token_length",
        "none",
        "First tokens always kept in an attention window.",
    )
    cross_fraction: Fraction | None = _to(
        None,
        "tensorrt_llm: cross_kv_cache_fraction",
        "0.5, for encoder-decoder models only",
        "Share of the cache for cross attention.",
    )


class Lookahead(Strict):
    """Lookahead decoding; all three belong together."""

    window_size: Count | None = _to(
        None, "tensorrt_llm: lookahead_window_size", "none: must be given with lookahead", ("Lookahead window size.")
    )
    ngram_size: Count | None = _to(
        None, "tensorrt_llm: lookahead_ngram_size", "none: must be given with lookahead", ("Lookahead n-gram length.")
    )
    verification_set_size: Count | None = _to(
        None,
        "tensorrt_llm: lookahead_verification_set_size",
        "none: must be given with lookahead",
        "Number of n-grams verified per step.",
    )


class Decoding(Strict):
    """How tokens are chosen."""

    mode: Literal[
        "auto", "top_k", "top_p", "top_k_top_p", "beam_search", "medusa", "redrafter", "lookahead", "eagle"
    ] = _to(
        "auto",
        "tensorrt_llm: decoding_mode",
        "top_k_top_p, or beam_search past a beam width of 1",
        "Decoding mode; speculative modes need an engine built for them.",
    )
    normalize_log_probs: bool = _to(
        True, "tensorrt_llm: normalize_log_probs", "true", "Divide a reply's log probability by its length."
    )
    lookahead: Lookahead = Lookahead()
    medusa_choices: Choices | None = _to(
        None, "tensorrt_llm: medusa_choices", "mc_sim_7b_63", "Medusa's tree, as {0},{0,0},{1}."
    )
    eagle_choices: Choices | None = _to(
        None, "tensorrt_llm: eagle_choices", "mc_sim_7b_63", "EAGLE's tree, as {0},{0,0},{1}."
    )
    fast_logits: bool = _to(
        False,
        "tensorrt_llm: speculative_decoding_fast_logits",
        "false",
        "Pass a draft model's logits between processes; orchestrator mode without spawning only.",
    )
    guided_backend: Literal["xgrammar"] | None = _to(
        None,
        "tensorrt_llm: guided_decoding_backend",
        "empty, and the key must be there",
        "Backend for guided decoding.",
    )
    tokenizer_info: Line | None = _to(
        None,
        "tensorrt_llm: xgrammar_tokenizer_info_path",
        "empty, and the key must be there",
        "JSON file with the vocabulary for xgrammar, at its path on the server.",
    )


class Types(Strict):
    """Number formats of tensors whose type is the deployment's to choose."""

    logits: Literal["auto", "fp32", "fp16"] = _to(
        "auto",
        "tensorrt_llm, ensemble, tensorrt_llm_bls: data_type of context_logits, generation_logits, draft_logits",
        "none: must be given",
        "As set by --logits_dtype when the engine was built; FP32 if its config.json is not available.",
        emulated=True,
    )
    prompt_embedding: Literal["fp16", "bf16", "fp32"] = _to(
        "fp16",
        "tensorrt_llm, tensorrt_llm_bls: data_type of prompt_embedding_table",
        "none: must be given",
        "As the engine's activations.",
        emulated=True,
    )
    encoder_features: Literal["fp16", "bf16", "fp32"] = _to(
        "fp16",
        "tensorrt_llm: data_type of encoder_input_features",
        "none: must be given",
        "For encoder-decoder models.",
        emulated=True,
    )


class RuntimeKnobs(Strict):
    """How the engine runs, and intervals of its checks."""

    cuda_graphs: bool = _to(False, "tensorrt_llm: cuda_graph_mode", "false", "Record decode steps as CUDA graphs.")
    cuda_graph_cache_size: Amount | Auto = _to(
        "auto", "tensorrt_llm: cuda_graph_cache_size", "0", "Number of cached graphs, one per batch size."
    )
    multi_block_mode: bool = _to(
        True, "tensorrt_llm: multi_block_mode", "true", "Split one sequence's attention over several thread blocks."
    )
    context_fmha_fp32_acc: bool = _to(
        False, "tensorrt_llm: enable_context_fmha_fp32_acc", "false", "Accumulate prompt attention in FP32."
    )
    gpu_weights_percent: Annotated[float, Field(ge=0, le=1)] = _to(
        1.0,
        "tensorrt_llm: gpu_weights_percent",
        "1.0",
        "Share of the weights kept on the GPU; below 1 needs an engine built with weight streaming.",
    )
    cancellation_check_period_ms: Count = _to(
        100,
        "tensorrt_llm: cancellation_check_period_ms",
        "100",
        "Interval between checks for cancelled requests.",
        emulated=True,
    )
    stats_check_period_ms: Annotated[int, Field(ge=10)] = _to(
        100, "tensorrt_llm: stats_check_period_ms", "100", "How often metrics are refreshed.", emulated=True
    )
    recv_poll_period_ms: Amount = _to(
        0, "tensorrt_llm: recv_poll_period_ms", "0", "Pause between checks for new requests; 0: a busy loop."
    )
    iter_stats_max_iterations: Amount = _to(
        1000, "tensorrt_llm: iter_stats_max_iterations", "1000", "Iterations whose statistics are stored."
    )
    request_stats_max_iterations: Amount = _to(
        0, "tensorrt_llm: request_stats_max_iterations", "0", "Iterations whose request statistics are stored."
    )


class LoraCache(Strict):
    """Caches of LoRA adapters; only for engines built with LoRA."""

    optimal_adapter_size: Count = _to(
        8, "tensorrt_llm: lora_cache_optimal_adapter_size", "8", "Rank for which the cache's pages are sized."
    )
    max_adapter_size: Count = _to(
        64, "tensorrt_llm: lora_cache_max_adapter_size", "64", "Maximum adapter rank in the cache."
    )
    gpu_memory_fraction: Fraction = _to(
        0.05,
        "tensorrt_llm: lora_cache_gpu_memory_fraction",
        "0.05",
        "Share of the memory left after engine and KV cache.",
    )
    host_memory_bytes: Amount = _to(
        1 << 30, "tensorrt_llm: lora_cache_host_memory_bytes", "1 GiB", "Host memory for adapters."
    )
    prefetch_dir: Line | None = _to(
        None, "tensorrt_llm: lora_prefetch_dir", "none", "Folder of adapters to load at start."
    )


class Processes(Strict):
    """Which GPUs and processes serve the engine."""

    mode: Literal["leader", "orchestrator"] = _to(
        "leader",
        "environment: TRTLLM_ORCHESTRATOR",
        "leader",
        "Leader: mpirun starts Triton once for each rank. Orchestrator: one Triton starts the workers itself.",
    )
    spawn_processes: bool = _to(
        True,
        "environment: TRTLLM_ORCHESTRATOR_SPAWN_PROCESSES",
        "true",
        "Orchestrator mode only: whether Triton starts the workers; if not, participant_ids must name them.",
    )
    gpu_device_ids: GpuGroups | None = _to(
        None,
        "tensorrt_llm: gpu_device_ids",
        "all that are visible",
        "GPUs of an instance, separated by commas; instances by semicolons.",
    )
    participant_ids: GpuGroups | None = _to(
        None, "tensorrt_llm: participant_ids", "chosen at the start", "MPI ranks that serve the engine."
    )
    num_nodes: Count = _to(1, "tensorrt_llm: num_nodes", "1", "Number of machines for the ranks.")
    worker_path: Line = _to(
        WORKER_PATH, "tensorrt_llm: executor_worker_path", WORKER_PATH, "Program of an orchestrator's workers."
    )


class Text(Strict):
    """The models around the engine."""

    preprocessing_instances: Annotated[int, Field(ge=1, le=64)] | Auto = _to(
        "auto",
        "preprocessing: instance_group.count",
        "none: must be given",
        "Number of tokenizing processes.",
        emulated=True,
    )
    postprocessing_instances: Annotated[int, Field(ge=1, le=64)] = _to(
        1,
        "postprocessing: instance_group.count",
        "none: must be given",
        ("Number of detokenizing processes; with more than one, a process does not know the stream's earlier tokens."),
        emulated=True,
    )
    bls_instances: Annotated[int, Field(ge=1, le=1024)] | Auto = _to(
        "auto",
        "tensorrt_llm_bls: instance_group.count",
        "none: must be given",
        "Requests that the business-logic model serves concurrently, each in a separate process.",
        emulated=True,
    )
    add_special_tokens: bool = _to(
        True,
        "preprocessing: add_special_tokens",
        "true",
        "Let the tokenizer add special tokens, such as its begin token.",
        emulated=True,
    )
    skip_special_tokens: bool = _to(
        True,
        "postprocessing: skip_special_tokens",
        "true",
        "Omit special tokens, such as end-of-text, from replies.",
        emulated=True,
    )
    accumulate_tokens: bool = _to(
        False,
        "tensorrt_llm_bls: accumulate_tokens",
        "false",
        "Send the whole text so far with each token instead of the new text.",
        emulated=True,
    )
    draft_model: Line | None = _to(
        None,
        "tensorrt_llm_bls: tensorrt_llm_draft_model_name",
        "none",
        ("Draft model, for speculative decoding by BLS."),
    )


class InputLimits(Strict):
    """What a request may ask for; refused before the engine sees it."""

    max_prompt_tokens: Count | Auto = _to(
        "auto",
        "ours, in preprocessing and the emulated engine",
        "the engine's max_input_len",
        "Maximum prompt length.",
        emulated=True,
    )
    max_output_tokens: Count | Auto = _to(
        "auto",
        "ours, in preprocessing and the emulated engine",
        "none: cut where the sequence would pass the engine's limit",
        "Maximum reply length; the rest of the sequence limit may reduce it further.",
        emulated=True,
    )


class Emulation(Strict):
    """Settings of the emulated engine."""

    time_scale: Annotated[float, Field(gt=0, le=10_000)] = _to(
        DEFAULT_TIME_SCALE, "ours, emulated engines only", "-", "Wall seconds per engine second.", emulated=True
    )


class LlmApi(Strict):
    """The LLM API's model for engines of the PyTorch backend: what it adds to the engine's own arguments."""

    max_batch_size: Amount = _to(
        0,
        "model.yaml: triton_config.max_batch_size",
        "none: must be given",
        "0: Triton batches nothing, the only value TensorRT-LLM supports.",
        emulated=True,
    )
    instances: Annotated[int, Field(ge=1, le=64)] = _to(
        1, "tensorrt_llm: instance_group.count", "1", "Number of engine instances, each on separate GPUs."
    )
    postprocess_workers: Amount = _to(
        0,
        "model.yaml: num_postprocess_workers",
        "0",
        ("Number of detokenizing processes; 0: the engine's own process."),
    )
    model_code: Line = _to(
        UPSTREAM_LLMAPI,
        "ours, built engines only",
        "-",
        "Folder of TensorRT-LLM's own model.py for this model, where it is served.",
    )


class ServingSettings(Strict):
    """The settings that belong to the server, not the engine."""

    scheduling: Scheduling = Scheduling()
    queue: Queue = Queue()
    kv_cache: KvCacheSettings = KvCacheSettings()
    decoding: Decoding = Decoding()
    types: Types = Types()
    runtime: RuntimeKnobs = RuntimeKnobs()
    lora: LoraCache = LoraCache()
    processes: Processes = Processes()
    text: Text = Text()
    limits: InputLimits = InputLimits()
    emulation: Emulation = Emulation()
    llmapi: LlmApi = LlmApi()


class Setting(NamedTuple):
    """One setting: dotted name, value, description and target."""

    name: str
    value: Any
    text: str
    target: Target


def all_settings(settings: BaseModel, prefix: str = "") -> list[Setting]:
    """Return every setting, in the schema's order.

    >>> [setting.name for setting in all_settings(ServingSettings())][:2]
    ['scheduling.policy', 'scheduling.batching']
    """
    found: list[Setting] = []
    for name, field in type(settings).model_fields.items():
        value = getattr(settings, name)
        if isinstance(value, BaseModel):
            found += all_settings(value, f"{prefix}{name}.")
            continue
        extra = field.json_schema_extra
        assert isinstance(extra, dict)  # every leaf is made by `_to`
        target = Target(str(extra["place"]), str(extra["upstream_default"]), bool(extra["emulated"]))
        found.append(Setting(prefix + name, value, field.description or "", target))
    return found


def merged_over(settings: dict[str, Any], name: str, value: Any) -> None:
    """Set a dotted name in nested dictionaries."""
    *parents, last = name.split(".")
    for parent in parents:
        settings = settings.setdefault(parent, {})
    settings[last] = value
