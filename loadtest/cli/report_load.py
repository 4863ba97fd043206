"""The command that turns runs into figures: report-load."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from engines.console import Command, command_line, common_flags, progress, show, writing_flags, wrote
from engines.errors import MissingError, TargetMissedError, UserError
from engines.files import read_yaml, to_json
from engines.outputs import paths_named, refuse_existing
from loadtest.cli.tables import show_summary

if TYPE_CHECKING:
    from loadtest.report import Case

REPORT_OUT = Path("artifacts/report")
COMPARISON_OUT = Path("artifacts/comparison")
_FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)


@click.command(
    "report-load",
    cls=Command,
    epilog=f"Writes {REPORT_OUT}, or with --compare {COMPARISON_OUT}, unless --out is given.",
    groups={
        "Compare": ("--compare", "--across-kinds", "--max-regression"),
        "Gate": ("--gate", "--junit"),
        "Output": ("--out", "--force", "--no-exports", "--dry-run", "--json"),
    },
)
@click.argument("runs", metavar="[RUN_DIR]...", nargs=-1, type=_FOLDER)
@click.option(
    "--compare", nargs=2, type=_FOLDER, metavar="BASELINE CANDIDATE", help="Two runs side by side, instead of a report."
)
@click.option("--across-kinds", is_flag=True, help="Compare runs of different kinds, as predicted against emulated.")
@click.option(
    "--max-regression",
    type=click.FloatRange(min=0),
    metavar="RATIO",
    help="With --compare: end with status 3 where a figure is surely worse, by more than this (0.05 is 5 %).",
)
@click.option("--gate", type=click.Path(path_type=Path), help="YAML of objectives; status 3 where one is missed.")
@click.option("--junit", type=click.Path(path_type=Path), help="File to write the verdicts to, as JUnit XML.")
@click.option("--no-exports", is_flag=True, help="Write no CSV, Parquet and AIPerf JSON.")
@writing_flags
@common_flags
def report_load(runs: tuple[Path, ...], **flags: Any) -> None:
    """Turn run folders into figures: summary.json, charts, exports, and one page that needs nothing else.

    Several runs share a report only if they are of one kind: measured, emulated or predicted; of one scenario, they
    show the spread between runs. --compare sets two runs side by side. --gate and --max-regression answer yes or no.
    """
    _refuse_flags(runs, flags)
    try:
        if flags["compare"]:
            _compare(flags)
        else:
            _report(runs, flags)
    except ModuleNotFoundError as error:
        raise MissingError(f"{error.name} is not installed", hint="pip install 'engine-to-capacity[load]'") from error


def _refuse_flags(runs: tuple[Path, ...], flags: dict[str, Any]) -> None:
    if flags["compare"] and runs:
        raise UserError("--compare takes its two runs itself", hint="report-load --compare BASELINE CANDIDATE")
    for flag in ("across_kinds", "max_regression"):
        if flags[flag] and not flags["compare"]:
            raise UserError(f"--{flag.replace('_', '-')} says how to --compare two runs")
    judged = flags["max_regression"] is not None if flags["compare"] else flags["gate"] is not None
    if flags["compare"] and flags["gate"]:
        raise UserError(
            "--gate holds one run to objectives", hint="report-load CANDIDATE --gate FILE, or --max-regression"
        )
    if flags["junit"] and not judged:
        raise UserError("--junit writes verdicts, and there are none", hint="--gate FILE, or --max-regression RATIO")


def _report(runs: tuple[Path, ...], flags: dict[str, Any]) -> None:
    from loadtest.report import REPORT_NAME, Gate, cases_of, summarize_runs, write_report  # noqa: PLC0415 (charts are an extra)  # noqa: PLC0415

    target, command = flags["out"] or REPORT_OUT, command_line("report-load")
    gate = None if flags["gate"] is None else read_yaml(flags["gate"], Gate)
    objectives = None if gate is None else gate.objectives
    if flags["dry_run"]:
        summary = summarize_runs(list(runs), command=command, objectives=objectives)
    else:
        refuse_existing(target, force=flags["force"], inputs=[*runs, *paths_named(flags)])
        summary = write_report(
            list(runs),
            target,
            force=flags["force"],
            command=command,
            objectives=objectives,
            exports=not flags["no_exports"],
        )
    if flags["verbose"]:
        progress(f"percentiles: {summary.percentiles}")
        progress(f"confidence: {summary.confidence}")
    if flags["as_json"]:
        show(to_json(summary).rstrip())
    else:
        show_summary(summary)
        if flags["dry_run"]:
            show(f"would write {target}")
        else:
            wrote(target / REPORT_NAME, f"report-load --compare {runs[0]} ANOTHER_RUN")
    if gate is not None:
        _judge(cases_of(summary, gate), flags, name=f"report-load {' '.join(map(str, runs))}")


def _compare(flags: dict[str, Any]) -> None:
    from loadtest.cli.tables_compare import show_comparison  # noqa: PLC0415
    from loadtest.report import (  # noqa: PLC0415 (charts are an extra)
        COMPARISON_PAGE,
        compare,
        regressions_of,
        write_comparison,
    )

    baseline, candidate = flags["compare"]
    target, command = flags["out"] or COMPARISON_OUT, command_line("report-load")
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
        _judge(cases, flags, name=f"report-load --compare {baseline} {candidate}")


def _judge(cases: Sequence[Case], flags: dict[str, Any], *, name: str) -> None:
    """Say every verdict; end with status 3 where one is missed.

    Raises:
        TargetMissedError: One is.
    """
    from loadtest.report import write_junit  # noqa: PLC0415 (charts are an extra)

    say = progress if flags["as_json"] else show  # --json prints one document and nothing else
    for case in cases:
        say(f"{'met   ' if case.met else 'missed'}  {case.group}: {case.name}: {case.says}")
    if flags["junit"] is not None and not flags["dry_run"]:
        write_junit(flags["junit"], name, cases)
        say(f"wrote {flags['junit']}")
    missed = [case for case in cases if not case.met]
    if missed:
        raise TargetMissedError(
            f"{len(missed)} of {len(cases)} verdicts missed; first: {missed[0].group}: {missed[0].name}: "
            f"{missed[0].says}"
        )
