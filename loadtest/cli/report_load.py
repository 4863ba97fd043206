"""The command that turns runs into figures: report-load."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from engines.console import Command, common_flags, writing_flags

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
def report_load(**flags: Any) -> None:
    """Turn run folders into figures: summary.json, charts, exports, and one page that needs nothing else.

    Several runs share a report only if they are of one kind: measured, emulated or predicted; of one scenario, they
    show the spread between runs. --compare sets two runs side by side. --gate and --max-regression answer yes or no.
    """
    from loadtest.cli.actions.report_load import run

    default = COMPARISON_OUT if flags["compare"] else REPORT_OUT
    run(**flags | {"out": flags["out"] or default})
