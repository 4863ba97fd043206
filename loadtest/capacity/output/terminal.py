"""A capacity plan in the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.table import Table

from engines import units
from engines.console import progress, say
from engines.terminal_tables import table_console
from loadtest.capacity.decision import Row, Sized
from loadtest.capacity.inputs import Demand
from loadtest.capacity.output.accuracy import HEADS, accuracy_rows, loss_text
from loadtest.capacity.output.money import money_tables
from loadtest.capacity.output.scaling_page import NOT_PAYING, check_words, law_words, unscaled_words
from loadtest.capacity.replica_count import replicas_text
from loadtest.capacity.schema import CapacityPlan
from loadtest.capacity.simulation import Checked, FleetVerdict
from loadtest.capacity.verify import Verification
from loadtest.capacity.what_if import Compared
from loadtest.scenario import objectives_text


def show_plan(plan: CapacityPlan) -> None:
    """Print demand, tables and recommendation on stdout; rows not possible, prices and warnings on stderr."""
    _show_demand(plan)
    _show_sizes(plan)
    _show_rows(plan)
    _show_accuracy(plan)
    for row in plan.rows:
        if row.status != "possible":
            progress(f"{row.status}: {row.name}: {row.reason}")
        elif row.beaten_by is not None:
            progress(f"not ranked: {row.name}: {row.beaten_by} rests on better evidence")
    for price in {row.gpu: row.price for row in plan.rows if row.price is not None}.values():
        progress(f"price of {price.gpu}: {price.words}")
    for warning in plan.warnings:
        progress(f"warning: {warning}")
    if plan.sentence is not None:
        _show_fleets(plan)
        _show_scaling(plan)
        _show_money(plan)
        _show_sensitivity(plan)
        for each in plan.speculation:
            say(f"{each.name}: {each.payoff.sentence}")
        for note in (plan.sentence, plan.max_tokens_note, plan.smaller_gpu):
            if note is not None:
                say("")
                say(note)


def _show_demand(plan: CapacityPlan) -> None:
    traffic = plan.traffic
    hour = "" if traffic.hour_per_s == traffic.peak_per_s else f", mean of its hour {number(traffic.hour_per_s)}"
    say(
        f"{plan.demand.name}: peak {number(traffic.planned_peak_per_s)} requests/s over "
        f"{plan.demand.peak_window_s:g} s "
        f"(today {number(traffic.peak_per_s)}{hour}), mean {number(traffic.mean_per_s * traffic.growth)}; "
        f"prompts {traffic.mean_isl:,.0f}, replies {traffic.mean_osl:,.0f} tokens, max_tokens {traffic.max_tokens:,}"
    )
    for line in objective_lines(plan.demand):
        say(f"objectives{line}")


def objective_lines(demand: Demand) -> list[str]:
    """Return the objectives with their units: of all requests, then of each class with its own."""
    return [f"{f' of {name}' if name else ''}: {objectives_text(each)}" for name, each in demand.all_objectives.items()]


SIZES = ("promised", "middle", "optimistic")


def size_rows(plan: CapacityPlan) -> list[list[str]]:
    """Return the recommended row's three sizes as cells: size, replicas, cost, rate, verdict, first miss."""
    row = plan.chosen
    if row is None or row.basis == "measured":
        return []
    return [
        [
            name,
            "-" if each.replicas is None else str(each.replicas),
            "-" if each.usd_per_month is None else f"{each.usd_per_month:,.0f}",
            rate_text(each),
            verdict_of(each.verdict),
            each.limited_by or "-",
        ]
        for name, each in zip(SIZES, row.sizes, strict=False)
    ]


def _basis(plan: CapacityPlan) -> str:
    """Return what the recommended row's figures are based on, to put behind a title."""
    return "" if plan.chosen is None else f" ({plan.chosen.basis})"


def rate_text(size: Sized | None) -> str:
    """Return the rate of one replica, marked where it is only known to be at least this."""
    if size is None or size.rate_per_s is None:
        return "-"
    return ("≥" if size.is_lower_bound else "") + number(size.rate_per_s)


def verdict_of(verdict: FleetVerdict | None) -> str:
    """Return whether the smallest fleet meets every objective, and how certain that is."""
    if verdict is None:
        return "from one replica's rate"
    sure = "95 % sure" if verdict.is_certain else f"undecided: {', '.join(verdict.undecided)}"
    return f"met in {verdict.kept_windows} of {verdict.windows} windows and overall ({sure})"


def _show_sizes(plan: CapacityPlan) -> None:
    rows = size_rows(plan)
    if not rows:
        return
    table = Table(
        title=f"{plan.recommended}: sizes at the middle and both ends of the prediction interval{_basis(plan)}",
        title_justify="left",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    for heading in (
        "size",
        "replicas",
        "USD/month",
        "req/s a replica",
        "the replicas needed, simulated",
        "fails first",
    ):
        table.add_column(heading, justify="left" if heading[0] in "stf" else "right")
    for cells in rows:
        table.add_row(*cells)
    table_console().print(table)


def show_first(rows: Sequence[Row]) -> None:
    """Print each candidate's capacity per replica on stderr, before fleets are simulated."""
    for row in rows:
        if row.rate_per_s is not None and row.replicas is not None:
            cost = "no price" if row.usd_per_month is None else f"{row.usd_per_month:,.0f} USD/month"
            progress(
                f"{row.name}: {rate_text(row.sizes[0])} requests/s per replica, about {replicas_text(row.replicas)}, "
                f"{cost}"
            )


def _show_rows(plan: CapacityPlan) -> None:
    table = Table(
        title="promised capacity of one replica (in parentheses: at the middle of the prediction, if different); "
        "latencies in ms",
        title_justify="left",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    table.add_column("candidate", no_wrap=True)
    table.add_column("based on", no_wrap=True)
    for heading in ("req/s", "TTFT p95", "ITL p99", "replicas", "$/month", "$/Mtok"):
        table.add_column(heading, justify="right", no_wrap=True)
    with_accuracy = plan.demand.accuracy is not None
    if with_accuracy:
        table.add_column("lost", justify="right", no_wrap=True)
    table.add_column("fails first", no_wrap=True)
    for row in plan.rows:
        if row.rate_per_s is not None:
            mark = "*" if row.name == plan.recommended else ""
            loss = [loss_text(row)] if with_accuracy else []
            table.add_row(mark + row.name, *_cells(row), *loss, row.limited_by or "-")
    table_console().print(table)
    for line in step_time_lines(plan.rows):
        say(line)
    say("*: recommended; b: max batch size; t: max tokens per iteration; evicting: with max_utilization")


def step_time_lines(rows: Sequence[Row]) -> list[str]:
    """Return the sources of the rows' step times, each with its GPUs where there are several sources."""
    gpus: dict[str, dict[str, None]] = {}
    for row in rows:
        if row.step_times and row.rate_per_s is not None:
            gpus.setdefault(row.step_times, {})[row.gpu] = None
    on = {words: f" on {', '.join(of)}" if len(gpus) > 1 else "" for words, of in gpus.items()}
    return [f"step times{where}: {words}" for words, where in on.items()]


def _cells(row: Row) -> list[str]:
    at = row.at_knee
    figures = (None, None) if at is None else (at.ttft_p95_s, at.itl_p99_s)
    promised, middle = rate_text(row.sizes[0]), rate_text(row.middle)
    return [
        row.basis,
        promised if promised == middle else f"{promised} ({middle})",
        *(milliseconds(value) for value in figures),
        "-" if row.replicas is None else str(row.replicas),
        "-" if row.usd_per_month is None else f"{row.usd_per_month:,.0f}",
        number(row.usd_per_million_tokens),
    ]


def _show_accuracy(plan: CapacityPlan) -> None:
    rows = accuracy_rows(plan)
    if not rows:
        return
    table = Table(
        title="accuracy loss against the baseline, on the same questions", title_justify="left", box=SIMPLE_HEAD
    )
    for heading in HEADS:
        table.add_column(heading, justify="left" if heading in ("precision", "task", "limit") else "right")
    for cells in rows:
        table.add_row(*cells)
    table_console().print(table)


def _show_fleets(plan: CapacityPlan) -> None:
    if not plan.fleets:
        return
    table = Table(
        title=f"the recommended replicas behind a router, simulated together{_basis(plan)}", title_justify="left"
    )
    for heading in ("what", "routing", "replicas", "TTFT p95, ms", "ITL p99, ms", "objectives"):
        table.add_column(heading)
    for each in plan.fleets:
        tried = each.tried
        table.add_row(
            what_of(each),
            each.routing.replace("_", " "),
            f"{each.replicas}" + (f" ({each.simulated} simulated)" if each.simulated != each.replicas else ""),
            milliseconds(tried.ttft_p95_s),
            milliseconds(tried.itl_p99_s),
            "met" if tried.met else f"missed: {', '.join(tried.missed)}",
        )
    table_console().print(table)


def what_of(each: Checked) -> str:
    """Return a fleet's simulated situation in words."""
    if each.what == "loss":
        requests = "1 request" if each.retried == 1 else f"{each.retried} requests"
        return f"{each.lost} lost at the peak, {requests} sent again"
    return {"peak": "peak, spares lost", "spot": "spot machines withdrawn"}[each.what]


def _show_scaling(plan: CapacityPlan) -> None:
    """Print the recommended control law, or why there is none."""
    scaling = plan.scaling
    if scaling is None:
        say(f"autoscaler: {unscaled_words(plan)}")
        return
    chosen, fixed, cost = scaling.chosen, scaling.fixed, plan.autoscaled_usd_per_month
    say(
        f"autoscaler{_basis(plan)}: {law_words(chosen.law)}: {chosen.day_missed_minutes} of {scaling.minutes:,} "
        f"minutes miss an objective, {chosen.gpu_hours:.1f} GPU hours a day"
        + ("" if cost is None else f", {cost:,.0f} USD a month")
    )
    say(
        f"{fixed.law.max_replicas} fixed replicas: {fixed.day_missed_minutes} minutes, "
        f"{fixed.gpu_hours:.1f} GPU hours a day" + ("" if scaling.pays else f": {NOT_PAYING}")
    )
    if scaling.check is not None:
        say(check_words(scaling.check))


def _show_money(plan: CapacityPlan) -> None:
    for each in money_tables(plan):
        if each.rows:
            table = Table(title=each.title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
            for heading in each.heads:
                table.add_column(heading)
            for cells in each.rows:
                table.add_row(*cells)
            table_console().print(table)
        else:
            say(each.title)
        for note in each.notes:
            progress(note)


def _show_sensitivity(plan: CapacityPlan) -> None:
    table = Table(title=f"what would change the answer{_basis(plan)}", title_justify="left")
    for heading in ("what", "by", "replicas", "USD/month", "recommended then"):
        table.add_column(heading)
    for case in plan.sensitivity:
        table.add_row(
            case.lever,
            case.moved,
            "-" if case.replicas is None else str(case.replicas),
            "-" if case.usd_per_month is None else f"{case.usd_per_month:,.0f}",
            "the same" if not case.changes else case.recommended or "nothing possible",
        )
    table_console().print(table)


def show_compared(together: Compared) -> None:
    """Print plans side by side, one per row: any number of them fits."""
    table = Table(title="what if", title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for heading in ("", "recommended", "peak req/s", "req/s a replica", "replicas", "USD/month", "USD/Mtok"):
        table.add_column(heading, justify="left" if heading in ("", "recommended") else "right")
    for side in together.sides:
        table.add_row(
            side.change.replace(",", ", "),
            "nothing possible" if side.recommended is None else f"{side.recommended} ({side.basis})",
            number(side.peak_per_s),
            number(side.rate_per_s),
            "-" if side.replicas is None else str(side.replicas),
            "-" if side.usd_per_month is None else f"{side.usd_per_month:,.0f}",
            number(side.usd_per_million_tokens),
        )
    table_console().print(table)
    for side in together.sides:
        if side.nearest is not None:
            say(f"{side.change}: {side.nearest}")


def show_verification(found: Verification) -> None:
    """Print the comparison of a plan with a run."""
    table = Table(
        title=f"planned against {found.label}: {found.recommended}, {number(found.planned_per_s)} requests/s planned, "
        f"{number(found.found_per_s)} offered, {found.requests} requests; ms",
        title_justify="left",
        box=SIMPLE_HEAD,
    )
    for heading in ("", "middle of the prediction", "promised", found.kind, ""):
        table.add_column(heading, justify="right")
    for each in found.figures:
        table.add_row(
            each.name.removesuffix("_s").replace("_", " "),
            milliseconds(each.middle),
            milliseconds(each.promised),
            milliseconds(each.found),
            "" if each.promised is None else "within" if each.is_within else "worse than promised",
        )
    table_console().print(table)
    if found.kind == "emulated":
        say(
            "the engine was emulated: this checks the plan against this project's step times behind a real "
            "server, not against a GPU"
        )
    if found.held:
        say("the plan is verified: every objective was met at the planned load")


def number(value: float | None) -> str:
    """Return three significant digits; a dash for None."""
    return "-" if value is None else units.three_digits(value)


def milliseconds(value: float | None) -> str:
    """Return seconds as milliseconds; a dash for None."""
    return "-" if value is None else units.milliseconds(value)
