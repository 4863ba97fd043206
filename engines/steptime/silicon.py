"""Step time from measured kernels: NVIDIA's aiconfigurator tables by operation, without its batching or TTFT formulas.

The tables contain times of TensorRT-LLM's kernels on H100, H200, A100, L40S and B200, by shape. What they lack is
derived and reported: an INT8 or INT4 kernel on a GPU without measurements is that GPU's 16-bit kernel times the ratio
measured on an A100; an INT8 KV cache reads like an FP8 cache of the same GPU, or like a 16-bit one of half the length.
Normalizing queries and keys by head (Qwen3) is not in the tables: the cost is moving their bytes once more. Sampling is
not in the tables: each pass over a sequence's logits is priced at the data sheet's bandwidth. Scheduling and everything
above the GPU come from an engine profile or a calibration.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from engines.errors import MissingError
from engines.spec import KvFormat, ModelSpec, PlacedModel, precision_named
from engines.steptime.kernel_tables import smaller_tables
from engines.steptime.roofline import LOGITS_BYTES, SAMPLING_PASSES
from engines.steptime.shape import DecodeLine, StepCost, StepShape, in_order
from engines.units import S_PER_MS

SYSTEMS = {
    "a100-sxm-80gb": "a100_sxm",
    "h100-sxm-80gb": "h100_sxm",
    "h200-sxm-141gb": "h200_sxm",
    "l40s-48gb": "l40s",
    "b200-sxm-180gb": "b200_sxm",
}
# Time of kernels in a running engine over their time measured alone (clocks under sustained load, gaps between
# kernels), by GPU: fitted to TensorRT-LLM 0.14 to 0.17's published maximum loads of Mistral 7B, 18 to 45 rows per GPU,
# with a mean error of 3 % (validation/trtllm-bench). GPUs not listed have no such rows.
SUSTAINED = {"a100-sxm-80gb": 1.034, "h100-sxm-80gb": 1.003, "h200-sxm-141gb": 1.050, "l40s-48gb": 0.939}
KV_READ_RATIO, PROMPT_ATTENTION_RATIO = 1.05, 0.92  # on attention, of decoding and of prompts: the same fit, all GPUs
KNOT_TOKENS = 128  # decode attention is looked up at multiples of this context, and interpolated linearly
_DERIVED_ON = "a100_sxm"  # the only system whose tables have every integer format
# The tables' name of each precision's matrix products. fp8_static: scales known beforehand, as in an engine.
_GEMM_MODES = {
    "bf16": "bfloat16",
    "fp16": "bfloat16",
    "fp8": "fp8_static",
    "int8_sq": "sq",
    "int8_wo": "int8_wo",
    "int4_awq": "int4_wo",
    "nvfp4": "nvfp4",
}
_INTEGER_MODES = {"sq", "int8_wo", "int4_wo"}
_KV_MODES: dict[KvFormat, str] = {"16bit": "bfloat16", "fp8": "fp8", "int8": "fp8", "nvfp4": "fp8"}
_ATTENTION, _LOGITS = "attention", "logits_gemm"
_NORMS = ("add_norm_1", "add_norm_2", "act_gate", "embedding")


@dataclass(slots=True)
class _Tables:
    """One compiled engine of the tables: the index of its operations, and a cache of lookups."""

    handle: Any
    names: list[str]
    attention: int = field(init=False)
    logits: int = field(init=False)
    others: list[int] = field(init=False)
    linear: dict[int, tuple[float, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.attention = next(place for place, name in enumerate(self.names) if name.endswith(_ATTENTION))
        self.logits = next(place for place, name in enumerate(self.names) if name.endswith(_LOGITS))
        self.others = [place for place in range(len(self.names)) if place not in {self.attention, self.logits}]

    def linear_s(self, tokens: int) -> tuple[float, float]:
        """Return (matrix products, norms and activations) of one iteration of `tokens` tokens, without the logits."""
        found = self.linear.get(tokens)
        if found is None:
            times = self.handle.evaluate_context_ops(self.others, batch_size=1, s=1, x=tokens)
            norms = in_order([ms for name, ms, *_ in times if name.endswith(_NORMS)])
            found = ((in_order([ms for _, ms, *_ in times]) - norms) * S_PER_MS, norms * S_PER_MS)
            self.linear[tokens] = found
        return found

    def logits_s(self, sequences: int) -> float:
        """Return the output projection's time for a number of sequences."""
        ((_, ms, *_),) = self.handle.evaluate_context_ops([self.logits], batch_size=1, s=1, x=sequences)
        return float(ms) * S_PER_MS

    def prompt_attention_s(self, prompts: int, tokens: int, cached: int) -> float:
        """Return the attention of prompts of `tokens` new tokens each, after `cached` ones."""
        ((_, ms, *_),) = self.handle.evaluate_context_ops([self.attention], batch_size=prompts, s=tokens, prefix=cached)
        return float(ms) * S_PER_MS

    def decode_attention_s(self, sequences: int, context: int) -> float:
        """Return the attention of one decode step of sequences with `context` tokens each."""
        ((_, ms, *_),) = self.handle.evaluate_generation_ops([self.attention], batch_size=sequences, s=context)
        return float(ms) * S_PER_MS


class Silicon:
    """Step time of a model on its GPUs, from measured kernels.

    Args:
        step_tokens: Tokens that each decoding sequence computes in a step; see `Roofline`.

    Attributes:
        derived: What was missing in the tables and how it was derived; empty if everything is measured.

    Raises:
        MissingError: The tables are not installed, or lack this GPU or format.
    """

    def __init__(self, placed: PlacedModel, *, step_tokens: int = 1) -> None:
        model, gpu, tensor_parallel = placed.model, placed.gpu, placed.tensor_parallel
        precision, kv_format = placed.precision, placed.kv_format
        self._step_tokens = step_tokens
        system = SYSTEMS.get(gpu.name)
        if system is None:
            raise MissingError(
                f"no measured step times for {gpu.name}; tables exist for {', '.join(SYSTEMS)}",
                hint="--step-time roofline works from the data sheet",
            )
        mode = _GEMM_MODES.get(precision)
        if mode is None or precision_named(precision).arithmetic not in gpu.dense_flops:
            raise MissingError(
                f"no measured step times for {precision} on {gpu.name}",
                hint="--step-time roofline, or another precision",
            )
        self.derived: list[str] = []
        self._sustained = SUSTAINED.get(gpu.name, 1.0)
        kv_mode = self._kv_mode(system, kv_format)
        self._halved = kv_format == "int8" and kv_mode == "bfloat16"
        self._factor: tuple[_Tables, _Tables] | None = None
        if mode in _INTEGER_MODES and system != _DERIVED_ON:
            self.derived.append(
                f"{precision} on {gpu.name}: its 16-bit kernels times the ratio of {precision} on an A100"
            )
            self._tables = _compiled(model, system, "bfloat16", kv_mode, tensor_parallel)
            self._factor = (
                _compiled(model, _DERIVED_ON, mode, "bfloat16", tensor_parallel),
                _compiled(model, _DERIVED_ON, "bfloat16", "bfloat16", tensor_parallel),
            )
        else:
            self._tables = _compiled(model, system, mode, kv_mode, tensor_parallel)
        self._linear: dict[int, tuple[float, float]] = {}
        self._logits: dict[int, float] = {}
        self._knots: dict[tuple[int, int], float] = {}
        self._prompts: dict[tuple[int, int, int], float] = {}
        logits_bytes = SAMPLING_PASSES * LOGITS_BYTES * model.vocab_size
        self._sampling_s_per_sequence = logits_bytes / gpu.bandwidth_bytes_per_s
        self._qk_norm_s_per_token = model.qk_norm_bytes_per_token / (gpu.bandwidth_bytes_per_s * tensor_parallel)
        kv_bytes = model.kv_bytes_per_token(kv_format)
        self._onboard_s_per_token = kv_bytes / gpu.interconnect_bytes_per_s

    def cost(self, shape: StepShape) -> StepCost:
        """Return the seconds of one iteration by cause; a single token's products count as reading the weights."""
        sequences, context_tokens, prompts, new_tokens, _, onboarded_tokens = shape
        decoded = sequences * self._step_tokens
        gemm_s, norms_s = self._linear_s(decoded + new_tokens)
        weights_s = min(gemm_s, self._linear_s(1)[0])
        return StepCost(
            weights_s,
            gemm_s - weights_s,
            self._decode_attention_s(sequences, context_tokens),
            self._prompt_attention_s(shape),
            norms_s,
            sampling_s=self._logits_s(decoded + prompts),
            onboard_s=onboarded_tokens * self._onboard_s_per_token,
        )

    def seconds(self, shape: StepShape) -> float:
        """Return the seconds of one iteration."""
        return in_order(self.cost(shape))

    def decode_line(self, decode_sequences: int, decode_context_tokens: int) -> DecodeLine:
        """Return the segment of the decode curve at a context; the curve is linear between knots."""
        lower = decode_context_tokens // (decode_sequences * KNOT_TOKENS)
        low_s, high_s = self._knot_s(decode_sequences, lower), self._knot_s(decode_sequences, lower + 1)
        slope = (high_s - low_s) / (KNOT_TOKENS * decode_sequences)
        begin = lower * KNOT_TOKENS * decode_sequences
        decoded = decode_sequences * self._step_tokens
        rest_s = in_order(self._linear_s(decoded)) + self._logits_s(decoded)
        return DecodeLine(rest_s + low_s - slope * begin, slope, begin + KNOT_TOKENS * decode_sequences)

    def _kv_mode(self, system: str, kv_format: KvFormat) -> str:
        if kv_format == "nvfp4":
            self.derived.append("NVFP4 KV cache: read as an FP8 cache, which is larger")
        if kv_format != "int8":
            return _KV_MODES[kv_format]
        if system == _DERIVED_ON:
            self.derived.append("INT8 KV cache: read as a 16-bit cache of half the length")
            return "bfloat16"
        self.derived.append("INT8 KV cache: read as an FP8 cache")
        return _KV_MODES[kv_format]

    def _linear_s(self, tokens: int) -> tuple[float, float]:
        found = self._linear.get(tokens)
        if found is None:
            gemm_s, norms_s = self._tables.linear_s(tokens)
            if self._factor is not None:
                changed, plain = self._factor
                gemm_s *= changed.linear_s(tokens)[0] / plain.linear_s(tokens)[0]
            norms_s += tokens * self._qk_norm_s_per_token
            found = self._linear[tokens] = (self._sustained * gemm_s, self._sustained * norms_s)
        return found

    def _logits_s(self, sequences: int) -> float:
        found = self._logits.get(sequences)
        if found is None:
            found = self._sustained * self._tables.logits_s(sequences) + sequences * self._sampling_s_per_sequence
            self._logits[sequences] = found
        return found

    def _prompt_attention_s(self, shape: StepShape) -> float:
        if not shape.prefill_sequences:
            return 0.0
        new = max(1, round(shape.prefill_tokens / shape.prefill_sequences))
        pairs = shape.prefill_attended_tokens / shape.prefill_sequences
        cached = max(0, round((pairs - new * (new + 1) / 2) / new))
        key = (shape.prefill_sequences, new, cached)
        found = self._prompts.get(key)
        if found is None:
            ratio = self._sustained * PROMPT_ATTENTION_RATIO
            found = self._prompts[key] = ratio * self._tables.prompt_attention_s(*key)
        return found

    def _decode_attention_s(self, sequences: int, context_tokens: int) -> float:
        if not sequences:
            return 0.0
        lower = context_tokens // (sequences * KNOT_TOKENS)
        low_s, high_s = self._knot_s(sequences, lower), self._knot_s(sequences, lower + 1)
        return low_s + (high_s - low_s) * (context_tokens / (sequences * KNOT_TOKENS) - lower)

    def _knot_s(self, sequences: int, knot: int) -> float:
        found = self._knots.get((sequences, knot))
        if found is None:
            context = max(1, knot * KNOT_TOKENS // (2 if self._halved else 1))
            found = self._sustained * KV_READ_RATIO * self._tables.decode_attention_s(sequences, context)
            self._knots[sequences, knot] = found
        return found


@cache
def _compiled(model: ModelSpec, system: str, gemm_mode: str, kv_mode: str, tensor_parallel: int) -> _Tables:
    """Compile with the smaller copy of the tables if there is one. Raises as `compiled_tables` does.

    The result is cached: compiling takes half a second, and a plan, its limits and its batcher need the same tables.
    """
    folder = smaller_tables(system, model.head_size)
    return compiled_tables(model, system, gemm_mode, kv_mode, tensor_parallel=tensor_parallel, folder=folder)


def compiled_tables(
    model: ModelSpec, system: str, gemm_mode: str, kv_mode: str, *, tensor_parallel: int, folder: str | None
) -> _Tables:
    """Compile a model's list of operations against a system's tables.

    The library takes a model as a folder with config.json, which is written and removed here.

    Args:
        folder: Folder of the tables; None: the library's own.

    Raises:
        MissingError: The tables are not installed, or lack this format.
    """
    try:
        from aiconfigurator_core.sdk import engine, errors  # noqa: PLC0415 (an extra, and slow to import)
    except ModuleNotFoundError as error:
        raise MissingError(
            "measured step times need aiconfigurator-core, which is not installed",
            hint="pip install --no-deps aiconfigurator-core==0.12.0",
        ) from error
    logging.getLogger("aiconfigurator_core").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as config_folder, contextlib.redirect_stderr(io.StringIO()), _libyaml():
        (Path(config_folder) / "config.json").write_text(json.dumps(_config_of(model)), encoding="utf-8")
        try:
            handle = engine.EngineHandle.compile(
                config_folder,
                system,
                "trtllm",
                gemm_quant_mode=gemm_mode,
                kvcache_quant_mode=kv_mode,
                tp_size=tensor_parallel,
                systems_path=folder,
            )
            ops = handle.evaluate_context_ops(list(range(_count_ops(handle))), batch_size=1, s=64)
        except (errors.PerfDataNotAvailableError, errors.MissingSystemFlopsError) as error:
            raise MissingError(
                f"no measured kernels for {model.name} in {gemm_mode} with a {kv_mode} cache on {system} "
                f"(head size {model.head_size})",
                hint="--step-time roofline",
            ) from error
    return _Tables(handle, [name for name, *_ in ops])


def _count_ops(handle: Any) -> int:
    """Return the number of operations in the context phase; the library reports it only by an out-of-range index."""
    count = 1
    while True:
        try:
            handle.evaluate_context_ops([count], batch_size=1, s=64)
        except (IndexError, ValueError):
            return count
        count += 1


@contextlib.contextmanager
def _libyaml() -> Iterator[None]:
    """Make `yaml.safe_load` use libyaml: the library reads some 40 files with it, which takes 0.15 s in pure Python."""
    if not hasattr(yaml, "CSafeLoader"):
        yield
        return
    in_python = yaml.safe_load
    yaml.safe_load = lambda stream: yaml.load(stream, Loader=yaml.CSafeLoader)
    try:
        yield
    finally:
        yaml.safe_load = in_python


def _config_of(model: ModelSpec) -> dict[str, Any]:
    """Return a Hugging Face config of the geometry: the tables depend on shapes, and Llama's operations fit all models.

    A feed-forward block with two matrices is represented by one with three that has as many weights.
    """
    inner = model.intermediate_size * model.mlp_matrices // 3
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": model.hidden_size,
        "intermediate_size": inner,
        "num_hidden_layers": model.layers,
        "num_attention_heads": model.attention_heads,
        "num_key_value_heads": model.kv_heads,
        "head_dim": model.head_size,
        "max_position_embeddings": model.max_position_embeddings,
        "rms_norm_eps": 1e-5,
        "vocab_size": model.vocab_size,
        "torch_dtype": "bfloat16",
    }
