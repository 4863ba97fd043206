"""What the models and the GPUs are, how numbers are stored, what memory that takes. Every constant has its source."""

from engines.spec.deployment import Factors, Host
from engines.spec.gpu import GpuSpec, gpu_named, known_gpus
from engines.spec.memory import MemoryBudget, Sizing, memory_budget
from engines.spec.model import SIXTEEN_BIT_BYTES, ModelSpec, RopeScaling, known_models, model_named
from engines.spec.precision import KV_BYTES, PRECISIONS, KvFormat, Precision, precision_named
from engines.spec.speculation import lookahead_draft_tokens
from engines.spec.support import (
    Backend,
    Verdict,
    group_size_for,
    keeps_paged_attention,
    kv_refusal,
    require_possible,
    verdict,
)
from engines.spec.units import GIB, gib

__all__ = [
    "GIB",
    "KV_BYTES",
    "PRECISIONS",
    "SIXTEEN_BIT_BYTES",
    "Backend",
    "Factors",
    "GpuSpec",
    "Host",
    "KvFormat",
    "MemoryBudget",
    "ModelSpec",
    "Precision",
    "RopeScaling",
    "Sizing",
    "Verdict",
    "gib",
    "gpu_named",
    "group_size_for",
    "keeps_paged_attention",
    "known_gpus",
    "known_models",
    "kv_refusal",
    "lookahead_draft_tokens",
    "memory_budget",
    "model_named",
    "precision_named",
    "require_possible",
    "verdict",
]
