"""The manifest of an engine: what was built, from what and where; the only engine file other packages read."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from engines.files import Document, Strict, read_json
from engines.spec import Factors, GpuSpec, Host, KvFormat, LlmApiVersion, ModelSpec, SpeculationMethod

MANIFEST_NAME = "manifest.json"


class PrecisionFacts(Strict):
    """Weights and KV cache number formats, by this project's names."""

    name: str
    kv_cache: KvFormat
    activation_dtype: Literal["float32", "bfloat16", "float16"]


class Parallel(Strict):
    """How the model is split over GPUs."""

    tensor: int = 1
    pipeline: int = 1


class Limits(Strict):
    """The engine's build limits; TensorRT-LLM's runtime cannot exceed them."""

    max_batch_size: int
    max_num_tokens: int
    max_seq_len: int
    max_input_len: int
    max_beam_width: int = 1


class KvCache(Strict):
    """Paged KV cache as planned; `blocks` over the whole replica."""

    tokens_per_block: int
    blocks: int
    bytes_per_token: int
    free_gpu_mem_fraction: float


class Runtime(Strict):
    """Run-time behaviour that the serving side must agree with."""

    chunked_context: bool
    kv_reuse: bool
    scheduler_policy: Literal["guaranteed_no_evict", "max_utilization", "static_batch"]


class Notice(Strict):
    """A caveat for every later figure."""

    code: str
    text: str


class StepTimeChoice(Strict):
    """Which step-time model stands in for the GPU, and how a deployment was found to differ from it.

    Attributes:
        profile: Name of the engine profile that factors and host are the priors of; None where nothing was assumed, or
            a calibration says better.
        factors: Of the calibration or the profile; None where there is neither.
        host: What lies above the engine, likewise.
        calibration: The calibration's SHA-256.
    """

    source: Literal["roofline", "silicon"]
    profile: str | None = None
    factors: Factors | None = None
    host: Host | None = None
    calibration: str | None = None


class Adapters(Strict):
    """LoRA adapters that a PyTorch-backend server accepts; modules by TensorRT-LLM's names.

    Attributes:
        max_loras: Adapters in GPU memory at once; None: TensorRT-LLM's default.
        max_cpu_loras: Adapters in host memory at once; None: TensorRT-LLM's default.
    """

    target_modules: tuple[str, ...]
    max_rank: int
    max_loras: int | None = None
    max_cpu_loras: int | None = None


class Speculation(Strict):
    """Speculative decoding of a PyTorch-backend server.

    Attributes:
        draft_model: Folder or published name of the draft model; None for n-grams, which need none.
        max_matching_ngram_size: Tokens looked up, at most; for n-grams alone.
    """

    method: SpeculationMethod
    max_draft_len: int
    draft_model: str | None = None
    max_matching_ngram_size: int | None = None


class Disaggregation(Strict):
    """Disaggregated serving: separate prefill and decode servers, with a transfer of the KV cache.

    Attributes:
        transfer: TensorRT-LLM's name of what carries the cache; DEFAULT leaves the choice to it.
        max_tokens_in_buffer: Tokens of the transfer buffer: at least the longest prompt.
    """

    context_servers: int
    generation_servers: int
    transfer: str
    max_tokens_in_buffer: int


class LlmApiChoices(Strict):
    """What a PyTorch-backend server is started with beyond the limits every engine has.

    Attributes:
        version: Whose keys its files are written in.
        cuda_graph_batch_sizes: Batch sizes a CUDA graph is recorded for; empty: TensorRT-LLM's own series up to the
            largest batch.
        published_checkpoint: Name of a checkpoint that is served instead of one made here.
    """

    version: LlmApiVersion
    cuda_graph_batch_sizes: tuple[int, ...] = ()
    cuda_graph_padding: bool = True
    adapters: Adapters | None = None
    speculation: Speculation | None = None
    disaggregation: Disaggregation | None = None
    published_checkpoint: str | None = None


class CheckpointQuality(Strict):
    """The exported checkpoint against its source, on held-out text; measured on this machine."""

    tokens: int
    perplexity_source: float
    perplexity_quantized: float
    kl_divergence_nats: float
    top1_agreement_ratio: float


class StageRecord(Strict):
    """One stage of a build: what it cost when it was done, and whether that was this time.

    Attributes:
        key: Name of the stage's folder: the hash of everything it depends on.
        peak_memory_bytes: Peak resident memory of the process, or of its largest child; None where it is not told.
        reused: The result of an earlier build was taken.
    """

    name: str
    key: str
    seconds: float
    peak_memory_bytes: int | None
    reused: bool


class EngineManifest(Document):
    """`manifest.json` of an engine folder.

    `kind` says what stands in the folder: `built` (a TensorRT-LLM engine), `emulated` (a plan and no engine),
    `checkpoint` (quantized and verified, not compiled). Paths are relative to the manifest's folder.
    It carries the whole geometry and data sheet it was planned with, so that nothing has to be looked up again.

    Attributes:
        llm_api: For the PyTorch backend alone.
        checkpoint: None where nothing was quantized: an emulated engine, or a published checkpoint.
    """

    kind: Literal["built", "emulated", "checkpoint"]
    backend: Literal["tensorrt", "pytorch"]
    model: ModelSpec
    gpu: GpuSpec
    precision: PrecisionFacts
    parallel: Parallel
    limits: Limits
    kv_cache: KvCache
    runtime: Runtime
    step_time: StepTimeChoice
    llm_api: LlmApiChoices | None = None
    tokenizer: str | None
    engine: str | None
    checkpoint: str | None
    versions: dict[str, str]
    quality: CheckpointQuality | None
    stages: tuple[StageRecord, ...] = ()
    notices: list[Notice]


def read_manifest(engine_folder: Path) -> EngineManifest:
    """Read an engine folder's manifest; errors as `files.read_json`."""
    return read_json(engine_folder / MANIFEST_NAME, EngineManifest)
