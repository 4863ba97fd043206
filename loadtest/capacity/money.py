"""A plan's energy and money: watts, joules, the price of tokens, GPUs that are owned, spot machines."""

from __future__ import annotations

from typing import NamedTuple

from engines.files import Strict
from engines.manifest import EngineManifest
from engines.steptime import power_model_for, step_time_for, why_no_power
from engines.units import SECONDS_PER_H
from loadtest.capacity.decision import Row
from loadtest.capacity.inputs import HOURS_PER_MONTH, SECONDS_PER_MONTH, Demand, Owned
from loadtest.capacity.simulation import Checked, RateProbe
from loadtest.capacity.spot import SpotMonths
from loadtest.metrics import TokenPrices, token_prices

SPLIT_NEEDS_ENGINE = "the row is a measured run, without a step-time model"
W_PER_KW = 1000.0


class PlanEnergy(Strict):
    """Predicted energy of the deployment's GPUs, at the middle of the prediction of step times.

    Attributes:
        peak_w: Watts of one replica at its share of the peak with the spares lost; `peak_range_w` is the 90 % interval
            of the power model.
        mean_w: Watts of one replica at its share of the mean load with every replica up; `mean_range_w` likewise.
        kwh_per_month: Of the whole deployment's GPUs at the mean load, without cooling.
        j_per_output_token: Of that, by the month's output tokens; prompts are in it.
        provenance: The power model and its spread.
    """

    peak_w: float
    peak_range_w: tuple[float, float]
    mean_w: float
    mean_range_w: tuple[float, float]
    kwh_per_month: float
    j_per_output_token: float
    provenance: str


class OwnedCost(Strict):
    """The same GPUs bought instead of rented.

    Attributes:
        capital_usd: Price of all GPUs with their servers.
        capital_usd_per_month: Written off over the months of the demand, less the resale.
        energy_usd_per_month: Servers and cooling.
        hosting_usd_per_month: Space, staff, maintenance.
        usd_per_month: All of it.
        usd_per_million_tokens: Per million output tokens of the month's traffic.
        break_even_month: From which on owning has cost less than renting, without resale; None: never within the
            amortisation, or nothing to compare with.
        note: Why there is no break-even; None if there is one.
    """

    gpus: int
    capital_usd: float
    capital_usd_per_month: float
    energy_usd_per_month: float
    hosting_usd_per_month: float
    usd_per_month: float
    usd_per_million_tokens: float
    break_even_month: float | None = None
    note: str | None = None


class SpotCost(Strict):
    """The same deployment on spot machines.

    Attributes:
        replicas: Smallest fleet that has enough replicas up for all but `max_short_ratio` of the time; None if no fleet
            up to three times the replicas needed does.
        short_ratio: Share of the time with fewer replicas than the peak needs.
        interruptions_per_month: Of the whole fleet.
        interruption: The fleet at the peak, with an interruption and the replacement's cold start, simulated.
    """

    replicas: int | None
    short_ratio: float | None = None
    interruptions_per_month: float | None = None
    usd_per_month: float | None = None
    usd_per_million_tokens: float | None = None
    interruption: Checked | None = None


class Money(Strict):
    """Energy and money of the recommended row.

    Attributes:
        energy_unknown: Why `energy` is None; likewise `prices_unknown`.
        prices: USD per million tokens by kind, at the mean load with every replica up.
    """

    energy: PlanEnergy | None = None
    energy_unknown: str | None = None
    prices: TokenPrices | None = None
    prices_unknown: str | None = None
    owned: OwnedCost | None = None
    owned_unknown: str | None = None
    spot: SpotCost | None = None


class Load(NamedTuple):
    """A month of the deployment.

    Attributes:
        mean_per_s: Requests a second of all replicas, mean; `tokens_per_month` are output tokens.
        mean_isl, mean_osl: Tokens of a request.
    """

    mean_per_s: float
    tokens_per_month: float
    mean_isl: float
    mean_osl: float


def money_of(
    demand: Demand,
    row: Row,
    load: Load,
    *,
    engine: EngineManifest | None,
    peak: RateProbe | None,
    mean: RateProbe | None,
    spot: SpotCost | None,
) -> Money:
    """Return energy and money of a row.

    Args:
        engine: None for a measured run.
        peak: One replica at its share of the peak, at the middle of the prediction; `mean` at its share of the mean.
    """
    energy, energy_unknown = _energy(row, load, engine, peak, mean)
    prices, prices_unknown = _prices(row, load, engine, mean)
    owned, owned_unknown = None, None
    if demand.owned is not None:
        if energy is None:
            owned_unknown = f"without its power, the cost of owning is unknown: {energy_unknown}"
        else:
            owned = owned_cost(demand.owned, row, load, energy.mean_w)
    return Money(
        energy=energy,
        energy_unknown=energy_unknown,
        prices=prices,
        prices_unknown=prices_unknown,
        owned=owned,
        owned_unknown=owned_unknown,
        spot=spot,
    )


def _energy(
    row: Row, load: Load, engine: EngineManifest | None, peak: RateProbe | None, mean: RateProbe | None
) -> tuple[PlanEnergy | None, str | None]:
    if engine is None:
        return None, "the row is a measured run: its own report states its watts"
    model = power_model_for(engine)
    if model is None:
        return None, why_no_power(engine.gpu, engine.speculative)
    if peak is None or mean is None or peak.power_w is None or mean.power_w is None:
        return None, "the loads were simulated without a power model"
    low, high = model.interval
    kwh = (row.replicas or 0) * mean.power_w / W_PER_KW * HOURS_PER_MONTH
    return (
        PlanEnergy(
            peak_w=peak.power_w,
            peak_range_w=(low * peak.power_w, min(model.max_w, high * peak.power_w)),
            mean_w=mean.power_w,
            mean_range_w=(low * mean.power_w, min(model.max_w, high * mean.power_w)),
            kwh_per_month=kwh,
            j_per_output_token=kwh * W_PER_KW * SECONDS_PER_H / load.tokens_per_month,
            provenance=model.provenance,
        ),
        None,
    )


def _prices(
    row: Row, load: Load, engine: EngineManifest | None, mean: RateProbe | None
) -> tuple[TokenPrices | None, str | None]:
    if row.usd_per_month is None:
        return None, "the row has no price"
    if engine is None or mean is None:
        return None, SPLIT_NEEDS_ENGINE
    batch = (mean.output_tokens_per_s or 0.0) * (mean.itl_mean_s or 0.0)
    found = token_prices(
        row.usd_per_month / SECONDS_PER_MONTH,
        step_time_for(engine),
        batch=batch,
        rates=(load.mean_per_s, load.mean_per_s * load.mean_isl, load.mean_per_s * load.mean_osl),
        cached_ratio=mean.cached_ratio,
    )
    return found, None if found is not None else "there are no tokens"


def owned_cost(owned: Owned, row: Row, load: Load, mean_w: float) -> OwnedCost:
    """Return the cost of a row's GPUs bought, and the month from which on that is less than renting.

    Args:
        mean_w: Watts of one replica's GPUs, mean over the month.
    """
    replicas = row.replicas or 0
    gpus = replicas * row.tensor_parallel
    watts = (replicas * mean_w + gpus * owned.other_w_per_gpu) * owned.pue
    energy = watts / W_PER_KW * HOURS_PER_MONTH * owned.usd_per_kwh
    hosting = gpus * owned.hosting_usd_per_gpu_month
    capital = gpus * owned.usd_per_gpu
    per_month = capital * (1 - owned.resale_ratio) / owned.amortisation_months
    total = per_month + energy + hosting
    month, note = _break_even(capital, energy + hosting, row.usd_per_month, owned.amortisation_months)
    return OwnedCost(
        gpus=gpus,
        capital_usd=capital,
        capital_usd_per_month=per_month,
        energy_usd_per_month=energy,
        hosting_usd_per_month=hosting,
        usd_per_month=total,
        usd_per_million_tokens=total / load.tokens_per_month * 1e6,
        break_even_month=month,
        note=note,
    )


def _break_even(capital: float, running: float, rent: float | None, months: float) -> tuple[float | None, str | None]:
    if rent is None:
        return None, "renting has no price to compare with"
    if rent <= running:
        return None, "running the GPUs alone costs more than renting them"
    found = capital / (rent - running)
    if found > months:
        return None, f"not within the amortisation: after {found:.0f} months"
    return found, None


def spot_cost(demand: Demand, row: Row, load: Load, found: SpotMonths | None, check: Checked | None) -> SpotCost:
    """Return what a row costs on spot machines."""
    spot = demand.spot
    assert spot is not None
    if found is None:
        return SpotCost(replicas=None)
    usd = found.total * row.tensor_parallel * spot.usd_per_gpu_h * demand.scale.price * HOURS_PER_MONTH
    return SpotCost(
        replicas=found.total,
        short_ratio=found.short_ratio,
        interruptions_per_month=found.interruptions_per_month,
        usd_per_month=usd,
        usd_per_million_tokens=usd / load.tokens_per_month * 1e6,
        interruption=check,
    )
