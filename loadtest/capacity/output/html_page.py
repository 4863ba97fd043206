"""A capacity plan as a self-contained HTML page, in the style of the report's page."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from engines.units import three_digits
from loadtest.capacity.decision import Row
from loadtest.capacity.output.accuracy import HEADS, accuracy_rows, loss_text
from loadtest.capacity.output.money import money_tables
from loadtest.capacity.output.page_figures import figures_of
from loadtest.capacity.output.scaling_page import scaling_table
from loadtest.capacity.output.terminal import (
    milliseconds,
    number,
    objective_lines,
    rate_text,
    size_rows,
    step_time_lines,
    what_of,
)
from loadtest.capacity.schema import CapacityPlan
from loadtest.capacity.sensitivity import Case
from loadtest.capacity.sentences import impossible
from loadtest.capacity.simulation import Checked
from loadtest.capacity.what_if import Compared
from loadtest.report import Table, render_page, table


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."


def page_of(plan: CapacityPlan, together: Compared | None = None) -> str:
    """Return the HTML page of a plan and of its what-if variants."""
    row = plan.chosen
    return render_page(
        "capacity.html.j2",
        package="loadtest.capacity.output",
        title=f"Capacity plan: {plan.demand.name}",
        tags=[("none", "not possible") if row is None else (row.basis, row.basis)],
        plan=plan,
        objectives=[f"Objectives{line}." for line in objective_lines(plan.demand)],
        answer=plan.sentence or f"{_sentence(impossible(plan.demand))} {_sentence(plan.nearest or '')}",
        facts=_facts(plan),
        figures=figures_of(plan),
        money=[(each, table(each.heads, each.rows)) for each in money_tables(plan)],
        notes=[note for note in (plan.max_tokens_note, plan.smaller_gpu, *plan.warnings) if note],
        tables={
            "sizes": _sizes(plan),
            "what_if": None if together is None else _what_if(together),
            "rows": _rows(plan),
            "accuracy": None if plan.demand.accuracy is None else _accuracy(plan),
            "scaling": None if plan.scaling is None else scaling_table(plan.scaling),
            "fleets": _fleets(plan.fleets) if plan.fleets else None,
            "reliefs": None if row is None else _reliefs(row),
            "sensitivity": _sensitivity(plan.sensitivity),
        },
        missed=None if row is None or row.found is None else row.found,
        number=number,
        prices=sorted({row.gpu: row.price.words for row in plan.rows if row.price is not None}.items()),
        step_times=[_sentence(line) for line in step_time_lines(plan.rows)],
        demand=plan.demand.model_dump_json(indent=1, exclude_defaults=True),
    )


def _facts(plan: CapacityPlan) -> dict[str, str]:
    traffic, availability = plan.traffic, plan.demand.availability
    facts = {
        f"busiest {plan.demand.peak_window_s:g} s, today": f"{three_digits(traffic.peak_per_s)} requests/s",
        "busiest hour, today": f"{three_digits(traffic.hour_per_s)} requests/s",
        "peak, planned for": f"{three_digits(traffic.planned_peak_per_s)} requests/s",
        "mean prompt / reply": f"{traffic.mean_isl:,.0f} / {traffic.mean_osl:,.0f} tokens",
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
        }
        if row.usd_per_month is not None:
            facts["cost, all up"] = f"{row.usd_per_month:,.0f} USD a month"
            facts["per million reply tokens"] = f"{number(row.usd_per_million_tokens)} USD"
        if plan.autoscaled_usd_per_month is not None:
            facts["cost, autoscaled"] = f"{plan.autoscaled_usd_per_month:,.0f} USD a month"
    return facts


def _sizes(plan: CapacityPlan) -> Table | None:
    rows = size_rows(plan)
    heads = ("size", "replicas", "USD/month", "req/s a replica", "the replicas needed, simulated", "fails first")
    return table(heads, rows, text_at=(4, 5)) if rows else None


def _accuracy(plan: CapacityPlan) -> Table:
    return table(HEADS, accuracy_rows(plan), text_columns=2, text_at=(7,))


def _rows(plan: CapacityPlan) -> Table:
    losses = () if plan.demand.accuracy is None else ("lost",)
    heads = (
        "candidate", "based on", "promised req/s", "middle", "TTFT p95, ms", "ITL p99, ms",
        "in flight / max batch", "KV cache used",
        "fails first", "replicas", "USD/month", "USD/Mtok", *losses,
    )  # fmt: skip
    return table(
        heads,
        [[*_row_cells(row), *([loss_text(row)] if losses else [])] for row in plan.rows],
        text_columns=2,
        text_at=(8,),
        strong=[place for place, row in enumerate(plan.rows) if row.name == plan.recommended],
        notes=[_row_note(row) for row in plan.rows],
    )


def _row_note(row: Row) -> str:
    notes = [f"{row.status}: {row.reason}" if row.reason else ""]
    if row.beaten_by:
        notes.append(f"{row.beaten_by} rests on better evidence")
    if row.found is not None and row.rate_per_s is not None and not row.found.supported:
        notes.append(f"fewer than the {row.found.requests_needed:,} requests that its percentiles need")
    if row.added:
        more = "more" if row.added > 0 else "fewer"
        notes.append(
            f"behind a router, the fleet needs {abs(row.added)} {more} than the rate of a single replica implies"
        )
    return "; ".join(note for note in notes if note)


def _row_cells(row: Row) -> list[str]:
    at = row.at_knee
    return [
        row.name,
        row.basis if row.status != "refused" else "-",
        rate_text(row.sizes[0]),
        rate_text(row.middle),
        milliseconds(None if at is None else at.ttft_p95_s),
        milliseconds(None if at is None else at.itl_p99_s),
        "-" if at is None else f"{three_digits(at.in_flight)} / {row.max_batch_size or '?'}",
        "-" if at is None or row.basis == "measured" else f"{at.kv_ratio:.0%}, at most {at.kv_max:.0%}",
        row.limited_by or "-",
        "-" if row.replicas is None else str(row.replicas),
        "-" if row.usd_per_month is None else f"{row.usd_per_month:,.0f}",
        number(row.usd_per_million_tokens),
    ]


def _fleets(fleets: Sequence[Checked]) -> Table:
    heads = ("what", "routing", "replicas", "TTFT p95, ms", "TTFT p99, ms", "ITL p99, ms", "objectives")
    return table(
        heads,
        [
            [
                what_of(each),
                each.routing.replace("_", " "),
                str(each.replicas) + (f" ({each.simulated} simulated)" if each.simulated != each.replicas else ""),
                milliseconds(each.tried.ttft_p95_s),
                milliseconds(each.tried.ttft_p99_s),
                milliseconds(each.tried.itl_p99_s),
                "met" if each.tried.met else f"missed: {', '.join(each.tried.missed)}",
            ]
            for each in fleets
        ],
        text_columns=2,
        text_at=(6,),
    )


def _reliefs(row: Row) -> Table | None:
    if row.found is None or not row.found.reliefs:
        return None
    reliefs = sorted(row.found.reliefs, key=lambda each: -each.gain)
    rows = [[each.constraint, number(each.worst_ratio), f"{each.gain:.0%}"] for each in reliefs]
    return table(("constraint eased", "times the limit then", "reduction"), rows)


def _sensitivity(cases: Iterable[Case]) -> Table:
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
    heads = ("what", "by", "replicas", "USD/month", "recommended then", "USD/month of that")
    return table(heads, rows, text_columns=2, text_at=(4,))


def _what_if(together: Compared) -> Table:
    heads = ("", "peak, req/s", "recommended", "based on", "binds", "replicas", "USD/month", "USD/Mtok", "")
    rows = [
        [
            side.change,
            number(side.peak_per_s),
            side.recommended or "nothing possible",
            side.basis or "-",
            side.binding or "-",
            "-" if side.replicas is None else str(side.replicas),
            "-" if side.usd_per_month is None else f"{side.usd_per_month:,.0f}",
            number(side.usd_per_million_tokens),
            side.nearest or "",
        ]
        for side in together.sides
    ]
    return table(heads, rows, text_at=(2, 3, 4, 8))
