"""Tables printed by the commands of this room."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from engines.console import progress, say
from engines.names import engine_title
from engines.units import MS_PER_S, milliseconds, three_digits
from loadtest.metrics import LevelSummary, Spread, Summary, scopes_of, verdicts_in
from loadtest.scenario import Objectives, Scenario, Verdict, unlikely_limits

if TYPE_CHECKING:
    from engines.calibration import Calibration
    from loadtest.knee import KneeResult
    from loadtest.report import Change, Comparison

_STYLES = {"better": "green", "worse": "red", "same": "", "unclear": "dim", "unknown": "dim"}


def warn_of_limits(*found: Objectives) -> None:
    """Print the objectives whose limits look like milliseconds."""
    for each in dict.fromkeys(text for objectives in found for text in unlikely_limits(objectives)):
        progress(f"notice: {each}")


def show_summary(summary: Summary) -> None:
    """Print the levels with their kind; print every validity issue on stderr."""
    heads = ("requests", "errors", "batch", "ITL p50", "p95", "p99", "TTFT p50", "p95", "p99", "tokens/s")
    rows = [(level, _cells(level)) for level in summary.levels]
    _print_levels(summary, title=f"latency, ms ({summary.label})", heads=heads, rows=rows)
    if summary.incomplete_note is not None:
        progress(summary.incomplete_note)
    if any("?" in cell for _, cells in rows for cell in cells):
        say("?: the sample is too small for this percentile")
    if any(cell.startswith("~") for _, cells in rows for cell in cells):
        say("~: counted by the client; the server publishes no batch size")
    for issue in summary.validity_issues:
        progress(f"not valid: {issue.code}{_where(summary, issue.level)}: {issue.text}")


def _where(summary: Summary, index: int | None) -> str:
    """Return the load of a run's level; of no level, of an only one, and of one among several runs: nothing."""
    several = len(summary.levels) > 1 and len(summary.runs) == 1
    return f" at load {summary.levels[index].load}" if several and index is not None else ""


def _run_of(summary: Summary, index: int) -> str:
    """Return the run and the load of a level among those of several runs; of a single run: nothing."""
    level = summary.levels[index]
    return f" in run {level.run} at load {level.load}" if level.run else ""


def show_speculation(summary: Summary) -> None:
    """Print time per step and per token of each level in which a step emitted several tokens."""
    found = [(level, level.speculation) for level in summary.levels if level.speculation is not None]
    if not found:
        return
    sources = " and ".join(dict.fromkeys(each.source for _, each in found))
    rows = []
    for level, each in found:
        times = ("-" if spread is None else milliseconds(spread.mean) for spread in (level.itl_s, level.tpot_s))
        accepted = " ".join(f"{share:.0%}" for share in each.acceptance)
        rows.append((level, [*times, f"{each.tokens_per_step:.2f}", accepted or "-"]))
    heads = ("ms per step, mean", "ms per token, mean", "tokens per step", "accepted by position")
    _print_levels(summary, title=f"speculation, by {sources} ({summary.label})", heads=heads, rows=rows)


def show_energy(summary: Summary) -> None:
    """Print watts and joules of each level; where they are unknown, why."""
    unknown = {index: level.energy_unknown for index, level in enumerate(summary.levels) if level.energy is None}
    everywhere = len(unknown) == len(summary.levels) and len(set(unknown.values())) == 1
    texts = (
        f"energy unknown{'' if everywhere else _where(summary, index) or _run_of(summary, index)}: {reason}"
        for index, reason in unknown.items()
        if reason is not None
    )
    for text in dict.fromkeys(texts):
        progress(text)
    found = [(level, level.energy) for level in summary.levels if level.energy is not None]
    if not found:
        return
    methods = " and ".join(dict.fromkeys(energy.method for _, energy in found))
    rows = []
    for level, energy in found:
        watts = f"{energy.power_w:,.0f}"
        if energy.power_range_w is not None:
            low_w, high_w = energy.power_range_w
            watts += f" ({low_w:,.0f} to {high_w:,.0f})"
        elif energy.gpus is not None:
            watts += f" ({energy.gpus} GPU{'s' if energy.gpus > 1 else ''})"
        joules = (energy.j_per_output_token, energy.j_per_token, energy.j_per_request)
        rows.append((level, [watts, *("-" if each is None else three_digits(each) for each in joules)]))
    title = f"GPU energy over the window, by {methods} ({summary.label})"
    _print_levels(summary, title=title, heads=("watts", "J/output token", "J/token", "J/request"), rows=rows)


def show_cost(summary: Summary) -> None:
    """Print what a million tokens of each level cost, and how the cost is split, or why it is not."""
    found = [(level, level.cost) for level in summary.levels if level.cost is not None]
    if not found:
        return
    first = found[0][1]
    rows = []
    for level, cost in found:
        split = cost.split
        kinds = (None, None, None) if split is None else (split.input, split.cached_input, split.output)
        values = (cost.usd_per_million_output_tokens, cost.usd_per_million_tokens, *kinds)
        rows.append((level, ["-" if each is None else three_digits(each) for each in values]))
    title = f"USD per million tokens ({summary.label}); {first.gpus} x {first.price}"
    heads = ("all cost on output", "all tokens alike", "input", "cached input", "output")
    _print_levels(summary, title=title, heads=heads, rows=rows)
    methods = dict.fromkeys(cost.split.method for _, cost in found if cost.split is not None)
    refused = dict.fromkeys(f"not split: {cost.split_unknown}" for _, cost in found if cost.split is None)
    for text in (*methods, *refused):
        progress(text)


def _print_levels(
    summary: Summary, *, title: str, heads: Sequence[str], rows: Sequence[tuple[LevelSummary, Sequence[str]]]
) -> None:
    """Print a table with a row a level: its load, its run where there are several, and its cells below `heads`."""
    from rich.markup import escape
    from rich.table import Table

    from engines.terminal_tables import table_console

    several = len(summary.runs) > 1
    table = Table(title=escape(title), title_justify="left")
    if several:
        table.add_column("run", overflow="fold")
    for name in ("load", *heads):
        table.add_column(name, justify="right")
    for level, cells in rows:
        run = [escape(level.run or "")] if several else []
        table.add_row(*run, level.load, *cells)
    table_console().print(table)


def _cells(level: LevelSummary) -> list[str]:
    return [
        str(level.requests),
        str(level.errors),
        _batch(level),
        *_percentiles(level.itl_s),
        *_percentiles(level.felt_ttft_s),
        "-" if level.output_tokens_per_s is None else f"{level.output_tokens_per_s:,.0f}",
    ]


def _batch(level: LevelSummary) -> str:
    """Return the mean batch size reported by the server, or with a tilde the one estimated by the client."""
    if level.batch_size is not None:
        return f"{level.batch_size.mean:.1f}"
    return "-" if level.batch_size_client is None else f"~{level.batch_size_client.mean:.1f}"


def _percentiles(found: Spread | None) -> list[str]:
    if found is None:
        return ["-", "-", "-"]
    return [
        f"{milliseconds(value)}{'?' if name in found.unsupported else ''}"
        for name, value in (("p50", found.p50), ("p95", found.p95), ("p99", found.p99))
    ]


def show_verdicts(summary: Summary, scenario: Scenario) -> None:
    """Print which levels meet the scenario's objectives, and what the others miss."""
    scopes = scopes_of(scenario)
    for level in summary.levels if scopes else ():
        verdicts = verdicts_in(scopes, level)
        missed = [f"{verdict.objective} {_found(verdict)}" for verdict in verdicts if not verdict.met]
        result = (
            f"missed: {'; '.join(missed)}" if missed else f"all met: {', '.join(each.objective for each in verdicts)}"
        )
        say(f"objectives at {level.load} ({summary.label}): {result}")


def _found(verdict: Verdict) -> str:
    return f"{'unknown' if verdict.found is None else f'{verdict.found:.3g}'}, limit {verdict.limit:g}"


def show_intervals(summary: Summary) -> None:
    """Print the prediction intervals of a calibrated prediction's means."""
    from rich.table import Table

    from engines.terminal_tables import table_console

    found = [(level, level.intervals) for level in summary.levels if level.intervals]
    if not found:
        return
    table = Table(title="means with 90 % prediction intervals for deployments like this one", title_justify="left")
    for name in ("load", "tokens/s", "ITL, ms", "TTFT, ms"):
        table.add_column(name, justify="right")
    for level, intervals in found:
        cells = [
            f"{each.mean * scale:,.{digits}f}  ({each.low * scale:,.{digits}f} to {each.high * scale:,.{digits}f})"
            if (each := intervals.get(name))
            else "-"
            for name, scale, digits in (("tokens_per_s", 1, 0), ("itl_s", MS_PER_S, 2), ("ttft_s", MS_PER_S, 1))
        ]
        table.add_row(level.load, *cells)
    table_console().print(table)


def show_knee(found: KneeResult) -> None:
    """Print every load tried, with the kind of its figures, and the knee as a sentence."""
    from rich.markup import escape
    from rich.table import Table

    from engines.terminal_tables import table_console

    first = found.tried[0].level
    lengths = f"prompts of {first.isl:,.0f}, replies of {first.osl:,.0f} tokens"
    title = f"loads tried with {lengths}; latency in ms ({escape(found.label)})"
    table = Table(title=title, title_justify="left")
    for name in (found.unit, "verdict", "requests", "batch", "ITL p50", "p95", "p99", "TTFT p50", "p95", "p99"):
        table.add_column(name, justify="left" if name == "verdict" else "right")
    for each in found.tried:
        verdict = "met" if each.met else "missed: " + ", ".join(each.missed)
        marks = [*(["not certain"] if each.open else []), *(["not valid"] if each.validity_issues else [])]
        issue = f" ({', '.join(marks)})" if marks else ""
        level = each.level
        cells = (_batch(level), *_percentiles(level.itl_s), *_percentiles(level.ttft_s))
        table.add_row(f"{each.load:.4g}", verdict + issue, str(level.requests), *cells)
    table_console().print(table)
    if found.load is not None:
        above = "no higher load was tried"
        if found.above is not None:
            above = f"missed at {found.above:.4g}: {', '.join(found.binding)}"
        say(f"knee: {found.load:.4g} {found.unit} meet every objective; {above} ({found.label})")
    doubtful = [each for each in found.tried if each.validity_issues]
    if doubtful:
        codes = dict.fromkeys(issue.code for each in doubtful for issue in each.validity_issues)
        progress(
            f"warning: the figures of {len(doubtful)} of {len(found.tried)} loads tried are not valid "
            f"({', '.join(codes)}): the knee may be elsewhere"
        )


def show_calibration(found: Calibration) -> None:
    """Print the parameters with their confidence intervals and the held-out errors; print warnings on stderr."""
    from rich.table import Table

    from engines.terminal_tables import table_console

    engine = engine_title(found.model, found.precision, found.gpu)
    table = Table(title=f"{engine}, over {found.source}", title_justify="left")
    for name in ("parameter", "value", "95 % confidence", "expected", "meaning"):
        table.add_column(name, justify="left" if name == "meaning" else "right")
    for each in found.parameters:
        mark = "" if each.identified else " (not identified)"
        table.add_row(
            each.name,
            f"{each.value:.4g}",
            f"{each.low:.3g} to {each.high:.3g}",
            f"{each.expected:g}",
            each.meaning + mark,
        )
    table_console().print(table)
    say(f"expected before any point was seen: {found.prior or 'what is expected of any engine (--engine-profile)'}")
    for shape in found.held_out:
        errors = " ".join(
            f"{name} {value:.1%}"
            for name, value in (("tokens/s", shape.tokens_per_s), ("ITL", shape.itl_s), ("TTFT (median)", shape.ttft_s))
            if value is not None
        )
        say(f"held out {shape.isl}/{shape.osl}, {shape.points} points: {errors}")
    if found.drift:
        drift = " ".join(f"{name.removesuffix('_s')} {value:.1%}" for name, value in found.drift.items())
        say(f"drift between repeated loads, part of every interval: {drift}")
    for warning in found.warnings:
        progress(f"warning: {warning}")


def show_comparison(found: Comparison) -> None:
    """Print all figures of all levels, one column per run with its kind, and the verdicts."""
    from rich.markup import escape
    from rich.table import Table

    from engines.terminal_tables import table_console

    base, new = found.baseline, found.candidate
    table = Table(title=f"{escape(new.name)} against {escape(base.name)}", title_justify="left")
    table.add_column("load", justify="right")
    table.add_column("quantity")
    table.add_column(f"baseline\n{escape(base.label)}", justify="right")
    table.add_column(f"candidate\n{escape(new.label)}", justify="right")
    table.add_column("in words")
    for level in found.levels:
        for place, change in enumerate(level.changes):
            table.add_row("" if place else level.load, *_change_cells(change))
        table.add_section()
    table_console().print(table)
    say(found.verdict)
    for each in found.differences:
        progress(f"differs: {each.key}: {each.baseline} -> {each.candidate}")
    for role, side in (("baseline", base), ("candidate", new)):
        for issue in side.validity_issues:
            progress(f"not valid: {role}: {issue}")


def _change_cells(change: Change) -> list[str]:
    from rich.markup import escape

    from loadtest.report import changed_name, changed_value

    style = _STYLES[change.outcome]
    words = f"[{style}]{escape(change.words)}[/]" if style else escape(change.words)
    values = [
        changed_value(change.figure, value).replace("&ndash;", "-") for value in (change.baseline, change.candidate)
    ]
    return [changed_name(change.figure), *values, words]
