"""Verifies an exported checkpoint with an independent forward pass over the exported tensors.

The exported weights are dequantized; what the engine rounds at run time (activations, KV cache) is rounded with the
exported scales. The reference is the same pass over the source's weights; both run in float32.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from engines.checkpoint.calibration_text import TextWindows
from engines.checkpoint.inspection import CheckpointFacts, inspect_checkpoint, library
from engines.checkpoint.shards import read_shard_header, shard_paths
from engines.checkpoint.trtllm_checkpoint import Exported, Layer, Linear, read_exported
from engines.checkpoint.weight_formats import FLOAT32_BYTES, NVFP4_GROUP, TINY, round_fp8
from engines.console import time_left_text
from engines.errors import UserError
from engines.manifest import CheckpointQuality
from engines.names import TOKENIZER_FILE

Progress = Callable[[str], None]

_LIBRARIES_BYTES = 1_300_000_000  # torch; also transformers and ModelOpt if the same process has quantized
_HEAD_TOKENS = 512  # tokens whose logits are computed at once, for both models: 0.6 GB with a vocabulary of 150,000
_PROGRESS_STEPS = 4
_INT8_LIMIT = 127
_E2M1_LIMIT = 6.0
_E4M3_LIMIT = 448.0
_EXPONENT_BITS = 0x7F800000  # clears a float32's mantissa: leaves the power of two below a number


def verifying_memory_bytes(facts: CheckpointFacts) -> int:
    """Return the approximate peak memory of `verify` in bytes; an upper estimate.

    Includes embedding and output projection of both models in float32, two layers of each, logits, and the libraries;
    other layers are read one at a time. Measured: 11.1 GiB for Qwen3-8B's geometry, where this returns 14.5; 1.9 GiB
    for SmolLM2-135M, where this returns 2.1.
    """
    head = facts.vocab_size * facts.hidden_size
    layer = (facts.parameters - head * (1 if facts.tied_embeddings else 2)) // facts.layers
    return _LIBRARIES_BYTES + FLOAT32_BYTES * (4 * head + 4 * layer + 4 * _HEAD_TOKENS * facts.vocab_size)


class Weights(Protocol):
    """A model's weights in float32, read on access."""

    def embedding(self) -> Any:
        """Return the token embedding, shape (vocabulary, hidden)."""

    def head(self) -> Any:
        """Return the output projection, shape (vocabulary, hidden)."""

    def final_norm(self) -> Any:
        """Return the last norm's weight, shape (hidden,)."""

    def layer(self, index: int) -> Layer:
        """Return one decoder layer."""


@dataclass(frozen=True, slots=True)
class Geometry:
    """What a forward pass needs in addition to weights.

    Attributes:
        rope_inverse: Rope's inverse frequencies, shape (head_size / 2,).
        rope_factor: Factor on rope's sines and cosines; differs from 1 only for YaRN.
        kv_algo: "FP8", "INT8", or None for a KV cache without rounding.
    """

    layers: int
    heads: int
    kv_heads: int
    head_size: int
    norm_epsilon: float
    rope_inverse: Any
    rope_factor: float
    kv_algo: str | None = None


def verify(source: Path, exported: Path, *, held_out: TextWindows, progress: Progress) -> CheckpointQuality:
    """Compare an exported checkpoint with its source on held-out text.

    At any time memory holds one layer of each model; at the end, both output projections.

    Args:
        source: Folder of the Hugging Face checkpoint.
        exported: Folder of the TensorRT-LLM checkpoint made from it.
        held_out: Text that was not used for calibration.

    Returns:
        Perplexity of both; the mean KL divergence of the exported model's next-token distribution from the source's, in
        nats; and the share of tokens for which both predict the same next token.

    Raises:
        ToolError: A tensor of the export is missing, unknown or misshapen.
        UserError: There is too little text, or the rope scaling is unknown.
    """
    torch = library("torch")
    facts = inspect_checkpoint(source, hash_files=False)
    checkpoint = read_exported(exported)
    tokens = torch.tensor(held_out.token_windows(source / TOKENIZER_FILE))
    source_weights = SourceWeights(source, facts)
    source_geometry, exported_geometry = geometry_of(facts), exported_geometry_of(checkpoint)
    with torch.inference_mode():
        source_hidden = source_weights.embedding()[tokens]
        exported_hidden = checkpoint.embedding()[tokens]
        begin_s = time.monotonic()
        for index in range(facts.layers):
            if index % max(facts.layers // _PROGRESS_STEPS, 1) == 0:
                left = time_left_text(index, facts.layers, time.monotonic() - begin_s)
                progress(f"verify: layer {index} of {facts.layers}{left}")
            source_hidden = run_layer(source_hidden, source_weights.layer(index), source_geometry)
            exported_hidden = run_layer(exported_hidden, checkpoint.layer(index), exported_geometry)
        source_hidden = rms_norm(source_hidden, source_weights.final_norm(), facts.norm_epsilon)
        exported_hidden = rms_norm(exported_hidden, checkpoint.final_norm(), exported_geometry.norm_epsilon)
        return _compare(tokens, (source_hidden, source_weights.head()), (exported_hidden, checkpoint.head()))


def logits(weights: Weights, tokens: Any, geometry: Geometry) -> Any:
    """Return a model's logits, shape (windows, tokens, vocabulary), for token ids of shape (windows, tokens)."""
    hidden = weights.embedding()[tokens]
    for index in range(geometry.layers):
        hidden = run_layer(hidden, weights.layer(index), geometry)
    return rms_norm(hidden, weights.final_norm(), geometry.norm_epsilon) @ weights.head().T


class SourceWeights:
    """Weights of a Hugging Face checkpoint, in the shapes of `Layer`."""

    def __init__(self, folder: Path, facts: CheckpointFacts) -> None:
        self.facts = facts
        self.shards = {name: path for path in shard_paths(folder) for name in read_shard_header(path)}

    def embedding(self) -> Any:
        """Return the token embedding."""
        return self._tensor("model.embed_tokens.weight")

    def head(self) -> Any:
        """Return the output projection, which is the embedding if the two are tied."""
        return self.embedding() if self.facts.tied_embeddings else self._tensor("lm_head.weight")

    def final_norm(self) -> Any:
        """Return the last norm's weight."""
        return self._tensor("model.norm.weight")

    def layer(self, index: int) -> Layer:
        """Return one decoder layer with queries, keys and values joined."""
        torch = library("torch")
        prefix = f"model.layers.{index}."
        attention = prefix + "self_attn."
        kinds = ("q", "k", "v")
        facts = self.facts
        qkv = torch.cat([self._tensor(f"{attention}{kind}_proj.weight") for kind in kinds])
        qkv_bias = torch.cat([self._tensor(f"{attention}{k}_proj.bias") for k in kinds]) if facts.qkv_bias else None
        dense_bias = self._tensor(attention + "o_proj.bias") if facts.output_bias else None
        return Layer(
            qkv=Linear(qkv, qkv_bias),
            dense=Linear(self._tensor(attention + "o_proj.weight"), dense_bias),
            gate=Linear(self._tensor(prefix + "mlp.gate_proj.weight")),
            up=Linear(self._tensor(prefix + "mlp.up_proj.weight")),
            down=Linear(self._tensor(prefix + "mlp.down_proj.weight")),
            input_norm=self._tensor(prefix + "input_layernorm.weight"),
            post_norm=self._tensor(prefix + "post_attention_layernorm.weight"),
            q_norm=self._tensor(attention + "q_norm.weight") if facts.qk_norm else None,
            k_norm=self._tensor(attention + "k_norm.weight") if facts.qk_norm else None,
        )

    def _tensor(self, name: str) -> Any:
        with library("safetensors").safe_open(self.shards[name], framework="pt") as file:
            return file.get_tensor(name).float()


def geometry_of(facts: CheckpointFacts) -> Geometry:
    """Return the geometry of a source checkpoint, with rope computed as in transformers."""
    inverse, factor = rope_frequencies(facts.rope.base, facts.rope.scaling, facts.head_size)
    scaling = facts.rope.scaling or {}
    if scaling.get("rope_type") == "yarn" and scaling.get("attention_factor") is not None:
        factor = float(scaling["attention_factor"])
    return Geometry(
        layers=facts.layers,
        heads=facts.attention_heads,
        kv_heads=facts.kv_heads,
        head_size=facts.head_size,
        norm_epsilon=facts.norm_epsilon,
        rope_inverse=inverse,
        rope_factor=factor,
    )


def exported_geometry_of(checkpoint: Exported) -> Geometry:
    """Return the geometry of an exported checkpoint from its own config, with rope computed as in TensorRT-LLM."""
    config = checkpoint.config
    base = float(config.get("rotary_base") or 10_000.0)
    inverse, factor = rope_frequencies(base, config.get("rotary_scaling"), config["head_size"])
    return Geometry(
        layers=checkpoint.layers,
        heads=config["num_attention_heads"],
        kv_heads=config["num_key_value_heads"],
        head_size=config["head_size"],
        norm_epsilon=config["norm_epsilon"],
        rope_inverse=inverse,
        rope_factor=factor,
        kv_algo=checkpoint.kv_algo,
    )


def rope_frequencies(base: float, scaling: dict[str, Any] | None, head_size: int) -> tuple[Any, float]:
    """Return rope's inverse frequencies, shape (head_size / 2,), and the factor on its sines and cosines.

    Raises:
        UserError: The kind of scaling is unknown.

    Source:
        Peng et al., "YaRN", 2023; Meta's Llama 3.1 reference code; both as in transformers' modeling_rope_utils.
    """
    torch = library("torch")
    inverse = 1.0 / base ** (torch.arange(0, head_size, 2).float() / head_size)
    kind = "default" if scaling is None else scaling.get("rope_type") or scaling.get("type")
    if scaling is None or kind == "default":
        return inverse, 1.0
    if kind == "linear":
        return inverse / scaling["factor"], 1.0
    if kind == "llama3":
        return _llama3_frequencies(inverse, scaling), 1.0
    if kind == "yarn":
        return _yarn_frequencies(inverse, base, scaling), _yarn_factor(scaling)
    raise UserError(f"rope scaling '{kind}' is not supported", hint="supported: default, linear, llama3, yarn")


def _llama3_frequencies(inverse: Any, scaling: dict[str, Any]) -> Any:
    """Keep short wavelengths, stretch long ones, and interpolate between."""
    torch = library("torch")
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    turns = scaling["original_max_position_embeddings"] * inverse / (2 * math.pi)
    kept = ((turns - low) / (high - low)).clamp(0, 1)
    return torch.lerp(inverse / scaling["factor"], inverse, kept)


def _yarn_frequencies(inverse: Any, base: float, scaling: dict[str, Any]) -> Any:
    torch = library("torch")
    half = len(inverse)
    original = scaling["original_max_position_embeddings"]

    def dimension(turns: float) -> float:
        return 2 * half * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(base))

    low, high = dimension(scaling.get("beta_fast") or 32), dimension(scaling.get("beta_slow") or 1)
    if scaling.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, 2 * half - 1)
    high = high + 0.001 if low == high else high
    stretched = ((torch.arange(half).float() - low) / (high - low)).clamp(0, 1)
    return torch.lerp(inverse, inverse / scaling["factor"], stretched)


def _yarn_factor(scaling: dict[str, Any]) -> float:
    def magnitude(weight: float) -> float:
        return 0.1 * weight * math.log(scaling["factor"]) + 1.0 if scaling["factor"] > 1 else 1.0

    over, under = scaling.get("mscale"), scaling.get("mscale_all_dim")
    return magnitude(over) / magnitude(under) if over and under else magnitude(1.0)


def rms_norm(values: Any, weight: Any, epsilon: float) -> Any:
    """Scale the last dimension to unit root mean square, then by `weight`."""
    return values * (values.square().mean(-1, keepdim=True) + epsilon).rsqrt() * weight


class LayerCache:
    """One layer's keys and values of the tokens so far, as read back from the engine's KV cache."""

    def __init__(self) -> None:
        self.keys: Any = None
        self.values: Any = None

    @property
    def tokens(self) -> int:
        """Number of cached tokens."""
        return 0 if self.keys is None else int(self.keys.shape[2])

    def extended(self, keys: Any, values: Any) -> tuple[Any, Any]:
        """Append keys and values, shape (windows, heads, tokens, head_size), and return all of them."""
        cat = library("torch").cat
        self.keys = keys if self.keys is None else cat([self.keys, keys], dim=2)
        self.values = values if self.values is None else cat([self.values, values], dim=2)
        return self.keys, self.values


def run_layer(hidden: Any, layer: Layer, geometry: Geometry, cache: LayerCache | None = None) -> Any:
    """Run one decoder layer; shapes (windows, tokens, hidden) in and out.

    Args:
        cache: The layer's earlier tokens, which this call extends. With earlier tokens, `hidden` must be one token.
    """
    normed = rms_norm(hidden, layer.input_norm, geometry.norm_epsilon)
    hidden = hidden + _attention(normed, layer, geometry, cache)
    normed = rms_norm(hidden, layer.post_norm, geometry.norm_epsilon)
    silu = library("torch").nn.functional.silu
    return hidden + run_linear(silu(run_linear(normed, layer.gate)) * run_linear(normed, layer.up), layer.down)


def run_linear(values: Any, linear: Linear) -> Any:
    """Run one linear layer, with its input rounded as in the engine."""
    if linear.input_factor is not None:
        values = values * linear.input_factor
    return library("torch").nn.functional.linear(_rounded_input(values, linear), linear.weight, linear.bias)


def _rounded_input(values: Any, linear: Linear) -> Any:
    match linear.activation:
        case "fp8":
            return round_fp8(values, linear.activation_scale)
        case "int8":
            return round_int8(values, linear.activation_scale)
        case "nvfp4":
            return round_nvfp4(values, linear.activation_scale)
    return values


def round_int8(values: Any, scale: float) -> Any:
    """Round to integer multiples of `scale`, saturating at 127 of them."""
    return (values / scale).round().clamp(-_INT8_LIMIT - 1, _INT8_LIMIT) * scale


def round_nvfp4(values: Any, scale: float) -> Any:
    """Round to E2M1 numbers in groups of 16; each group has its own E4M3 scale, itself scaled by `scale`.

    The group scales are dynamic: computed from the values, as in the engine.
    """
    torch = library("torch")
    groups = values.unflatten(-1, (-1, NVFP4_GROUP))
    wanted = groups.abs().amax(-1, keepdim=True) / _E2M1_LIMIT / scale
    steps = round_fp8(wanted.clamp(max=_E4M3_LIMIT), 1.0) * scale
    ratio = (groups / steps.clamp(min=TINY)).clamp_(-_E2M1_LIMIT, _E2M1_LIMIT)
    powers = ratio.abs().clamp_(min=1.0).view(torch.int32).bitwise_and_(_EXPONENT_BITS).view(torch.float32)
    spacing = powers.mul_(0.5)  # E2M1 has one bit of mantissa; its steps below 1 equal those from 1 to 2
    return ratio.div_(spacing).round_().mul_(spacing).mul_(steps).flatten(-2)


def _attention(values: Any, layer: Layer, geometry: Geometry, cache: LayerCache | None) -> Any:
    functional = library("torch").nn.functional
    joined = run_linear(values, layer.qkv).unflatten(-1, (-1, geometry.head_size)).transpose(1, 2)
    queries, keys, cached_values = joined.split([geometry.heads, geometry.kv_heads, geometry.kv_heads], dim=1)
    if layer.q_norm is not None:
        queries = rms_norm(queries, layer.q_norm, geometry.norm_epsilon)
        keys = rms_norm(keys, layer.k_norm, geometry.norm_epsilon)
    begin = 0 if cache is None else cache.tokens
    queries, keys = _rotate(queries, geometry, begin), _rotate(keys, geometry, begin)
    keys, cached_values = (_cached(part, layer, geometry) for part in (keys, cached_values))
    if cache is not None:
        keys, cached_values = cache.extended(keys, cached_values)
    mixed = functional.scaled_dot_product_attention(
        queries, keys, cached_values, is_causal=begin == 0, enable_gqa=geometry.heads != geometry.kv_heads
    )
    return run_linear(mixed.transpose(1, 2).flatten(-2), layer.dense)


def _cached(values: Any, layer: Layer, geometry: Geometry) -> Any:
    """Return values as read back from the KV cache."""
    match geometry.kv_algo:
        case "FP8":
            return round_fp8(values, layer.kv_scale)
        case "INT8":
            return round_int8(values, layer.kv_scale)
    return values


def _rotate(values: Any, geometry: Geometry, begin: int) -> Any:
    """Apply rope from position `begin`, halves paired as in GPT-NeoX; shape (windows, heads, tokens, head_size)."""
    torch = library("torch")
    angles = torch.outer(torch.arange(begin, begin + values.shape[2]).float(), geometry.rope_inverse)
    cosine, sine = (table * geometry.rope_factor for table in (angles.cos(), angles.sin()))
    first, second = values.chunk(2, dim=-1)
    return torch.cat([first * cosine - second * sine, second * cosine + first * sine], dim=-1)


def _compare(tokens: Any, source: tuple[Any, Any], exported: tuple[Any, Any]) -> CheckpointQuality:
    """Compare next-token distributions from each model's last hidden states and output projection."""
    torch = library("torch")
    targets = tokens[:, 1:].flatten()
    (source_hidden, source_head), (exported_hidden, exported_head) = source, exported
    ours, theirs = (hidden[:, :-1].flatten(0, 1) for hidden in (source_hidden, exported_hidden))
    sums = torch.zeros(4, dtype=torch.float64)
    for begin in range(0, len(targets), _HEAD_TOKENS):
        part = slice(begin, begin + _HEAD_TOKENS)
        reference = torch.log_softmax(ours[part] @ source_head.T, dim=-1)
        judged = torch.log_softmax(theirs[part] @ exported_head.T, dim=-1)
        chosen = targets[part, None]
        sums += torch.stack(
            [
                -reference.gather(1, chosen).double().sum(),
                -judged.gather(1, chosen).double().sum(),
                (reference.exp() * (reference - judged)).sum(-1).double().sum(),
                (reference.argmax(-1) == judged.argmax(-1)).double().sum(),
            ]
        )
    source_nats, exported_nats, divergence, agreed = (float(value) / len(targets) for value in sums)
    return CheckpointQuality(
        tokens=len(targets),
        perplexity_source=math.exp(source_nats),
        perplexity_quantized=math.exp(exported_nats),
        kl_divergence_nats=max(divergence, 0.0),
        top1_agreement_ratio=agreed,
    )
