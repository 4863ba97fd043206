"""The manifest of an engine: what was built, from what and for which GPU. Other packages read no other engine file."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from engines.errors import UserError
from engines.files import Document, Strict, load_json, not_of_kind, validate
from engines.names import engine_title
from engines.spec import (
    EngineProfile,
    Factors,
    GpuSpec,
    Host,
    Kernels,
    KvFormat,
    LlmApiVersion,
    ModelSpec,
    PlacedModel,
    SpeculationMethod,
    SpeculativeDecoding,
)

MANIFEST_NAME = "manifest.json"
_ENGINE_HINT = "give the output folder of build-engine"


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
    """Run-time behaviour that the serving side must match; those of `engine_profile.Batching` are described there."""

    chunked_context: bool
    kv_reuse: bool
    scheduler_policy: Literal["guaranteed_no_evict", "max_utilization", "static_batch"]
    new_token_ratio: float | None = None
    prompts_apart: bool = False


class Notice(Strict):
    """A caveat that applies to every figure of the engine."""

    code: str
    text: str


class StepTimeChoice(Strict):
    """The step-time model that replaces the GPU, and the deployment's deviations from it.

    Attributes:
        kernels: Framework whose measured kernels `silicon` looks up.
        profile: Engine profile that provides factors and host as priors; None without one, or with a calibration.
        factors: From the calibration or the profile; None without either.
        host: Costs above the engine, likewise.
        calibration: The calibration's SHA-256.
    """

    source: Literal["roofline", "silicon"]
    kernels: Kernels = "trtllm"
    profile: str | None = None
    factors: Factors | None = None
    host: Host | None = None
    calibration: str | None = None

    @classmethod
    def expected(
        cls, source: Literal["roofline", "silicon"], profile: EngineProfile, placed: PlacedModel
    ) -> StepTimeChoice:
        """Return what an engine profile says of a model on its GPUs."""
        factors = profile.factors_on(placed)
        return cls(source=source, kernels=profile.kernels, profile=profile.name, factors=factors, host=profile.host)


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
        max_matching_ngram_size: Maximum tokens to match; for n-grams only.
        max_total_draft_tokens: Draft tokens of a tree, which a step verifies; None: a chain of `max_draft_len`.
    """

    method: SpeculationMethod
    max_draft_len: int
    draft_model: str | None = None
    max_matching_ngram_size: int | None = None
    max_total_draft_tokens: int | None = None


class Disaggregation(Strict):
    """Disaggregated serving: separate prefill and decode servers, with a transfer of the KV cache.

    Attributes:
        transfer: TensorRT-LLM's name of the transfer backend; DEFAULT leaves the choice to it.
        max_tokens_in_buffer: Tokens of the transfer buffer: at least the longest prompt.
    """

    context_servers: int
    generation_servers: int
    transfer: str
    max_tokens_in_buffer: int


class LlmApiChoices(Strict):
    """Settings of a PyTorch-backend server beyond the limits common to all engines.

    Attributes:
        version: Version whose argument names the files use.
        cuda_graph_batch_sizes: Batch sizes with a CUDA graph; empty: TensorRT-LLM's own series up to the largest batch.
        published_checkpoint: Name of a published checkpoint to serve instead of one made here.
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


class AccuracyResult(Strict):
    """One metric of one task, from questions that this model answered.

    Attributes:
        task: The harness's name; of a group, its questions pooled.
        metric: The harness's name, with its filter: `acc_norm`, `exact_match,flexible-extract`.
        is_main: Whether losses are computed from this metric of the task.
        value: As the harness computed it.
        standard_error: Of the value, over questions; None where the harness states none.
        questions: How many were asked.
        limit: Questions asked of each data set, from its beginning; None: all.
        few_shot: Solved examples in each prompt.
        chat: Whether prompts went through the chat template.
        versions: Of the task's definition (`task`) and of the harness (`lm_eval`).
        date: Day of the measurement, UTC.
        kind: Always measured: the text of an emulated engine has no accuracy.
        measured_on: The exported checkpoint's forward pass on a CPU, or the served model by its API.
        questions_sha256: Of all prompts in order: equal for two engines that answered the same questions.
        correct: One character per question, `1` right and `0` wrong; None for a metric that is neither.
    """

    task: str
    metric: str
    is_main: bool
    value: float
    standard_error: float | None
    questions: int
    limit: int | None
    few_shot: int
    chat: bool
    versions: dict[str, str]
    date: str
    kind: Literal["measured"] = "measured"
    measured_on: Literal["checkpoint", "server"]
    questions_sha256: str
    correct: str | None = None


class StageRecord(Strict):
    """One stage of a build: what it cost, and whether it was cached.

    Attributes:
        key: Name of the stage's folder: the hash of everything it depends on.
        peak_memory_bytes: Peak resident memory of the process or its largest child; None if unknown.
        reused: Whether the result of an earlier build was used.
    """

    name: str
    key: str
    seconds: float
    peak_memory_bytes: int | None
    reused: bool


class EngineManifest(Document):
    """`manifest.json` of an engine folder.

    `kind` states the folder's content: `built` (a TensorRT-LLM engine), `emulated` (a plan and no engine), `checkpoint`
    (quantized and verified, not compiled). Paths are relative to the manifest's folder. It includes the geometry and
    the data sheet it was planned with, so that nothing has to be looked up again.

    Attributes:
        speculative: What each decode step drafts and verifies; None: one token a step.
        llm_api: For the PyTorch backend only.
        checkpoint: None if nothing was quantized: an emulated engine, or a published checkpoint.
        accuracy: Results of `evaluate-engine`, which adds them after the build.
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
    speculative: SpeculativeDecoding | None = None
    llm_api: LlmApiChoices | None = None
    tokenizer: str | None
    engine: str | None
    checkpoint: str | None
    versions: dict[str, str]
    quality: CheckpointQuality | None
    accuracy: tuple[AccuracyResult, ...] = ()
    stages: tuple[StageRecord, ...] = ()
    notices: list[Notice]

    @property
    def placed(self) -> PlacedModel:
        """The model on one replica's GPUs."""
        return PlacedModel(self.model, self.gpu, self.precision.name, self.precision.kv_cache, self.parallel.tensor)

    @property
    def title(self) -> str:
        """The engine's name wherever one is shown, and on a server."""
        return engine_title(self.model.name, self.precision.name, self.gpu.name)


def manifest_path(engine_folder: Path) -> Path:
    """Return the path of an engine folder's manifest.

    Raises:
        MissingError: There is no such folder.
        UserError: It is a file, or a folder that has none.
    """
    path = engine_folder / MANIFEST_NAME
    if not path.exists():
        raise not_of_kind("an engine folder", engine_folder, MANIFEST_NAME, hint=_ENGINE_HINT)
    return path


def read_manifest(engine_folder: Path) -> EngineManifest:
    """Read an engine folder's manifest. Raises as `files.read_json` does; a folder of another kind is named as such."""
    path = manifest_path(engine_folder)
    loaded = load_json(path)
    try:
        return validate(loaded, EngineManifest, where=str(path))
    except UserError as error:
        made_by = loaded.get("made_by") if isinstance(loaded, dict) else None
        if isinstance(made_by, dict) and str(made_by.get("command")).startswith("build-repo"):
            raise UserError(f"{engine_folder}: a model repository, not an engine folder", hint=_ENGINE_HINT) from error
        raise
