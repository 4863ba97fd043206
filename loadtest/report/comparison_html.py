"""A comparison as one page of HTML; every figure stands in the column of its run, under that run's kind."""

from __future__ import annotations

import html

from loadtest.report.comparison_schema import Change, Comparison, LevelChanges, Side
from loadtest.report.html_page import inline, whole_page
from loadtest.report.html_tables import NONE, milliseconds, table

NAMES = {
    "ttft_s": "time to first token",
    "itl_s": "inter-token latency",
    "tpot_s": "time per output token",
    "e2e_s": "end to end",
    "output_tokens_per_s": "output tokens/s",
    "requests_per_s": "requests/s",
}
_CLASSES = {"better": "met", "worse": "error", "same": "", "unclear": "weak", "unknown": "weak"}


def comparison_page(comparison: Comparison, svg: str) -> str:
    """Return the page.

    Args:
        svg: The chart, its colours the page's variables.
    """
    base, new = comparison.baseline, comparison.candidate
    title = html.escape(f"{new.name} against {base.name}")
    tags = "".join(
        f'<span class="tag {side.kind}">{role}: {html.escape(side.label)}</span>'
        for role, side in (("baseline", base), ("candidate", new))
    )
    parts = [_banner(comparison), f"<figure>{inline(svg, 'changes')}</figure>"]
    parts += [_level(comparison, level) for level in comparison.levels]
    parts += [_differences(comparison), _HOW, _custody(comparison)]
    return whole_page(title, tags, parts)


def changed_name(figure: str) -> str:
    """Return a figure's name as people read it.

    >>> changed_name("itl_s p99")
    'inter-token latency, p99, ms'
    """
    quantity, _, statistic = figure.partition(" ")
    return f"{NAMES[quantity]}, {statistic}, ms" if statistic else NAMES[quantity]


def changed_value(figure: str, value: float | None) -> str:
    """Return a figure's value in the unit its name says."""
    if value is None:
        return NONE
    return milliseconds(value) if " " in figure else f"{value:,.1f}"


def _banner(comparison: Comparison) -> str:
    doubts = [
        f"<li>{role}: {html.escape(text)}</li>"
        for role, side in (("baseline", comparison.baseline), ("candidate", comparison.candidate))
        for text in side.doubts
    ]
    if comparison.across_kinds:
        kinds = f"{comparison.baseline.kind} against {comparison.candidate.kind}"
        doubts.append(f"<li>{kinds}: the two are of different kinds, and a difference is of the kinds too.</li>")
    unmatched = (
        f"<br><small>Not in both: {html.escape(', '.join(comparison.unmatched))}</small>"
        if comparison.unmatched
        else ""
    )
    listed = f"<ul>{''.join(doubts)}</ul>" if doubts else ""
    tone = "bad" if doubts else "good"
    return f'<div class="banner {tone}"><strong>{html.escape(comparison.verdict)}.</strong>{unmatched}{listed}</div>'


def _level(comparison: Comparison, level: LevelChanges) -> str:
    heads = ["quantity", _head("baseline", comparison.baseline), _head("candidate", comparison.candidate)]
    rows = [_row(change) for change in level.changes]
    counts = f"{level.requests[0]:,} and {level.requests[1]:,} requests, {level.errors[0]} and {level.errors[1]} failed"
    return (
        f"<section><h2>Load {level.load} <small>prompt {level.isl}, reply {level.osl}; {counts}</small></h2>"
        f"{table([*heads, 'change', '95 % confidence', 'in words'], rows)}</section>"
    )


def _head(role: str, side: Side) -> str:
    return f"{role}<br><small>{html.escape(side.label)}</small>"


def _row(change: Change) -> list[str]:
    ends = NONE if change.low is None or change.high is None else f"{change.low:+.1%} to {change.high:+.1%}"
    return [
        changed_name(change.figure),
        changed_value(change.figure, change.baseline),
        changed_value(change.figure, change.candidate),
        NONE if change.change_ratio is None else f"{change.change_ratio:+.1%}",
        ends,
        f'<span class="{_CLASSES[change.outcome]}">{html.escape(change.words.partition("(")[0])}</span>',
    ]


def _differences(comparison: Comparison) -> str:
    if not comparison.differences:
        return (
            "<section><h2>What else differs</h2><p>Nothing: server, scenario and time scale are the same.</p></section>"
        )
    rows = [[f"<code>{html.escape(each.key)}</code>", html.escape(each.baseline), html.escape(each.candidate)]
            for each in comparison.differences]  # fmt: skip
    return f"<section><h2>What else differs</h2>{table(['', 'baseline', 'candidate'], rows, texts=3)}</section>"


def _custody(comparison: Comparison) -> str:
    rows = [[html.escape(source.path), f"<code>{source.sha256}</code>"] for source in comparison.made_from]
    command = html.escape(f"{comparison.made_by.command}  (version {comparison.made_by.version})")
    made = f"<p>Made by <code>{command}</code> from:</p>"
    return f"<section><h2>Where the figures come from</h2>{made}{table(['file', 'SHA-256'], rows, texts=2)}</section>"


_HOW = """<section><h2>How to read it</h2>
<p>The interval is of the change itself: both runs are drawn again many times, apart from each other (bootstrap over
requests in a closed loop, over blocks of time in an open one and for rates), and the change is computed each time.
<em>better</em>, <em>worse</em>: the interval leaves out no change. <em>the same</em>: it lies within 2 % of none.
<em>no difference seen</em>: it holds no change, and more.</p>
<p>It says whether these two runs differ for their length, not whether two more would. Repeat both, and look at the
spread between runs (report-load of several), before a small change is called one.</p></section>"""
