"""Compares the config.json of a TensorRT-LLM export with its source; corrects and completes it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from engines.checkpoint.inspection import CheckpointFacts
from engines.errors import ToolError
from engines.files import write_text
from engines.manifest import Notice
from engines.spec import KvFormat, precision_named

KV_ALGO: dict[KvFormat, str | None] = {"16bit": None, "int8": "INT8", "fp8": "FP8"}
_AWQ_VOCAB_MULTIPLE = 64  # ModelOpt pads embedding and output projection to this multiple

# TensorRT-LLM 1.2's defaults for keys missing in config.json; a missing key with the right default is not an error.
_LLAMA_DEFAULTS = {"rotary_base": 10000.0, "rotary_scaling": None, "attn_bias": False, "mlp_bias": False}
_QWEN_DEFAULTS = {**_LLAMA_DEFAULTS, "attn_bias": True}
# Keys that determine the weights' shapes: if one of these is wrong, the tensors are too.
_STRUCTURE = ("architecture", "hidden_size", "intermediate_size", "num_hidden_layers", "hidden_act", "dtype")
# TensorRT-LLM's own default for weight-only engines, the only ones in which the embedding could be quantized.
_WEIGHT_ONLY_EXCLUDED = ["*lm_head", "*vocab_embedding"]


def mend_config(out: Path, facts: CheckpointFacts, *, precision: str, kv_cache: KvFormat) -> list[Notice]:
    """Compare an export's config.json with its source, correct it, and return a notice for each correction.

    Raises:
        ToolError: A value is wrong that a correction cannot repair, because the weights depend on it.
    """
    path = out / "config.json"
    config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    _check_structure(config, facts, precision=precision, kv_cache=kv_cache)
    defaults = _QWEN_DEFAULTS if facts.architecture.startswith("Qwen") else _LLAMA_DEFAULTS
    expected = _expected_config(facts, config)
    notices = []
    for key, value in expected.items():
        stated = config.get(key, defaults.get(key))
        found = f"said {key} = {stated}" if key in config else f"left out {key}"
        config[key] = value
        if not same(stated, value):
            text = f"ModelOpt's export {found}; mended to {json.dumps(value)} as in the source checkpoint"
            notices.append(Notice(code="export-mended", text=text))
    write_text(path, json.dumps(config, indent=2) + "\n")
    return notices


def weight_only_quantization(quantization: dict[str, Any]) -> dict[str, Any]:
    """Return the `quantization` of a 16-bit export that TensorRT-LLM rounds to INT8 weights on loading.

    `quant_algo` W8A16 means exactly that: the loader takes 16-bit weights and computes the scales itself. It cannot use
    scales computed by ModelOpt.

    Source:
        tensorrt_llm/models/modeling_utils.py, `preprocess_perlayer_weights` (run at 0.17); convert_utils.py.
    """
    return {**quantization, "quant_algo": "W8A16", "exclude_modules": _WEIGHT_ONLY_EXCLUDED}


def same(stated: Any, value: Any) -> bool:
    """Return whether a stated value is this one: floats within 1e-6, mappings by this one's keys except the type."""
    if isinstance(stated, float | int) and isinstance(value, float) and not isinstance(stated, bool):
        return abs(stated - value) <= 1e-6 * abs(value)
    if isinstance(stated, dict) and isinstance(value, dict):
        return all(stated.get(key) == wanted for key, wanted in value.items() if key not in {"type", "rope_type"})
    return bool(stated == value)


def _check_structure(config: dict[str, Any], facts: CheckpointFacts, *, precision: str, kv_cache: KvFormat) -> None:
    quantization = config.get("quantization", {})
    found = {key: config.get(key) for key in _STRUCTURE}
    found |= {key: quantization.get(key) for key in ("quant_algo", "kv_cache_quant_algo")}
    expected = {
        "architecture": facts.architecture,
        "hidden_size": facts.hidden_size,
        "intermediate_size": facts.intermediate_size,
        "num_hidden_layers": facts.layers,
        "hidden_act": facts.activation,
        "dtype": "float16" if precision == "fp16" else "bfloat16",
        "quant_algo": precision_named(precision).quant_algo,
        "kv_cache_quant_algo": KV_ALGO[kv_cache],
    }
    for key, value in expected.items():
        if found[key] != value:
            raise ToolError(f"ModelOpt's export has {key} = {found[key]}, but the source has {value}")


def _expected_config(facts: CheckpointFacts, config: dict[str, Any]) -> dict[str, Any]:
    """Return the config keys that follow from the source and are not visible in the tensors."""
    scaling = facts.rope.scaling
    expected: dict[str, Any] = {
        "num_attention_heads": facts.attention_heads,
        "num_key_value_heads": facts.kv_heads,
        "head_size": facts.head_size,
        "vocab_size": _expected_vocab(facts, config),
        "max_position_embeddings": facts.max_position_embeddings,
        "norm_epsilon": facts.norm_epsilon,
        "position_embedding_type": "rope_gpt_neox",
        "rotary_base": facts.rope.base,
        "rotary_scaling": None if scaling is None else {"type": scaling["rope_type"], **scaling},
        "attn_bias": facts.qkv_bias,
        "mlp_bias": False,
    }
    if facts.architecture.startswith("Qwen"):
        expected["qwen_type"] = facts.model_type
        # TensorRT-LLM's Qwen layers read it and have no default; it limits log-n attention scaling, which no Qwen2 or
        # Qwen3 uses. Without it the class does not load (tensorrt_llm/models/qwen/model.py).
        expected["seq_length"] = config.get("seq_length") or facts.max_position_embeddings
    if facts.qk_norm:
        expected["qk_layernorm"] = True
    if "rotary_embedding_dim" in config:  # written by TensorRT-LLM's own config class, from its head_size
        expected["rotary_embedding_dim"] = facts.head_size
    return expected


def _expected_vocab(facts: CheckpointFacts, config: dict[str, Any]) -> int:
    """Return the source's vocabulary size, padded if the exported tensors are padded (AWQ)."""
    padded = -(-facts.vocab_size // _AWQ_VOCAB_MULTIPLE) * _AWQ_VOCAB_MULTIPLE
    awq = str(config.get("quantization", {}).get("quant_algo")).endswith("AWQ")
    return padded if awq else facts.vocab_size
