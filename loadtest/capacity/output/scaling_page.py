"""The comparison of control laws on the page: its table and its chart."""

from __future__ import annotations

from markupsafe import Markup

from engines.autoscaling import ScalingLaw, Signal
from engines.units import SECONDS_PER_H
from loadtest.capacity.autoscaling import CheckedLaw, LawResult, ScalingComparison
from loadtest.capacity.day import REPORT_SLOTS
from loadtest.capacity.output.charts import Mark, Series, chart
from loadtest.capacity.schema import CapacityPlan
from loadtest.capacity.simulation import SLOT_S
from loadtest.report import Table, table

SIGNAL_WORDS: dict[Signal, str] = {
    "in_flight": "requests in flight",
    "queue": "queued requests",
    "kv_used": "KV cache use",
    "ttft_p95": "TTFT p95 (s)",
}
NOT_PAYING = "no law pays here, keep the fixed replicas"
DEFAULT_DOWN_S = 300  # the API's stabilization window


def law_words(law: ScalingLaw) -> str:
    """Return a law's controller, signal and target in words."""
    return f"{law.controller.upper()} on {SIGNAL_WORDS[law.signal]} {law.target:g}"


def scaling_table(scaling: ScalingComparison) -> Table:
    """Return the laws by missed minutes, with the fixed fleet first."""
    heads = (
        "signal", "controller", "target", "scaling down", "missed, day", "missed, surges", "GPU hours", "most replicas",
    )  # fmt: skip
    fixed = scaling.fixed
    rows = [["none: fixed replicas", "-", str(fixed.law.max_replicas), "-", *_figures(fixed)]]
    rows += [
        [
            SIGNAL_WORDS[each.law.signal],
            each.law.controller.upper(),
            f"{each.law.target:g}",
            "as by default" if each.law.down.stabilization_s == DEFAULT_DOWN_S else "slow",
            *_figures(each),
        ]
        for each in scaling.laws
    ]
    return table(heads, rows, text_columns=2, text_at=(3,), strong=[scaling.best + 1])


def _figures(each: LawResult) -> list[str]:
    return [
        f"{each.day_missed_minutes}",
        f"{each.surge_missed_minutes}",
        f"{each.gpu_hours:.1f}",
        str(each.max_replicas),
    ]


def scaling_chart(scaling: ScalingComparison) -> tuple[Markup, str]:
    """Return the chart of missed minutes against GPU hours, one dot a law, and its caption."""
    series = [
        Series(
            words,
            [(each.gpu_hours, each.day_missed_minutes) for each in scaling.laws if each.law.signal == signal],
            tone,
            "dots",
        )
        for tone, (signal, words) in enumerate(SIGNAL_WORDS.items())
        if any(each.law.signal == signal for each in scaling.laws)
    ]
    fixed, chosen = scaling.fixed, scaling.chosen
    series.append(Series("fixed", [(fixed.gpu_hours, fixed.day_missed_minutes)], 5, "dots"))
    drawn = chart(
        "Which signal should scale the replicas",
        series,
        x="GPU hours of the day",
        y="minutes with an objective missed",
        marks=[Mark(chosen.gpu_hours, chosen.day_missed_minutes, "recommended")],
    )
    return Markup(drawn), scaling_words(scaling)


def day_replicas(scaling: ScalingComparison) -> list[tuple[float, float]]:
    """Return the hour, and the fewest replicas of the recommended law, of every few minutes of the day."""
    ups = scaling.up
    return [
        (begin * SLOT_S / SECONDS_PER_H, float(min(ups[begin : begin + REPORT_SLOTS])))
        for begin in range(0, len(ups), REPORT_SLOTS)
    ]


def scaling_words(scaling: ScalingComparison) -> str:
    """Return what the recommended law does, and what its check found."""
    chosen, cold = scaling.chosen, scaling.cold_start
    text = (
        f"{law_words(chosen.law)}: {chosen.day_missed_minutes} of {scaling.minutes:,} minutes missed, "
        f"{chosen.gpu_hours:.1f} GPU hours against {scaling.fixed.gpu_hours:.1f} of the fixed replicas"
        f"{'' if scaling.pays else f': {NOT_PAYING}'}. "
        f"A replica starts in {cold.total_s:g} s ({cold.source})."
    )
    return text if scaling.check is None else f"{text} {check_words(scaling.check)}"


def check_words(check: CheckedLaw) -> str:
    """Return what the recommended law did request by request."""
    replayed = check.replayed
    return (
        f"The autoscaler's {len(replayed.missed)} hardest minutes, from {check.begin_h:.2f} h on, request by request "
        f"({replayed.requests:,} requests): {sum(replayed.missed)} missed, and "
        f"{sum(check.fluid_missed)} in the fluid simulation."
    )


def unscaled_words(plan: CapacityPlan) -> str:
    """Return why a plan compares no control laws."""
    row = plan.chosen
    if row is not None and row.is_run:
        return "none simulated: a measured run has no engine to simulate"
    return "none simulated: one replica carries the whole demand"
