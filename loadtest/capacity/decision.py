"""From what one replica carries to what to buy: rows, their cost, the recommendation, the nearest possible demand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from engines.files import Strict
from loadtest.capacity.candidates import RANK, Basis, Candidate
from loadtest.capacity.inputs import HOURS_PER_MONTH, Demand, Price
from loadtest.capacity.replica_count import size_for
from loadtest.capacity.simulation import Constraint, LengthProfile, RateCurve, RateProbe, ReplicaCapacity

SECONDS_PER_MONTH = HOURS_PER_MONTH * 3600
Status = Literal["possible", "refused", "objectives missed", "no price", "over budget", "too many replicas"]


class Row(Strict):
    """One candidate, with all that is known of it.

    Attributes:
        rate_per_s: Requests a second that one replica is promised to carry.
        replicas: Of the whole deployment, with those that may be lost; `needed` without.
        added: Of `needed`, those that a replica's own load would not have asked for, but the fleet behind a router did.
        usd_per_month: With every replica up all month.
        usd_per_million_tokens: Reply tokens of the whole month's traffic.
        beaten_by: A row of the same hardware and precision that rests on better evidence; it is recommended instead.
    """

    name: str
    basis: Basis
    gpu: str
    precision: str
    tensor_parallel: int
    max_batch_size: int | None
    max_num_tokens: int | None
    kv_tokens: int | None
    status: Status
    reason: str | None = None
    rate_per_s: float | None = None
    middle_rate_per_s: float | None = None
    binding: Constraint | None = None
    needed: int | None = None
    added: int = 0
    replicas: int | None = None
    usd_per_month: float | None = None
    usd_per_million_tokens: float | None = None
    price: Price | None = None
    found: ReplicaCapacity | None = None
    beaten_by: str | None = None
    calibration: str | None = None

    @property
    def is_possible(self) -> bool:
        """Whether it may be recommended."""
        return self.status == "possible" and self.beaten_by is None

    @property
    def at_knee(self) -> RateProbe | None:
        """The figures of a replica at the promised load."""
        return None if self.found is None else self.found.at_knee


class Market(Strict):
    """What rows are costed against.

    Attributes:
        peak_per_s: Planned for: the peak, grown to the horizon.
        tokens_per_month: Reply tokens of a month at the horizon.
    """

    peak_per_s: float
    tokens_per_month: float
    prices: dict[str, Price]


def market_of(demand: Demand, curve: RateCurve, shape: LengthProfile, prices: dict[str, Price]) -> Market:
    """Return the planned peak and the month's tokens, both grown to the horizon."""
    return Market(
        peak_per_s=curve.peak_per_s * demand.growth,
        tokens_per_month=curve.mean_per_s * demand.growth * shape.mean_osl * SECONDS_PER_MONTH,
        prices=prices,
    )


def rows_of(demand: Demand, market: Market, found: Sequence[tuple[Candidate, ReplicaCapacity | None]]) -> list[Row]:
    """Return a row for each candidate: possible ones first, the cheapest of them first."""
    rows = [_row(demand, market, candidate, most) for candidate, most in found]
    return in_order([row.model_copy(update={"beaten_by": _beaten_by(row, rows)}) for row in rows])


def in_order(rows: Sequence[Row]) -> list[Row]:
    """Return rows with the possible ones first, the cheapest of them first."""
    return sorted(rows, key=_order)


def recommended(rows: Sequence[Row]) -> Row | None:
    """Return the cheapest possible row; of equal ones the one that rests on better evidence."""
    possible = [row for row in rows if row.is_possible]
    return min(possible, key=lambda row: (row.usd_per_month or 0.0, RANK[row.basis], row.name), default=None)


def _order(row: Row) -> tuple[bool, bool, float, int, str]:
    return (
        row.status != "possible",
        row.beaten_by is not None,
        row.usd_per_month if row.usd_per_month is not None else float("inf"),
        RANK[row.basis],
        row.name,
    )


def _beaten_by(row: Row, rows: Sequence[Row]) -> str | None:
    """Return the row of the same GPU, precision and parallelism that rests on better evidence, the best of them."""
    of_pair = (row.gpu, row.precision, row.tensor_parallel)
    better = [
        each
        for each in rows
        if (each.gpu, each.precision, each.tensor_parallel) == of_pair
        and RANK[each.basis] < RANK[row.basis]
        and each.status != "refused"
    ]
    best = min(better, key=lambda each: (RANK[each.basis], each.usd_per_month or float("inf")), default=None)
    return None if best is None else best.name


def _row(demand: Demand, market: Market, candidate: Candidate, found: ReplicaCapacity | None) -> Row:
    manifest = candidate.manifest
    cache = None if manifest is None else manifest.kv_cache
    row = Row(
        name=candidate.name,
        basis=candidate.basis,
        gpu=candidate.gpu,
        precision=candidate.precision,
        tensor_parallel=candidate.tensor_parallel,
        max_batch_size=None if manifest is None else manifest.limits.max_batch_size,
        max_num_tokens=None if manifest is None else manifest.limits.max_num_tokens,
        kv_tokens=None if cache is None else cache.blocks * cache.tokens_per_block,
        status="refused",
        reason=candidate.refused,
        found=found,
        calibration=candidate.calibration,
        price=market.prices.get(candidate.gpu),
    )
    if candidate.refused is not None or found is None:
        return row
    row = row.model_copy(
        update={
            "rate_per_s": found.rate_per_s,
            "middle_rate_per_s": found.middle_rate_per_s,
            "binding": found.binding,
        }
    )
    if found.rate_per_s is None:
        least = min(found.tried, key=lambda each: each.worst_ratio)
        reason = f"even {least.rate_per_s:.3g} requests/s miss {', '.join(least.missed)}"
        return row.model_copy(update={"status": "objectives missed", "reason": reason})
    return costed(row, demand, market)


def costed(row: Row, demand: Demand, market: Market) -> Row:
    """Return a row with its replicas and its cost, and whether the limits allow them."""
    assert row.rate_per_s is not None
    size = size_for(market.peak_per_s, row.rate_per_s, demand.availability)
    return priced(row, demand, market, needed=size.needed, replicas=size.total)


def priced(row: Row, demand: Demand, market: Market, *, needed: int, replicas: int) -> Row:
    """Return a row with so many replicas, their cost, and whether the limits allow them."""
    price = market.prices.get(row.gpu)
    month = None if price is None else replicas * row.tensor_parallel * price.usd_per_gpu_h * HOURS_PER_MONTH
    status, reason = _allowed(demand, row.gpu, replicas, month)
    return row.model_copy(
        update={
            "needed": needed,
            "replicas": replicas,
            "price": price,
            "usd_per_month": month,
            "usd_per_million_tokens": None if month is None else month / market.tokens_per_month * 1e6,
            "status": status,
            "reason": reason,
        }
    )


def _allowed(demand: Demand, gpu: str, replicas: int, month: float | None) -> tuple[Status, str | None]:
    limits = demand.limits
    if month is None:
        return "no price", f"no price of {gpu} from {demand.prices.vendor}: state prices.usd_per_gpu_h.{gpu}"
    if replicas > limits.max_replicas:
        return "too many replicas", f"{replicas} replicas, limits.max_replicas is {limits.max_replicas}"
    if limits.budget_usd_per_month is not None and month > limits.budget_usd_per_month:
        return "over budget", f"{month:,.0f} USD a month, the budget is {limits.budget_usd_per_month:,.0f}"
    return "possible", None


def sentence_of(demand: Demand, market: Market, row: Row, size_of_loss: int) -> str:
    """Return the recommendation in a sentence."""
    at = row.at_knee
    batch = "" if row.max_batch_size is None else f" (max batch size {row.max_batch_size}, {row.max_num_tokens} tokens)"
    binds = "" if row.binding is None else f"; what binds a replica is {row.binding}"
    sure = {
        "measured": "measured",
        "calibrated": "predicted with a calibration, at the unfavourable end of its interval",
        "predicted": "predicted without a calibration, at the end of what such predictions were off elsewhere",
        "emulated": "by an emulated engine, which says nothing of a GPU",
    }[row.basis]
    gpus = f"{row.tensor_parallel} x {row.gpu}" if row.tensor_parallel > 1 else row.gpu
    carried = "" if at is None or row.rate_per_s is None else f", each carrying {row.rate_per_s:.3g} requests/s"
    return (
        f"Run {row.replicas} replicas of {demand.model} in {row.precision} on {gpus}{batch}{carried} ({sure}): they "
        f"keep every objective at {market.peak_per_s:.3g} requests/s with {size_of_loss} of them lost, for "
        f"{row.usd_per_month:,.0f} USD a month or {row.usd_per_million_tokens:.3g} USD per million reply tokens{binds}."
    )


def nearest_possible(demand: Demand, market: Market, rows: Sequence[Row]) -> str:
    """Return what could be had where nothing that is asked for can: the smallest step from the demand."""
    short = [row for row in rows if row.status in ("over budget", "too many replicas") and row.rate_per_s]
    if short:
        return _smaller_traffic(demand, market, short)
    unpriced = [row for row in rows if row.status == "no price"]
    if unpriced:
        return "; ".join(dict.fromkeys(row.reason or "" for row in unpriced))
    missed = [row for row in rows if row.status == "objectives missed" and row.found is not None]
    if missed:
        return _looser_objectives(missed)
    return "; ".join(dict.fromkeys(f"{row.name}: {row.reason}" for row in rows))


def _smaller_traffic(demand: Demand, market: Market, rows: Sequence[Row]) -> str:
    """Return the most traffic that the limits allow, and the least limit that the traffic allows."""
    best_peak, best = 0.0, rows[0]
    for row in rows:
        peak = _most_peak(demand, market, row)
        if peak > best_peak:
            best_peak, best = peak, row
    cheapest = min(rows, key=lambda row: row.usd_per_month or float("inf"))
    fewest = min(rows, key=lambda row: row.replicas or 0)
    return (
        f"within the limits, {best.name} carries a peak of {best_peak:.3g} requests/s of the {market.peak_per_s:.3g} "
        f"asked for; all of it takes {cheapest.usd_per_month:,.0f} USD a month ({cheapest.name}), "
        f"or at least {fewest.replicas} replicas ({fewest.name})"
    )


def _most_peak(demand: Demand, market: Market, row: Row) -> float:
    """Return the highest peak whose replicas the limits allow."""
    low, high = 0.0, market.peak_per_s
    for _ in range(40):
        middle = (low + high) / 2
        is_allowed = costed(row, demand, market.model_copy(update={"peak_per_s": middle})).status == "possible"
        low, high = (middle, high) if is_allowed else (low, middle)
    return low


def _looser_objectives(rows: Sequence[Row]) -> str:
    """Return the candidate closest to its objectives at the least load, and by how much it misses them."""
    closest = min(rows, key=lambda row: min(each.worst_ratio for each in row.found.tried) if row.found else 0.0)
    assert closest.found is not None
    least = min(closest.found.tried, key=lambda each: each.worst_ratio)
    return (
        f"closest is {closest.name}: at {least.rate_per_s:.3g} requests/s it misses {', '.join(least.missed)} by a "
        f"factor of {least.worst_ratio:.3g}; limits that much looser are possible"
    )
