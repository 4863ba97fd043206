"""A plan in words: what to run and how certain its size is, or the nearest possible demand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from engines.units import three_digits
from loadtest.capacity.accuracy import interval_text
from loadtest.capacity.decision import Market, Row, costed, latencies_of
from loadtest.capacity.inputs import Demand
from loadtest.capacity.replica_count import replicas_text
from loadtest.capacity.simulation import RateProbe


def sentence_of(demand: Demand, market: Market, row: Row, size_of_loss: int) -> str:
    """Return the recommendation as sentences."""
    policy = ", max_utilization" if row.scheduler_policy == "max_utilization" else ""
    batch = f" (max batch size {row.max_batch_size}, {row.max_num_tokens} tokens{policy})"
    batch = "" if row.max_batch_size is None else batch
    gpus = f"{row.tensor_parallel} x {row.gpu}" if row.tensor_parallel > 1 else row.gpu
    replicas = replicas_text(row.replicas)
    lost = f" with {size_of_loss} of them lost" if size_of_loss else ""
    worst = None if row.accuracy is None else row.accuracy.worst
    loss = "" if worst is None else f", losing {worst.loss:.3f} of {worst.task}'s questions ({interval_text(worst)})"
    first = "" if row.limited_by is None else f"; {row.limited_by} fails first"
    cost = (
        ", at no stated price"
        if row.usd_per_month is None
        else f", for {row.usd_per_month:,.0f} USD a month or {row.usd_per_million_tokens:.3g} USD per million reply "
        "tokens"
    )
    return (
        f"Run {replicas} of {Path(demand.model).name} in {row.precision} on {gpus}{batch}: every objective is met at "
        f"{three_digits(market.peak_per_s)} requests/s{lost}{cost}{loss}{first}. {_certainty(row)}"
    )


def _certainty(row: Row) -> str:
    """Return the basis of the size, and the cost difference that a calibration would settle."""
    if row.basis == "measured":
        return "The rate of a replica was measured."
    sizes = [each for each in row.sizes if each.replicas is not None]
    counts = sorted({each.replicas for each in sizes if each.replicas is not None})
    if len(counts) == 1:
        return f"The size is the same at both ends of the prediction interval ({row.basis})."
    costs = [each.usd_per_month for each in sizes if each.usd_per_month is not None]
    middle = row.middle.replicas if row.middle is not None else None
    text = f"{counts[0]} to {counts[-1]} replicas"
    text += "" if middle is None else f", {middle} at the middle of the prediction ({row.basis})"
    if row.basis == "calibrated" or not costs:
        return f"{text}."
    return f"{text}; a calibration of one hour settles {max(costs) - min(costs):,.0f} USD a month. {narrowing(row)}"


def narrowing(row: Row) -> str:
    """Return the measurement that would narrow the interval most: loads around the point of the first miss."""
    rates = [each.rate_per_s for each in row.sizes if each.rate_per_s is not None]
    if not rates:
        return ""
    what = (row.limited_by or "latency").removesuffix(" p95").removesuffix(" p99")
    return (
        f"Measure one replica on {row.gpu} at six loads from {three_digits(min(rates) / 2)} to "
        f"{three_digits(max(rates))} requests/s with verify.yaml's lengths: {what} decides."
    )


def impossible(demand: Demand) -> str:
    """Return that nothing meets the demand."""
    return f"no deployment meets the objectives of {demand.name} within its limits"


def nearest_possible(demand: Demand, market: Market, rows: Sequence[Row]) -> str:
    """Return the nearest possible demand if the actual one is not possible; without any, why each row is refused."""
    short = [
        row for row in rows if row.status in ("over budget", "too many replicas", "not cheaper") and row.rate_per_s
    ]
    if short:
        return _smaller_traffic(demand, market, short)
    unpriced = [row for row in rows if row.status == "no price"]
    if unpriced:
        return "; ".join(dict.fromkeys(row.reason or "" for row in unpriced))
    missed = [row for row in rows if row.status == "objectives missed" and row.found is not None]
    if missed:
        return _looser_objectives(missed)
    return "; ".join(dict.fromkeys(f"{row.name}, {row.status}: {row.reason}" for row in rows))


def _smaller_traffic(demand: Demand, market: Market, rows: Sequence[Row]) -> str:
    """Return the highest traffic within the limits, and the lowest limits for the traffic."""
    best_peak, best = 0.0, rows[0]
    for row in rows:
        peak = _most_peak(demand, market, row)
        if peak > best_peak:
            best_peak, best = peak, row
    cheapest = min(rows, key=lambda row: row.usd_per_month or float("inf"))
    month = cheapest.usd_per_month
    price = "" if month is None else f"{month:,.0f} USD a month ({cheapest.name}), or "
    fewest = min(rows, key=lambda row: row.replicas or 0)
    within = (
        f"{best.name} carries a peak of {three_digits(best_peak)} requests/s of the demand's "
        f"{three_digits(market.peak_per_s)}"
        if best_peak > 0
        else "no candidate carries any of the demand"
    )
    return (
        f"nearest possible: within the limits, {within}; all of it takes {price}"
        f"at least {replicas_text(fewest.replicas)} ({fewest.name})"
    )


def _most_peak(demand: Demand, market: Market, row: Row) -> float:
    """Return the highest peak whose replicas are within the limits."""
    low, high = 0.0, market.peak_per_s
    for _ in range(40):
        middle = (low + high) / 2
        is_allowed = costed(row, demand, market.model_copy(update={"peak_per_s": middle})).status == "possible"
        low, high = (middle, high) if is_allowed else (low, middle)
    return low


def _looser_objectives(rows: Sequence[Row]) -> str:
    """Return the candidate closest to its objectives at the lowest load, and the factor by which it misses them."""
    closest = min(rows, key=lambda row: _smallest(row).worst_ratio)
    smallest = _smallest(closest)
    when = "idle" if not smallest.rate_per_s else f"at {three_digits(smallest.rate_per_s)} requests/s"
    if smallest.ttft_p50_s is None:
        return f"no request succeeds, not even on {closest.name} {when}: compare the demand's lengths with its context"
    return (
        f"nearest possible: {closest.name}, {when} ({latencies_of(smallest)}), misses {', '.join(smallest.missed)} "
        f"by a factor of {smallest.worst_ratio:.3g}; limits that much looser are possible (objectives are in seconds)"
    )


def _smallest(row: Row) -> RateProbe:
    """Return the probe, idle or at the lowest load, at which a row comes closest to its objectives."""
    assert row.found is not None
    tried = [*row.found.tried, *((row.found.idle,) if row.found.idle is not None else ())]
    smallest: RateProbe = min(tried, key=lambda each: each.worst_ratio)
    return smallest
