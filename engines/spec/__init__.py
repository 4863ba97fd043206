"""What the models and the GPUs are, how numbers are stored, what memory that takes. Every constant has its source."""

from engines.spec.deployment import Factors, Host, loaded
from engines.spec.engine_profile import (
    DEFAULT_ENGINE_PROFILE,
    Batching,
    EngineProfile,
    engine_profile_named,
    engine_profiles,
)
from engines.spec.gpu import GpuSpec, gpu_named, known_gpus
from engines.spec.memory import MemoryBudget, Sizing, memory_budget
from engines.spec.model import SIXTEEN_BIT_BYTES, ModelSpec, RopeScaling, known_models, model_named
from engines.spec.precision import KV_BYTES, PRECISIONS, KvFormat, Precision, precision_named
from engines.spec.support import FP8_SM, Verdict, keeps_paged_attention, kv_refusal, require_possible, verdict
from engines.spec.units import GIB, gib

__all__ = [
    "DEFAULT_ENGINE_PROFILE",
    "FP8_SM",
    "GIB",
    "KV_BYTES",
    "PRECISIONS",
    "SIXTEEN_BIT_BYTES",
    "Batching",
    "EngineProfile",
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
    "engine_profile_named",
    "engine_profiles",
    "gib",
    "gpu_named",
    "keeps_paged_attention",
    "known_gpus",
    "known_models",
    "kv_refusal",
    "loaded",
    "memory_budget",
    "model_named",
    "precision_named",
    "require_possible",
    "verdict",
]
