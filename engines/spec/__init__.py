"""Models, GPUs, number formats and memory arithmetic. Every constant has its source."""

from engines.names import is_accelerator_file
from engines.spec.accelerator import (
    Accelerator,
    BandwidthPoint,
    GemmPoint,
    MachineFacts,
    Sourced,
    read_accelerator,
)
from engines.spec.attention_waves import SPLIT, Waves, waves_on
from engines.spec.deployment import Factors, Host, loaded
from engines.spec.engine_profile import (
    DEFAULT_ENGINE_PROFILE,
    Batching,
    EngineProfile,
    engine_profile_named,
    engine_profiles,
)
from engines.spec.gpu import GpuSpec, ProductSpeed, gpu_named, known_gpus
from engines.spec.llm_api import (
    LLM_API_VERSIONS,
    LlmApiFacts,
    LlmApiVersion,
    SpeculationMethod,
    llm_api,
    llm_api_version_of,
    require_known_arguments,
    unknown_arguments,
)
from engines.spec.memory import MemoryBudget, Sizing, memory_budget
from engines.spec.model import SIXTEEN_BIT_BYTES, ModelSpec, RopeScaling, known_models, model_named
from engines.spec.model_config import ConfigFacts, model_of_config, read_config, read_config_facts
from engines.spec.placed_model import PlacedModel
from engines.spec.power import DEFAULT_POWER_PRIOR, PowerPrior, power_prior
from engines.spec.precision import KV_BYTES, PRECISIONS, Arithmetic, KvFormat, Precision, precision_named
from engines.spec.resolve import is_checkpoint_folder, resolve_gpu, resolve_model, sources_named
from engines.spec.speculation import (
    AcceptanceProfile,
    DraftModel,
    SpeculativeDecoding,
    SpeculativeMethod,
    default_acceptance,
    eagle3_head_in,
    eagle3_head_of,
    lookahead_draft_tokens,
)
from engines.spec.support import (
    FP8_SM,
    Backend,
    Verdict,
    group_size_for,
    keeps_paged_attention,
    kv_refusal,
    require_possible,
    verdict,
)
from engines.units import GIB, MS_PER_S, gib, milliseconds

__all__ = [
    "DEFAULT_ENGINE_PROFILE",
    "DEFAULT_POWER_PRIOR",
    "FP8_SM",
    "GIB",
    "KV_BYTES",
    "LLM_API_VERSIONS",
    "MS_PER_S",
    "PRECISIONS",
    "SIXTEEN_BIT_BYTES",
    "SPLIT",
    "Accelerator",
    "AcceptanceProfile",
    "Arithmetic",
    "Backend",
    "BandwidthPoint",
    "Batching",
    "ConfigFacts",
    "DraftModel",
    "EngineProfile",
    "Factors",
    "GemmPoint",
    "GpuSpec",
    "Host",
    "KvFormat",
    "LlmApiFacts",
    "LlmApiVersion",
    "MachineFacts",
    "MemoryBudget",
    "ModelSpec",
    "PlacedModel",
    "PowerPrior",
    "Precision",
    "ProductSpeed",
    "RopeScaling",
    "Sizing",
    "Sourced",
    "SpeculationMethod",
    "SpeculativeDecoding",
    "SpeculativeMethod",
    "Verdict",
    "Waves",
    "default_acceptance",
    "eagle3_head_in",
    "eagle3_head_of",
    "engine_profile_named",
    "engine_profiles",
    "gib",
    "gpu_named",
    "group_size_for",
    "is_accelerator_file",
    "is_checkpoint_folder",
    "keeps_paged_attention",
    "known_gpus",
    "known_models",
    "kv_refusal",
    "llm_api",
    "llm_api_version_of",
    "loaded",
    "lookahead_draft_tokens",
    "memory_budget",
    "milliseconds",
    "model_named",
    "model_of_config",
    "power_prior",
    "precision_named",
    "read_accelerator",
    "read_config",
    "read_config_facts",
    "require_known_arguments",
    "require_possible",
    "resolve_gpu",
    "resolve_model",
    "sources_named",
    "unknown_arguments",
    "verdict",
    "waves_on",
]
