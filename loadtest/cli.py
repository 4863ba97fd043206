"""The load-testing room's commands."""

from __future__ import annotations

from pathlib import Path

import click
from rich.markup import escape
from rich.table import Table

from engines.console import Command, command_line, common_flags, progress, show, table_console, writing_flags, wrote
from engines.errors import MissingError
from engines.files import to_json
from loadtest.metrics import LevelSummary, Spread, Summary

REPORT_OUT = Path("artifacts/report")
MS = 1e3


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
    _show_summary(summary)
    if dry_run:
        show(f"would write {target}")
    else:
        wrote(target / REPORT_NAME)


def _show_summary(summary: Summary) -> None:
    """Print the levels, under their kind, and every doubt on stderr."""
    several = len(summary.runs) > 1
    table = Table(title=f"latency, ms ({escape(summary.label)})", title_justify="left")
    if several:
        table.add_column("run", overflow="fold")
    for name in ("users", "requests", "errors", "batch", "ITL p50", "p95", "p99", "TTFT p50", "p95", "p99"):
        table.add_column(name, justify="right")
    table.add_column("tokens/s", justify="right")
    for level in summary.levels:
        run = [escape(level.run or "")] if several else []
        table.add_row(*run, *_cells(level))
    table_console().print(table)
    for doubt in summary.doubts:
        progress(f"not valid: {doubt.code}: {doubt.text}")


def _cells(level: LevelSummary) -> list[str]:
    return [
        str(level.concurrency),
        str(level.requests),
        str(level.errors),
        _batch(level),
        *_percentiles(level.itl_s),
        *_percentiles(level.ttft_s),
        "-" if level.output_tokens_per_s is None else f"{level.output_tokens_per_s:,.0f}",
    ]


def _batch(level: LevelSummary) -> str:
    """Return the mean batch size by the server; with a tilde, by the client."""
    if level.batch_size is not None:
        return f"{level.batch_size.mean:.1f}"
    return "-" if level.batch_size_client is None else f"~{level.batch_size_client.mean:.1f}"


def _percentiles(found: Spread | None) -> list[str]:
    if found is None:
        return ["-", "-", "-"]
    return [f"{value * MS:,.2f}" for value in (found.p50, found.p95, found.p99)]
