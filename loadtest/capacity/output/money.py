"""Energy and money of a plan as tables for the terminal and the page."""

from __future__ import annotations

from typing import NamedTuple

from loadtest.capacity.money import Money, OwnedCost, SpotCost
from loadtest.capacity.schema import CapacityPlan


class MoneyTable(NamedTuple):
    """A table of two or more columns with its title and notes."""

    title: str
    heads: tuple[str, ...]
    rows: list[list[str]]
    notes: list[str]


def money_tables(plan: CapacityPlan) -> list[MoneyTable]:
    """Return the tables of a plan's energy and money, those that it has."""
    money = plan.money
    if money is None:
        return []
    found = [_energy(money), _prices(money), _choices(plan, money)]
    return [each for each in found if each is not None]


def _energy(money: Money) -> MoneyTable:
    title = "Energy of the GPUs, predicted"
    energy = money.energy
    heads = ("", "predicted", "90 % interval")
    if energy is None:
        return MoneyTable(title, heads, [], [f"unknown: {money.energy_unknown}"])
    rows = [
        ["watts of a replica at the peak, spares lost", f"{energy.peak_w:,.0f}", _range(energy.peak_range_w)],
        ["watts of a replica at the mean load", f"{energy.mean_w:,.0f}", _range(energy.mean_range_w)],
    ]
    ratios = [watts / energy.mean_w for watts in energy.mean_range_w]
    for name, value, digits in (
        ("kWh a month, all replicas, without cooling", energy.kwh_per_month, ",.0f"),
        ("joules of that per output token", energy.j_per_output_token, ".3g"),
    ):
        low, high = (format(value * ratio, digits) for ratio in ratios)
        rows.append([name, format(value, digits), f"{low} to {high}"])
    return MoneyTable(title, heads, rows, [f"interval of the power model alone: {energy.provenance}"])


def _prices(money: Money) -> MoneyTable:
    title = "USD per million tokens, every replica up, at the mean load"
    heads = ("", "input", "cached input", "output")
    prices = money.prices
    if prices is None:
        return MoneyTable(title, heads, [], [f"not split: {money.prices_unknown}"])
    values = (prices.input, prices.cached_input, prices.output)
    cells = ["-" if each is None else f"{each:.3g}" for each in values]
    return MoneyTable(title, heads, [["by marginal GPU time", *cells]], [prices.method])


def _choices(plan: CapacityPlan, money: Money) -> MoneyTable | None:
    """Return the ways to pay for the GPUs; None if the demand asks for one only."""
    demand, row = plan.demand, plan.chosen
    if row is None or (demand.owned is None and demand.spot is None):
        return None
    terms = "rented" if row.price is None else f"rented, {row.price.terms.replace('_', ' ')}"
    rows = [[terms, str(row.replicas), _usd(row.usd_per_month), _per_million(row.usd_per_million_tokens)]]
    notes = []
    if money.spot is not None and demand.spot is not None:
        rows.append(_spot_row(money.spot))
        notes.append(_spot_note(plan, money.spot))
        notes.append(f"spot: {demand.spot.usd_per_gpu_h:g} USD per GPU hour: {demand.spot.source}")
    if money.owned is not None and demand.owned is not None:
        rows.append(_owned_row(money.owned, row.replicas or 0))
        notes.append(_owned_note(money.owned))
        notes.append(f"owned: {demand.owned.source}")
    if money.owned_unknown is not None:
        notes.append(f"owned: {money.owned_unknown}")
    heads = ("GPUs", "replicas", "USD/month", "USD/M output tokens")
    return MoneyTable("Rented, spot or owned", heads, rows, notes)


def _spot_row(spot: SpotCost) -> list[str]:
    replicas = "-" if spot.replicas is None else str(spot.replicas)
    return ["spot", replicas, _usd(spot.usd_per_month), _per_million(spot.usd_per_million_tokens)]


def _spot_note(plan: CapacityPlan, spot: SpotCost) -> str:
    rented = plan.demand.spot
    checked = spot.interruption
    if spot.replicas is None or rented is None:
        return "spot: no fleet of up to three times the replicas needed has enough of them up"
    short = (
        f"spot: {spot.interruptions_per_month:.3g} interruptions a month; fewer replicas than the peak needs for "
        f"{spot.short_ratio:.3%} of the time (simulated months)"
    )
    if checked is None:
        return f"{short}; an interruption leaves no replica up"
    verdict = "every objective is met" if checked.tried.met else f"missed: {', '.join(checked.tried.missed)}"
    return (
        f"{short}; at the peak with {rented.at_once} of {checked.replicas} withdrawn at {rented.notice_s:g} s "
        "notice: "
        f"{checked.retried} requests sent again, {verdict} while they are missing"
    )


def _owned_row(owned: OwnedCost, replicas: int) -> list[str]:
    return ["owned", str(replicas), _usd(owned.usd_per_month), _per_million(owned.usd_per_million_tokens)]


def _owned_note(owned: OwnedCost) -> str:
    month = owned.break_even_month
    means = f"break-even in month {month:.1f}" if month is not None else f"no break-even: {owned.note}"
    return (
        f"owned, {means}; {owned.gpus} GPUs for {owned.capital_usd:,.0f} USD: "
        f"{owned.capital_usd_per_month:,.0f} USD a month "
        f"written off, {owned.energy_usd_per_month:,.0f} for electricity (with cooling), "
        f"{owned.hosting_usd_per_month:,.0f} for hosting"
    )


def _range(ends: tuple[float, float]) -> str:
    return f"{ends[0]:,.0f} to {ends[1]:,.0f}"


def _usd(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}"


def _per_million(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"
