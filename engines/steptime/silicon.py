"""Step time from measured kernels: NVIDIA's aiconfigurator tables by operation, without its batching or TTFT formulas.

The tables contain times of the kernels of TensorRT-LLM and of vLLM on H100, H200, A100, L40S and B200, by shape. What
they lack is derived and reported: an INT8 or INT4 kernel on a GPU without measurements is that GPU's 16-bit kernel
times the ratio measured on an A100; an INT8 KV cache reads like an FP8 cache of the same GPU, or like a 16-bit one of
half the length. Normalizing queries and keys by head (Qwen3) is not in the tables: the cost is moving their bytes once
more. Sampling is not in the tables: each pass over a sequence's logits is priced at the data sheet's bandwidth.
Scheduling and everything above the GPU come from an engine profile or a calibration.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

from engines.errors import MissingError
from engines.spec import WIDE_PROMPTS, Kernels, KvFormat, PlacedModel, precision_named
from engines.steptime.kernel_tables import smaller_tables
from engines.steptime.operations import ATTENTION, LOGITS, NORMS, Lookup, engine_of
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
KNOT_TOKENS = 128  # decode attention is looked up at multiples of this context, and interpolated linearly
_DERIVED_ON = "a100_sxm"  # the only system whose tables have every integer format
# The tables' name of each precision's matrix products; FP8's depends on the framework.
_GEMM_MODES = {
    "bf16": "bfloat16",
    "fp16": "bfloat16",
    "int8_sq": "sq",
    "int8_wo": "int8_wo",
    "int4_awq": "int4_wo",
    "nvfp4": "nvfp4",
}
_INTEGER_MODES = {"sq", "int8_wo", "int4_wo"}
_KV_MODES: dict[KvFormat, str] = {"16bit": "bfloat16", "fp8": "fp8", "int8": "fp8", "nvfp4": "fp8"}


class _Framework(NamedTuple):
    """What differs between the kernels of frameworks.

    Attributes:
        tables: The library's name of it.
        fp8_mode: The tables' name of FP8 products. `fp8_static`: scales known beforehand, as in an engine; `fp8`: of
            each token as it comes, as vLLM has them unless the checkpoint states scales.
        kv_read_ratio: On attention of decoding; `prompt_attention_ratio` on that of prompts. The same fit, all GPUs, of
            TensorRT-LLM's kernels alone.
        wide_prompts: Attention of prompts is that with a 16-bit cache, also beside a smaller one.
    """

    tables: str
    fp8_mode: str
    kv_read_ratio: float
    prompt_attention_ratio: float
    wide_prompts: bool = False


_TRTLLM = _Framework("trtllm", "fp8_static", 1.05, 0.92)
_FRAMEWORKS: dict[Kernels, _Framework] = {
    "trtllm": _TRTLLM,
    WIDE_PROMPTS: _TRTLLM._replace(wide_prompts=True),
    "vllm": _Framework("vllm", "fp8", 1.0, 1.0),
}


def library_name(kernels: Kernels) -> str:
    """Return the framework's name in the tables whose kernels these are.

    >>> library_name("trtllm-16bit-prompts")
    'trtllm'
    """
    return _FRAMEWORKS[kernels].tables


class _Tables:
    """One engine of the tables, the index of its operations, and a cache of lookups."""

    def __init__(self, engine: Any, names: list[str]) -> None:
        self._engine = engine
        self._attention, self._logits = [names.index(ATTENTION)], [names.index(LOGITS)]
        self._others = [place for place, name in enumerate(names) if name not in {ATTENTION, LOGITS}]
        self._norms = [place for place, other in enumerate(self._others) if names[other] in NORMS]
        self._linear: dict[int, tuple[float, float]] = {}
        self.evaluate(list(range(len(names))))  # reads every table, or says what is missing

    def evaluate(self, operations: list[int], prompts: int = 1, tokens: int = 1, **shape: int) -> list[float]:
        """Return the milliseconds of operations on prompts."""
        return [ms for _, ms, *_ in self._engine.evaluate_context_ops(operations, prompts, tokens, **shape)]

    def linear_s(self, tokens: int) -> tuple[float, float]:
        """Return (matrix products, norms and activations) of one iteration of `tokens` tokens, without the logits."""
        found = self._linear.get(tokens)
        if found is None:
            times_ms = self.evaluate(self._others, x=tokens)
            norms_ms = in_order([times_ms[place] for place in self._norms])
            found = ((in_order(times_ms) - norms_ms) * S_PER_MS, norms_ms * S_PER_MS)
            self._linear[tokens] = found
        return found

    def logits_s(self, sequences: int) -> float:
        """Return the output projection's time for a number of sequences."""
        return self.evaluate(self._logits, x=sequences)[0] * S_PER_MS

    def prompt_attention_s(self, prompts: int, tokens: int, cached: int) -> float:
        """Return the attention of prompts of `tokens` new tokens each, after `cached` ones."""
        return self.evaluate(self._attention, prompts, tokens, prefix=cached)[0] * S_PER_MS

    def decode_attention_s(self, sequences: int, context: int) -> float:
        """Return the attention of one decode step of sequences with `context` tokens each."""
        ((_, ms, *_),) = self._engine.evaluate_generation_ops([0], sequences, context)
        return float(ms) * S_PER_MS


class Silicon:
    """Step time of a model on its GPUs, from measured kernels.

    Args:
        step_tokens: Tokens that each decoding sequence computes in a step; see `Roofline`.
        kernels: Framework whose kernels are looked up.

    Attributes:
        derived: What was missing in the tables and how it was derived; empty if everything is measured.

    Raises:
        MissingError: The tables are not installed, or lack this GPU or format.
    """

    def __init__(self, placed: PlacedModel, *, step_tokens: int = 1, kernels: Kernels = "trtllm") -> None:
        model, gpu, tensor_parallel = placed.model, placed.gpu, placed.tensor_parallel
        precision, kv_format = placed.precision, placed.kv_format
        self._step_tokens = step_tokens
        system = SYSTEMS.get(gpu.name)
        if system is None:
            raise MissingError(
                f"no measured step times for {gpu.name}; tables exist for {', '.join(SYSTEMS)}",
                hint="--step-time roofline works from the data sheet",
            )
        self._framework = _FRAMEWORKS[kernels]
        mode = self._framework.fp8_mode if precision == "fp8" else _GEMM_MODES.get(precision)
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
        lookup = Lookup(model, self._framework.tables, system, mode, kv_mode, tensor_parallel)
        if mode in _INTEGER_MODES and system != _DERIVED_ON:
            self.derived.append(
                f"{precision} on {gpu.name}: its 16-bit kernels times the ratio of {precision} on an A100"
            )
            lookup, there = (
                lookup._replace(gemm_mode="bfloat16"),
                lookup._replace(system=_DERIVED_ON, kv_mode="bfloat16"),
            )
            self._factor = (_tables_of(there), _tables_of(there._replace(gemm_mode="bfloat16")))
        self._tables = _tables_of(lookup)
        wide = lookup._replace(kv_mode="bfloat16")
        self._prompt_tables = _tables_of(wide) if self._framework.wide_prompts else self._tables
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
            ratio = self._sustained * self._framework.prompt_attention_ratio
            found = self._prompts[key] = ratio * self._prompt_tables.prompt_attention_s(*key)
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
            found = (
                self._sustained * self._framework.kv_read_ratio * self._tables.decode_attention_s(sequences, context)
            )
            self._knots[sequences, knot] = found
        return found


@cache
def _tables_of(lookup: Lookup) -> _Tables:
    """Read the smaller copy of the tables if there is one. Raises as `read_tables` does.

    The result is cached: a plan, its limits and its batcher need the same tables, which take 0.2 s to read.
    """
    return read_tables(lookup, smaller_tables(lookup.kernels, lookup.system, lookup.model.head_size))


def read_tables(lookup: Lookup, folder: str | None) -> _Tables:
    """Read a framework's tables of a system for a model.

    Args:
        folder: Folder of the tables; None: the library's own.

    Raises:
        MissingError: The tables are not installed, or lack this format.
    """
    engine, names = engine_of(lookup, folder)
    from aiconfigurator_core.sdk import errors  # noqa: PLC0415 (an extra)

    try:
        return _Tables(engine, names)
    except (errors.PerfDataNotAvailableError, errors.MissingSystemFlopsError) as error:
        model, kernels, system, gemm_mode, kv_mode, _ = lookup
        raise MissingError(
            f"no measured {kernels} kernels for {model.name} in {gemm_mode} with a {kv_mode} cache on {system} "
            f"(head size {model.head_size})",
            hint="--step-time roofline",
        ) from error
