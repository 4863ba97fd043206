"""A report as one page of HTML that loads nothing: light and dark as the reader's system is, and fit to be printed."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator, Sequence
from importlib.resources import files
from string import Template
from typing import NamedTuple

from loadtest.metrics import LevelSummary, Summary, knee_of
from loadtest.report.charts import theme_css
from loadtest.report.html_tables import (
    classes_table,
    errors_table,
    levels_table,
    milliseconds,
    more_table,
    repeats_table,
    runs_table,
    table,
    verdicts_table,
)
from loadtest.results import ValidityIssue
from loadtest.scenario import Objectives


class Figure(NamedTuple):
    """A chart inside the page.

    Attributes:
        svg: As drawn, its colours the page's variables.
        says: What it shows, in a sentence; empty where the chart's own title is enough.
    """

    name: str
    svg: str
    says: str


def page(summary: Summary, figures: Sequence[Figure], objectives: Objectives | None = None) -> str:
    """Return the report as one HTML page that loads nothing."""
    title = html.escape(f"Load test: {', '.join(run.name for run in summary.runs)}")
    sections = [_section(name, body) for name, body in _sections(summary, objectives)]
    tag = f'<span class="tag {summary.kind}">{html.escape(summary.label)}</span>'
    parts = [_banner(summary), _tiles(summary, objectives), *map(_figure, figures), *sections]
    return whole_page(title, tag, parts)


def whole_page(title: str, tag: str, parts: Sequence[str]) -> str:
    """Return a page of parts.

    Args:
        title: HTML of the title, escaped.
        tag: HTML beside it.
        parts: HTML below it, in order.
    """
    css = (files("loadtest.report") / "page.css").read_text(encoding="utf-8")
    light, dark = f"{_LIGHT} {theme_css(dark=False)}", f"{_DARK} {theme_css(dark=True)}"
    return _PAGE.substitute(title=title, tag=tag, css=css, light=light, dark=dark, body="\n".join(parts))


def _sections(summary: Summary, objectives: Objectives | None) -> Iterator[tuple[str, str]]:
    label = f"<small>({html.escape(summary.label)})</small>"
    if objectives is not None and summary.levels:
        yield f"Promises kept {label}", verdicts_table(summary, objectives) + f"<p>{_PROMISES}</p>"
    yield f"Levels {label}", levels_table(summary) + f"<p>{_LEGEND}</p>"
    if summary.levels:
        yield f"More of each level {label}", more_table(summary) + f"<p>{_MORE}</p>"
    if any(level.classes for level in summary.levels):
        yield f"By class, ms {label}", classes_table(summary)
    if summary.repeats:
        yield f"Between runs {label}", f"<p>{_REPEATS}</p>" + repeats_table(summary.repeats)
    if any(level.errors_by_text for level in summary.levels):
        yield "What failed", errors_table(summary)
    yield "What ran", runs_table(summary.runs) + f'<p style="margin-top: 12px">{_MEANING[summary.kind]}</p>'
    yield "How the figures were computed", _how(summary)
    yield "Where the figures come from", _custody(summary)


def _section(name: str, body: str) -> str:
    return f"<section><h2>{name}</h2>\n{body}\n</section>"


def _figure(figure: Figure) -> str:
    says = f"<figcaption>{html.escape(figure.says)}</figcaption>" if figure.says else ""
    return f"<figure>{inline(figure.svg, figure.name)}{says}</figure>"


def inline(svg: str, name: str) -> str:
    """Return a figure's SVG element alone, its ids its own, scaled to the page."""
    element = svg[svg.index("<svg") :]
    element = re.sub(r'\bid="', f'id="{name}-', element)
    element = re.sub(r'((?:xlink:)?href="|url\()#', rf"\1#{name}-", element)
    element = re.sub(r'^<svg([^>]*?) width="[^"]*"', r"<svg\1", element, count=1)
    element = re.sub(r'^<svg([^>]*?) height="[^"]*"', r"<svg\1", element, count=1)
    return element.replace("<svg", f'<svg role="img" aria-label="{name.replace("_", " ")}"', 1)


def _tiles(summary: Summary, objectives: Objectives | None) -> str:
    """Return the few figures to look at first."""
    known = [level for level in summary.levels if level.output_tokens_per_s and level.itl_s]
    if not known or len(summary.runs) > 1:
        return ""
    best = max(known, key=lambda level: level.output_tokens_per_s or 0.0)
    tiles = [(f"{best.output_tokens_per_s:,.0f} tokens/s", f"the most, at load {best.load}")]
    knee = knee_of(summary.levels, objectives)
    if knee is not None and knee.level is not None:
        tiles += _knee_tiles(summary.levels[knee.level], knee.why)
    elif knee is not None:
        tiles.append(("no load", "met every objective"))
    failed = sum(level.errors for level in summary.levels)
    tiles.append((f"{failed:,} failed", f"of {sum(level.requests for level in summary.levels):,} requests"))
    cells = "".join(f'<div class="tile"><b>{value}</b><span>{html.escape(says)}</span></div>' for value, says in tiles)
    return f'<div class="tiles">{cells}</div>'


def _knee_tiles(level: LevelSummary, why: str) -> list[tuple[str, str]]:
    tiles = [(f"load {level.load}", f"the knee: {why}")]
    if level.itl_s and level.felt_ttft_s:
        itl, ttft = level.itl_s, level.felt_ttft_s
        tiles.append((f"ITL {milliseconds(itl.p50)} ms", f"p50 there; p99 {milliseconds(itl.p99)} ms"))
        tiles.append((f"TTFT {milliseconds(ttft.p50)} ms", f"p50 there; p95 {milliseconds(ttft.p95)} ms"))
    return tiles


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


def _failed(levels: Sequence[LevelSummary]) -> str:
    """Say how many requests the latencies are not of."""
    failed, asked = sum(level.errors for level in levels), sum(level.requests for level in levels)
    if not failed:
        return ""
    return f' <span class="error">{failed:,} of {asked:,} requests failed and are in no latency.</span>'


def _level_of(doubt: ValidityIssue, summary: Summary) -> str:
    if doubt.level is None or not 0 <= doubt.level < len(summary.levels):
        return ""
    return f" <small>(at load {summary.levels[doubt.level].load})</small>"


def _how(summary: Summary) -> str:
    return _HOW.substitute(percentiles=html.escape(summary.percentiles), confidence=html.escape(summary.confidence))


def _custody(summary: Summary) -> str:
    rows = [[html.escape(source.path), f"<code>{source.sha256}</code>"] for source in summary.made_from]
    command = html.escape(f"{summary.made_by.command}  (version {summary.made_by.version})")
    return f"<p>Made by <code>{command}</code> from:</p>" + table(["file", "SHA-256"], rows, texts=2)


_LIGHT = (
    "--ink: #1f2933; --faint: #616e7c; --line: #e4e7eb; --paper: #ffffff; --ground: #f5f7fa; --good: #e8f6f1; "
    "--good-line: #b5e0d1; --bad: #fdecee; --bad-line: #f3b8bf; --error: #b00020; --met: #00805d;"
)
_DARK = (
    "--ink: #e6e9ed; --faint: #a3adb8; --line: #2c343d; --paper: #171c22; --ground: #0f1317; --good: #10281f; "
    "--good-line: #1f5a45; --bad: #33161b; --bad-line: #74303b; --error: #ff8a96; --met: #3fc79f;"
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
_LEGEND = (
    "Small figures are 95 % confidence intervals of the figure above them. A figure with a question mark is more than "
    "a sample of that size can tell, and has none. In an open loop, latencies count from when a request was meant to "
    "be sent."
)
_MORE = (
    "<em>cut</em>: seconds left out at the beginning and at the end because the load had not settled. "
    "<em>per token</em>: end to end over the tokens of the reply. <em>bundled</em>: tokens that came in one response "
    "with the one before."
)
_PROMISES = "In an open loop, latencies count from when a request was meant to be sent."
_REPEATS = (
    "The same scenario, run several times. This spread holds what no interval within one run can: another start, "
    "another neighbour on the machine."
)
_HOW = Template("""<p>Percentiles: $percentiles. Durations are engine seconds: wall time divided by the time scale.
Latencies are of every successful request sent after warm-up; failed ones are counted beside them and appear in no
latency.</p>
<p>Confidence: $confidence.</p>
<p>Rates and batch sizes are of the window named in the table. <em>steady</em>: from the first to the last instant with
as many requests in flight as the level has users, or as long as an open loop sent. <em>whole</em>: the whole
measurement, where there was no such span. What had not settled at either end is cut (MSER-5 on requests in flight and
on tokens per bin; White 1997, Spratt 1998), where it differs from the rest by more than three standard errors and a
twentieth. The server's batch size is its own count of sequences in the generation phase; the client's is the number of
requests between their first and last token, weighted by time.</p>""")
_PAGE = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>$title</title>
<style>
:root { $light }
@media screen and (prefers-color-scheme: dark) { :root { $dark } }
$css
</style>
</head>
<body>
<main>
<header><h1>$title</h1>$tag</header>
$body
</main>
</body>
</html>
""")
