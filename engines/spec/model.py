"""Model geometry: determines parameter counts, KV cache bytes and the cost of every step."""

from __future__ import annotations

from functools import cache
from typing import Literal

from engines.files import Strict, validate
from engines.names import known_model_name, spec_data
from engines.spec.precision import KV_BYTES, KvFormat, Precision

Family = Literal["qwen3", "qwen2", "qwen1.5", "llama", "mistral", "gptj"]
SIXTEEN_BIT_BYTES = 2


class RopeScaling(Strict):
    """Scaling of rotary positions beyond the length a model was trained with.

    `attn_factor` is read by some stacks only; TensorRT-LLM's engine path does not read it.
    """

    kind: Literal["yarn", "llama3", "linear", "dynamic"]
    factor: float
    original_max_position_embeddings: int
    attn_factor: float | None = None
    low_freq_factor: float | None = None
    high_freq_factor: float | None = None


class Geometry(Strict):
    """The numbers that every model has and every config.json states; elements and tokens."""

    layers: int
    hidden_size: int
    intermediate_size: int
    attention_heads: int
    kv_heads: int
    head_size: int
    vocab_size: int
    max_position_embeddings: int
    norm_epsilon: float
    eos_token_id: int
    pad_token_id: int


class ModelSpec(Geometry):
    """What decides a model's size and the cost of its steps; elements and tokens.

    Attributes:
        mlp_matrices: Matrices of the feed-forward block: 3 with a gate (SwiGLU), 2 without.
        qkv_bias: The query, key and value projections have a bias.
        mlp_bias: The feed-forward projections have a bias.
        qk_norm: Queries and keys are normalized by head (Qwen3).
        norms_per_layer: Norms of `hidden_size` weights in a layer.
        norm_bias: The norms have a bias as well (LayerNorm).
        head_bias: The output projection has a bias.
        aliases: Other names people and published tables use.
        source: Where the numbers were read.
    """

    name: str
    family: Family
    rope_theta: float
    rope_scaling: RopeScaling | None = None
    tied_embeddings: bool = False
    mlp_matrices: Literal[2, 3] = 3
    qkv_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    norms_per_layer: Literal[1, 2] = 2
    norm_bias: bool = False
    head_bias: bool = False
    hugging_face_id: str | None = None
    licence: str | None = None
    aliases: tuple[str, ...] = ()
    source: str = ""

    @property
    def attention_size(self) -> int:
        """Elements of all query heads of one token."""
        return self.attention_heads * self.head_size

    @property
    def kv_size(self) -> int:
        """Elements of the keys (or of the values) of one token in one layer."""
        return self.kv_heads * self.head_size

    @property
    def linear_parameters(self) -> int:
        """Weights of the layers' linear maps: those that quantization shrinks and every token is multiplied with."""
        attention = self.hidden_size * (self.attention_size + 2 * self.kv_size) + self.attention_size * self.hidden_size
        return self.layers * (attention + self.mlp_matrices * self.hidden_size * self.intermediate_size)

    @property
    def head_parameters(self) -> int:
        """Weights of the output projection, shared with the embedding or not."""
        return self.vocab_size * self.hidden_size

    @property
    def embedding_parameters(self) -> int:
        """Weights that are looked up, not multiplied; 0 if the embedding is tied to the output projection."""
        return 0 if self.tied_embeddings else self.head_parameters

    @property
    def small_parameters(self) -> int:
        """Norms and biases."""
        per_norm = self.hidden_size * (2 if self.norm_bias else 1)
        per_layer = self.norms_per_layer * per_norm
        per_layer += 2 * self.head_size if self.qk_norm else 0
        per_layer += self.attention_size + 2 * self.kv_size if self.qkv_bias else 0
        per_layer += self.intermediate_size + self.hidden_size if self.mlp_bias else 0
        return self.layers * per_layer + per_norm + (self.vocab_size if self.head_bias else 0)

    @property
    def parameters(self) -> int:
        """All parameters, each counted once."""
        return self.linear_parameters + self.head_parameters + self.embedding_parameters + self.small_parameters

    def weights_bytes(self, precision: Precision) -> int:
        """Return the bytes of all weights on one GPU: linears at `precision`, the rest at 16 bit, or 32 for fp32."""
        rest = self.head_parameters + self.embedding_parameters + self.small_parameters
        return precision.linear_bytes(self.linear_parameters) + precision.rest_bytes * rest

    def checkpoint_bytes(self, precision: Precision) -> int:
        """Return the bytes of all weights in an exported checkpoint; 16-bit where the builder does the rounding."""
        rest = self.head_parameters + self.embedding_parameters + self.small_parameters
        return precision.stored_bytes(self.linear_parameters) + precision.rest_bytes * rest

    def read_bytes_per_step(self, precision: Precision) -> int:
        """Return the bytes of weights that one step reads: all except the embedding, of which it reads a few rows."""
        return self.weights_bytes(precision) - precision.rest_bytes * self.embedding_parameters

    @property
    def qk_norm_bytes_per_token(self) -> int:
        """Bytes moved per token to normalize queries and keys by head: each is read and written, in every layer."""
        return self.layers * (self.attention_size + self.kv_size) * SIXTEEN_BIT_BYTES * 2 if self.qk_norm else 0

    def kv_bytes_per_token(self, kv_format: KvFormat) -> int:
        """Return the bytes of one token's keys and values, over all layers."""
        return int(2 * self.layers * self.kv_size * KV_BYTES[kv_format])


class _ModelFile(Strict):
    models: tuple[ModelSpec, ...]


@cache
def _library() -> dict[str, ModelSpec]:
    loaded = validate(spec_data("models"), _ModelFile, where="models.yaml")
    return {model.name: model for model in loaded.models}


def known_models() -> dict[str, ModelSpec]:
    """Return all models of the data file, by name."""
    return dict(_library())


def model_named(name: str) -> ModelSpec:
    """Return a model by its name, its Hugging Face id or another name people use; upper or lower case.

    Raises:
        UserError: There is no such model; the nearest is suggested.

    >>> model_named("deepseek-r1-0528-qwen3-8b").parameters
    8190735360
    >>> model_named("meta-llama/Llama-3.1-8B").kv_bytes_per_token("fp8")
    65536
    """
    return _library()[known_model_name(name)]
