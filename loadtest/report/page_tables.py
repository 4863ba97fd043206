"""The tables of a report's page."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from engines.units import milliseconds
from loadtest.metrics import ClassSummary, LevelSummary, Repeat, RunFacts, Spread, Summary, verdicts_of
from loadtest.report.pages import NONE, Cell, Table, table
from loadtest.scenario import Objectives


def latency_table(summary: Summary) -> Table:
    """Return the main table: the latencies of each level, with confidence intervals below the figures."""
    groups = (("", 2), ("time to first token", 3), ("inter-token latency", 4), ("end-to-end latency", 3))
    heads = [_load_head(summary), "requests", "p50", "p95", "p99", "p50", "p95", "p99", "max", "p50", "p95", "p99"]
    with_issues = {issue.level for issue in summary.validity_issues}
    rows: list[list[Cell | str]] = [
        [
            _load_cell(level, summary, flag="not valid" if place in with_issues else ""),
            f"{level.requests:,}",
            *spread_cells(level.felt_ttft_s, ("p50", "p95", "p99")),
            *spread_cells(level.itl_s, ("p50", "p95", "p99", "max")),
            *spread_cells(level.felt_e2e_s, ("p50", "p95", "p99")),
        ]
        for place, level in enumerate(summary.levels)
    ]
    return table(heads, rows, groups=groups)


def levels_table(summary: Summary) -> Table:
    """Return the table of levels: lengths, errors, batch size, throughput."""
    groups = (("", 4), ("mean batch size", 2), ("per second", 2), ("", 1))
    heads = [_load_head(summary), "ISL / OSL", "requests", "errors", "server", "client", "tokens", "requests"]
    return table([*heads, "window, s"], [_level_row(level, summary) for level in summary.levels], groups=groups)


def _level_row(level: LevelSummary, summary: Summary) -> list[Cell | str]:
    rates = level.rates_ci or {}
    tokens = rates.get("output_tokens_per_s")
    return [
        _load_cell(level, summary),
        f"{level.isl} / {level.osl}",
        Cell(f"{level.requests:,}", below=f"{level.incomplete:,} incomplete" if level.incomplete else ""),
        errors_cell(level.errors, level.errors_by_outcome),
        number(level.batch_size.mean if level.batch_size else None, 1),
        number(level.batch_size_client.mean if level.batch_size_client else None, 1),
        Cell(number(level.output_tokens_per_s, 0), below=_range(tokens, "{:,.0f}".format)),
        Cell(
            number(level.requests_per_s, 2),
            below=_range(rates.get("requests_per_s"), "{:,.2f}".format),
        ),
        Cell(f"{level.window_s:.3g}", note=level.window),
    ]


def _load_head(summary: Summary) -> str:
    return "run, load" if len(summary.runs) > 1 else "load"


def _load_cell(level: LevelSummary, summary: Summary, *, flag: str = "") -> Cell:
    name = f"{level.run or ''}, {level.load}" if len(summary.runs) > 1 else level.load
    return Cell(name, note="" if level.complete else "(ended early)", strong=True, flag=flag)


def more_table(summary: Summary) -> Table:
    """Return the table of further quantities, without those that no level has."""
    quantities: list[tuple[str, Callable[[LevelSummary], Cell | str]]] = [
        ("TTFT since sent, p50", lambda level: _ms_of(level.ttft_s if level.ttft_scheduled_s else None, "p50")),
        ("2nd token, p50", lambda level: _ms_of(level.ttst_s, "p50")),
        ("TPOT, p50", lambda level: _ms_of(level.tpot_s, "p50")),
        ("TPOT, p99", lambda level: _ms_of(level.tpot_s, "p99")),
        ("ITL, p99.9", lambda level: _ms_of(level.itl_s, "p999")),
        ("per token, p50", lambda level: _ms_of(level.normalized_s, "p50")),
        ("queue, p50", lambda level: _ms_of(level.queue_s, "p50")),
        ("tokens in/s", lambda level: number(level.input_tokens_per_s, 0)),
        (
            "goodput",
            lambda level: Cell(_share(level.goodput), below=_range(level.goodput_ci, lambda value: f"{value:.1%}")),
        ),
        ("waiting", lambda level: number(level.waiting, 1)),
        ("KV blocks", lambda level: number(level.kv_blocks_used, 0)),
        ("KV in use", lambda level: _share(level.kv_ratio)),
        ("cached prompt", lambda level: _share(level.cached_ratio)),
        ("tokens/step", lambda level: number(level.speculation.tokens_per_step if level.speculation else None, 2)),
        ("accepted by position", _acceptance),
        ("bundled tokens", lambda level: f"{level.bundled_tokens:,}" if level.bundled_tokens else NONE),
        ("GPU power, W", _power),
        ("J/output token", lambda level: number(level.energy.j_per_output_token if level.energy else None, 3)),
        ("J/token", lambda level: number(level.energy.j_per_token if level.energy else None, 3)),
        ("J/request", lambda level: number(level.energy.j_per_request if level.energy else None, 1)),
        (
            "USD/M output tokens",
            lambda level: number(level.cost.usd_per_million_output_tokens if level.cost else None, 3),
        ),
        ("split: input", lambda level: _split(level, "input")),
        ("cached input", lambda level: _split(level, "cached_input")),
        ("output", lambda level: _split(level, "output")),
        ("GPU memory, GiB", lambda level: number(_gib(level), 1)),
        ("GPU busy", lambda level: _share(level.gpus.busy_ratio if level.gpus else None)),
        ("excluded, s", _excluded),
    ]
    known = [(head, cell) for head, cell in quantities if any(_text(cell(level)) != NONE for level in summary.levels)]
    rows = [[_load_cell(level, summary), *(cell(level) for _, cell in known)] for level in summary.levels]
    return table([_load_head(summary), *(head for head, _ in known)], rows)


def _acceptance(level: LevelSummary) -> str:
    """Return the share of steps that accept the draft token at each position."""
    found = level.speculation
    return " ".join(f"{share:.0%}" for share in found.acceptance) if found and found.acceptance else NONE


def _split(level: LevelSummary, kind: str) -> str:
    """Return USD per million tokens of a kind; a dash where the split was refused."""
    split = None if level.cost is None else level.cost.split
    return NONE if split is None else number(getattr(split, kind), 3)


def _power(level: LevelSummary) -> Cell | str:
    """Return the watts of the window, with the interval of predicted ones; else the mean of all power readings."""
    energy = level.energy
    if energy is None:
        return number(level.gpus.power_w if level.gpus else None, 0)
    return Cell(f"{energy.power_w:,.0f}", below=_range(energy.power_range_w, lambda value: f"{value:,.0f}"))


def _text(cell: Cell | str) -> str:
    return cell if isinstance(cell, str) else cell.text


def _excluded(level: LevelSummary) -> Cell | str:
    """Return the time excluded at the start and the end, or why nothing could be."""
    if level.steady is None:
        return NONE
    if level.steady.growing:
        return Cell("no steady state", tone="error")
    if not (level.steady.warmup_s or level.steady.cooldown_s):
        return "nothing"
    seconds = f"{level.steady.warmup_s:.3g} + {level.steady.cooldown_s:.3g}"
    return Cell(seconds, below=f"{level.steady.requests_cut} requests")


def objectives_table(summary: Summary, objectives: Objectives) -> Table:
    """Return whether each level met each objective."""
    of_levels = [verdicts_of(objectives, level) for level in summary.levels]
    heads = [Cell(verdict.objective, below=limit_text(verdict.objective, verdict.limit)) for verdict in of_levels[0]]
    rows = [
        [_load_cell(level, summary)]
        + [
            Cell(
                "met" if verdict.met else "missed",
                f"{value_text(verdict.objective, verdict.found)}",
                tone=_tone(verdict.met),
            )
            for verdict in verdicts
        ]
        for level, verdicts in zip(summary.levels, of_levels, strict=True)
    ]
    return table([_load_head(summary), *heads], rows)


def _tone(met: bool) -> str:
    return "met" if met else "error"


def limit_text(objective: str, value: float) -> str:
    """Return an objective's limit as text."""
    sign = "at least" if objective == "goodput" else "at most"
    return f"{sign} {value_text(objective, value)}"


def value_text(objective: str, value: float | None) -> str:
    """Return the value of an objective, in its unit."""
    if value is None:
        return "not measured"
    return f"{value:.2%}" if objective in {"goodput", "errors_ratio"} else f"{milliseconds(value)} ms"


def classes_table(summary: Summary) -> Table:
    """Return each class of each level, a row each."""
    heads = ["load", "class", "requests", "errors", "prompt", "reply", "TTFT p50", "p99", "ITL p50", "p99", "E2E p50"]
    rows = [_class_row(level, each) for level in summary.levels for each in level.classes]
    return table([*heads, "p99", "goodput"], rows, text_columns=2)


def _class_row(level: LevelSummary, each: ClassSummary) -> list[Cell | str]:
    return [
        level.load,
        each.name,
        f"{each.requests:,}",
        str(each.errors),
        number(each.prompt_tokens, 0),
        number(each.output_tokens, 0),
        *spread_cells(each.ttft_s, ("p50", "p99")),
        *spread_cells(each.itl_s, ("p50", "p99")),
        *spread_cells(each.e2e_s, ("p50", "p99")),
        _share(each.goodput),
    ]


def repeats_table(repeats: Sequence[Repeat]) -> Table:
    """Return the spread between runs."""
    heads = ["load", "quantity", "runs", "mean", "min", "max", "sd", "sd / mean"]
    rows = []
    for each in repeats:
        show = _shown(each.quantity)
        spread = f"{each.sd / each.mean:.1%}" if each.mean else NONE
        values = [show(value) for value in (each.mean, each.min, each.max, each.sd)]
        rows.append([each.load, each.quantity.replace("_s ", ", ms "), str(each.runs), *values, spread])
    return table(heads, rows, text_columns=2)


def _shown(quantity: str) -> Callable[[float], str]:
    if "_s " in quantity:
        return milliseconds
    return (lambda value: f"{value:.2%}") if quantity == "goodput" else (lambda value: f"{value:,.1f}")


def errors_table(summary: Summary) -> Table:
    """Return the errors of failed requests."""
    rows = [
        [level.load, text, f"{count:,}"] for level in summary.levels for text, count in level.errors_by_text.items()
    ]
    return table(["load", "error", "requests"], rows, text_columns=2)


def runs_table(runs: Sequence[RunFacts]) -> Table:
    """Return the table of runs."""
    heads = ["run", "kind", "scenario", "server", "protocol", "model", "engine", "version", "interrupted"]
    rows = [
        [
            run.name,
            run.label,
            run.scenario,
            run.server.url,
            run.server.protocol,
            run.server.model,
            run.server.engine or "unknown",
            run.server.triton_version,
            run.interrupted or "no",
        ]
        for run in runs
    ]
    return table(heads, rows, text_columns=len(heads))


def errors_cell(errors: int, by_outcome: dict[str, int]) -> Cell | str:
    """Return the number of failed requests, with their outcomes."""
    if not errors:
        return "0"
    kinds = ", ".join(f"{count} {outcome}" for outcome, count in by_outcome.items())
    return Cell(str(errors), note=kinds, tone="error")


def spread_cells(spread: Spread | None, names: tuple[str, ...]) -> list[Cell]:
    """Return statistics in ms, each above its confidence interval; unsupported percentiles are marked."""
    intervals = (spread.ci or {}) if spread else {}
    return [replace(_ms_of(spread, name), below=_range(intervals.get(name), milliseconds)) for name in names]


def _ms_of(spread: Spread | None, name: str) -> Cell:
    value = None if spread is None else getattr(spread, name)
    if spread is None or value is None:
        return Cell(NONE)
    if name in spread.unsupported:
        hint = f"a sample of {spread.count:,} is too small for this percentile"
        return Cell(f"{milliseconds(value)}?", tone="weak", title=hint)
    return Cell(milliseconds(value))


def _range(ends: tuple[float, float] | None, show: Callable[[float], str]) -> str:
    if ends is None:
        return ""
    low, high = (show(end) for end in ends)
    return low if low == high else f"{low} to {high}"


def number(value: float | None, digits: int) -> str:
    """Return a number, or a dash."""
    return NONE if value is None else f"{value:,.{digits}f}"


def _share(value: float | None) -> str:
    return NONE if value is None else f"{value:.1%}"


def _gib(level: LevelSummary) -> float | None:
    return level.gpus.memory_bytes / 2**30 if level.gpus and level.gpus.memory_bytes is not None else None
