"""A comparison as an HTML page; every figure is in the column of its run, under that run's kind."""

from __future__ import annotations

from engines.units import milliseconds
from loadtest.report.comparison_schema import Change, Comparison, LevelChanges
from loadtest.report.pages import NONE, Cell, Table, inline_svg, render_page, table

NAMES = {
    "ttft_s": "time to first token",
    "itl_s": "inter-token latency",
    "tpot_s": "time per output token",
    "e2e_s": "end-to-end latency",
    "output_tokens_per_s": "output tokens/s",
    "requests_per_s": "requests/s",
}
_TONES = {"better": "met", "worse": "error", "same": "", "unclear": "weak", "unknown": "weak"}


def comparison_page(comparison: Comparison, svg: str) -> str:
    """Return the page.

    Args:
        svg: The chart, its colours the page's variables.
    """
    base, new = comparison.baseline, comparison.candidate
    issues = _issues(comparison)
    return render_page(
        "comparison.html.j2",
        title=f"{new.name} against {base.name}",
        tags=[(side.kind, f"{role}: {side.label}") for role, side in (("baseline", base), ("candidate", new))],
        comparison=comparison,
        tone=_tone(comparison, issues),
        issues=issues,
        svg=inline_svg(svg, "changes"),
        levels=[(level, _level_table(comparison, level)) for level in comparison.levels],
        differences=_differences(comparison),
    )


def changed_name(figure: str) -> str:
    """Return a figure's display name.

    >>> changed_name("itl_s p99")
    'inter-token latency, p99, ms'
    """
    quantity, _, statistic = figure.partition(" ")
    return f"{NAMES[quantity]}, {statistic}, ms" if statistic else NAMES[quantity]


def changed_value(figure: str, value: float | None) -> str:
    """Return a figure's value in the unit of its display name."""
    if value is None:
        return NONE
    return milliseconds(value) if " " in figure else f"{value:,.1f}"


def _issues(comparison: Comparison) -> list[str]:
    sides = (("baseline", comparison.baseline), ("candidate", comparison.candidate))
    issues = [f"{role}: {text}" for role, side in sides for text in side.validity_issues]
    if comparison.across_kinds:
        kinds = f"{comparison.baseline.kind} against {comparison.candidate.kind}"
        issues.append(f"{kinds}: the runs are of different kinds, and a difference may come from that.")
    return issues


def _tone(comparison: Comparison, issues: list[str]) -> str:
    """Return the banner's colour: red with an issue or a regression, amber if most figures are undecided."""
    outcomes = [change.outcome for level in comparison.levels for change in level.changes]
    if issues or "worse" in outcomes:
        return "bad"
    undecided = sum(outcome in {"unclear", "unknown"} for outcome in outcomes)
    return "open" if 2 * undecided > len(outcomes) or not outcomes else "good"


def _level_table(comparison: Comparison, level: LevelChanges) -> Table:
    sides = (("baseline", comparison.baseline), ("candidate", comparison.candidate))
    # The result is beside its name: on a phone, the table's other columns are reached by scrolling.
    heads: list[Cell | str] = ["quantity", "result", *(Cell(role, below=side.label) for role, side in sides)]
    return table([*heads, "95 % confidence"], (_row(change) for change in level.changes), text_columns=2)


def _row(change: Change) -> list[Cell | str]:
    ends = NONE if change.low is None or change.high is None else f"{change.low:+z.1%} to {change.high:+z.1%}"
    return [
        changed_name(change.figure),
        Cell(_result(change), tone=_TONES[change.outcome]),
        changed_value(change.figure, change.baseline),
        changed_value(change.figure, change.candidate),
        ends,
    ]


def _result(change: Change) -> str:
    """Return the outcome and the change, without the interval, which has a column of its own."""
    said = change.words.partition("(")[0].partition("; it may be")[0].strip()
    has_own = change.change_ratio is None or change.outcome not in {"same", "unclear"}
    return said if has_own else f"{said}: {change.change_ratio:+z.1%}"


def _differences(comparison: Comparison) -> Table:
    rows: list[list[Cell | str]] = [
        [Cell(each.key, code=True), each.baseline, each.candidate] for each in comparison.differences
    ]
    return table(["", "baseline", "candidate"], rows, text_columns=3)
