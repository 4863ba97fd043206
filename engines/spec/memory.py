"""Memory arithmetic of a GPU: weights, activations, buffers, and the rest for the KV cache."""

from __future__ import annotations

from engines.files import Strict
from engines.spec.gpu import GpuSpec
from engines.spec.model import ModelSpec
from engines.spec.precision import KvFormat, Precision, precision_named
from engines.spec.speculation import DraftModel
from engines.units import MIB

# CUDA context, cuBLAS and TensorRT kernels and workspaces, before any model. TensorRT-LLM's memory page reports some
# hundreds of MB for the context alone; 1.5 GiB is this project's own rounded reserve, not yet measured.
RUNTIME_RESERVE_BYTES = 1536 * MIB
# ModelOpt exports 16-bit models with logits_dtype float16 (0.37.0 and 0.47.0), and the engine keeps it.
LOGITS_BYTES = 2
LOGITS_COPIES = 2  # the engine's output and the sampler's working copy
DECODER_BYTES_PER_TOKEN_SLOT = 16  # ids in and out, parents and log probabilities: four 4-byte tables
RESIDUAL_COPIES = 4  # residual stream, its normalized copy, attention's input and output


class MemoryBudget(Strict):
    """Memory of one GPU of the replica in bytes, and the remaining KV cache.

    Attributes:
        weights_bytes: This GPU's share of the weights.
        activations_bytes: The engine's activation memory, determined by `max_num_tokens` at build time.
        buffers_bytes: Logits and decoder tables, determined by `max_batch_size` and `max_seq_len`.
        reserve_bytes: CUDA context and kernels.
        draft_weights_bytes: With speculation, this GPU's share of the draft model's weights; its cache is part of every
            block.
        kv_pool_bytes: The remaining memory times the fraction given to the KV cache.
        kv_blocks: Whole blocks of the pool.
        kv_tokens: Capacity of those blocks in tokens.
    """

    total_bytes: int
    weights_bytes: int
    activations_bytes: int
    buffers_bytes: int
    reserve_bytes: int
    kv_pool_bytes: int
    kv_blocks: int
    kv_tokens: int
    draft_weights_bytes: int = 0


def activations_bytes(model: ModelSpec, *, max_num_tokens: int, tensor_parallel: int, bytes_each: int) -> int:
    """Return the engine's activation memory: the widest point of a layer, for one iteration's tokens.

    The feed-forward block is widest: its input and the outputs of gate and up projection, in addition to the residual
    stream. TensorRT reuses the memory for every layer.
    """
    widest = 2 * model.intermediate_size // tensor_parallel + RESIDUAL_COPIES * model.hidden_size
    return max_num_tokens * widest * bytes_each


def buffers_bytes(model: ModelSpec, *, max_batch_size: int, max_seq_len: int) -> int:
    """Return the buffers of the runtime and the sampler over all sequence slots."""
    logits = LOGITS_COPIES * max_batch_size * model.vocab_size * LOGITS_BYTES
    return logits + max_batch_size * max_seq_len * DECODER_BYTES_PER_TOKEN_SLOT


class Sizing(Strict):
    """The limits an engine is built for, and its split; defaults are TensorRT-LLM's."""

    max_batch_size: int
    max_num_tokens: int
    max_seq_len: int
    tokens_per_block: int = 32
    kv_fraction: float = 0.9
    tensor_parallel: int = 1
    pipeline_parallel: int = 1


def memory_budget(
    model: ModelSpec,
    gpu: GpuSpec,
    precision: Precision,
    kv_format: KvFormat,
    sizing: Sizing,
    *,
    draft: DraftModel | None = None,
) -> MemoryBudget:
    """Return how one GPU's memory is used; `kv_blocks` is 0 if nothing is left.

    The fraction applies to the memory still free, as in TensorRT-LLM, not to the GPU's total. Tensor parallelism
    divides the KV heads (down to one each), pipeline parallelism the layers.

    Args:
        draft: The draft model, with 16-bit weights; its keys and values have the target's format.
    """
    draft_weights = 0 if draft is None else draft.weights_bytes(precision_named("bf16")) // sizing.tensor_parallel
    weights = model.weights_bytes(precision) // (sizing.tensor_parallel * sizing.pipeline_parallel)
    activations = activations_bytes(
        model,
        max_num_tokens=sizing.max_num_tokens,
        tensor_parallel=sizing.tensor_parallel,
        bytes_each=precision.rest_bytes,
    )
    buffers = buffers_bytes(model, max_batch_size=sizing.max_batch_size, max_seq_len=sizing.max_seq_len)
    free = gpu.memory_bytes - weights - draft_weights - activations - buffers - RUNTIME_RESERVE_BYTES
    pool = max(0, int(free * sizing.kv_fraction))
    split = min(sizing.tensor_parallel, model.kv_heads) * sizing.pipeline_parallel
    token_bytes = model.kv_bytes_per_token(kv_format) + (0 if draft is None else draft.kv_bytes_per_token(kv_format))
    block_bytes = sizing.tokens_per_block * token_bytes // split
    blocks = pool // block_bytes
    return MemoryBudget(
        total_bytes=gpu.memory_bytes,
        weights_bytes=weights,
        activations_bytes=activations,
        buffers_bytes=buffers,
        reserve_bytes=RUNTIME_RESERVE_BYTES,
        kv_pool_bytes=pool,
        kv_blocks=blocks,
        kv_tokens=blocks * sizing.tokens_per_block,
        draft_weights_bytes=draft_weights,
    )
