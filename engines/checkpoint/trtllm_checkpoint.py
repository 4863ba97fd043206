"""Reads an exported TensorRT-LLM checkpoint back: checks all tensors, joins ranks, dequantizes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from engines.checkpoint.inspection import library
from engines.checkpoint.shards import TensorFacts, read_shard_header, some
from engines.checkpoint.weight_formats import DTYPES, dequantized, linear_tensors
from engines.errors import MissingError, ToolError

Activation = Literal["none", "fp8", "int8", "nvfp4"]
Split = Literal["column", "row", "qkv"]

_ACTIVATIONS: dict[str | None, Activation] = {
    None: "none",
    "FP8": "fp8",
    "W8A8_SQ_PER_CHANNEL": "int8",
    "W8A16": "none",
    "W4A16_AWQ": "none",
    "W4A8_AWQ": "fp8",
    "NVFP4": "nvfp4",
}
_KV_ALGOS = (None, "INT8", "FP8")


@dataclass(frozen=True, slots=True)
class Linear:
    """A linear layer as float32 tensors, with the engine's rounding of its input.

    Attributes:
        weight: Shape (out, in); dequantized.
        bias: Shape (out,), or None.
        input_factor: Shape (in,): factor on the input, or None.
        activation: Format that the input is rounded to.
        activation_scale: Static scale of that format; 1 if there is none.
    """

    weight: Any
    bias: Any = None
    input_factor: Any = None
    activation: Activation = "none"
    activation_scale: float = 1.0


@dataclass(frozen=True, slots=True)
class Layer:
    """One decoder layer, float32. `gate` is the branch through SiLU, `up` the one it multiplies."""

    qkv: Linear
    dense: Linear
    gate: Linear
    up: Linear
    down: Linear
    input_norm: Any
    post_norm: Any
    q_norm: Any = None
    k_norm: Any = None
    kv_scale: float = 1.0


@dataclass(frozen=True, slots=True)
class Exported:
    """A complete exported checkpoint; weights are read on access.

    Attributes:
        config: Its config.json.
        ranks: One safetensors file per rank, in order.
    """

    folder: Path
    config: dict[str, Any]
    ranks: tuple[Path, ...]

    @property
    def quant_algo(self) -> str | None:
        """Return TensorRT-LLM's name of the weights' format; None for 16 bit."""
        algo = self.config["quantization"].get("quant_algo")
        return None if algo is None else str(algo)

    @property
    def kv_algo(self) -> str | None:
        """Return TensorRT-LLM's name of the KV cache's format; None for 16 bit."""
        algo = self.config["quantization"].get("kv_cache_quant_algo")
        return None if algo is None else str(algo)

    @property
    def tensor_parallel(self) -> int:
        """Return the number of ranks that a layer is split over."""
        return int(self.config["mapping"]["tp_size"])

    @property
    def pipeline_parallel(self) -> int:
        """Return the number of pipeline stages."""
        return int(self.config["mapping"]["pp_size"])

    @property
    def layers(self) -> int:
        """Return the number of decoder layers."""
        return int(self.config["num_hidden_layers"])

    def embedding(self) -> Any:
        """Return the token embedding, shape (vocabulary, hidden)."""
        return self._vocabulary("transformer.vocab_embedding.weight", stage=0)

    def head(self) -> Any:
        """Return the output projection, shape (vocabulary, hidden)."""
        if self.config.get("share_embedding_table"):
            return self.embedding()
        return self._vocabulary("lm_head.weight", stage=self.pipeline_parallel - 1)

    def final_norm(self) -> Any:
        """Return the last norm's weight, shape (hidden,)."""
        return self._same("transformer.ln_f.weight", stage=self.pipeline_parallel - 1).float()

    def layer(self, index: int) -> Layer:
        """Return one decoder layer with its ranks joined and its weights dequantized."""
        per_stage = self.layers // self.pipeline_parallel
        stage, local = divmod(index, per_stage)
        prefix = f"transformer.layers.{local}."
        has_norm = bool(self.config.get("qk_layernorm"))
        return Layer(
            qkv=self._linear(prefix + "attention.qkv", stage, split="qkv"),
            dense=self._linear(prefix + "attention.dense", stage, split="row"),
            gate=self._linear(prefix + "mlp.fc", stage, split="column"),
            up=self._linear(prefix + "mlp.gate", stage, split="column"),
            down=self._linear(prefix + "mlp.proj", stage, split="row"),
            input_norm=self._same(prefix + "input_layernorm.weight", stage).float(),
            post_norm=self._same(prefix + "post_layernorm.weight", stage).float(),
            q_norm=self._same(prefix + "attention.q_layernorm.weight", stage).float() if has_norm else None,
            k_norm=self._same(prefix + "attention.k_layernorm.weight", stage).float() if has_norm else None,
            kv_scale=1.0 if self.kv_algo is None else self._scalar(prefix + "attention.kv_cache_scaling_factor", stage),
        )

    def _linear(self, name: str, stage: int, *, split: Split) -> Linear:
        rows, columns = _local_sizes(self.config)[name.rsplit(".", 1)[1]]
        suffixes = [suffix for suffix, _ in linear_tensors(self.config, rows, columns)]
        shares = list(self._each(name, stage, suffixes))
        factor = None
        if "prequant_scaling_factor" in suffixes:
            factors = [tensors["prequant_scaling_factor"].float() for tensors in shares]
            factor = library("torch").cat(factors) if split == "row" else factors[0]
        activation = _ACTIVATIONS[self.quant_algo]
        return Linear(
            weight=self._join([dequantized(self.quant_algo, tensors) for tensors in shares], split),
            bias=self._bias(name, stage, split),
            input_factor=factor,
            activation=activation,
            activation_scale=1.0 if activation == "none" else self._scalar(f"{name}.activation_scaling_factor", stage),
        )

    def _bias(self, name: str, stage: int, split: Split) -> Any:
        if split == "column" or not _has_bias(self.config, name):
            return None
        if split == "row":
            return self._same(f"{name}.bias", stage).float()
        return self._join([tensors["bias"].float() for tensors in self._each(name, stage, ["bias"])], split)

    def _join(self, parts: list[Any], split: Split) -> Any:
        """Join the ranks' shares of a weight or bias; each rank's qkv contains its own queries, keys and values."""
        torch = library("torch")
        if split != "qkv":
            return torch.cat(parts, dim=0 if split == "column" else 1)
        sizes = list(_qkv_rows(self.config))
        shares = [part.split(sizes) for part in parts]
        return torch.cat([share[kind] for kind in range(3) for share in shares])

    def _vocabulary(self, name: str, *, stage: int) -> Any:
        parts = [tensor[name] for tensor in self._tensors([name], stage)]
        return library("torch").cat(parts)[: int(self.config["vocab_size"])].float()

    def _same(self, name: str, stage: int) -> Any:
        """Return a tensor that every rank stores completely.

        Raises:
            ToolError: The ranks differ.
        """
        first, *others = [tensors[name] for tensors in self._tensors([name], stage)]
        for other in others:
            if not library("torch").equal(first, other):
                raise ToolError(f"{self.folder}: tensor '{name}' differs between ranks")
        return first

    def _scalar(self, name: str, stage: int) -> float:
        value = float(self._same(name, stage))
        if not 0 < value < float("inf"):
            raise ToolError(f"{self.folder}: tensor '{name}' is {value}; scales must be positive")
        return value

    def _each(self, name: str, stage: int, suffixes: list[str]) -> Iterator[dict[str, Any]]:
        """Yield each rank's tensors of one linear layer by suffix."""
        for tensors in self._tensors([f"{name}.{suffix}" for suffix in suffixes], stage):
            yield {key.rsplit(".", 1)[1]: tensor for key, tensor in tensors.items()}

    def _tensors(self, names: list[str], stage: int) -> Iterator[dict[str, Any]]:
        """Yield the named tensors from each rank of a stage."""
        safetensors = library("safetensors")
        begin = stage * self.tensor_parallel
        for path in self.ranks[begin : begin + self.tensor_parallel]:
            with safetensors.safe_open(path, framework="pt") as file:
                yield {name: file.get_tensor(name) for name in names}


def read_exported(folder: Path) -> Exported:
    """Open an exported checkpoint and check all tensors of every rank, from the files' headers alone.

    Raises:
        MissingError: config.json or a rank's file does not exist.
        ToolError: A tensor is missing, unknown, or has another shape or type than config.json implies.
        UserError: A rank's file is truncated.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise MissingError(f"{path}: no such file", hint="the export may be incomplete; run build-engine again")
    config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    algo, kv_algo = (config["quantization"].get(key) for key in ("quant_algo", "kv_cache_quant_algo"))
    if algo not in _ACTIVATIONS or kv_algo not in _KV_ALGOS:
        raise ToolError(f"{path}: quantization {algo} with KV cache {kv_algo} is not supported")
    mapping = config["mapping"]
    world = int(mapping["tp_size"]) * int(mapping["pp_size"])
    ranks = tuple(folder / f"rank{rank}.safetensors" for rank in range(world))
    for rank, rank_path in enumerate(ranks):
        if not rank_path.is_file():
            raise MissingError(f"{rank_path}: no such file", hint=f"config.json states {world} ranks")
        stage = rank // int(mapping["tp_size"])
        _check_rank(rank_path, read_shard_header(rank_path), dict(_expected_tensors(config, stage)))
    return Exported(folder, config, ranks)


def _check_rank(path: Path, found: dict[str, TensorFacts], expected: dict[str, TensorFacts]) -> None:
    missing = sorted(expected.keys() - found.keys())
    if missing:
        raise ToolError(f"{path}: {some(missing)} missing", hint="the export is incomplete; run build-engine again")
    unknown = sorted(found.keys() - expected.keys())
    if unknown:
        raise ToolError(f"{path}: {some(unknown)} unknown; TensorRT-LLM would not read them")
    for name, facts in expected.items():
        if found[name] != facts:
            raise ToolError(
                f"{path}: tensor '{name}' is {found[name].dtype} {list(found[name].shape)}, "
                f"config.json implies {facts.dtype} {list(facts.shape)}"
            )


def _expected_tensors(config: dict[str, Any], stage: int) -> Iterator[tuple[str, TensorFacts]]:
    """Yield every tensor that config.json implies for a rank of one pipeline stage."""
    tp_size, pp_size = config["mapping"]["tp_size"], config["mapping"]["pp_size"]
    hidden, dtype = config["hidden_size"], DTYPES[config["dtype"]]
    vocabulary = TensorFacts((-(-config["vocab_size"] // tp_size), hidden), dtype)
    norm = TensorFacts((hidden,), dtype)
    if stage == 0:
        yield "transformer.vocab_embedding.weight", vocabulary
    if stage == pp_size - 1:
        yield "transformer.ln_f.weight", norm
        if not config.get("share_embedding_table"):
            yield "lm_head.weight", vocabulary
    for index in range(config["num_hidden_layers"] // pp_size):
        prefix = f"transformer.layers.{index}."
        yield prefix + "input_layernorm.weight", norm
        yield prefix + "post_layernorm.weight", norm
        yield from ((prefix + name, facts) for name, facts in _attention_extras(config, dtype))
        yield from ((prefix + name, facts) for name, facts in _layer_linears(config, dtype))


def _attention_extras(config: dict[str, Any], dtype: str) -> Iterator[tuple[str, TensorFacts]]:
    if config.get("qk_layernorm"):
        for kind in ("q", "k"):
            yield f"attention.{kind}_layernorm.weight", TensorFacts((config["head_size"],), dtype)
    if config["quantization"].get("kv_cache_quant_algo"):
        yield "attention.kv_cache_scaling_factor", TensorFacts((1,), "F32")


def _layer_linears(config: dict[str, Any], dtype: str) -> Iterator[tuple[str, TensorFacts]]:
    rooms = {"qkv": "attention", "dense": "attention", "fc": "mlp", "gate": "mlp", "proj": "mlp"}
    for short, (rows, columns) in _local_sizes(config).items():
        name = f"{rooms[short]}.{short}"
        for suffix, facts in linear_tensors(config, rows, columns):
            yield f"{name}.{suffix}", facts
        if _has_bias(config, name):
            yield f"{name}.bias", TensorFacts((rows,), dtype)


def _local_sizes(config: dict[str, Any]) -> dict[str, tuple[int, int]]:
    """Return (out, in) of one rank's share of each linear layer."""
    tp_size, hidden = config["mapping"]["tp_size"], config["hidden_size"]
    wide = config["intermediate_size"] // tp_size
    queries = config["num_attention_heads"] * config["head_size"] // tp_size
    return {
        "qkv": (sum(_qkv_rows(config)), hidden),
        "dense": (hidden, queries),
        "fc": (wide, hidden),
        "gate": (wide, hidden),
        "proj": (hidden, wide),
    }


def _qkv_rows(config: dict[str, Any]) -> tuple[int, int, int]:
    """Return the rows of queries, keys and values in one rank's qkv."""
    size, tp_size = config["head_size"], config["mapping"]["tp_size"]
    queries = config["num_attention_heads"] // tp_size * size
    keys = config["num_key_value_heads"] // tp_size * size
    return queries, keys, keys


def _has_bias(config: dict[str, Any], name: str) -> bool:
    """Return whether a linear layer has a bias; in TensorRT-LLM a Qwen's output projection has none."""
    if name.endswith("attention.qkv"):
        return bool(config.get("attn_bias"))
    return name.endswith("attention.dense") and bool(config.get("attn_bias")) and not config.get("qwen_type")
