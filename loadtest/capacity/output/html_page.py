"""A capacity plan as one page that loads nothing: light, dark and on paper."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from importlib.resources import files
from pathlib import Path
from string import Template

from engines.spec import MS
from loadtest.capacity.decision import Row
from loadtest.capacity.output.charts import Mark, Series, chart, tornado
from loadtest.capacity.output.terminal import milliseconds, number, size_rows, what_of
from loadtest.capacity.plan import CapacityPlan
from loadtest.capacity.sensitivity import Case
from loadtest.capacity.simulation import Checked
from loadtest.capacity.what_if import Compared

PAGE_NAME = "capacity.html"
TEMPLATE = Path(str(files("loadtest.capacity.output"))) / "page.html"
TONES = 6


def page_of(plan: CapacityPlan, together: Compared | None = None) -> str:
    """Return the page of a plan, and of what was planned beside it."""
    answer = plan.sentence or f"Nothing possible serves {plan.demand.name}. Nearest possible: {plan.nearest}"
    row = plan.chosen
    template = Template(TEMPLATE.read_text(encoding="utf-8"))
    return template.substitute(
        title=html.escape(f"Capacity plan: {plan.demand.name}"),
        tag="none" if row is None else row.basis,
        label="not possible" if row is None else row.basis,
        answer=html.escape(answer),
        verdict="good" if row is not None else "bad",
        facts=_facts(plan),
        figures="\n".join(f"<figure>{figure}</figure>" for figure in _figures(plan)),
        sizes=_sizes(plan),
        rows=_rows(plan),
        fleets=_fleets(plan.fleets),
        whatif=_what_if(together),
        reliefs=_reliefs(row),
        sensitivity=_sensitivity(plan.sensitivity),
        custody=_custody(plan),
        demand=html.escape(plan.demand.model_dump_json(indent=1, exclude_defaults=True)),
    )


def _figures(plan: CapacityPlan) -> list[str]:
    row = plan.chosen
    if row is None:
        return []
    found = [_frontier(plan), _day(plan)]
    if plan.sweep:
        found += [_batch(plan), _load(plan)]
    found.append(_tornado(plan, row))
    return found


def _frontier(plan: CapacityPlan) -> str:
    best = plan.chosen
    names = list(dict.fromkeys(point.name for point in plan.frontier))
    edge = sorted((each.usd_per_month, each.ttft_p95_s * MS) for each in plan.frontier if each.is_on_frontier)
    series = [Series("frontier", edge, TONES - 1, "line", is_dashed=True)]
    tones = {name: min(place, TONES - 1) for place, name in enumerate(names)}
    series += [
        Series(
            "",
            [(each.usd_per_month, each.ttft_p95_s * MS) for each in plan.frontier if each.name == name],
            tone,
            "dots",
        )
        for name, tone in tones.items()
    ]
    marks = [
        Mark(each.usd_per_month, each.ttft_p95_s * MS, "recommended")
        for each in plan.frontier
        if best is not None and (each.name, each.replicas) == (best.name, best.replicas)
    ]
    drawn = chart(
        "Cost against latency: deployments that meet every objective",
        series,
        x="USD a month",
        y="TTFT p95, ms",
        marks=marks,
        x_log=True,
        y_log=True,
    )
    key = " ".join(f'<span class="key fill{tone}">&#9679;</span> {html.escape(name)}' for name, tone in tones.items())
    return f"{drawn}<figcaption>{key}</figcaption>"


def _day(plan: CapacityPlan) -> str:
    day, row = plan.day, plan.chosen
    if day is None or row is None:
        return ""
    capacity = row.fleet_per_s or row.rate_per_s or 1.0
    headroom = 1 - plan.demand.availability.headroom
    series = [
        Series("up, autoscaled", [(each.at_h, each.up) for each in day.points], 0, "steps"),
        Series("needed", [(each.at_h, each.needed) for each in day.points], 1, "steps"),
        Series(
            "without headroom",
            [(each.at_h, each.rate_per_s / capacity) for each in day.points],
            2,
            "line",
            is_dashed=True,
        ),
    ]
    over = "the day" if day.is_day else "the trace"
    drawn = chart(
        f"Replicas over {over}",
        series,
        x="hours",
        y="replicas",
        limits=[(float(row.replicas or 0), f"{row.replicas} planned for the peak with losses")],
    )
    note = (
        f"{day.mean_replicas:.1f} replicas on average; {day.short_minutes:.0f} minutes below the headroom of "
        f"{1 - headroom:.0%}, {day.overloaded_minutes:.0f} overloaded. A replica takes "
        f"{plan.demand.autoscaling.start_up_s:g} s to come up."
    )
    return f"{drawn}<figcaption>{html.escape(note)}</figcaption>"


def _batch(plan: CapacityPlan) -> str:
    points = sorted(plan.sweep, key=lambda each: each.rate_per_s)
    mean = [(each.in_flight, each.itl_mean_s * MS) for each in points if each.itl_mean_s is not None]
    tail = [(each.in_flight, each.itl_p99_s * MS) for each in points if each.itl_p99_s is not None]
    at = plan.operating
    marks = []
    if at is not None and at.itl_mean_s is not None:
        marks.append(Mark(at.in_flight, at.itl_mean_s * MS, f"operating: {at.in_flight:.0f} in flight", is_below=True))
    drawn = chart(
        "Latency against batch size, the recommended engine",
        [Series("ITL p99", tail, 1, "both"), Series("ITL mean", mean, 0, "both")],
        x="requests in flight on a replica",
        y="inter-token latency, ms",
        marks=marks,
        limits=[(limit * MS, f"limit on {name}") for name, limit in plan.demand.objectives.itl_s.items()],
    )
    return f"{drawn}<figcaption>At the unfavourable end of the prediction, with the demand's own traffic.</figcaption>"


def _load(plan: CapacityPlan) -> str:
    points = sorted(plan.sweep, key=lambda each: each.rate_per_s)
    series = [
        Series(
            name,
            [(each.rate_per_s, value * MS) for each in points if (value := getattr(each, attribute)) is not None],
            tone,
            "both",
        )
        for name, attribute, tone in (
            ("TTFT p99", "ttft_p99_s", 3),
            ("TTFT p95", "ttft_p95_s", 1),
            ("p50", "ttft_p50_s", 0),
        )
    ]
    at = plan.operating
    marks = []
    if at is not None and at.ttft_p95_s is not None:
        marks.append(Mark(at.rate_per_s, at.ttft_p95_s * MS, f"operating: {at.rate_per_s:.3g}/s", is_below=True))
    drawn = chart(
        "Waiting against load, one replica",
        series,
        x="requests a second on a replica",
        y="TTFT, ms",
        marks=marks,
        limits=[(limit * MS, f"limit on {name}") for name, limit in plan.demand.objectives.ttft_s.items()],
        y_log=True,
    )
    return f"{drawn}<figcaption>What is promised is the load just left of where a limit is passed.</figcaption>"


def _tornado(plan: CapacityPlan, row: Row) -> str:
    by_lever: dict[str, list[Case]] = {}
    for case in plan.sensitivity:
        by_lever.setdefault(case.lever, []).append(case)
    bars = [
        (lever, first.usd_per_month, second.usd_per_month, _words(first), _words(second))
        for lever, (first, second, *_) in by_lever.items()
    ]
    drawn = tornado(
        "What moves the cost",
        bars,
        row.usd_per_month or 0.0,
        x="USD a month, the recommended row",
    )
    note = "A star: another candidate would be recommended then."
    return f"{drawn}<figcaption>{note}</figcaption>"


def _words(case: Case) -> str:
    replicas = "" if case.replicas is None else f" ({case.replicas})"
    return f"{case.moved}{replicas}{' *' if case.changes else ''}"


def _facts(plan: CapacityPlan) -> str:
    traffic, availability = plan.traffic, plan.demand.availability
    facts = {
        f"busiest {plan.demand.peak_window_s:g} s, today": f"{traffic.peak_per_s:.3g} requests/s",
        "busiest hour, today": f"{traffic.hour_per_s:.3g} requests/s",
        "peak, planned for": f"{traffic.planned_peak_per_s:.3g} requests/s",
        "mean prompt / reply": f"{traffic.mean_isl:.0f} / {traffic.mean_osl:.0f} tokens",
        "longest": f"{traffic.longest_isl:,} / {traffic.longest_osl:,} tokens",
        "max_tokens": f"{traffic.max_tokens:,}",
        "may be lost": f"any {availability.n_plus}"
        + (f" or one of {availability.zones} zones" if availability.zones > 1 else ""),
        "headroom": f"{availability.headroom:.0%}",
    }
    row = plan.chosen
    if row is not None:
        facts |= {
            "replicas": f"{row.replicas} ({row.needed} at the peak)",
            "cost, all up": f"{row.usd_per_month:,.0f} USD a month",
            "per million reply tokens": f"{number(row.usd_per_million_tokens)} USD",
        }
        if plan.autoscaled_usd_per_month is not None:
            facts["cost, autoscaled"] = f"{plan.autoscaled_usd_per_month:,.0f} USD a month"
    cells = "".join(f"<div><dt>{html.escape(k)}</dt><dd>{html.escape(v)}</dd></div>" for k, v in facts.items())
    return f"<dl>{cells}</dl>"


def _sizes(plan: CapacityPlan) -> str:
    rows = size_rows(plan)
    if not rows:
        return ""
    heads = ("size", "replicas", "USD/month", "req/s a replica", "the replicas needed, simulated", "fails first")
    notes = [note for note in (plan.max_tokens_note, plan.smaller_gpu, *plan.warnings) if note]
    said = "".join(f"<p>{html.escape(note)}</p>" for note in notes)
    source = html.escape(plan.chosen.interval_source if plan.chosen is not None else "")
    return (
        "<section><h2>Three sizes</h2><p>The recommended row at the unfavourable end of the prediction's interval "
        f"(promised), at its middle, and at its favourable end. The interval: {source}.</p>"
        f"{_table(heads, rows)}{said}</section>"
    )


def _rows(plan: CapacityPlan) -> str:
    heads = (
        "candidate", "rests on", "promised req/s", "middle", "TTFT p95, ms", "ITL p99, ms", "batch", "KV cache used",
        "fails first", "replicas", "USD/month", "USD/Mtok",
    )  # fmt: skip
    return _table(
        heads,
        [_row_cells(row) for row in plan.rows],
        strong=[place for place, row in enumerate(plan.rows) if row.name == plan.recommended],
        notes=[_row_note(row) for row in plan.rows],
    )


def _row_note(row: Row) -> str:
    notes = [row.reason or ""]
    if row.beaten_by:
        notes.append(f"{row.beaten_by} rests on better evidence")
    if row.found is not None and row.rate_per_s is not None and not row.found.supported:
        notes.append(f"fewer than the {row.found.requests_needed:,} requests its percentiles take")
    if row.added:
        more = "more" if row.added > 0 else "fewer"
        notes.append(f"behind its router, the fleet takes {abs(row.added)} {more} than one replica alone points to")
    return "; ".join(note for note in notes if note)


def _row_cells(row: Row) -> list[str]:
    at = row.at_knee
    return [
        row.name,
        row.basis if row.status != "refused" else "-",
        number(row.rate_per_s),
        number(row.middle_rate_per_s),
        milliseconds(None if at is None else at.ttft_p95_s),
        milliseconds(None if at is None else at.itl_p99_s),
        "-" if at is None else f"{at.in_flight:.0f} of {row.max_batch_size or '?'}",
        "-" if at is None or row.basis == "measured" else f"{at.kv_ratio:.0%}, at most {at.kv_most:.0%}",
        row.limited_by or "-",
        "-" if row.replicas is None else str(row.replicas),
        "-" if row.usd_per_month is None else f"{row.usd_per_month:,.0f}",
        number(row.usd_per_million_tokens),
    ]


def _fleets(fleets: Sequence[Checked]) -> str:
    if not fleets:
        return "<p>The row is a measured run: no fleet of it can be simulated.</p>"
    heads = ("what", "routing", "replicas", "TTFT p95, ms", "TTFT p99, ms", "ITL p99, ms", "objectives")
    return _table(
        heads,
        [
            [
                what_of(each),
                each.routing.replace("_", " "),
                str(each.replicas) + (f" ({each.simulated} simulated)" if each.simulated != each.replicas else ""),
                milliseconds(each.tried.ttft_p95_s),
                milliseconds(each.tried.ttft_p99_s),
                milliseconds(each.tried.itl_p99_s),
                "kept" if each.tried.met else f"missed: {', '.join(each.tried.missed)}",
            ]
            for each in fleets
        ],
    )


def _reliefs(row: Row | None) -> str:
    if row is None or row.found is None or not row.found.reliefs:
        return "<p>Nothing was missed at any load tried, or the row is a measured run.</p>"
    found = row.found
    said = (
        f"<p>At {number(found.promised.above_per_s)} requests/s a replica misses "
        f"{html.escape(found.promised.limited_by or '')}: what was found is {number(found.strain)} of its limit. "
        "The same load again, each time with one thing a quarter easier:</p>"
    )
    reliefs = sorted(found.reliefs, key=lambda each: -each.gain)
    rows = [[each.constraint, number(each.worst_ratio), f"{each.gain:.0%}"] for each in reliefs]
    return said + _table(("made easier", "then found over limit", "strain taken away"), rows)


def _sensitivity(cases: Iterable[Case]) -> str:
    rows = [
        [
            case.lever,
            case.moved,
            "-" if case.replicas is None else str(case.replicas),
            "not possible" if case.usd_per_month is None else f"{case.usd_per_month:,.0f}",
            "the same" if not case.changes else case.recommended or "nothing possible",
            "-" if case.best_usd_per_month is None else f"{case.best_usd_per_month:,.0f}",
        ]
        for case in cases
    ]
    return _table(("what", "by", "replicas", "USD/month", "recommended then", "USD/month of that"), rows)


def _what_if(together: Compared | None) -> str:
    if together is None:
        return ""
    heads = ("", "peak, req/s", "recommended", "rests on", "binds", "replicas", "USD/month", "USD/Mtok", "")
    rows = [
        [
            side.asked,
            number(side.peak_per_s),
            side.recommended or "nothing possible",
            side.basis or "-",
            side.binding or "-",
            "-" if side.replicas is None else str(side.replicas),
            "-" if side.usd_per_month is None else f"{side.usd_per_month:,.0f}",
            number(side.usd_per_million_tokens),
            "" if side.nearest is None else f"nearest possible: {side.nearest}",
        ]
        for side in together.sides
    ]
    return f"<section><h2>What if</h2>{_table(heads, rows)}</section>"


def _table(
    heads: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    strong: Sequence[int] = (),
    notes: Sequence[str] | None = None,
) -> str:
    """Return a table.

    Args:
        strong: Rows to set off.
        notes: What stands below each row, over its whole width.
    """
    head = "".join(f"<th>{html.escape(name)}</th>" for name in heads)
    body = ""
    for place, row in enumerate(rows):
        cells = "".join(f"<td>{html.escape(cell)}</td>" for cell in row)
        body += f"<tr{' class=strong' if place in strong else ''}>{cells}</tr>"
        if notes is not None and notes[place]:
            body += f'<tr class="note"><td colspan="{len(heads)}">{html.escape(notes[place])}</td></tr>'
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _custody(plan: CapacityPlan) -> str:
    prices = {row.gpu: row.price.words for row in plan.rows if row.price is not None}
    said = "".join(f"<li>{html.escape(gpu)}: {html.escape(words)}</li>" for gpu, words in sorted(prices.items()))
    files = "".join(
        f"<li><code>{html.escape(source.path)}</code> <small>sha256 {source.sha256}</small></li>"
        for source in plan.made_from
    )
    command = html.escape(f"{plan.made_by.command}  (version {plan.made_by.version})")
    return f"<p>Made by <code>{command}</code></p><ul>{files}</ul><h3>Prices</h3><ul>{said}</ul>"
