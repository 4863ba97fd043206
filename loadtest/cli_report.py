"""The command that turns runs into figures: report-load."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from engines.console import Command, command_line, common_flags, progress, show, writing_flags, wrote
from engines.errors import MissingError, TargetMissedError, UserError
from engines.files import read_yaml, refuse_existing, to_json, write_text
from loadtest.tables import show_changes, show_summary

REPORT_OUT = Path("artifacts/report")
COMPARE_OUT = Path("artifacts/comparison")
GROUPS = {
    "Two runs side by side": ("--compare", "--across-kinds"),
    "A gate for releases": ("--gate", "--junit"),
}


@click.command(
    "report-load",
    cls=Command,
    epilog=f"Writes {REPORT_OUT}, with --compare {COMPARE_OUT}, unless --out is given.",
    groups=GROUPS,
)
@click.argument(
    "runs",
    metavar="RUN_DIR...",
    nargs=-1,
    required=True,
    type=click.Path(exists=True, file_okay=False, path_type=Path),
)
@click.option("--compare", is_flag=True, help="What changed from the first run, the baseline, to the second.")
@click.option("--across-kinds", is_flag=True, help="Also where one is measured and the other emulated or predicted.")
@click.option(
    "--gate",
    type=click.Path(path_type=Path),
    help="A YAML file of objectives: print each verdict; end with status 3 where one is missed.",
)
@click.option(
    "--junit",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Also write the verdicts as JUnit XML, with --gate.",
)
@click.option("--exports/--no-exports", default=True, help="Whether to write CSV, Parquet and AIPerf's JSON.")
@writing_flags
@common_flags
def report_load(runs: tuple[Path, ...], **flags: Any) -> None:
    """Turn run folders into figures: summary.json, charts, exports, and one page that needs nothing else.

    Several runs share a report only if they are of one kind: measured, emulated or predicted. Repeats of one scenario
    are put beside each other.
    """
    _refuse_odd(runs, flags)
    try:
        import loadtest.report  # noqa: F401, PLC0415 (charts are an extra)
    except ModuleNotFoundError as error:
        raise MissingError(f"{error.name} is not installed", hint="pip install 'engine-to-capacity[load]'") from error
    if flags["compare"]:
        _compare(runs[0], runs[1], flags)
    else:
        _report(list(runs), flags)


def _refuse_odd(runs: tuple[Path, ...], flags: dict[str, Any]) -> None:
    """Refuse flags that do not go together.

    Raises:
        UserError: They do not.
    """
    if flags["compare"] and len(runs) != 2:  # noqa: PLR2004
        raise UserError(
            f"--compare: two runs are compared, {len(runs)} given", hint="report-load --compare BASELINE CANDIDATE"
        )
    if flags["compare"] and flags["gate"]:
        raise UserError("--compare and --gate: one or the other", hint="report-load CANDIDATE --gate FILE is the gate")
    if flags["across_kinds"] and not flags["compare"]:
        raise UserError("--across-kinds is for --compare: kinds never share a report")
    if flags["junit"] and not flags["gate"]:
        raise UserError("--junit writes what --gate finds", hint="--gate FILE")


def _report(runs: list[Path], flags: dict[str, Any]) -> None:
    from loadtest.gate import Gate  # noqa: PLC0415
    from loadtest.report import REPORT_NAME, summarize_runs, write_report  # noqa: PLC0415

    gate = read_yaml(flags["gate"], Gate) if flags["gate"] else None
    promised: dict[str, Any] = {"objectives": gate, "of_classes": gate.classes or None} if gate else {}
    target = flags["out"] or REPORT_OUT
    command = command_line("report-load")
    if flags["dry_run"]:
        summary = summarize_runs(runs, command=command, **promised)
    else:
        refuse_existing(target, force=flags["force"])
        summary = write_report(
            runs, target, force=flags["force"], command=command, exports=flags["exports"], **promised
        )
    if flags["verbose"]:
        progress(f"percentiles: {summary.percentiles}")
    if flags["as_json"]:
        show(to_json(summary).rstrip())
    else:
        show_summary(summary)
        if flags["dry_run"]:
            show(f"would write {target}")
        else:
            wrote(target / REPORT_NAME)
    if gate is not None:
        _judge(gate, summary, flags)


def _judge(gate: Any, summary: Any, flags: dict[str, Any]) -> None:
    """Print a gate's verdicts and write them where asked.

    Raises:
        TargetMissedError: One is missed.
    """
    from loadtest.gate import cases_of, in_words, junit  # noqa: PLC0415

    cases = cases_of(gate, summary)
    tell = progress if flags["as_json"] else show
    tell(f"gate {flags['gate']} ({summary.label})")
    for case in cases:
        tell(f"  {in_words(case)}")
    if flags["junit"] and not flags["dry_run"]:
        write_text(flags["junit"], junit(cases, summary, name=str(flags["gate"])))
        progress(f"wrote {flags['junit']}")
    missed = [case for case in cases if not case.met]
    if missed:
        raise TargetMissedError(
            f"{flags['gate']}: {len(missed)} of {len(cases)} missed, the first: {missed[0].where}: {missed[0].what}"
        )


def _compare(baseline: Path, candidate: Path, flags: dict[str, Any]) -> None:
    from loadtest.compare import COMPARISON_PAGE, compare, write_comparison  # noqa: PLC0415

    target = flags["out"] or COMPARE_OUT
    asked = {"command": command_line("report-load"), "across_kinds": flags["across_kinds"]}
    if flags["dry_run"]:
        found = compare(baseline, candidate, **asked)
    else:
        found = write_comparison(baseline, candidate, target, force=flags["force"], **asked)
    if flags["as_json"]:
        show(to_json(found).rstrip())
        return
    show_changes(found)
    if flags["dry_run"]:
        show(f"would write {target}")
    else:
        wrote(target / COMPARISON_PAGE)
