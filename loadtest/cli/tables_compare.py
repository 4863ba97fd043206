"""What report-load --compare shows in a terminal."""

from __future__ import annotations

from rich.markup import escape
from rich.table import Table

from engines.console import progress, show, table_console
from loadtest.report import Change, Comparison, changed_name, changed_value

_STYLES = {"better": "green", "worse": "red", "same": "", "unclear": "dim", "unknown": "dim"}


def show_comparison(found: Comparison) -> None:
    """Print every figure of every level, each run's in a column under its kind, and the verdict."""
    base, new = found.baseline, found.candidate
    table = Table(title=f"{escape(new.name)} against {escape(base.name)}", title_justify="left")
    table.add_column("load", justify="right")
    table.add_column("quantity")
    table.add_column(f"baseline\n{escape(base.label)}", justify="right")
    table.add_column(f"candidate\n{escape(new.label)}", justify="right")
    table.add_column("in words")
    for level in found.levels:
        for place, change in enumerate(level.changes):
            table.add_row("" if place else level.load, *_cells(change))
        table.add_section()
    table_console().print(table)
    show(found.verdict)
    for each in found.differences:
        progress(f"differs: {each.key}: {each.baseline} -> {each.candidate}")
    for role, side in (("baseline", base), ("candidate", new)):
        for doubt in side.doubts:
            progress(f"not valid: {role}: {doubt}")


def _cells(change: Change) -> list[str]:
    style = _STYLES[change.outcome]
    words = f"[{style}]{escape(change.words)}[/]" if style else escape(change.words)
    values = [
        changed_value(change.figure, value).replace("&ndash;", "-") for value in (change.baseline, change.candidate)
    ]
    return [changed_name(change.figure), *values, words]
