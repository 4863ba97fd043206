"""Summaries, charts, pages, comparisons, gates and exports; imports `metrics` and below."""

from loadtest.report.comparison import COMPARISON_PAGE, compare, write_comparison
from loadtest.report.comparison_page import changed_name, changed_value
from loadtest.report.comparison_schema import Change, Comparison
from loadtest.report.gate import Case, Gate, cases_of, regressions_of, require_loads, write_junit
from loadtest.report.pages import Table, render_page, table
from loadtest.report.report import REPORT_NAME, summarize_runs, write_report

__all__ = [
    "COMPARISON_PAGE",
    "REPORT_NAME",
    "Case",
    "Change",
    "Comparison",
    "Gate",
    "Table",
    "cases_of",
    "changed_name",
    "changed_value",
    "compare",
    "regressions_of",
    "render_page",
    "require_loads",
    "summarize_runs",
    "table",
    "write_comparison",
    "write_junit",
    "write_report",
]
