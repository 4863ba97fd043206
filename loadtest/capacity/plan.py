"""Makes a capacity plan from a demand: search, sizing, recommendation, details, in one document."""

from __future__ import annotations

from datetime import date
from pathlib import Path

from engines.files import Document
from loadtest.capacity.decision import Row
from loadtest.capacity.inputs import SLICES, SMALL_GPUS, Demand, Price, old_prices, slices_without_price
from loadtest.capacity.payoff import payoffs_of
from loadtest.capacity.plan_money import with_money
from loadtest.capacity.recommendation import with_details
from loadtest.capacity.replica_count import total_for, worst_loss
from loadtest.capacity.schema import CapacityPlan, TrafficFacts
from loadtest.capacity.search import Searched, SearchOptions, cheapest_sized, search, smaller_gpu
from loadtest.capacity.sentences import nearest_possible, sentence_of


def make_capacity(
    demand: Demand, folder: Path, head: Document, options: SearchOptions, *, today: date, is_brief: bool = False
) -> CapacityPlan:
    """Return the plan of a demand; if no row is possible, it states the nearest possible demand.

    Args:
        folder: Where the demand's relative paths start.
        is_brief: Compute only the rows and the recommendation.
    """
    searched, options = search(demand, folder, head, options, today=today)
    if not is_brief:
        options.first_table(searched.rows)
    best = cheapest_sized(searched, options)
    is_small = best is not None and best.replicas == total_for(1, demand.availability)
    smaller = smaller_gpu(searched, best, head, options) if best is not None and is_small else None
    if smaller is not None and demand.limits.is_any_gpu:
        best, smaller = smaller, None
    sources = [*head.made_from, *(source for candidate, _ in searched.found for source in candidate.sources)]
    plan = CapacityPlan(
        made_by=head.made_by,
        made_from=list({source.path: source for source in sources}.values()),
        demand=demand,
        traffic=_facts(demand, searched),
        rows=searched.rows,
        recommended=None if best is None else best.name,
        sentence=None,
        nearest=None if best is not None else nearest_possible(demand, searched.market, searched.rows),
        warnings=(*old_prices(_used_prices(searched), today), *(_unpriced(searched) if is_small else ())),
        smaller_gpu=None if smaller is None else _smaller_text(smaller),
        speculation=payoffs_of((each for each, _ in searched.found), **_lengths(searched)),
    )
    if best is None:
        return plan
    if not is_brief:
        plan, best = with_details(plan, best, searched, options)
        plan = with_money(plan, best, searched, options)
    lost = worst_loss(best.replicas or 0, demand.availability)
    return plan.model_copy(update={"sentence": sentence_of(demand, searched.market, best, lost), "rows": searched.rows})


def _lengths(searched: Searched) -> dict[str, int]:
    """Return the mean prompt and reply length of the demand."""
    return {"isl": max(1, round(searched.shape.mean_isl)), "osl": max(1, round(searched.shape.mean_osl))}


def _smaller_text(row: Row) -> str:
    context = "" if row.kv_tokens is None else f"; its KV cache holds {row.kv_tokens:,} tokens"
    return f"{row.name} would carry it for {row.usd_per_month:,.0f} USD a month, but is not in limits.gpus{context}"


def _unpriced(searched: Searched) -> list[str]:
    """Return a warning that names the smaller GPUs that were not tried because they have no price."""
    prices = searched.market.prices
    if not searched.market.is_priced:
        return []
    slices = slices_without_price(prices)
    missing = [gpu for gpu in SMALL_GPUS if gpu not in prices and not (gpu in SLICES and SLICES[gpu][0] in prices)]
    if not missing:
        return slices
    return [
        *slices,
        f"one replica is enough, but smaller GPUs without a price of {searched.demand.prices.vendor} were not tried: "
        f"{', '.join(missing)}; set prices.usd_per_gpu_h or another prices.vendor",
    ]


def _used_prices(searched: Searched) -> list[Price]:
    """Return the price of each GPU that the cost of a row uses."""
    return list({row.gpu: row.price for row in searched.rows if row.price is not None}.values())


def _facts(demand: Demand, searched: Searched) -> TrafficFacts:
    curve, shape = searched.curve, searched.shape
    return TrafficFacts(
        peak_per_s=curve.peak_per_s,
        hour_per_s=curve.hour_per_s,
        planned_peak_per_s=searched.market.peak_per_s,
        mean_per_s=curve.mean_per_s,
        growth=demand.growth,
        is_day=curve.is_day,
        mean_isl=shape.mean_isl,
        mean_osl=shape.mean_osl,
        longest_isl=shape.longest_isl,
        longest_osl=shape.longest_osl,
        max_tokens=shape.max_tokens,
        tokens_per_month=searched.market.tokens_per_month,
    )
