"""The implementation of `report-load`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engines.console import command_line, progress, quoted, say, show, wrote
from engines.errors import MissingError, TargetMissedError
from engines.files import read_yaml, to_json
from engines.outputs import paths_named, refuse_existing, refuse_foreign_junit
from loadtest.cli.pricing import pricing_of
from loadtest.cli.tables import (
    show_comparison,
    show_cost,
    show_energy,
    show_speculation,
    show_summary,
    warn_of_limits,
)
from loadtest.results import run_path

if TYPE_CHECKING:
    from loadtest.metrics import Summary
    from loadtest.report import Case


def run(runs: tuple[Path, ...], **flags: Any) -> None:
    """Evaluate run folders: summary.json, charts, exports, and a self-contained HTML page."""
    if flags["junit"]:
        refuse_foreign_junit(flags["junit"], inputs=[*runs, *paths_named(flags)])
    try:
        if flags["compare"]:
            _compare(flags)
        else:
            _report(runs, flags)
    except ModuleNotFoundError as error:
        raise MissingError(f"{error.name} is not installed", hint="pip install 'engine-to-capacity[load]'") from error


def _report(runs: tuple[Path, ...], flags: dict[str, Any]) -> None:
    from loadtest.report import REPORT_NAME, Gate, cases_of, require_loads, summarize_runs, write_report

    target, command = flags["out"], command_line("report-load")
    gate = None if flags["gate"] is None else read_yaml(flags["gate"], Gate)
    objectives = None if gate is None else gate.objectives
    if gate is not None:
        warn_of_limits(gate, *gate.classes.values())
    pricing = pricing_of(flags)

    def priced(summary: Summary) -> Summary:
        if gate is not None:
            require_loads(summary, gate)  # before anything is written
        return pricing(summary)

    if flags["dry_run"]:
        summary = priced(summarize_runs(list(runs), command=command, objectives=objectives))
    else:
        for folder in runs:
            run_path(folder)
        refuse_existing(target, force=flags["force"], inputs=[*runs, *paths_named(flags)], command="report-load")
        summary = write_report(
            list(runs),
            target,
            force=flags["force"],
            command=command,
            objectives=objectives,
            exports=not flags["no_exports"],
            priced=priced,
        )
    if flags["verbose"]:
        progress(f"percentiles: {summary.percentiles}")
        progress(f"confidence: {summary.confidence}")
    if flags["as_json"]:
        show(to_json(summary).rstrip())
    else:
        show_summary(summary)
        show_speculation(summary)
        show_energy(summary)
        show_cost(summary)
        if flags["dry_run"]:
            show(f"would write {target}")
        else:
            wrote(target / REPORT_NAME, f"report-load --compare {quoted(runs[0])} ANOTHER_RUN")
    if gate is not None:
        _gate(cases_of(summary, gate), flags, name=f"report-load {' '.join(map(str, runs))}")


def _compare(flags: dict[str, Any]) -> None:
    from loadtest.report import (
        COMPARISON_PAGE,
        compare,
        regressions_of,
        write_comparison,
    )

    baseline, candidate = flags["compare"]
    target, command = flags["out"], command_line("report-load")
    across = flags["across_kinds"]
    if flags["dry_run"]:
        found = compare(baseline, candidate, command=command, across_kinds=across)
    else:
        found = write_comparison(
            baseline, candidate, target, force=flags["force"], command=command, across_kinds=across
        )
    if flags["as_json"]:
        show(to_json(found).rstrip())
    else:
        show_comparison(found)
        if flags["dry_run"]:
            show(f"would write {target}")
        else:
            wrote(target / COMPARISON_PAGE)
    if flags["max_regression"] is not None:
        cases = regressions_of(found, allowed_ratio=flags["max_regression"])
        _gate(cases, flags, name=f"report-load --compare {baseline} {candidate}")


def _gate(cases: Sequence[Case], flags: dict[str, Any], *, name: str) -> None:
    """Print every result, and write the JUnit file.

    Raises:
        TargetMissedError: A check failed.
    """
    from loadtest.report import write_junit

    tell = progress if flags["as_json"] else say  # with --json, stdout holds one document only
    shown = cases if flags["compare"] is None else [case for case in cases if not case.met]  # the table has the others
    for case in shown:
        tell(f"{'met   ' if case.met else 'missed'}  {case.group}: {case.name}: {case.says}")
    if len(shown) < len(cases):
        tell(f"{sum(case.met for case in cases)} of {len(cases)} checks met")
    if flags["junit"] is not None and not flags["dry_run"]:
        write_junit(flags["junit"], name, cases)
        tell(f"wrote {flags['junit']}")
    missed = [case for case in cases if not case.met]
    if missed:
        raise TargetMissedError(
            f"{len(missed)} of {len(cases)} checks failed; first: {missed[0].group}: {missed[0].name}: {missed[0].says}"
        )
