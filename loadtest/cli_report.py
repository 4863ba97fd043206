"""The command that turns runs into figures: report-load."""

from __future__ import annotations

from pathlib import Path

import click

from engines.console import Command, command_line, common_flags, progress, show, writing_flags, wrote
from engines.errors import MissingError
from engines.files import to_json
from loadtest.tables import show_summary

REPORT_OUT = Path("artifacts/report")


@click.command("report-load", cls=Command, epilog=f"Writes {REPORT_OUT} unless --out is given.")
@click.argument(
    "runs",
    metavar="RUN_DIR...",
    nargs=-1,
    required=True,
    type=click.Path(exists=True, file_okay=False, path_type=Path),
)
@writing_flags
@common_flags
def report_load(
    runs: tuple[Path, ...],
    out: Path | None,
    force: bool,
    dry_run: bool,
    as_json: bool,
    verbose: bool,
) -> None:
    """Turn run folders into figures: summary.json, charts, and one page that needs nothing else.

    Several runs share a report only if they are of one kind: measured, emulated or predicted.
    """
    try:
        from loadtest.report import REPORT_NAME, summarize_runs, write_report  # noqa: PLC0415 (charts are an extra)
    except ModuleNotFoundError as error:
        raise MissingError(f"{error.name} is not installed", hint="pip install 'engine-to-capacity[load]'") from error
    target = out or REPORT_OUT
    command = command_line("report-load")
    if dry_run:
        summary = summarize_runs(list(runs), command=command)
    else:
        summary = write_report(list(runs), target, force=force, command=command)
    if verbose:
        progress(f"percentiles: {summary.percentiles}")
    if as_json:
        show(to_json(summary).rstrip())
        return
    show_summary(summary)
    if dry_run:
        show(f"would write {target}")
    else:
        wrote(target / REPORT_NAME)
