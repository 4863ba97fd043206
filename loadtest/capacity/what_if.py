"""What-if variants of a demand, given as `key=value` or `key*=ratio`, and their plans beside the original."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from engines.errors import UserError
from engines.files import Document, Strict, validate
from engines.spec import is_accelerator_file, precision_named, resolve_gpu
from loadtest.capacity.candidates import Basis
from loadtest.capacity.inputs import Demand
from loadtest.capacity.schema import CapacityPlan
from loadtest.capacity.simulation import Constraint

COMPARED_NAME = "what-if.json"
_CHANGE = re.compile(r"\s*([a-z_]+)\s*(\*?=)\s*(\S+)\s*")
RATIOS = ("traffic", "isl", "osl", "price")
# The path in the demand that each key sets, and how its value is parsed.
VALUES: dict[str, tuple[str, str]] = {
    "precision": ("limits.precisions", "precision"),
    "gpu": ("limits.gpus", "gpu"),
    "tp": ("limits.tensor_parallel", "counts"),
    "n_plus": ("availability.n_plus", "count"),
    "zones": ("availability.zones", "count"),
    "headroom": ("availability.headroom", "number"),
    "max_accuracy_loss": ("objectives.max_accuracy_loss", "number"),
    "budget": ("limits.budget_usd_per_month", "number"),
    "horizon_months": ("horizon_months", "number"),
    "routing": ("routing", "word"),
    "vendor": ("prices.vendor", "word"),
    "price_terms": ("prices.terms", "word"),
    "max_tokens": ("max_tokens", "count"),
    "scheduler_policy": ("candidates.scheduler_policy", "word"),
    "max_batch_size": ("candidates.max_batch_size", "counts"),
    "max_num_tokens": ("candidates.max_num_tokens", "counts"),
    "step_time": ("candidates.step_time", "word"),
    "engine_profile": ("candidates.engine_profile", "word"),
}


class WhatIf(NamedTuple):
    """A change as given, and the changed demand."""

    change: str
    demand: Demand


def what_if(demand: Demand, change: str) -> WhatIf:
    """Return a demand with changes applied, several separated by commas.

    Raises:
        UserError: A key is unknown or a value is invalid; the hint lists the keys.
    """
    values = demand.model_dump(mode="json")
    for part in change.split(","):
        found = _CHANGE.fullmatch(part)
        if found is None:
            raise UserError(f"--what-if {change}: '{part}' is not key=value or key*=ratio", hint=_known())
        key, sign, text = found.groups()
        if sign == "*=":
            _multiply(values, key, text, change)
        else:
            _put(values, key, text, change)
    return WhatIf(change, validate(values, Demand, where=f"--what-if {change}"))


def _multiply(values: dict[str, Any], key: str, text: str, change: str) -> None:
    if key not in RATIOS:
        raise UserError(f"--what-if {change}: '{key}' cannot be multiplied", hint=_known())
    values["scale"][key] *= _number(text, change)


def _put(values: dict[str, Any], key: str, text: str, change: str) -> None:
    if key not in VALUES:
        raise UserError(f"--what-if {change}: '{key}' cannot be set", hint=_known())
    path, kind = VALUES[key]
    *parents, last = path.split(".")
    into = values
    for parent in parents:
        into = into[parent]
    into[last] = _read(kind, text, change)


def _read(kind: str, text: str, change: str) -> Any:
    if kind == "precision":
        return [precision_named(text).name]
    if kind == "gpu":
        name = resolve_gpu(text).name
        return [text if is_accelerator_file(text) else name]
    if kind == "word":
        return text
    if kind == "counts":
        return ["auto"] if text == "auto" else [_whole(text, change)]
    return _whole(text, change) if kind == "count" else _number(text, change)


def _whole(text: str, change: str) -> int:
    number = _number(text, change)
    if number != int(number):
        raise UserError(f"--what-if {change}: {text} is not a whole number")
    return int(number)


def _number(text: str, change: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise UserError(f"--what-if {change}: '{text}' is not a number") from error


def _known() -> str:
    ratios = ", ".join(f"{name}*=1.5" for name in RATIOS)
    return f"{ratios}; {', '.join(f'{name}=...' for name in VALUES)}"


class Side(Strict):
    """A plan's main figures; `nearest` states the nearest possible demand if nothing is recommended."""

    change: str
    peak_per_s: float
    recommended: str | None
    basis: Basis | None = None
    rate_per_s: float | None = None
    binding: Constraint | None = None
    replicas: int | None = None
    usd_per_month: float | None = None
    usd_per_million_tokens: float | None = None
    nearest: str | None = None


class Compared(Document):
    """`what-if.json`: the original plan first, then each variant."""

    sides: list[Side]


def compared(plan: CapacityPlan, others: dict[str, CapacityPlan], head: Document) -> Compared:
    """Return plans side by side."""
    sides = [_side("original", plan), *(_side(change, other) for change, other in others.items())]
    return Compared(made_by=head.made_by, made_from=head.made_from, sides=sides)


def _side(change: str, plan: CapacityPlan) -> Side:
    side = Side(
        change=change,
        peak_per_s=plan.traffic.planned_peak_per_s,
        recommended=plan.recommended,
        nearest=plan.nearest,
    )
    row = plan.chosen
    if row is None:
        return side
    names = ("basis", "rate_per_s", "binding", "replicas", "usd_per_month", "usd_per_million_tokens")
    return side.model_copy(update={name: getattr(row, name) for name in names})
