"""From the capacity of one replica to a purchase: rows, cost, recommendation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from engines.files import Strict
from engines.spec import Accelerator, is_accelerator_file, milliseconds
from engines.steptime import step_time_words
from engines.units import three_digits
from loadtest.capacity.accuracy import CandidateAccuracy, ranked_loss
from loadtest.capacity.candidates import RANK, Basis, Candidate
from loadtest.capacity.inputs import HOURS_PER_MONTH, SECONDS_PER_MONTH, Demand, Price
from loadtest.capacity.replica_count import replicas_text, size_for, total_for
from loadtest.capacity.simulation import (
    Carried,
    Constraint,
    FleetSize,
    FleetVerdict,
    LengthProfile,
    RateCurve,
    RateProbe,
    ReplicaCapacity,
)

Status = Literal[
    "possible", "refused", "objectives missed", "not cheaper", "no price", "over budget", "too many replicas"
]


class Sized(Strict):
    """A deployment's size at one end of the prediction interval, or at its middle.

    Attributes:
        rate_per_s: Requests per second that one replica can carry alone; at least this if `is_lower_bound`, because one
            replica carries the whole demand and its highest load was not searched.
        needed: Replicas that must be up at the peak; `replicas` includes spares.
        limited_by: The objective that is missed first.
        verdict: Result of the simulated fleet; None if the size follows from one replica's rate.
    """

    rate_per_s: float | None
    is_lower_bound: bool = False
    needed: int | None = None
    replicas: int | None = None
    usd_per_month: float | None = None
    limited_by: str | None = None
    verdict: FleetVerdict | None = None


class Row(Strict):
    """One candidate with all its figures.

    Attributes:
        rate_per_s: Promised requests per second of one replica alone; `fleet_per_s` per replica in the smallest fleet
            that was simulated.
        limited_by: The objective that is missed first as the load grows.
        replicas: Size of the whole deployment including spares; `needed` excludes spares.
        step_times: Their source; empty for a measured run.
        added: How many more replicas the fleet behind its router needs than one replica's own rate implies; negative
            if fewer.
        verdict: Result of the smallest simulated fleet; None if none was simulated.
        middle: The same deployment at the middle of the prediction; `optimistic` at its favourable end.
        usd_per_month: With every replica running all month.
        usd_per_million_tokens: Per million reply tokens of the month's traffic.
        beaten_by: A row of the same hardware and precision with better evidence, recommended instead.
        accuracy: What its precision loses against the demand's baseline; None if that was not measured.
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
    scheduler_policy: str | None = None
    interval_source: str = ""
    step_times: str = ""
    rate_per_s: float | None = None
    fleet_per_s: float | None = None
    limited_by: str | None = None
    binding: Constraint | None = None
    verdict: FleetVerdict | None = None
    middle: Sized | None = None
    optimistic: Sized | None = None
    needed: int | None = None
    added: int = 0
    replicas: int | None = None
    usd_per_month: float | None = None
    usd_per_million_tokens: float | None = None
    price: Price | None = None
    found: ReplicaCapacity | None = None
    beaten_by: str | None = None
    calibration: str | None = None
    accuracy: CandidateAccuracy | None = None

    @property
    def is_possible(self) -> bool:
        """Whether the row may be recommended."""
        return self.status == "possible" and self.beaten_by is None

    @property
    def cost(self) -> float:
        """What rows are ranked by: USD a month, or the number of accelerators without a price."""
        if self.usd_per_month is not None:
            return self.usd_per_month
        return math.inf if self.replicas is None else float(self.replicas * self.tensor_parallel)

    @property
    def accuracy_loss(self) -> float:
        """The loss that rows are compared by."""
        return ranked_loss(self.accuracy)

    @property
    def strain(self) -> float:
        """Largest ratio of a figure to its limit in the smallest simulated fleet; 1 if none was simulated."""
        return 1.0 if self.verdict is None else self.verdict.tried.worst_ratio

    @property
    def missed_windows(self) -> float:
        """Share of the simulated windows that the smallest fleet, which meets them together, misses alone."""
        return 0.0 if self.verdict is None else 1 - self.verdict.kept_windows / self.verdict.windows

    @property
    def is_run(self) -> bool:
        """Whether it is a run of a server, and no engine that could be simulated."""
        return self.max_batch_size is None

    @property
    def is_lower_bound(self) -> bool:
        """Whether one replica carries at least `rate_per_s`: its highest load was not searched."""
        return self.rate_per_s is not None and self.found is not None and self.found.promised.above_per_s is None

    @property
    def middle_rate_per_s(self) -> float | None:
        """Requests per second that one replica can carry alone, at the middle of the prediction."""
        return None if self.middle is None else self.middle.rate_per_s

    @property
    def sizes(self) -> tuple[Sized, ...]:
        """The promised, middle and optimistic deployment, where known."""
        promised = Sized(
            rate_per_s=self.rate_per_s,
            is_lower_bound=self.is_lower_bound,
            needed=self.needed,
            replicas=self.replicas,
            usd_per_month=self.usd_per_month,
            limited_by=self.limited_by,
            verdict=self.verdict,
        )
        return tuple(each for each in (promised, self.middle, self.optimistic) if each is not None)

    @property
    def at_knee(self) -> RateProbe | None:
        """The figures of a replica at its promised load."""
        return None if self.found is None else self.found.at_knee


class Market(Strict):
    """What the cost of rows is computed from.

    Attributes:
        peak_per_s: Planned peak: mean of the busiest `peak_window_s`, grown to the horizon.
        tokens_per_month: Reply tokens per month at the horizon.
        is_priced: False if all of the demand's accelerators are the user's own and none has a price. Plans then state
            no cost, and the fewest machines count as the cheapest.
    """

    peak_per_s: float
    tokens_per_month: float
    prices: dict[str, Price]
    is_priced: bool = True


def market_of(
    demand: Demand, curve: RateCurve, shape: LengthProfile, prices: dict[str, Price], own: Sequence[Accelerator] = ()
) -> Market:
    """Return the planned peak and the month's tokens, both grown to the horizon.

    Args:
        own: The demand's accelerators of the user's own.
    """
    named = {*demand.limits.gpu_names, *(run.gpu for run in demand.candidates.runs)}
    is_only_own = not demand.candidates.engines and all(is_accelerator_file(gpu) for gpu in named)
    return Market(
        peak_per_s=curve.peak_per_s * demand.growth,
        tokens_per_month=curve.mean_per_s * demand.growth * shape.mean_osl * SECONDS_PER_MONTH,
        prices=prices,
        is_priced=not (own and is_only_own and not any(each.name in prices for each in own)),
    )


def rows_of(demand: Demand, market: Market, found: Sequence[tuple[Candidate, ReplicaCapacity | None]]) -> list[Row]:
    """Return a row for each candidate: possible rows first, by increasing cost."""
    rows = [_row(demand, market, candidate, largest) for candidate, largest in found]
    return ranked([row.model_copy(update={"beaten_by": _beaten_by(row, rows)}) for row in rows])


def ranked(rows: Sequence[Row]) -> list[Row]:
    """Return rows sorted: possible rows first, by increasing cost."""
    return sorted(rows, key=_order)


def recommended(rows: Sequence[Row]) -> Row | None:
    """Return the cheapest possible row.

    At equal cost it is the one that loses least accuracy, then the one with better evidence, then the one that meets
    more of the simulated windows alone, then the one furthest from its limits.
    """
    return min((row for row in rows if row.is_possible), key=_preference, default=None)


def _preference(row: Row) -> tuple[float, float, int, float, float, str]:
    return *merit_of(row), row.missed_windows, row.strain, row.name


def merit_of(row: Row) -> tuple[float, float, int]:
    """Return what rows are compared by before any fleet is simulated: cost to the cent, accuracy loss, evidence."""
    return round(row.cost, 2), row.accuracy_loss, RANK[row.basis]


def _order(row: Row) -> tuple[bool, bool, tuple[float, float, int, float, float, str]]:
    return row.status != "possible", row.beaten_by is not None, _preference(row)


def _beaten_by(row: Row, rows: Sequence[Row]) -> str | None:
    """Return the best-supported row of the same GPU, precision and parallelism with better evidence, if any."""
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
        scheduler_policy=None if manifest is None else manifest.runtime.scheduler_policy,
        interval_source=candidate.interval_source,
        status="refused",
        reason=candidate.refused,
        found=found,
        calibration=candidate.calibration,
        accuracy=candidate.accuracy,
        price=market.prices.get(candidate.gpu),
    )
    if candidate.refused is not None or found is None:
        return row
    row = row.model_copy(
        update={
            "step_times": "" if manifest is None else step_time_words(manifest.step_time, manifest.gpu.name),
            "rate_per_s": found.rate_per_s,
            "limited_by": found.promised.limited_by,
            "binding": found.binding,
            "middle": sized(row, found.middle, demand, market),
            "optimistic": sized(row, found.optimistic, demand, market),
        }
    )
    if found.given_up:
        return row.model_copy(update={"status": "not cheaper", "reason": _too_slow(row, found, demand, market)})
    if found.rate_per_s is None:
        return row.model_copy(update={"status": "objectives missed", "reason": _missed(found)})
    return costed(row, demand, market)


def _missed(found: ReplicaCapacity) -> str:
    """Return what an idle engine, or the lowest load tried, misses."""
    idle = found.idle
    if idle is not None and not idle.met:
        factor = f"by a factor of {idle.worst_ratio:.3g}"
        return f"even an idle replica ({latencies_of(idle)}) misses {', '.join(idle.missed)}, {factor}"
    smallest = min(found.tried, key=lambda each: each.worst_ratio)
    return f"even {three_digits(smallest.rate_per_s)} requests/s miss {', '.join(smallest.missed)}"


def latencies_of(probe: RateProbe) -> str:
    """Return the latencies of a load in words; objectives are in seconds, which is easily confused."""
    known = (("TTFT p95", probe.ttft_p95_s), ("ITL p99", probe.itl_p99_s))
    found = [f"{name} {milliseconds(value)} ms" for name, value in known if value is not None]
    return ", ".join(found) or "no reply"


def _too_slow(row: Row, found: ReplicaCapacity, demand: Demand, market: Market) -> str:
    above = found.promised.above_per_s or 0.0
    size = size_for(market.peak_per_s, above, demand.availability)
    month = usd_per_month(row, size.total)
    return (
        f"a replica carries less than {three_digits(above)} requests/s ({found.promised.limited_by} fails first): "
        f"at least {replicas_text(size.total)}" + ("" if month is None else f", {month:,.0f} USD a month")
    )


def sized(row: Row, carried: Carried | None, demand: Demand, market: Market) -> Sized | None:
    """Return the size of a deployment that follows from one replica's rate."""
    if carried is None:
        return None
    if carried.rate_per_s is None:
        return Sized(rate_per_s=None, limited_by=carried.limited_by)
    size = size_for(market.peak_per_s, carried.rate_per_s, demand.availability)
    return Sized(
        rate_per_s=carried.rate_per_s,
        is_lower_bound=carried.above_per_s is None,
        needed=size.needed,
        replicas=size.total,
        usd_per_month=usd_per_month(row, size.total),
        limited_by=carried.limited_by,
    )


def resized(of: Sized, row: Row, found: FleetSize, demand: Demand) -> Sized:
    """Return a deployment with the size of the smallest fleet that was simulated."""
    if found.needed is None:
        return of.model_copy(update={"needed": None, "replicas": None, "usd_per_month": None})
    total = total_for(found.needed, demand.availability)
    return of.model_copy(
        update={
            "needed": found.needed,
            "replicas": total,
            "usd_per_month": usd_per_month(row, total),
            "limited_by": limit_of(found) or of.limited_by,
            "verdict": found.chosen,
        }
    )


def limit_of(found: FleetSize) -> str | None:
    """Return the objective that the next smaller fleet misses by most."""
    smaller = found.smaller
    return smaller.tried.missed[0] if smaller is not None and smaller.tried.missed else None


def usd_per_month(row: Row, replicas: int) -> float | None:
    """Return the monthly cost of this many replicas; None without a price."""
    if row.price is None:
        return None
    return replicas * row.tensor_parallel * row.price.usd_per_gpu_h * HOURS_PER_MONTH


def costed(row: Row, demand: Demand, market: Market) -> Row:
    """Return a row with its replicas, its cost, and whether both are within the limits."""
    rate_per_s = row.fleet_per_s or row.rate_per_s
    assert rate_per_s is not None
    size = size_for(market.peak_per_s, rate_per_s, demand.availability)
    return priced(row, demand, market, needed=size.needed, replicas=size.total)


def priced(row: Row, demand: Demand, market: Market, *, needed: int, replicas: int) -> Row:
    """Return a row with the given number of replicas, their cost, and whether both are within the limits."""
    price = market.prices.get(row.gpu)
    month = usd_per_month(row.model_copy(update={"price": price}), replicas)
    status, reason = _allowed(demand, market, row.gpu, replicas, month)
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


def _allowed(demand: Demand, market: Market, gpu: str, replicas: int, month: float | None) -> tuple[Status, str | None]:
    limits = demand.limits
    if month is None and (market.is_priced or limits.budget_usd_per_month is not None):
        return "no price", f"no price of {gpu} from {demand.prices.vendor}: set prices.usd_per_gpu_h.{gpu}"
    if replicas > limits.max_replicas:
        return "too many replicas", f"{replicas} replicas, limits.max_replicas is {limits.max_replicas}"
    if limits.budget_usd_per_month is not None and month is not None and month > limits.budget_usd_per_month:
        return "over budget", f"{month:,.0f} USD a month, the budget is {limits.budget_usd_per_month:,.0f}"
    return "possible", None
