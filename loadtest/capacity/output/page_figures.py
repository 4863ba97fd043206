"""The charts on the page of a capacity plan."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from markupsafe import Markup

from engines.units import MS_PER_S, three_digits
from loadtest.capacity.output.accuracy import accuracy_chart
from loadtest.capacity.output.charts import TONES, Mark, Series, chart, tornado
from loadtest.capacity.output.scaling_page import day_replicas, law_words, scaling_chart, unscaled_words
from loadtest.capacity.payoff import SpeculationPayoff
from loadtest.capacity.schema import CapacityPlan
from loadtest.capacity.sensitivity import Case
from loadtest.capacity.simulation import RateProbe


class Figure(NamedTuple):
    """A chart with its caption.

    Attributes:
        key: Colour and name of its points, (tone, name), if the chart has no room for a legend.
    """

    svg: Markup
    says: str = ""
    key: tuple[tuple[int, str], ...] = ()


def figures_of(plan: CapacityPlan) -> list[Figure]:
    """Return the charts of a plan, in order; none if nothing is possible."""
    row = plan.chosen
    if row is None:
        return []
    found: list[Figure | None] = [_frontier(plan) if plan.frontier else None, _day(plan)]
    if plan.demand.accuracy is not None and row.usd_per_month is not None:
        found.append(_accuracy(plan))
    if plan.speculation:
        found.append(_speculation(plan))
    if plan.scaling is not None:
        found.append(Figure(*scaling_chart(plan.scaling)))
    if plan.sweep:
        found += [_batch(plan), _load(plan)]
    if row.usd_per_month is not None:
        found.append(_tornado(plan, row.usd_per_month))
    return [each for each in found if each is not None]


def _frontier(plan: CapacityPlan) -> Figure:
    best = plan.chosen
    names = list(dict.fromkeys(point.name for point in plan.frontier))
    edges: dict[float | None, list[tuple[float, float]]] = {}  # by accuracy loss
    for each in plan.frontier:
        if each.is_on_frontier:
            edges.setdefault(each.accuracy_loss, []).append((each.usd_per_month, each.ttft_p95_s * MS_PER_S))
    series = [
        Series("" if place else "frontier", sorted(edge), TONES - 1, "line", is_dashed=True)
        for place, edge in enumerate(edges.values())
    ]
    tones = {name: min(place, TONES - 1) for place, name in enumerate(names)}
    series += [
        Series(
            "",
            [(each.usd_per_month, each.ttft_p95_s * MS_PER_S) for each in plan.frontier if each.name == name],
            tone,
            "dots",
        )
        for name, tone in tones.items()
    ]
    marks = [
        Mark(each.usd_per_month, each.ttft_p95_s * MS_PER_S, "recommended")
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
    says = "One frontier for each accuracy loss: a point on it may cost more and be slower than one that loses more."
    return Figure(Markup(drawn), says if len(edges) > 1 else "", tuple((tone, name) for name, tone in tones.items()))


def _accuracy(plan: CapacityPlan) -> Figure:
    drawn, key = accuracy_chart(plan)
    says = (
        "Each candidate's smallest deployment; the loss of the task that loses most, measured, with its interval "
        "(5 % to 95 %). Lower is better on both axes; rows of the same cost are drawn side by side."
    )
    return Figure(Markup(drawn), says, key)


def _day(plan: CapacityPlan) -> Figure | None:
    day, row, scaling = plan.day, plan.chosen, plan.scaling
    if day is None or row is None:
        return None
    carried_per_s = row.fleet_per_s or row.rate_per_s or 1.0
    series = [
        Series("needed, with headroom", [(each.at_h, each.needed) for each in day.points], 1, "steps"),
        Series(
            "without headroom",
            [(each.at_h, each.rate_per_s / carried_per_s) for each in day.points],
            2,
            "line",
            is_dashed=True,
        ),
    ]
    if scaling is not None:
        series.insert(0, Series("up, autoscaled", day_replicas(scaling), 0, "steps"))
    drawn = chart(
        f"Replicas over {'the day' if day.is_day else 'the trace'}",
        series,
        x="hours",
        y="replicas",
        limits=[(float(row.replicas or 0), f"{row.replicas} planned for the peak with losses")],
    )
    if scaling is None:
        return Figure(Markup(drawn), f"Autoscaler: {unscaled_words(plan)}.")
    chosen, cold = scaling.chosen, scaling.cold_start
    note = (
        f"{law_words(chosen.law)}, the recommended law: {chosen.mean_replicas:.1f} replicas paid for on average, "
        f"at most {chosen.max_replicas}; {chosen.day_missed_minutes} minutes miss an objective. A replica takes "
        f"{cold.total_s:g} s to come up ({cold.source}). Needed: with a headroom of "
        f"{plan.demand.availability.headroom:.0%}, without spares."
    )
    return Figure(Markup(drawn), note)


def _looks(plan: CapacityPlan) -> list[RateProbe]:
    """Return the simulated loads of the recommended engine's replica, including the operating point, by rate."""
    operating = [] if plan.operating is None else [plan.operating]
    return sorted(
        {each.rate_per_s: each for each in (*plan.sweep, *operating)}.values(), key=lambda each: each.rate_per_s
    )


def _batch(plan: CapacityPlan) -> Figure:
    points = _looks(plan)
    mean = [(each.in_flight, each.itl_mean_s * MS_PER_S) for each in points if each.itl_mean_s is not None]
    tail = [(each.in_flight, each.itl_p99_s * MS_PER_S) for each in points if each.itl_p99_s is not None]
    at = plan.operating
    marks = []
    if at is not None and at.itl_mean_s is not None:
        marks.append(Mark(at.in_flight, at.itl_mean_s * MS_PER_S, f"operating: {three_digits(at.in_flight)} in flight"))
    drawn = chart(
        "Latency against batch size, the recommended engine",
        [Series("ITL p99", tail, 1, "both"), Series("ITL mean", mean, 0, "both")],
        x="requests in flight on a replica",
        y="inter-token latency, ms",
        marks=marks,
        limits=[(limit * MS_PER_S, f"limit on {name}") for name, limit in plan.demand.objectives.itl_s.items()],
    )
    return Figure(Markup(drawn), "At the unfavourable end of the prediction, with the demand's own traffic.")


def payoff_chart(payoffs: Sequence[SpeculationPayoff]) -> str:
    """Return the speed-up of each kind of speculation against the batch size, as SVG."""
    series = [
        Series("", [(float(batch), ratio) for batch, ratio in each.payoff.speedups], place % TONES, "both")
        for place, each in enumerate(payoffs)
    ]
    alone = payoffs[0].payoff if len(payoffs) == 1 else None
    marks = []
    if alone is not None and alone.pays_to and not alone.is_open:
        marks.append(Mark(float(alone.pays_to), 1.0, f"pays to {alone.pays_to}"))
    return chart(
        "Speed-up of speculation against batch size, under full load",
        series,
        x="requests in flight on a replica",
        y="tokens/s over those without",
        marks=marks,
        limits=[(1.0, "as fast as without")],
        x_log=True,
    )


def _speculation(plan: CapacityPlan) -> Figure:
    drawn = payoff_chart(plan.speculation)
    first = plan.speculation[0].payoff
    key = tuple((place % TONES, f"{each.name}: {each.payoff.sentence}") for place, each in enumerate(plan.speculation))
    return Figure(Markup(drawn), f"Requests of {first.isl:,}/{first.osl:,} tokens, in closed form.", key)


def _load(plan: CapacityPlan) -> Figure:
    points = _looks(plan)
    series = [
        Series(
            name,
            [(each.rate_per_s, value * MS_PER_S) for each in points if (value := getattr(each, attribute)) is not None],
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
        marks.append(Mark(at.rate_per_s, at.ttft_p95_s * MS_PER_S, f"operating: {at.rate_per_s:.3g}/s"))
    drawn = chart(
        "Waiting against load, one replica",
        series,
        x="requests a second on a replica",
        y="TTFT, ms",
        marks=marks,
        limits=[(limit * MS_PER_S, f"limit on {name}") for name, limit in plan.demand.objectives.ttft_s.items()],
        y_log=True,
    )
    row = plan.chosen
    first = "" if row is None or row.limited_by is None else f": {row.limited_by} fails first"
    return Figure(Markup(drawn), f"The promised load is just below the lowest load that misses an objective{first}.")


def _tornado(plan: CapacityPlan, usd_per_month: float) -> Figure:
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
        usd_per_month,
        x="USD a month, the recommended row",
    )
    changes = any(case.changes for cases in by_lever.values() for case in cases)
    return Figure(Markup(drawn), "*: a different candidate would be recommended." if changes else "")


def _words(case: Case) -> str:
    replicas = "" if case.replicas is None else f" ({case.replicas})"
    return f"{case.moved}{replicas}{' *' if case.changes else ''}"
