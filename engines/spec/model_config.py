"""A model's geometry from the config.json of a Hugging Face checkpoint."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engines.errors import MissingError, UserError
from engines.files import Strict, load_json, not_of_kind
from engines.spec.model import Family, Geometry, ModelSpec, RopeScaling

# Supported architectures, with known tensors and rope; all are decoder-only with a gated MLP and RMSNorm.
ARCHITECTURES: dict[str, Family] = {
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "mistral",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
}
CONFIG_NAME = "config.json"
_LARGEST_NUMBER = 1e12  # far above any number in a published config.json; a rope base of 1e8 is large
_DTYPES = {"bfloat16": "bfloat16", "float16": "float16", "float32": "float32"}


class RopeFacts(Strict):
    """Rotary position embedding; `scaling` as the checkpoint states it, None where there is none."""

    base: float
    scaling: dict[str, Any] | None = None


class ConfigFacts(Geometry):
    """What a config.json says of a model."""

    name: str
    architecture: str
    model_type: str
    activation: str
    tied_embeddings: bool
    qkv_bias: bool
    output_bias: bool
    qk_norm: bool
    dtype: str
    rope: RopeFacts
    bos_token_id: int | None


def model_in(folder: Path) -> ModelSpec:
    """Return the geometry of the checkpoint in a folder; its weights and tokenizer are not looked at.

    Raises:
        MissingError: No such folder.
        UserError: It has no config.json, or one that is not JSON, lacks a key, or states an unknown architecture.
    """
    return model_of_config(read_config_facts(folder))


def read_config(folder: Path) -> dict[str, Any]:
    """Return a checkpoint's config.json.

    Raises:
        MissingError: No such folder.
        UserError: It has no config.json, or one that is not JSON.
    """
    path = folder / CONFIG_NAME
    if folder.is_file():
        raise UserError(f"{folder}: is a file; expected a checkpoint's folder", hint=f"try {folder.parent}")
    if not folder.is_dir():
        published = not folder.is_absolute() and len(folder.parts) == 2  # noqa: PLR2004 (OWNER/MODEL)
        fetch = f"to fetch a model from Hugging Face: hf download {folder} --local-dir DIR"
        raise MissingError(f"{folder}: no such checkpoint folder", hint=fetch if published else "check the path")
    if not path.is_file():
        cached = sorted(folder.glob(f"snapshots/*/{CONFIG_NAME}"))
        hint = f"a cache of Hugging Face; try {cached[0].parent}" if cached else "a Hugging Face checkpoint contains it"
        raise not_of_kind("a checkpoint", folder, CONFIG_NAME, hint=hint)
    loaded = load_json(path)
    if not isinstance(loaded, dict):
        raise UserError(f"{path}: expected keys and values, found {type(loaded).__name__}")
    return loaded


def read_config_facts(folder: Path) -> ConfigFacts:
    """Return the content of a folder's config.json. Raises as `model_in` does."""
    config = read_config(folder)
    reader = _ConfigReader(folder / CONFIG_NAME, config)
    architecture = reader.architecture()
    heads = reader.count("num_attention_heads")
    hidden = reader.count("hidden_size")
    eos = reader.token("eos_token_id")
    llama_like = ARCHITECTURES[architecture] in {"llama", "mistral"}
    biased = bool(config.get("attention_bias", False)) if llama_like or "attention_bias" in config else False
    return ConfigFacts(
        name=str(config.get("_name_or_path") or folder.resolve().name),
        architecture=architecture,
        model_type=str(config.get("model_type", ARCHITECTURES[architecture])),
        layers=reader.count("num_hidden_layers"),
        hidden_size=hidden,
        intermediate_size=reader.count("intermediate_size"),
        attention_heads=heads,
        kv_heads=reader.count("num_key_value_heads", default=heads),
        head_size=reader.count("head_dim", default=hidden // heads),
        vocab_size=reader.count("vocab_size"),
        max_position_embeddings=reader.count("max_position_embeddings"),
        norm_epsilon=reader.number("rms_norm_eps"),
        activation=str(config.get("hidden_act", "silu")),
        tied_embeddings=bool(config.get("tie_word_embeddings", False)),
        qkv_bias=biased or architecture == "Qwen2ForCausalLM",
        output_bias=biased and llama_like,
        qk_norm=architecture == "Qwen3ForCausalLM",
        dtype=reader.dtype(),
        rope=reader.rope(),
        bos_token_id=reader.token("bos_token_id"),
        eos_token_id=eos if eos is not None else reader.missing("eos_token_id"),
        pad_token_id=_first_not_none(reader.token("pad_token_id"), eos, 0),
    )


def model_of_config(facts: ConfigFacts) -> ModelSpec:
    """Return the model specification of a geometry.

    Raises:
        UserError: The kind of rope scaling is unknown.
    """
    return ModelSpec(
        name=facts.name.lower(),
        family=ARCHITECTURES[facts.architecture],
        rope_theta=facts.rope.base,
        rope_scaling=_rope_scaling(facts),
        tied_embeddings=facts.tied_embeddings,
        qkv_bias=facts.qkv_bias,
        qk_norm=facts.qk_norm,
        source=f"config.json of the checkpoint {facts.name}",
        **facts.model_dump(include=set(Geometry.model_fields)),
    )


def _rope_scaling(facts: ConfigFacts) -> RopeScaling | None:
    stated: dict[str, Any] = facts.rope.scaling or {}
    kind = stated.get("rope_type", stated.get("type", "default"))
    if kind == "default":
        return None
    try:
        return RopeScaling(
            kind=kind,
            factor=stated["factor"],
            original_max_position_embeddings=stated.get(
                "original_max_position_embeddings", facts.max_position_embeddings
            ),
            attn_factor=stated.get("attn_factor"),
            low_freq_factor=stated.get("low_freq_factor"),
            high_freq_factor=stated.get("high_freq_factor"),
        )
    except (KeyError, ValueError) as error:
        raise UserError(
            f"{facts.name}: rope scaling {stated} has an unknown type",
            hint="known: yarn, llama3, linear, dynamic",
        ) from error


@dataclass(frozen=True, slots=True)
class _ConfigReader:
    """Typed access to a config.json; errors name the file and the key."""

    path: Path
    config: dict[str, Any]

    def missing(self, key: str) -> Any:
        raise UserError(
            f"{self.path}: missing key '{key}'", hint="check that this is the config.json of a language model"
        )

    def number(self, key: str, *, default: float | None = None) -> float:
        value = self.config.get(key)
        return self._positive(key, default if value is None else value)

    def _positive(self, key: str, value: Any) -> float:
        if value is None:
            self.missing(key)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= _LARGEST_NUMBER:
            raise UserError(
                f"{self.path}: {key}: must be a positive number up to {_LARGEST_NUMBER:g} (found {value!r:.80})"
            )
        return float(value)

    def count(self, key: str, *, default: int | None = None) -> int:
        return int(self.number(key, default=default))

    def token(self, key: str) -> int | None:
        value = self.config.get(key)
        if isinstance(value, list):
            value = value[0] if value else None
        return int(value) if isinstance(value, int) else None

    def dtype(self) -> str:
        stated = str(self.config.get("dtype") or self.config.get("torch_dtype") or "bfloat16")
        if stated not in _DTYPES:
            raise UserError(f"{self.path}: dtype {stated} is not one of {', '.join(_DTYPES)}")
        return stated

    def architecture(self) -> str:
        stated = self.config.get("architectures") or ["(none)"]
        if not isinstance(stated, list) or not isinstance(stated[0], str):
            raise UserError(f"{self.path}: architectures: must be a list of names (found {stated!r:.80})")
        if stated[0] not in ARCHITECTURES:
            known = ", ".join(sorted(ARCHITECTURES))
            raise UserError(f"{self.path}: architecture {stated[0]} is not supported", hint=f"supported: {known}")
        if self.config.get("quantization_config"):
            raise UserError(
                f"{self.path}: the checkpoint is already quantized",
                hint="use the 16-bit checkpoint that it was quantized from",
            )
        if self.config.get("use_sliding_window") or self._slides():
            raise UserError(
                f"{self.path}: sliding-window attention shorter than the context is not supported here",
                hint="lower max_position_embeddings to the window, or switch the window off",
            )
        return str(stated[0])

    def _slides(self) -> bool:
        window = self.config.get("sliding_window")
        uses = self.config.get("use_sliding_window", True)
        return bool(
            window and uses and self._positive("sliding_window", window) < self.count("max_position_embeddings")
        )

    def rope(self) -> RopeFacts:
        """Read both notations: `rope_theta` with `rope_scaling`, and transformers 5's `rope_parameters`."""
        stated = self.config.get("rope_parameters") or self.config.get("rope_scaling") or {}
        if not isinstance(stated, dict):
            raise UserError(f"{self.path}: rope_parameters: expected keys and values (found {stated!r:.80})")
        parameters = dict(stated)
        base = self._positive("rope_theta", parameters.pop("rope_theta", None) or self.config.get("rope_theta"))
        kind = parameters.pop("rope_type", None) or parameters.pop("type", None) or "default"
        parameters.pop("type", None)
        if kind == "default":
            return RopeFacts(base=base)
        return RopeFacts(base=base, scaling={"rope_type": kind, **parameters})


def _first_not_none(*values: int | None) -> int:
    return next(value for value in values if value is not None)
