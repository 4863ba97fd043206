"""Stands in for tensorrt_llm.models: the classes by architecture, their configs, and what their loaders ask for.

ModelOpt's export uses these where TensorRT-LLM is installed, as it is in the container: config.json is then what
`QWenConfig.from_hugging_face` says, not what ModelOpt itself would write.

Source of the keys and their values:
    TensorRT-LLM 1.x, tensorrt_llm/models: modeling_utils.py (PretrainedConfig), qwen/config.py, qwen/model.py.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

NEEDED = (
    "architecture",
    "dtype",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "vocab_size",
    "seq_length",
)
AS_IN_SOURCE = (
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "hidden_size",
    "intermediate_size",
    "vocab_size",
    "max_position_embeddings",
    "hidden_act",
    "tie_word_embeddings",
)


class QWenConfig:
    """A config as upstream makes it of a Hugging Face one."""

    def __init__(self, values: dict[str, Any]) -> None:
        self.values = values

    @classmethod
    def from_hugging_face(cls, hf_config_or_dir: Any, dtype: str, mapping: Any, quant_config: Any) -> QWenConfig:
        """Take over what upstream takes over, with its own words and defaults."""
        source = hf_config_or_dir
        values = {name: getattr(source, name) for name in AS_IN_SOURCE}
        values |= {
            "architecture": source.architectures[0],
            "dtype": dtype,
            "head_size": source.head_dim,
            "norm_epsilon": source.rms_norm_eps,
            "position_embedding_type": "rope_gpt_neox",
            "rotary_embedding_dim": None,
            "rotary_base": source.rope_theta,
            "rotary_scaling": source.rope_scaling,
            "seq_length": getattr(source, "seq_length", 8192),
            "qwen_type": source.model_type,
            "attn_bias": source.model_type not in {"qwen3", "qwen3_moe"},
            "mlp_bias": False,
            "qk_layernorm": False,
            "logits_dtype": "float32",
            "use_parallel_embedding": False,
            "embedding_sharding_dim": 0,
            "use_logn_attn": False,
            "disable_weight_only_quant_plugin": False,
            "runtime_defaults": None,
            "mapping": mapping.to_dict(),
            "quantization": quant_config.to_dict(),
        }
        return cls(values)

    def to_dict(self) -> dict[str, Any]:
        """Return the values, as ModelOpt takes them into config.json."""
        return self.values


class QWenForCausalLM:
    """Loads what a Qwen checkpoint must have, and no weights."""

    config_class = QWenConfig

    @classmethod
    def from_checkpoint(cls, ckpt_dir: str) -> QWenForCausalLM:
        """Read the config; a key that is not there is an error, as it is upstream."""
        config = json.loads((Path(ckpt_dir) / "config.json").read_text())
        for key in NEEDED:
            config[key]
        for rank in range(config["mapping"]["tp_size"]):
            (Path(ckpt_dir) / f"rank{rank}.safetensors").stat()
        return cls()


MODEL_MAP = {"QWenForCausalLM": QWenForCausalLM, "Qwen3ForCausalLM": QWenForCausalLM}
