"""Reads a Hugging Face checkpoint and checks that it is complete: config, shards, every tensor, tokenizer."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from engines.checkpoint.shards import BYTES_PER_ELEMENT, TensorFacts, read_tensors, shard_paths, some
from engines.checkpoint.tokenizer import load_tokenizer
from engines.errors import MissingError, UserError
from engines.files import Source, source_of
from engines.names import TOKENIZER_FILE
from engines.spec import ConfigFacts, read_config_facts


class CheckpointFacts(ConfigFacts):
    """A complete checkpoint: geometry, rope and files."""

    parameters: int
    weights_bytes: int
    files: list[Source]


def inspect_checkpoint(folder: Path, *, hash_files: bool = True) -> CheckpointFacts:
    """Read a Hugging Face checkpoint folder and check that it is complete.

    Every tensor required by the geometry must be present with its shape, and no other; each shard must contain the
    bytes that its header states; the tokenizer must load and fit the vocabulary. No code from the checkpoint is run.

    Args:
        hash_files: False leaves `files` empty: hashing reads every byte, which takes minutes for a large checkpoint on
            a slow disk.

    Raises:
        MissingError: The folder, its config, a shard or the tokenizer is missing.
        UserError: The architecture is unknown, a shard is corrupt, or tensors are missing, unexpected or misshapen.
    """
    config = read_config_facts(folder)
    tensors = read_tensors(folder)
    facts = CheckpointFacts(
        **config.model_dump(),
        parameters=sum(tensor.elements for tensor in tensors.values()),
        weights_bytes=sum(tensor.elements * BYTES_PER_ELEMENT[tensor.dtype] for tensor in tensors.values()),
        files=_sources(folder) if hash_files else [],
    )
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


def expected_shapes(facts: CheckpointFacts) -> dict[str, tuple[int, ...]]:
    """Return the name and shape of every tensor that the geometry requires."""
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


def _check_tensors(folder: Path, tensors: dict[str, TensorFacts], facts: CheckpointFacts) -> None:
    """Check that all expected tensors are present, with their shapes, and no others."""
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
    path = folder / TOKENIZER_FILE
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
    """Hash the files that the result depends on: configs, tokenizer, shards."""
    names = ["config.json", "generation_config.json", TOKENIZER_FILE, "tokenizer_config.json"]
    paths = [folder / name for name in names if (folder / name).is_file()]
    return [source_of(path) for path in [*paths, *shard_paths(folder)]]
