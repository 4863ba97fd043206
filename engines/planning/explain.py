"""The effect of alternatives to a plan's values: the next lower and the next higher one, as predicted."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from engines.errors import MissingError
from engines.planning.build_plan import BuildPlan
from engines.planning.limits import BATCH_SIZES, TOKEN_BUDGETS, Engine, Outlook, built_num_tokens, outlook
from engines.spec import (
    KV_BYTES,
    PRECISIONS,
    GpuSpec,
    KvFormat,
    Precision,
    Sizing,
    keeps_paged_attention,
    kv_refusal,
    precision_named,
    verdict,
)

_FRACTIONS = (0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95)
_BLOCKS = (8, 16, 32, 64, 128)
_TENSOR_PARALLEL = (1, 2, 4, 8)
_SAME_RATIO = 0.005  # smaller differences are not reported
_KV_FORMATS: tuple[KvFormat, ...] = ("32bit", "16bit", "fp8", "int8")


@dataclass(frozen=True, slots=True)
class Neighbour:
    """A value next to the chosen one and its predicted effect, `cost`."""

    value: str
    cost: str


@dataclass(frozen=True, slots=True)
class Explanation:
    """A value of the plan with its lower and higher alternative; None if there is none."""

    name: str
    lower: Neighbour | None
    upper: Neighbour | None


def explain(plan: BuildPlan) -> list[Explanation]:
    """Return the alternatives of every value of a plan that has some.

    Each alternative changes one value and what follows from it. Costs are relative to the plan: tokens in the KV cache,
    mean ITL and reply tokens per second with every slot occupied, and objectives that would be missed.
    """
    chosen = Engine(
        plan.model,
        plan.gpu,
        plan.precision,
        plan.kv_format,
        plan.sizing,
        plan.runtime.chunked_context,
        plan.step_time,
        plan.speculation,
    )
    here = outlook(chosen, plan.workload)
    return [
        Explanation(name, _neighbour(plan, here, lower), _neighbour(plan, here, upper))
        for name, lower, upper in _neighbours(plan, chosen)
    ]


def _neighbours(plan: BuildPlan, chosen: Engine) -> Iterator[tuple[str, _Change | None, _Change | None]]:
    sizing = chosen.sizing
    longest = plan.model.max_position_embeddings
    lengths = tuple(sorted({sizing.max_seq_len // 2, sizing.max_seq_len, min(2 * sizing.max_seq_len, longest)}))
    for name, key, ladder in (
        ("limits.max_batch_size", "max_batch_size", BATCH_SIZES),
        ("limits.max_num_tokens", "max_num_tokens", TOKEN_BUDGETS),
        ("limits.max_seq_len", "max_seq_len", lengths),
        ("kv_cache.free_gpu_mem_fraction", "kv_fraction", _FRACTIONS),
        ("kv_cache.tokens_per_block", "tokens_per_block", _BLOCKS),
        ("parallel.tensor", "tensor_parallel", _TENSOR_PARALLEL),
    ):
        value = getattr(sizing, key)
        lower = max((step for step in ladder if step < value), default=None)
        upper = min((step for step in ladder if step > value), default=None)
        yield name, _resized(chosen, key, lower), _resized(chosen, key, upper)
    yield "kv_cache.format", *_other_kv(chosen)
    yield "precision", *_other_precisions(plan, chosen)


@dataclass(frozen=True, slots=True)
class _Change:
    value: str
    engine: Engine
    remark: str = ""


def _resized(chosen: Engine, key: str, value: float | None) -> _Change | None:
    if value is None:
        return None
    sizing = Sizing.model_validate({**chosen.sizing.model_dump(), key: value})
    sizing = sizing.model_copy(update={"max_num_tokens": built_num_tokens(sizing.max_num_tokens, sizing)})
    heads = chosen.model.kv_heads
    if sizing.tensor_parallel > 1 and heads % sizing.tensor_parallel and sizing.tensor_parallel % heads:
        return None
    remark = f"{value} GPUs per replica" if key == "tensor_parallel" else ""
    return _Change(f"{value:g}", replace(chosen, sizing=sizing), remark)


def _other_kv(chosen: Engine) -> tuple[_Change | None, _Change | None]:
    """Return the KV cache formats with fewer and with more bits that this precision and GPU support."""
    precision = precision_named(chosen.precision)
    found: dict[bool, _Change] = {}
    for other in _KV_FORMATS:
        larger = KV_BYTES[other] > KV_BYTES[chosen.kv_format]
        smaller = KV_BYTES[other] < KV_BYTES[chosen.kv_format]
        if not (larger or smaller) or kv_refusal(other, precision, chosen.gpu) or larger in found:
            continue
        chunked = keeps_paged_attention(other, precision)
        remark = "" if chunked else "loses chunked context and KV reuse"
        found[larger] = _Change(other, replace(chosen, kv_format=other, chunked=chunked), remark)
    return found.get(False), found.get(True)


def _other_precisions(plan: BuildPlan, chosen: Engine) -> tuple[_Change | None, _Change | None]:
    """Return the possible precisions with the next fewer and next more weight bits, with their default KV cache."""
    bits = precision_named(chosen.precision).weight_bits
    possible = [
        other for other in PRECISIONS.values() if verdict(other, plan.gpu, plan.model.family).status != "impossible"
    ]
    fewer = max((other for other in possible if other.weight_bits < bits), key=lambda o: o.weight_bits, default=None)
    more = min((other for other in possible if other.weight_bits > bits), key=lambda o: o.weight_bits, default=None)
    return _to_precision(chosen, fewer), _to_precision(chosen, more)


def _to_precision(chosen: Engine, other: Precision | None) -> _Change | None:
    if other is None:
        return None
    kv_format = _default_kv(other.default_kv, other.name, chosen.gpu)
    remark = f"KV cache {kv_format}; accuracy differs, measure it"
    return _Change(other.name, replace(chosen, precision=other.name, kv_format=kv_format), remark)


def _default_kv(wanted: KvFormat, precision: str, gpu: GpuSpec) -> KvFormat:
    return "16bit" if kv_refusal(wanted, precision_named(precision), gpu) else wanted


def _neighbour(plan: BuildPlan, here: Outlook, change: _Change | None) -> Neighbour | None:
    if change is None:
        return None
    try:
        there = outlook(change.engine, plan.workload)
    except MissingError as missing:
        return Neighbour(change.value, f"not possible: {missing.message}")
    parts = [
        _difference(there.kv_tokens, here.kv_tokens, "KV tokens"),
        _difference(there.tokens_per_s, here.tokens_per_s, "tokens/s"),
        _difference(there.itl_s, here.itl_s, "ITL"),
        _difference(there.longest_gap_s, here.longest_gap_s, "longest gap"),
    ]
    if change.engine.sizing.max_seq_len != plan.sizing.max_seq_len and there.kv_tokens:
        parts.append(f"{there.kv_tokens // change.engine.sizing.max_seq_len} of the longest requests at once")
    missed = there.misses(plan.objectives)
    if missed and missed != here.misses(plan.objectives):
        parts.append(f"misses: {missed}")
    if change.remark:
        parts.append(change.remark)
    return Neighbour(change.value, ", ".join(part for part in parts if part) or "no visible difference")


def _difference(there: float, here: float, what: str) -> str:
    if not here or abs(there / here - 1) < _SAME_RATIO:
        return ""
    return f"{what} {there / here - 1:+.0%}" if abs(there / here - 1) >= 0.01 else f"{what} {there / here - 1:+.1%}"  # noqa: PLR2004 (a percent)
