"""Read a Hugging Face checkpoint and check that it is complete: config, shards, every tensor, tokenizer."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engines.checkpoint.shards import BYTES_PER_ELEMENT, TensorFacts, read_tensors, shard_paths, some
from engines.checkpoint.tokenizer import load_tokenizer
from engines.errors import MissingError, UserError
from engines.files import Source, Strict, load_json, source_of

# Architectures whose tensors and rope we know; all are decoder-only with a gated MLP and RMSNorm.
ARCHITECTURES = {
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "mistral",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
}
_LARGEST_NUMBER = 1e12  # no number of a published config.json comes near; a rope base of 1e8 is large
_DTYPES = {"bfloat16": "bfloat16", "float16": "float16", "float32": "float32"}


class RopeFacts(Strict):
    """Rotary position embedding; `scaling` as the checkpoint states it, None where there is none."""

    base: float
    scaling: dict[str, Any] | None = None


class CheckpointFacts(Strict):
    """A complete checkpoint: geometry, rope and files."""

    name: str
    architecture: str
    model_type: str
    layers: int
    hidden_size: int
    intermediate_size: int
    attention_heads: int
    kv_heads: int
    head_size: int
    vocab_size: int
    max_position_embeddings: int
    norm_epsilon: float
    activation: str
    tied_embeddings: bool
    qkv_bias: bool
    output_bias: bool
    qk_norm: bool
    dtype: str
    rope: RopeFacts
    parameters: int
    weights_bytes: int
    bos_token_id: int | None
    eos_token_id: int
    pad_token_id: int
    files: list[Source]


def inspect_checkpoint(folder: Path, *, hash_files: bool = True) -> CheckpointFacts:
    """Read a Hugging Face checkpoint folder and prove it whole.

    Every tensor the geometry calls for must be there with its shape, and no other; each shard must hold the bytes its
    header promises; the tokenizer must load and fit the vocabulary. No code from the checkpoint is ever run.

    Args:
        hash_files: False leaves `files` empty: hashing reads every byte, minutes for a large checkpoint on a slow disk.

    Raises:
        MissingError: The folder, its config, a shard or the tokenizer is missing.
        UserError: An architecture we do not know, a corrupt shard, a tensor too many, too few or misshapen.
    """
    config = read_config(folder)
    tensors = read_tensors(folder)
    facts = _facts_of(folder, config, tensors, hash_files=hash_files)
    _check_tensors(folder, tensors, facts)
    _check_tokenizer(folder, facts)
    return facts


def library(name: str) -> Any:
    """Import a heavy library of the `quantize` extra.

    Raises:
        MissingError: It is not installed.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise MissingError(
            f"this step needs {(error.name or name).split('.')[0]}, which is not installed",
            hint="pip install 'engine-to-capacity[quantize]'",
        ) from error


def read_config(folder: Path) -> dict[str, Any]:
    """Return a checkpoint's config.json.

    Raises:
        MissingError: No such folder, or no config.json in it.
        UserError: It is not JSON.
    """
    path = folder / "config.json"
    if not folder.is_dir():
        raise MissingError(f"{folder}: no such checkpoint folder", hint="check --checkpoint")
    if not path.is_file():
        raise MissingError(f"{path}: no such file", hint="a Hugging Face checkpoint folder holds a config.json")
    loaded = load_json(path)
    if not isinstance(loaded, dict):
        raise UserError(f"{path}: expected keys and values, found {type(loaded).__name__}")
    return loaded


def expected_shapes(facts: CheckpointFacts) -> dict[str, tuple[int, ...]]:
    """Return name and shape of every tensor that the geometry calls for."""
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (facts.vocab_size, facts.hidden_size),
        "model.norm.weight": (facts.hidden_size,),
    }
    if not facts.tied_embeddings:
        shapes["lm_head.weight"] = (facts.vocab_size, facts.hidden_size)
    for layer in range(facts.layers):
        for name, shape in _layer_shapes(facts):
            shapes[f"model.layers.{layer}.{name}"] = shape
    return shapes


def _layer_shapes(facts: CheckpointFacts) -> Iterator[tuple[str, tuple[int, ...]]]:
    hidden, wide = facts.hidden_size, facts.intermediate_size
    heads = {"q": facts.attention_heads, "k": facts.kv_heads, "v": facts.kv_heads}
    for letter, count in heads.items():
        yield f"self_attn.{letter}_proj.weight", (count * facts.head_size, hidden)
        if facts.qkv_bias:
            yield f"self_attn.{letter}_proj.bias", (count * facts.head_size,)
    yield "self_attn.o_proj.weight", (hidden, facts.attention_heads * facts.head_size)
    if facts.output_bias:
        yield "self_attn.o_proj.bias", (hidden,)
    if facts.qk_norm:
        yield "self_attn.q_norm.weight", (facts.head_size,)
        yield "self_attn.k_norm.weight", (facts.head_size,)
    yield "mlp.gate_proj.weight", (wide, hidden)
    yield "mlp.up_proj.weight", (wide, hidden)
    yield "mlp.down_proj.weight", (hidden, wide)
    yield "input_layernorm.weight", (hidden,)
    yield "post_attention_layernorm.weight", (hidden,)


def _facts_of(
    folder: Path, config: dict[str, Any], tensors: dict[str, TensorFacts], *, hash_files: bool
) -> CheckpointFacts:
    reader = _ConfigReader(folder / "config.json", config)
    architecture = reader.architecture()
    heads = reader.count("num_attention_heads")
    hidden = reader.count("hidden_size")
    eos = reader.token("eos_token_id")
    llama_like = ARCHITECTURES[architecture] in {"llama", "mistral"}
    biased = bool(config.get("attention_bias", False)) if llama_like or "attention_bias" in config else False
    return CheckpointFacts(
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
        parameters=sum(tensor.elements for tensor in tensors.values()),
        weights_bytes=sum(tensor.elements * BYTES_PER_ELEMENT[tensor.dtype] for tensor in tensors.values()),
        bos_token_id=reader.token("bos_token_id"),
        eos_token_id=eos if eos is not None else reader.missing("eos_token_id"),
        pad_token_id=_first_not_none(reader.token("pad_token_id"), eos, 0),
        files=_sources(folder) if hash_files else [],
    )


@dataclass(frozen=True, slots=True)
class _ConfigReader:
    """Typed reads of a config.json, each naming the file and the key when it cannot."""

    path: Path
    config: dict[str, Any]

    def missing(self, key: str) -> Any:
        raise UserError(
            f"{self.path}: missing key '{key}'", hint="check that this is the config.json of a language model"
        )

    def number(self, key: str, *, default: float | None = None) -> float:
        value = self.config.get(key)
        value = default if value is None else value
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
        return bool(window and uses and window < self.config.get("max_position_embeddings", 0))

    def rope(self) -> RopeFacts:
        """Read both spellings: `rope_theta` with `rope_scaling`, and transformers 5's `rope_parameters`."""
        parameters = dict(self.config.get("rope_parameters") or self.config.get("rope_scaling") or {})
        base = parameters.pop("rope_theta", None) or self.config.get("rope_theta")
        base = float(base if base is not None else self.missing("rope_theta"))
        kind = parameters.pop("rope_type", None) or parameters.pop("type", None) or "default"
        parameters.pop("type", None)
        if kind == "default":
            return RopeFacts(base=base)
        return RopeFacts(base=base, scaling={"rope_type": kind, **parameters})


def _check_tensors(folder: Path, tensors: dict[str, TensorFacts], facts: CheckpointFacts) -> None:
    """Account for every tensor."""
    expected = expected_shapes(facts)
    optional = {name for name in tensors if name.endswith("rotary_emb.inv_freq")}
    if facts.tied_embeddings:
        optional.add("lm_head.weight")
    missing = sorted(expected.keys() - tensors.keys())
    if missing:
        raise UserError(
            f"{folder}: {some(missing)} missing", hint="check that every shard of the checkpoint is present"
        )
    unexpected = sorted(tensors.keys() - expected.keys() - optional)
    if unexpected:
        raise UserError(
            f"{folder}: {some(unexpected)} not known for {facts.architecture}",
            hint="merge adapters into the base model first",
        )
    for name, shape in expected.items():
        if tensors[name].shape != shape:
            raise UserError(
                f"{folder}: tensor '{name}' has shape {list(tensors[name].shape)}, config.json implies {list(shape)}"
            )


def _check_tokenizer(folder: Path, facts: CheckpointFacts) -> None:
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise MissingError(
            f"{path}: no such file", hint="copy tokenizer.json and tokenizer_config.json from the model's repository"
        )
    if not (folder / "tokenizer_config.json").is_file():
        raise MissingError(
            f"{folder / 'tokenizer_config.json'}: no such file", hint="copy it from the model's repository"
        )
    ids = load_tokenizer(path).get_vocab(with_added_tokens=True).values()
    if max(ids, default=0) >= facts.vocab_size:
        raise UserError(
            f"{path}: contains token id {max(ids)}, but the model's vocabulary ends at {facts.vocab_size - 1}"
        )


def _sources(folder: Path) -> list[Source]:
    """Hash what the result depends on: configs, tokenizer, shards."""
    names = ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"]
    paths = [folder / name for name in names if (folder / name).is_file()]
    return [source_of(path) for path in [*paths, *shard_paths(folder)]]


def _first_not_none(*values: int | None) -> int:
    return next(value for value in values if value is not None)
