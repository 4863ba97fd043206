"""A capacity plan on a terminal."""

from __future__ import annotations

from rich.table import Table

from engines.console import progress, show, table_console
from loadtest.capacity.answer import Row
from loadtest.capacity.plan import CapacityPlan

MS = 1e3


def show_plan(plan: CapacityPlan) -> None:
    """Print the traffic, the table of candidates, and the recommendation on stdout; what was refused on stderr."""
    traffic = plan.traffic
    show(
        f"{plan.demand.name}: peak {traffic.planned_peak_per_s:.3g} requests/s (today {traffic.peak_per_s:.3g}), "
        f"mean {traffic.mean_per_s * traffic.growth:.3g}; "
        f"prompts {traffic.mean_isl:.0f}, replies {traffic.mean_osl:.0f} tokens"
    )
    table = Table(title="one replica at the load it is promised to carry, and the deployment", title_justify="left")
    for heading in ("candidate", "rests on"):
        table.add_column(heading)
    for heading in ("req/s", "middle", "TTFT p95", "ITL mean", "ITL p99", "replicas", "USD/month", "USD/Mtok"):
        table.add_column(heading, justify="right")
    table.add_column("binds")
    for row in plan.rows:
        if row.rate_per_s is not None:
            mark = " *" if row.name == plan.recommended else ""
            table.add_row(f"{row.name}{mark}", *_cells(row))
    table_console().print(table)
    for row in plan.rows:
        if row.status != "possible":
            progress(f"not possible: {row.name}: {row.reason}")
        elif row.beaten_by is not None:
            progress(f"not ranked: {row.name}: {row.beaten_by} rests on better evidence")
    for price in {row.gpu: row.price for row in plan.rows if row.price is not None}.values():
        progress(f"price of {price.gpu}: {price.words}")
    if plan.sentence is not None:
        show(plan.sentence)


def _cells(row: Row) -> list[str]:
    at = row.at_knee
    figures = (None, None, None) if at is None else (at.ttft_p95_s, at.itl_mean_s, at.itl_p99_s)
    return [
        row.basis,
        _number(row.rate_per_s, 3),
        _number(row.middle_rate_per_s, 3),
        *("-" if value is None else f"{value * MS:.3g} ms" for value in figures),
        "-" if row.replicas is None else str(row.replicas),
        "-" if row.usd_per_month is None else f"{row.usd_per_month:,.0f}",
        _number(row.usd_per_million_tokens, 3),
        row.binding or "-",
    ]


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}g}"
