"""The tables of a report's page, as HTML; every text from outside is escaped here."""

from __future__ import annotations

import html
from collections.abc import Callable, Iterable, Sequence

from loadtest.metrics import ClassSummary, LevelSummary, Repeat, RunFacts, Spread, Summary, verdicts_of
from loadtest.scenario import Objectives

MS = 1e3
NONE = "&ndash;"


def table(heads: Sequence[str], rows: Iterable[Sequence[str]], *, texts: int = 1, groups: str = "") -> str:
    """Return a table.

    Args:
        heads: HTML of each column's head.
        rows: HTML of each row's cells.
        texts: How many of the first columns hold text, set to the left.
        groups: HTML of a first row of heads; none where empty.
    """

    def line(cells: Sequence[str], element: str) -> str:
        marks = [' class="text"' if place < texts else "" for place in range(len(cells))]
        return "".join(f"<{element}{mark}>{cell}</{element}>" for cell, mark in zip(cells, marks, strict=True))

    body = "\n".join(f"<tr>{line(cells, 'td')}</tr>" for cells in rows)
    head = f"<thead>{groups}<tr>{line(heads, 'th')}</tr></thead>"
    return f'<div class="wide"><table>{head}\n<tbody>{body}</tbody></table></div>'


def levels_table(summary: Summary) -> str:
    """Return the main table: a level a row, with confidence intervals below the figures they are of."""
    several = len(summary.runs) > 1
    doubted = {doubt.level for doubt in summary.doubts}
    first = "run, load" if several else "load"
    heads = [first, "isl / osl", "requests", "errors", "server", "client"]
    heads += ["p50", "p95", "p99", "max", "p50", "p95", "p99", "p50", "p95", "p99", "tokens", "requests", "window, s"]
    groups = (
        '<tr><th colspan="4"></th><th colspan="2" class="group">batch size, mean</th>'
        '<th colspan="4" class="group">inter-token latency, ms</th>'
        '<th colspan="3" class="group">time to first token, ms</th><th colspan="3" class="group">end to end, ms</th>'
        '<th colspan="2" class="group">per second</th><th></th></tr>'
    )
    rows = [
        _level_row(level, several=several, is_doubted=place in doubted) for place, level in enumerate(summary.levels)
    ]
    return table(heads, rows, groups=groups)


def _level_row(level: LevelSummary, *, several: bool, is_doubted: bool) -> list[str]:
    name = f"{html.escape(level.run or '')}, {level.load}" if several else level.load
    mark = ' <span class="error" title="see the doubts above">in doubt</span>' if is_doubted else ""
    rates = level.rates_ci or {}
    return [
        f"<strong>{name}</strong>{'' if level.complete else ' <small>(cut)</small>'}{mark}",
        f"{level.isl} / {level.osl}",
        f"{level.requests:,}",
        errors_cell(level.errors, level.errors_by_outcome),
        number(level.batch_size.mean if level.batch_size else None, 1),
        number(level.batch_size_client.mean if level.batch_size_client else None, 1),
        *spread_cells(level.itl_s, ("p50", "p95", "p99", "max")),
        *spread_cells(level.felt_ttft_s, ("p50", "p95", "p99")),
        *spread_cells(level.felt_e2e_s, ("p50", "p95", "p99")),
        number(level.output_tokens_per_s, 0) + _range(rates.get("output_tokens_per_s"), lambda value: f"{value:,.0f}"),
        number(level.requests_per_s, 2) + _range(rates.get("requests_per_s"), lambda value: f"{value:,.2f}"),
        f"{level.window_s:.3g} <small>{level.window}</small>",
    ]


def more_table(summary: Summary) -> str:
    """Return the second table: what is needed to explain the first."""
    quantities: list[tuple[str, Callable[[LevelSummary], str]]] = [
        ("TTFT since sent, p50", lambda level: _ms_of(level.ttft_s if level.ttft_scheduled_s else None, "p50")),
        ("2nd token, p50", lambda level: _ms_of(level.ttst_s, "p50")),
        ("TPOT, p50", lambda level: _ms_of(level.tpot_s, "p50")),
        ("TPOT, p99", lambda level: _ms_of(level.tpot_s, "p99")),
        ("ITL, p99.9", lambda level: _ms_of(level.itl_s, "p999")),
        ("per token, p50", lambda level: _ms_of(level.normalized_s, "p50")),
        ("queue, p50", lambda level: _ms_of(level.queue_s, "p50")),
        ("tokens in/s", lambda level: number(level.input_tokens_per_s, 0)),
        ("goodput", lambda level: _share(level.goodput) + _range(level.goodput_ci, lambda value: f"{value:.1%}")),
        ("waiting", lambda level: number(level.waiting, 1)),
        ("KV blocks", lambda level: number(level.kv_blocks_used, 0)),
        ("KV in use", lambda level: _share(level.kv_ratio)),
        ("cached prompt", lambda level: _share(level.cached_ratio)),
        ("bundled tokens", lambda level: f"{level.bundled_tokens:,}" if level.bundled_tokens else NONE),
        ("GPU, W", lambda level: number(level.gpus.power_w if level.gpus else None, 0)),
        ("GPU, GiB", lambda level: number(_gib(level), 1)),
        ("GPU busy", lambda level: _share(level.gpus.busy_ratio if level.gpus else None)),
        ("cut, s", _cut),
    ]
    known = [(head, cell) for head, cell in quantities if any(cell(level) != NONE for level in summary.levels)]
    several = len(summary.runs) > 1
    names = [f"{html.escape(level.run or '')}, {level.load}" if several else level.load for level in summary.levels]
    rows = [
        [f"<strong>{name}</strong>", *(cell(level) for _, cell in known)]
        for name, level in zip(names, summary.levels, strict=True)
    ]
    return table(["load", *(head for head, _ in known)], rows)


def _cut(level: LevelSummary) -> str:
    """Say what was cut from the beginning and the end, or why nothing could be."""
    if level.steady is None:
        return NONE
    if level.steady.growing:
        return '<span class="error">never settled</span>'
    if not (level.steady.warmup_s or level.steady.cooldown_s):
        return "nothing"
    seconds = f"{level.steady.warmup_s:.3g} + {level.steady.cooldown_s:.3g}"
    return f"{seconds}<br><small>{level.steady.requests_cut} requests</small>"


def verdicts_table(summary: Summary, objectives: Objectives) -> str:
    """Return each level's verdicts: what was promised against what was found."""
    of_levels = [verdicts_of(objectives, level) for level in summary.levels]
    promises = [
        f"{verdict.objective}<br><small>{limit(verdict.objective, verdict.limit)}</small>" for verdict in of_levels[0]
    ]
    several = len(summary.runs) > 1
    rows = [
        [f"<strong>{f'{html.escape(level.run or str())}, ' if several else ''}{level.load}</strong>"]
        + [
            f'<span class="{"met" if verdict.met else "error"}">{"met" if verdict.met else "missed"}</span> '
            f"{found(verdict.objective, verdict.found)}"
            for verdict in verdicts
        ]
        for level, verdicts in zip(summary.levels, of_levels, strict=True)
    ]
    return table(["load", *promises], rows)


def limit(objective: str, value: float) -> str:
    """Return an objective's limit in words."""
    sign = "at least" if objective == "goodput" else "at most"
    return f"{sign} {found(objective, value)}"


def found(objective: str, value: float | None) -> str:
    """Return what was found of an objective, in its unit."""
    if value is None:
        return "nothing measured"
    return f"{value:.2%}" if objective in {"goodput", "errors_ratio"} else f"{milliseconds(value)} ms"


def classes_table(summary: Summary) -> str:
    """Return each class of each level, a row each."""
    heads = ["load", "class", "requests", "errors", "prompt", "reply", "TTFT p50", "p99", "ITL p50", "p99", "e2e p50"]
    rows = [
        _class_row(level, each) for level in summary.levels for each in level.classes
    ]  # fmt: skip
    return table([*heads, "p99", "goodput"], rows, texts=2)


def _class_row(level: LevelSummary, each: ClassSummary) -> list[str]:
    return [
        level.load,
        html.escape(each.name),
        f"{each.requests:,}",
        str(each.errors),
        number(each.prompt_tokens, 0),
        number(each.output_tokens, 0),
        *spread_cells(each.ttft_s, ("p50", "p99")),
        *spread_cells(each.itl_s, ("p50", "p99")),
        *spread_cells(each.e2e_s, ("p50", "p99")),
        _share(each.goodput),
    ]


def repeats_table(repeats: Sequence[Repeat]) -> str:
    """Return the spread between runs."""
    heads = ["load", "quantity", "runs", "mean", "min", "max", "sd", "sd / mean"]
    rows = []
    for each in repeats:
        show = _shown(each.quantity)
        spread = f"{each.sd / each.mean:.1%}" if each.mean else NONE
        values = [show(value) for value in (each.mean, each.min, each.max, each.sd)]
        rows.append([each.load, each.quantity.replace("_s ", ", ms "), str(each.runs), *values, spread])
    return table(heads, rows, texts=2)


def _shown(quantity: str) -> Callable[[float], str]:
    if "_s " in quantity:
        return milliseconds
    return (lambda value: f"{value:.2%}") if quantity == "goodput" else (lambda value: f"{value:,.1f}")


def errors_table(summary: Summary) -> str:
    """Return what failed requests said."""
    rows = [
        [level.load, html.escape(text), f"{count:,}"]
        for level in summary.levels
        for text, count in level.errors_by_text.items()
    ]
    return table(["load", "what was said", "requests"], rows, texts=2)


def runs_table(runs: Sequence[RunFacts]) -> str:
    """Return what each run was of."""
    heads = ["run", "kind", "scenario", "server", "protocol", "model", "engine", "version", "interrupted"]
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
        rows.append([html.escape(cell) for cell in cells])
    return table(heads, rows, texts=len(heads))


def errors_cell(errors: int, by_outcome: dict[str, int]) -> str:
    """Return how many failed, and how."""
    if not errors:
        return "0"
    kinds = ", ".join(f"{count} {outcome}" for outcome, count in by_outcome.items())
    return f'<span class="error">{errors}</span> <small>{html.escape(kinds)}</small>'


def spread_cells(spread: Spread | None, names: tuple[str, ...]) -> list[str]:
    """Return statistics in ms, each above its confidence interval; what the sample cannot support is marked."""
    return [
        _ms_of(spread, name) + _range((spread.ci or {}).get(name) if spread else None, milliseconds) for name in names
    ]


def _ms_of(spread: Spread | None, name: str) -> str:
    value = None if spread is None else getattr(spread, name)
    if spread is None or value is None:
        return NONE
    if name in spread.unsupported:
        return (
            f'<span class="weak" title="more than a sample of {spread.count:,} can tell">{milliseconds(value)}?</span>'
        )
    return milliseconds(value)


def _range(ends: tuple[float, float] | None, show: Callable[[float], str]) -> str:
    if ends is None:
        return ""
    low, high = (show(end) for end in ends)
    return f'<small class="ci">{low}</small>' if low == high else f'<small class="ci">{low} to {high}</small>'


def milliseconds(seconds: float) -> str:
    """Return seconds as ms with three digits or more."""
    value = seconds * MS
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"  # noqa: PLR2004


def number(value: float | None, digits: int) -> str:
    """Return a number, or a dash."""
    return NONE if value is None else f"{value:,.{digits}f}"


def _share(value: float | None) -> str:
    return NONE if value is None else f"{value:.1%}"


def _gib(level: LevelSummary) -> float | None:
    return level.gpus.memory_bytes / 2**30 if level.gpus and level.gpus.memory_bytes is not None else None
