"""From run folders to what a person reads: `summary.json`, charts, and one page that needs nothing else."""

from __future__ import annotations

import html
import re
from pathlib import Path
from string import Template

from pydantic import ValidationError

from engines.errors import UserError
from engines.files import Source, made_by, source_of, whole_folder, write_json, write_text
from loadtest.charts import latency_against_batch, latency_against_concurrency
from loadtest.metrics import LevelSummary, RunFacts, Spread, Summary, summarize
from loadtest.records import (
    REQUESTS_NAME,
    RUN_NAME,
    SAMPLES_NAME,
    Doubt,
    RunManifest,
    read_records,
    read_run,
    read_samples,
)

SUMMARY_NAME = "summary.json"
REPORT_NAME = "report.html"
CHARTS = {
    "latency_against_batch": latency_against_batch,
    "latency_against_concurrency": latency_against_concurrency,
}
MS = 1e3


def write_report(runs: list[Path], out: Path, *, force: bool, command: str) -> Summary:
    """Write `summary.json`, `charts/` and `report.html` of runs of one kind; return the summary.

    Raises:
        UserError: `summarize_runs` refuses the runs, or `out` holds something, or is where a run is.
    """
    summary = summarize_runs(runs, command=command)
    inputs = [run.resolve() for run in runs]
    if any(run.is_relative_to(out.resolve()) for run in inputs):
        raise UserError(f"{out}: the report would replace a run it is made from", hint="choose another --out")
    with whole_folder(out, force=force) as folder:
        write_json(folder / SUMMARY_NAME, summary)
        (folder / "charts").mkdir()
        figures = []
        for name, draw in CHARTS.items():
            svg = draw(summary, image="svg")
            (folder / "charts" / f"{name}.svg").write_bytes(svg)
            (folder / "charts" / f"{name}.png").write_bytes(draw(summary, image="png"))
            figures.append(_inline(svg.decode("utf-8"), name))
        write_text(folder / REPORT_NAME, page(summary, figures))
    return summary


def summarize_runs(runs: list[Path], *, command: str) -> Summary:
    """Return one summary of all runs, their levels one after another, each with its run's name.

    Raises:
        UserError: A folder is no run or is given twice, a line does not fit, or the runs are of different kinds.
    """
    _refuse_unusable(runs)
    manifests = [read_run(run) for run in runs]
    _refuse_mixed_kinds(runs, manifests)
    names = _names(runs)
    parts = [
        _named(_summarize(folder, manifest), name)
        for folder, manifest, name in zip(runs, manifests, names, strict=True)
    ]
    scales = {part.time_scale for part in parts}
    doubts: list[Doubt] = []
    before = 0
    for part, name in zip(parts, names, strict=True):
        doubts += [_moved(doubt, before, name if len(parts) > 1 else None) for doubt in part.doubts]
        before += len(part.levels)
    return Summary(
        made_by=made_by(command),
        made_from=[source for run in runs for source in _sources(run)],
        kind=parts[0].kind,
        label=" and ".join(dict.fromkeys(part.label for part in parts)),
        time_scale=parts[0].time_scale if len(scales) == 1 else None,
        valid=not doubts,
        doubts=doubts,
        runs=[facts for part in parts for facts in part.runs],
        levels=[level for part in parts for level in part.levels],
    )


def page(summary: Summary, figures: list[str]) -> str:
    """Return the report as one HTML page that loads nothing.

    Args:
        figures: SVG elements, as they are to stand in the page.
    """
    return _PAGE.substitute(
        title=html.escape(f"Load test: {', '.join(run.name for run in summary.runs)}"),
        kind=summary.kind,
        label=html.escape(summary.label),
        banner=_banner(summary),
        figures="\n".join(f"<figure>{figure}</figure>" for figure in figures),
        levels=_levels_table(summary),
        runs=_runs_table(summary.runs),
        meaning=_MEANING[summary.kind],
        percentiles=html.escape(summary.percentiles),
        custody=_custody(summary),
    )


def _refuse_unusable(runs: list[Path]) -> None:
    if not runs:
        raise UserError("no run folder given", hint="report-load RUN_DIR...")
    for run in runs:
        if not (run / RUN_NAME).is_file():
            raise UserError(f"{run}: not a run folder: no {RUN_NAME} in it", hint="run-load and predict-load make them")
    if len({run.resolve() for run in runs}) < len(runs):
        raise UserError("the same run is given twice")


def _refuse_mixed_kinds(runs: list[Path], manifests: list[RunManifest]) -> None:
    if len({manifest.kind for manifest in manifests}) > 1:
        found = ", ".join(f"{run} is {manifest.kind}" for run, manifest in zip(runs, manifests, strict=True))
        raise UserError(
            f"runs of different kinds cannot share a report: {found}",
            hint="report them apart: one report-load for each kind",
        )


def _summarize(folder: Path, manifest: RunManifest) -> Summary:
    try:
        return summarize(manifest, read_records(folder), read_samples(folder))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise UserError(f"{folder}: a line of {error.title}: {key}: {first['msg']}") from error


def _names(runs: list[Path]) -> list[str]:
    """Name runs by their folders; by their paths where two folders have one name."""
    names = [run.resolve().name for run in runs]
    return names if len(set(names)) == len(names) else [str(run) for run in runs]


def _named(summary: Summary, name: str) -> Summary:
    return summary.model_copy(
        update={
            "runs": [run.model_copy(update={"name": name}) for run in summary.runs],
            "levels": [level.model_copy(update={"run": name}) for level in summary.levels],
        }
    )


def _moved(doubt: Doubt, by: int, name: str | None) -> Doubt:
    """Make a doubt point into the levels of several runs, and say whose it is."""
    level = None if doubt.level is None else doubt.level + by
    return Doubt(code=doubt.code, text=doubt.text if name is None else f"{name}: {doubt.text}", level=level)


def _sources(run: Path) -> list[Source]:
    return [source_of(run / name) for name in (RUN_NAME, REQUESTS_NAME, SAMPLES_NAME) if (run / name).is_file()]


def _inline(svg: str, name: str) -> str:
    """Return a figure's SVG element alone, its ids its own, scaled to the page."""
    element = svg[svg.index("<svg") :]
    element = re.sub(r'\bid="', f'id="{name}-', element)
    element = re.sub(r'((?:xlink:)?href="|url\()#', rf"\1#{name}-", element)
    element = re.sub(r'^<svg([^>]*?) width="[^"]*"', r"<svg\1", element, count=1)
    element = re.sub(r'^<svg([^>]*?) height="[^"]*"', r"<svg\1", element, count=1)
    return element.replace("<svg", f'<svg role="img" aria-label="{name.replace("_", " ")}"', 1)


def _banner(summary: Summary) -> str:
    failed = _failed(summary.levels)
    if summary.valid:
        return f'<p class="banner good"><strong>Valid.</strong> No limit of trust was passed.{failed}</p>'
    items = "".join(
        f"<li><code>{html.escape(doubt.code)}</code> {html.escape(doubt.text)}{_level_of(doubt, summary)}</li>"
        for doubt in summary.doubts
    )
    verdict = "<strong>Not valid: do not rely on these figures.</strong>"
    return f'<div class="banner bad">{verdict}<ul>{items}</ul>{failed}</div>'


def _failed(levels: list[LevelSummary]) -> str:
    """Say how many requests the latencies are not of."""
    failed, asked = sum(level.errors for level in levels), sum(level.requests for level in levels)
    if not failed:
        return ""
    return f' <span class="error">{failed:,} of {asked:,} requests failed and are in no latency.</span>'


def _level_of(doubt: Doubt, summary: Summary) -> str:
    if doubt.level is None or not 0 <= doubt.level < len(summary.levels):
        return ""
    return f" <small>(at concurrency {summary.levels[doubt.level].load})</small>"


def _levels_table(summary: Summary) -> str:
    several = len(summary.runs) > 1
    doubted = {doubt.level for doubt in summary.doubts}
    rows = "\n".join(
        f"<tr{' class=doubted' if index in doubted else ''}>"
        + (f'<td class="text">{html.escape(level.run or "")}</td>' if several else "")
        + "".join(f"<td>{cell}</td>" for cell in _cells(level))
        + "</tr>"
        for index, level in enumerate(summary.levels)
    )
    first = '<th rowspan="2" class="text">run</th>' if several else ""
    return _LEVELS.substitute(first=first, rows=rows)


def _cells(level: LevelSummary) -> list[str]:
    return [
        level.load + ("" if level.complete else " <small>(cut)</small>"),
        f"{level.isl} / {level.osl}",
        str(level.requests),
        _errors(level),
        _number(level.batch_size.mean if level.batch_size else None, 1),
        _number(level.batch_size_client.mean if level.batch_size_client else None, 1),
        *_spread_cells(level.itl_s, ("p50", "p95", "p99", "max")),
        *_spread_cells(level.ttft_s, ("p50", "p95", "p99")),
        *_spread_cells(level.e2e_s, ("p50", "p95", "p99")),
        _number(level.output_tokens_per_s, 0),
        _number(level.requests_per_s, 2),
        _number(level.waiting, 1),
        _number(level.kv_blocks_used, 0),
        f"<small>{level.window}</small> {level.window_s:.3g}",
    ]


def _errors(level: LevelSummary) -> str:
    if not level.errors:
        return "0"
    by_outcome = ", ".join(f"{count} {outcome}" for outcome, count in level.errors_by_outcome.items())
    return f'<span class="error">{level.errors}</span> <small>{html.escape(by_outcome)}</small>'


def _spread_cells(found: Spread | None, names: tuple[str, ...]) -> list[str]:
    return [_milliseconds(None if found is None else getattr(found, name)) for name in names]


def _milliseconds(seconds: float | None) -> str:
    if seconds is None:
        return "&ndash;"
    value = seconds * MS
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"  # noqa: PLR2004


def _number(value: float | None, digits: int) -> str:
    return "&ndash;" if value is None else f"{value:,.{digits}f}"


def _runs_table(runs: list[RunFacts]) -> str:
    head = ("run", "kind", "scenario", "server", "protocol", "model", "engine", "Triton", "interrupted")
    rows = []
    for run in runs:
        server = run.server
        cells = (
            run.name,
            run.label,
            run.scenario,
            server.url,
            server.protocol,
            server.model,
            server.engine or "not told",
            server.triton_version,
            run.interrupted or "no",
        )
        rows.append("<tr>" + "".join(f'<td class="text">{html.escape(cell)}</td>' for cell in cells) + "</tr>")
    heads = "".join(f'<th class="text">{name}</th>' for name in head)
    return f'<div class="wide"><table><thead><tr>{heads}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'


def _custody(summary: Summary) -> str:
    rows = "".join(
        f'<tr><td class="text">{html.escape(source.path)}</td><td class="text"><code>{source.sha256}</code></td></tr>'
        for source in summary.made_from
    )
    command = html.escape(f"{summary.made_by.command}  (version {summary.made_by.version})")
    return (
        f"<p>Made by <code>{command}</code> from:</p>"
        '<div class="wide"><table><thead><tr><th class="text">file</th><th class="text">SHA-256</th></tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )


_MEANING = {
    "measured": "A real engine on a real GPU behind a real server; nothing was emulated.",
    "emulated": (
        "The server, its protocol, the batching and the client are real and ran on the wall clock. The engine is not: "
        "no GPU computed anything, and each iteration lasted as long as the step-time model says it would. With a time "
        "scale of xN the engine ran N times slower than it would, and every duration here is divided by N; so the "
        "overheads of server and client weigh N times less here than they would on a GPU."
    ),
    "predicted": (
        "Nothing ran on a wall clock: the batcher and the step-time model were driven in virtual time. There is no "
        "server, no network and no client in these figures."
    ),
}

_LEVELS = Template("""<div class="wide"><table class="levels">
<thead>
<tr>$first<th rowspan="2">concurrency</th><th rowspan="2">isl / osl</th><th rowspan="2">requests</th>
<th rowspan="2">errors</th><th colspan="2" class="group">batch size, mean</th>
<th colspan="4" class="group">inter-token latency, ms</th><th colspan="3" class="group">time to first token, ms</th>
<th colspan="3" class="group">end to end, ms</th><th colspan="2" class="group">per second</th>
<th colspan="2" class="group">server, mean</th><th rowspan="2">window, s</th></tr>
<tr><th>server</th><th>client</th><th>p50</th><th>p95</th><th>p99</th><th>max</th><th>p50</th><th>p95</th><th>p99</th>
<th>p50</th><th>p95</th><th>p99</th><th>tokens</th><th>requests</th><th>waiting</th><th>KV blocks</th></tr>
</thead>
<tbody>
$rows
</tbody>
</table></div>""")

_PAGE = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>
:root { --ink: #1f2933; --faint: #616e7c; --line: #e4e7eb; --paper: #ffffff; --ground: #f5f7fa; }
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink);
  font: 15px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
main { max-width: 1500px; margin: 0 auto; padding: 32px 24px 64px; }
header { display: flex; flex-wrap: wrap; align-items: center; gap: 16px; margin-bottom: 20px; }
h1 { font-size: 26px; margin: 0; letter-spacing: -0.01em; overflow-wrap: anywhere; }
h2 { font-size: 17px; margin: 0 0 12px; }
section, figure { background: var(--paper); border: 1px solid var(--line); border-radius: 10px; padding: 20px 24px;
  margin: 0 0 20px; }
figure { padding: 12px; }
figure svg { display: block; width: 100%; height: auto; }
.tag { color: #fff; border-radius: 999px; padding: 4px 14px; font-weight: 600; font-size: 14px; }
.measured { background: #009E73; } .emulated { background: #B26A00; } .predicted { background: #7A5195; }
.banner { max-width: none; border-radius: 10px; padding: 12px 20px; margin: 0 0 20px; border: 1px solid; }
.banner ul { margin: 6px 0 0; padding-left: 20px; }
.good { background: #e8f6f1; border-color: #b5e0d1; } .bad { background: #fdecee; border-color: #f3b8bf; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: 12.5px; }
th, td { padding: 6px 6px; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--line); }
th { color: var(--faint); font-weight: 600; vertical-align: bottom; }
th.group { text-align: center; color: var(--ink); }
.text { text-align: left; }
td.text { overflow-wrap: anywhere; }
.doubted td { background: #fdf3f4; }
.error { color: #B00020; font-weight: 600; }
small { color: var(--faint); }
code { font: 12.5px ui-monospace, "SF Mono", Menlo, "DejaVu Sans Mono", monospace; }
p { margin: 0 0 8px; max-width: 100ch; }
</style>
</head>
<body>
<main>
<header><h1>$title</h1><span class="tag $kind">$label</span></header>
$banner
$figures
<section><h2>Levels <small>($label)</small></h2>
$levels
</section>
<section><h2>What ran</h2>
$runs
<p style="margin-top: 12px">$meaning</p>
</section>
<section><h2>How the figures were computed</h2>
<p>Percentiles: $percentiles. Durations are engine seconds: wall time divided by the time scale. Latencies are of every
successful request sent after warm-up; failed ones are counted beside them and appear in no latency.</p>
<p>Rates and batch sizes are of the window named in the table. <em>steady</em>: from the first to the last instant with
as many requests in flight as the level has users, so that the ramp-down is left out. <em>whole</em>: the whole
measurement, where there was no such span. The server's batch size is its own count of sequences in the generation
phase; the client's is the number of requests between their first and last token, weighted by time.</p>
</section>
<section><h2>Where the figures come from</h2>
$custody
</section>
</main>
</body>
</html>
""")
