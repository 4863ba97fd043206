"""A dense model as aiconfigurator's engine reads it: the operations of an iteration, each looked up in the tables.

The library's own Python makes such a list from a Hugging Face config, and takes 0.1 s to import. Tests compare both.
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from engines.errors import MissingError
from engines.spec import ModelSpec
from engines.steptime.kernel_tables import version_of

ATTENTION, LOGITS = "attention", "logits"
NORMS = ("norm_1", "norm_2", "activation", "embedding")
_SPEC_SCHEMA, _SETTINGS_SCHEMA = 15, 1  # of aiconfigurator-core 0.12
_INSTALL = "pip install --no-deps aiconfigurator-core==0.12.0"
_BF16, _BF16_BYTES = "bfloat16", 2


class Lookup(NamedTuple):
    """A model on a system, by the library's names: which framework's kernels it runs, in which formats."""

    model: ModelSpec
    kernels: str
    system: str
    gemm_mode: str
    kv_mode: str
    tensor_parallel: int


def engine_of(lookup: Lookup, folder: str | None) -> tuple[Any, list[str]]:
    """Return the library's engine, and the names of its operations on prompts, by index.

    On generated tokens it has one operation, the attention.

    Args:
        folder: Folder of the tables; None: the library's own.

    Raises:
        MissingError: The library is not installed, or is another release.
    """
    try:
        import aiconfigurator_core as core  # noqa: PLC0415 (an extra)
    except ModuleNotFoundError as error:
        raise MissingError(
            "measured step times need aiconfigurator-core, which is not installed", hint=_INSTALL
        ) from error
    if core.engine_spec_schema_version() != _SPEC_SCHEMA:
        raise MissingError("measured step times need aiconfigurator-core 0.12; another is installed", hint=_INSTALL)
    model, kernels, system, gemm_mode, kv_mode, tensor_parallel = lookup
    attention = _attention(model, kv_mode, tensor_parallel)
    operations = _operations(model, attention, gemm_mode, tensor_parallel)
    spec = {
        "schema_version": _SPEC_SCHEMA,
        "engine": {
            "schema_version": _SETTINGS_SCHEMA,
            "model_name": model.name,
            "system_name": system,
            "backend": kernels,
            "backend_version": version_of(kernels, system, folder),
            "tp_size": tensor_parallel,
            "pp_size": 1,
            "enable_shared_layer": True,  # other frameworks' tables where these lack one, as of transfers
        },
        "context_ops": operations,
        "generation_ops": [{"GenerationAttention": attention}],
    }
    engine = core.AicEngine.from_spec(core.engine_spec_bincode_from_json(json.dumps(spec)), folder)
    return engine, [fields["name"] for operation in operations for fields in operation.values()]


def _attention(model: ModelSpec, kv_mode: str, tensor_parallel: int) -> dict[str, Any]:
    return {
        "name": ATTENTION,
        "scale_factor": float(model.layers),
        "n": model.attention_heads // tensor_parallel,
        "n_kv": -(-model.kv_heads // tensor_parallel),  # heads that cannot be split are repeated
        "head_size": model.head_size,
        "window_size": 0,
        "kv_cache_dtype": kv_mode,
    }


def _operations(
    model: ModelSpec, attention: dict[str, Any], gemm_mode: str, tensor_parallel: int
) -> list[dict[str, Any]]:
    """Return the operations on prompts in order, those of a layer once, with the number of layers as their factor.

    Llama's fit all dense models, as the tables depend on shapes alone. A feed-forward block with two matrices is
    represented by one with three that has as many weights.
    """
    hidden, layers, vocabulary = model.hidden_size, float(model.layers), model.vocab_size // tensor_parallel
    inner = model.intermediate_size * model.mlp_matrices // 3
    up, down = 2 * inner // tensor_parallel, inner // tensor_parallel

    def operation(kind: str, name: str, scale: float, **fields: Any) -> dict[str, Any]:
        return {kind: {"name": name, "scale_factor": scale, **fields}}

    def product(name: str, n: int, k: int, *, reads_quantized: bool = False) -> dict[str, Any]:
        scale, mode = (1.0, _BF16) if name == LOGITS else (layers, gemm_mode)
        read = {"scale_num_tokens": 1, "low_precision_input": reads_quantized}
        return operation("Gemm", name, scale, n=n, k=k, quant_mode=mode, **read)

    def elementwise(name: str, values_per_token: int) -> dict[str, Any]:
        return operation("Elementwise", name, layers, bytes_per_token=float(_BF16_BYTES * values_per_token))

    def all_reduce(name: str, scale: float) -> dict[str, Any]:
        return operation("CustomAllReduce", name, scale, hidden_size=hidden, tp_size=tensor_parallel, quant="half")

    return [
        operation("Embedding", "embedding", 1.0, vocab_size=vocabulary, hidden_size=hidden, quant_mode=_BF16),
        elementwise("norm_1", 4 * hidden),
        product("qkv", (attention["n"] + 2 * attention["n_kv"]) * model.head_size, hidden),
        {"ContextAttention": {**attention, "fmha_quant_mode": _BF16, "use_qk_norm": False}},
        product("projection", hidden, model.attention_heads * model.head_size // tensor_parallel, reads_quantized=True),
        elementwise("norm_2", 4 * hidden),
        product("up", up, hidden),
        elementwise("activation", up + down),
        product("down", hidden, down, reads_quantized=True),
        product(LOGITS, vocabulary, hidden),
        all_reduce("all_reduce_embedding", 1.0),
        all_reduce("all_reduce_1", layers),
        all_reduce("all_reduce_2", layers),
    ]
