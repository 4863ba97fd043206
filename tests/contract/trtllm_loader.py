"""A stand-in for TensorRT-LLM's checkpoint loader, written from facts found by running its own classes.

`trtllm_checkpoint.yaml` has the facts and says how they were found. Nothing here asks the code under test what an
export should hold.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from tests.facts import read_facts

FACTS: dict[str, Any] = read_facts(Path(__file__).parent / "trtllm_checkpoint.yaml")
HALF = {"bfloat16": "BF16", "float16": "F16"}
KV_ALGOS = {"16bit": None, "fp8": "FP8", "int8": "INT8"}
Tensors = dict[str, tuple[str, tuple[int, ...]]]


def problems(folder: Path, family: str, precision: str, kv_cache: str, tensor_parallel: int) -> list[str]:
    """Return why TensorRT-LLM would not load a checkpoint, or would load something else than was meant."""
    config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    found = list(_config_problems(config, family, precision, kv_cache))
    if found:
        return found
    mapping = config["mapping"]
    if (mapping["world_size"], mapping["tp_size"], mapping["pp_size"]) != (tensor_parallel, tensor_parallel, 1):
        return [f"config.json: mapping {mapping}"]
    wanted = _wanted(config, family, precision, tensor_parallel)
    for rank in range(tensor_parallel):
        held = _header(folder / f"rank{rank}.safetensors")
        found += [f"rank {rank}: required but not provided: {name}" for name in sorted(wanted.keys() - held.keys())]
        found += [f"rank {rank}: provided but not required: {name}" for name in sorted(held.keys() - wanted.keys())]
        found += [
            f"rank {rank}: {name} is {held[name]}, {wanted[name]} is asked for"
            for name in sorted(wanted.keys() & held.keys())
            if held[name] != wanted[name]
        ]
    return found


def _config_problems(config: dict[str, Any], family: str, precision: str, kv_cache: str) -> Iterator[str]:
    facts, known = FACTS["families"][family], FACTS["config"]
    keys = [*known["required"], *known["defaults"]]
    keys += [*known["required_qwen"], *known["defaults_qwen"]] if facts["qwen"] else []
    yield from (f"config.json: no {key}" for key in keys if key not in config)
    if config.get("architecture") != facts["architecture"]:
        yield f"config.json: architecture {config.get('architecture')}"
    if facts["qwen"] and (config.get("attn_bias"), config.get("qwen_type")) != (facts["qkv_bias"], family):
        yield f"config.json: attn_bias {config.get('attn_bias')}, qwen_type {config.get('qwen_type')}"
    stated = config.get("quantization", {})
    asked = {**FACTS["precisions"][precision]["quantization"], "kv_cache_quant_algo": KV_ALGOS[kv_cache]}
    yield from (f"config.json: {k} {stated.get(k)}, {v} is meant" for k, v in asked.items() if stated.get(k) != v)
    excluded = stated.get("exclude_modules")
    if asked["quant_algo"] and not any(fnmatchcase("lm_head", pattern) for pattern in excluded or ["*lm_head"]):
        yield f"config.json: the output projection is not among exclude_modules {excluded}"


def _wanted(config: dict[str, Any], family: str, precision: str, tensor_parallel: int) -> Tensors:
    """Return the tensors a rank must hold, by the facts and config.json's own geometry."""
    head, queries, keys = config["head_size"], config["num_attention_heads"], config["num_key_value_heads"]
    sizes = {
        "hidden": config["hidden_size"],
        "head": head,
        "vocabulary": config["vocab_size"] // tensor_parallel,
        "queries": queries * head // tensor_parallel,
        "qkv": (queries + 2 * keys) * head // tensor_parallel,
        "wide": config["intermediate_size"] // tensor_parallel,
    }
    half = HALF[config["dtype"]]

    def facts(tensor: list[Any], more: dict[str, int] | None = None) -> tuple[str, tuple[int, ...]]:
        kind, *shape = tensor
        return half if kind == "half" else kind, tuple(_size(word, {**sizes, **(more or {})}) for word in shape)

    wanted = {name: facts(tensor) for group in ("model", "head") for name, tensor in FACTS[group].items()}
    extras = [kind for kind in ("qk_norm", "qkv_bias") if FACTS["families"][family][kind]]
    extras += ["kv_cache"] if config["quantization"]["kv_cache_quant_algo"] else []
    for index in range(config["num_hidden_layers"]):
        prefix = f"transformer.layers.{index}."
        for group in ("layer", *extras):
            wanted |= {prefix + name: facts(tensor) for name, tensor in FACTS[group].items()}
        for linear, (rows, columns) in FACTS["linears"].items():
            local = {"out": sizes[rows], "in": sizes[columns]}
            for suffix, tensor in FACTS["precisions"][precision]["tensors"].items():
                wanted[f"{prefix}{linear}.{suffix}"] = facts(tensor, local)
    return wanted


def _size(word: str | int, sizes: dict[str, int]) -> int:
    if isinstance(word, int):
        return word
    name, _, divisor = word.partition("/")
    return sizes[name] // int(divisor or 1)


def _header(path: Path) -> Tensors:
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        entries = json.loads(file.read(length))
    return {name: (e["dtype"], tuple(e["shape"])) for name, e in entries.items() if name != "__metadata__"}
