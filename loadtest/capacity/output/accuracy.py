"""Accuracy in the output of a capacity plan: what each precision loses, and cost against that loss."""

from __future__ import annotations

from loadtest.capacity.accuracy import CandidateAccuracy, interval_text
from loadtest.capacity.decision import Row
from loadtest.capacity.output.charts import TONES, Mark, Series, chart
from loadtest.capacity.schema import CapacityPlan

HEADS = ("precision", "task", "lost", "5 % to 95 %", "questions", "only the baseline right", "only this right", "limit")
BESIDE = 0.02  # of the cost: rows of the same cost are drawn this far apart


def loss_text(row: Row) -> str:
    """Return a row's loss for a table: of the task that loses most."""
    found = row.accuracy
    if found is None:
        return "not measured"
    return "baseline" if found.worst is None else f"{found.loss:.3f}"


def accuracy_rows(plan: CapacityPlan) -> list[list[str]]:
    """Return one line of cells for each evaluated precision and task, the smallest loss first."""
    limit = plan.demand.objectives.max_accuracy_loss
    found: dict[str, tuple[str, CandidateAccuracy]] = {}
    for row in plan.rows:
        if row.accuracy is not None:
            found.setdefault(row.accuracy.engine, (row.precision, row.accuracy))
    return [
        [
            precision,
            each.task,
            f"{each.loss:.3f}",
            interval_text(each),
            f"{each.questions:,}",
            str(each.only_baseline),
            str(each.only_this),
            "-" if limit is None else f"{limit:g}: {each.verdict(limit)}",
        ]
        for precision, accuracy in sorted(found.values(), key=lambda pair: pair[1].loss)
        for each in accuracy.losses
    ]


def accuracy_chart(plan: CapacityPlan) -> tuple[str, tuple[tuple[int, str], ...]]:
    """Return the cost of each row against its accuracy loss as SVG, and the colours of its rows.

    Rows of nearly the same cost are drawn side by side.
    """
    rows = [row for row in plan.rows if row.usd_per_month is not None and row.accuracy is not None]
    series: list[Series] = []
    key: list[tuple[int, str]] = []
    marks: list[Mark] = []
    drawn_usd: list[float] = []
    for place, row in enumerate(rows):
        assert row.accuracy is not None
        assert row.usd_per_month is not None
        worst, tone = row.accuracy.worst, place % TONES
        alike = sum(abs(usd / row.usd_per_month - 1) < BESIDE for usd in drawn_usd)
        drawn_usd.append(row.usd_per_month)
        usd = row.usd_per_month * (1 + alike * BESIDE)
        if worst is not None:
            series.append(Series("", [(usd, worst.low), (usd, worst.high)], tone))
        series.append(Series("", [(usd, row.accuracy.loss)], tone, "dots"))
        key.append((tone, row.name))
        if row.name == plan.recommended:
            marks.append(Mark(usd, row.accuracy.loss, "recommended"))
    limit = plan.demand.objectives.max_accuracy_loss
    drawn = chart(
        "Cost against accuracy loss",
        series,
        x="USD a month",
        y="accuracy loss, share of questions",
        marks=marks,
        limits=[] if limit is None else [(limit, "max_accuracy_loss")],
    )
    return drawn, tuple(key)
