"""From run folders to a report: `summary.json`, charts, exports, and a self-contained page."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from engines.files import made_by, write_json, write_text
from engines.outputs import refuse_existing, whole_folder
from loadtest.metrics import Knee, LoadedRun, RunDetail, Summary, knee_of, load_runs, refuse_mixed_kinds, repeats_of
from loadtest.report.exports import EXPORTS_NAME, write_exports
from loadtest.report.report_page import Figure, report_page
from loadtest.report.theme import themed
from loadtest.results import ValidityIssue
from loadtest.scenario import Objectives

if TYPE_CHECKING:
    from loadtest.report.charts import Drawing

SUMMARY_NAME = "summary.json"
REPORT_NAME = "report.html"
CHARTS_NAME = "charts"


class Chart(NamedTuple):
    """One chart: the name of its files, its caption, and its drawing."""

    name: str
    says: str
    drawing: Drawing


def write_report(
    runs: Sequence[Path],
    out: Path,
    *,
    force: bool,
    command: str,
    objectives: Objectives | None = None,
    exports: bool = True,
    priced: Callable[[Summary], Summary] = lambda summary: summary,
) -> Summary:
    """Write `summary.json`, `charts/`, `exports/` and `report.html` for runs of one kind; return the summary.

    Args:
        objectives: None: those of the runs' own scenario, if any.
        exports: Whether to write CSV, Parquet and AIPerf's JSON.
        priced: Adds the cost of tokens.

    Raises:
        UserError: `load_runs` refuses the runs, or `out` may not be written.
        MissingError: A dependency of the exports is not installed.
    """
    refuse_existing(out, force=force, inputs=runs)
    loaded = load_runs(runs)
    promised = objectives or objectives_of(loaded)
    summary = priced(summarize_loaded(loaded, command=command, objectives=promised))
    details = [run.detail() for run in loaded]
    with whole_folder(out, made_by=summary.made_by, force=force, inputs=runs) as folder:
        write_json(folder / SUMMARY_NAME, summary)
        figures = _write_charts(folder / CHARTS_NAME, summary, details, promised)
        if exports:
            write_exports(folder / EXPORTS_NAME, loaded, summary, details)
        write_text(folder / REPORT_NAME, report_page(summary, figures, promised))
    return summary


def summarize_runs(runs: Sequence[Path], *, command: str, objectives: Objectives | None = None) -> Summary:
    """Return one summary of all runs, their levels in sequence, each with its run's name.

    Raises:
        UserError: A folder is not a run or is given twice, a line does not match the schema, or the kinds differ.
    """
    loaded = load_runs(runs)
    return summarize_loaded(loaded, command=command, objectives=objectives or objectives_of(loaded))


def objectives_of(runs: Sequence[LoadedRun]) -> Objectives | None:
    """Return the objectives of the runs' scenario; None if there are none, or they differ."""
    promised = [getattr(run.manifest.scenario, "objectives", None) for run in runs]
    return promised[0] if all(each == promised[0] for each in promised) else None


def summarize_loaded(runs: Sequence[LoadedRun], *, command: str, objectives: Objectives | None) -> Summary:
    """Return one summary of all runs. Raises as `summarize_runs` does."""
    refuse_mixed_kinds(runs, hint="report them separately, or side by side: report-load --compare A B --across-kinds")
    parts = [run.summary(objectives) for run in runs]
    scales = {part.time_scale for part in parts}
    validity_issues: list[ValidityIssue] = []
    before = 0
    for part, run in zip(parts, runs, strict=True):
        validity_issues += [
            _moved(issue, before, run.name if len(parts) > 1 else None) for issue in part.validity_issues
        ]
        before += len(part.levels)
    return Summary(
        made_by=made_by(command),
        made_from=[source for run in runs for source in run.sources()],
        kind=parts[0].kind,
        label=" and ".join(dict.fromkeys(part.label for part in parts)),
        time_scale=parts[0].time_scale if len(scales) == 1 else None,
        valid=not validity_issues,
        validity_issues=validity_issues,
        runs=[facts for part in parts for facts in part.runs],
        levels=[level for part in parts for level in part.levels],
        repeats=repeats_of(runs, parts),
    )


def charts_of(summary: Summary, details: Sequence[RunDetail], knee: Knee | None) -> Iterator[Chart]:
    """Yield a report's charts in reading order."""
    from loadtest.report import charts  # noqa: PLC0415 (Matplotlib; pages without these charts are written here too)

    of_runs = list(details)
    yield Chart(
        "latency_against_batch",
        "Inter-token latency, TTFT and throughput against the batch size that the server ran.",
        charts.latency_against_batch(summary),
    )
    yield Chart(
        "gap_against_batch",
        "Every inter-token gap against the number of active streams at its midpoint, beside the server's own iteration "
        "times. Where the two disagree, something other than the engine adds to the latency.",
        charts.gap_against_batch(summary),
    )
    yield Chart(
        "latency_against_load",
        "Latency and throughput against offered load.",
        charts.latency_against_load(summary, knee=knee),
    )
    yield Chart(
        "frontier",
        "Tokens per second of one user against those of all users: the trade-off of a deployment.",
        charts.frontier(summary),
    )
    if any(level.energy is not None or level.cost is not None for level in summary.levels):
        yield Chart("energy_and_cost", _energy_caption(summary), charts.energy_and_cost(summary))
    yield Chart(
        "distributions",
        "Complete distributions, with the tails below: a stall of one gap in a thousand is visible there.",
        charts.distributions(summary, of_runs),
    )
    for place, detail in enumerate(of_runs):
        name = "timeline" if len(of_runs) == 1 else f"timeline_{place + 1}"
        yield Chart(name, "", charts.timeline(summary, detail))


def _energy_caption(summary: Summary) -> str:
    says = "Per token: a larger batch shares the reading of the weights, base power and price."
    if any(level.energy is not None and level.energy.power_range_w is not None for level in summary.levels):
        says += " Bars: the 90 % interval of predicted power."
    if all(level.cost is None for level in summary.levels):
        says += " The options --gpu-price and --gpus add the cost."
    return says


def _write_charts(
    folder: Path, summary: Summary, details: Sequence[RunDetail], objectives: Objectives | None
) -> list[Figure]:
    """Write every chart as SVG and PNG; return the SVGs for the page."""
    folder.mkdir()
    knee = knee_of(summary.levels, objectives) if len(summary.runs) == 1 else None
    figures = []
    for chart in charts_of(summary, details, knee):
        (folder / f"{chart.name}.svg").write_text(chart.drawing.svg, encoding="utf-8")
        (folder / f"{chart.name}.png").write_bytes(chart.drawing.png)
        figures.append(Figure(chart.name, themed(chart.drawing.svg), chart.says))
    return figures


def _moved(issue: ValidityIssue, by: int, name: str | None) -> ValidityIssue:
    """Adapt a validity issue's level index to several runs, and name its run."""
    level = None if issue.level is None else issue.level + by
    return ValidityIssue(code=issue.code, text=issue.text if name is None else f"{name}: {issue.text}", level=level)
