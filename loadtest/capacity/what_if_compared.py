"""A plan beside what it would be with something changed."""

from __future__ import annotations

from engines.files import Document, Strict
from loadtest.capacity.candidates import Basis
from loadtest.capacity.plan import CapacityPlan
from loadtest.capacity.simulation import Constraint

COMPARED_NAME = "what-if.json"


class Side(Strict):
    """One plan in short; `nearest` says what would be possible where nothing is recommended."""

    asked: str
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
    """`what-if.json`: the plan as asked for first, then each change."""

    sides: list[Side]


def compared(plan: CapacityPlan, others: dict[str, CapacityPlan], head: Document) -> Compared:
    """Return plans side by side."""
    sides = [_side("as asked", plan), *(_side(asked, other) for asked, other in others.items())]
    return Compared(made_by=head.made_by, made_from=head.made_from, sides=sides)


def _side(asked: str, plan: CapacityPlan) -> Side:
    side = Side(
        asked=asked,
        peak_per_s=plan.traffic.planned_peak_per_s,
        recommended=plan.recommended,
        nearest=plan.nearest,
    )
    row = plan.chosen
    if row is None:
        return side
    names = ("basis", "rate_per_s", "binding", "replicas", "usd_per_month", "usd_per_million_tokens")
    return side.model_copy(update={name: getattr(row, name) for name in names})
