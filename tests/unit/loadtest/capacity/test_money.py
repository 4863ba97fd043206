"""Energy, and owning against renting, by hand."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from loadtest.capacity.decision import Row
from loadtest.capacity.inputs import Owned
from loadtest.capacity.money import Load, money_of, owned_cost
from loadtest.capacity.simulation import RateProbe
from tests.unit.loadtest.capacity.made import demand, engine

OWNED = Owned(
    usd_per_gpu=30_000,
    amortisation_months=48,
    resale_ratio=0.2,
    usd_per_kwh=0.10,
    pue=1.5,
    other_w_per_gpu=200,
    hosting_usd_per_gpu_month=100,
    source="a test",
)
LOAD = Load(mean_per_s=1.0, tokens_per_month=1e9, mean_isl=100, mean_osl=100)


def _row(usd_per_month: float | None) -> Row:
    return Row(
        name="r", basis="predicted", gpu="h100-sxm-80gb", precision="fp8", tensor_parallel=2, max_batch_size=1,
        max_num_tokens=1, kv_tokens=1, status="possible", replicas=2, usd_per_month=usd_per_month,
    )  # fmt: skip


def test_the_cost_of_owning_is_capital_power_and_hosting() -> None:
    """Four GPUs: 2,000 USD written off, (2 x 800 + 4 x 200) W x 1.5 for 730 h, 400 for hosting."""
    found = owned_cost(OWNED, _row(9_000.0), LOAD, mean_w=800.0)
    assert found.gpus == 4
    assert found.capital_usd_per_month == pytest.approx(120_000 * 0.8 / 48)
    assert found.energy_usd_per_month == pytest.approx(2.4 * 1.5 * 730 * 0.10)
    assert found.hosting_usd_per_month == 400
    assert found.usd_per_month == pytest.approx(2_000 + 262.8 + 400)
    assert found.usd_per_million_tokens == pytest.approx(found.usd_per_month / 1000)
    assert found.break_even_month == pytest.approx(120_000 / (9_000 - 662.8))


def test_the_joules_of_a_token_are_the_months_energy_by_the_months_tokens() -> None:
    """Two replicas of 400 W for 730 h, by 1e9 tokens, whatever their number in the simulated window."""
    figures = dict.fromkeys(
        ("ttft_p50_s", "ttft_p95_s", "ttft_p99_s", "itl_mean_s", "itl_p99_s", "e2e_p95_s", "goodput")
    )
    peak = RateProbe(
        rate_per_s=1.0, met=True, missed=(), worst_ratio=0.5, requests=100, output_tokens_per_s=150.0, in_flight=1.0,
        kv_ratio=0.1, kv_max=0.2, power_w=600.0, **figures,
    )  # fmt: skip
    mean = peak.model_copy(update={"power_w": 400.0})
    found = money_of(demand(), _row(None), LOAD, engine=engine(), peak=peak, mean=mean, spot=None).energy
    assert found is not None
    assert found.kwh_per_month == pytest.approx(2 * 0.4 * 730)
    assert found.j_per_output_token == pytest.approx(2 * 400 * 730 * 3600 / 1e9)


@pytest.mark.parametrize(
    ("rent", "note"),
    [(None, "no price"), (600.0, "alone costs more"), (1_500.0, "not within the amortisation")],
)
def test_without_a_break_even_the_reason_is_stated(rent: float | None, note: str) -> None:
    """No price, rent below the running cost, or a month after the GPUs are written off."""
    found = owned_cost(OWNED, _row(rent), LOAD, mean_w=800.0)
    assert found.break_even_month is None
    assert note in (found.note or "")


def test_no_price_of_owning_is_assumed() -> None:
    """Electricity, cooling, hosting and the GPU's price are the user's, with their source."""
    with pytest.raises(ValidationError) as found:
        Owned()  # type: ignore[call-arg]
    missing = {str(error["loc"][0]) for error in found.value.errors()}
    assert {"usd_per_gpu", "usd_per_kwh", "pue", "hosting_usd_per_gpu_month", "source"} <= missing
