"""`plan.json`: the plan of a build."""

from __future__ import annotations

from typing import Literal

from engines.files import Document, Strict
from engines.manifest import LlmApiChoices, Notice, Runtime, StepTimeChoice
from engines.planning.choices import Choice
from engines.planning.recipe import LoraChoices, Objectives, SpeculativeChoices, Workload
from engines.spec import GpuSpec, KvFormat, MemoryBudget, ModelSpec, Sizing, SpeculativeDecoding, Verdict


class Predicted(Strict):
    """Predicted figures of the full engine for the typical request, from the step-time model."""

    sequences: int
    itl_s: float
    single_itl_s: float
    ttft_s: float
    longest_gap_s: float
    tokens_per_s: float


class BuildPlan(Document):
    """`plan.json`: all decisions and predictions of a build, made before anything is written."""

    backend: Literal["tensorrt", "pytorch"]
    step_time: StepTimeChoice
    model: ModelSpec
    gpu: GpuSpec
    precision: str
    kv_format: KvFormat
    verdict: Verdict
    tensorrt_llm: str
    sizing: Sizing
    max_input_len: int
    memory: MemoryBudget
    runtime: Runtime
    fp8_context_attention: bool
    gemm_plugin: str
    workload: Workload
    objectives: Objectives
    lora: LoraChoices
    speculative: SpeculativeChoices
    speculation: SpeculativeDecoding | None = None
    llm_api: LlmApiChoices | None = None
    predicted: Predicted
    choices: list[Choice]
    notices: list[Notice]

    @property
    def name(self) -> str:
        """The engine's name: model, precision and GPU."""
        return f"{self.model.name}-{self.precision}-{self.gpu.name}"

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes of one token's keys and values, those of the draft model included."""
        draft = None if self.speculation is None else self.speculation.draft
        drafted = 0 if draft is None else draft.kv_bytes_per_token(self.kv_format)
        return self.model.kv_bytes_per_token(self.kv_format) + drafted

    @property
    def built_max_seq_len(self) -> int:
        """The engine's own `max_seq_len`, to which `trtllm-build` adds the draft length."""
        return self.sizing.max_seq_len + self.speculative.max_draft_len
