"""What a million tokens cost: the parts add up to the price, and a split without a model is refused."""

from __future__ import annotations

import pytest

from engines.spec import PlacedModel, gpu_named, model_named
from engines.steptime import Roofline, request_gpu_time
from loadtest.metrics import GpuPrice, summarize, token_prices, with_cost
from loadtest.results import Sample
from tests.unit.loadtest.made import GENERATION, level, manifest, record

LLAMA = Roofline(PlacedModel(model_named("llama-3.1-8b"), gpu_named("h100-sxm-80gb"), "bf16", "16bit"))
USD_PER_S = 3.6 / 3600


def test_the_parts_add_up_to_what_the_gpu_costs() -> None:
    """A dollar per million of each kind, times its tokens a second, is the GPU's price a second."""
    rates = (5.0, 10_000.0, 1_000.0)
    found = token_prices(USD_PER_S, LLAMA, batch=32, rates=rates, cached_ratio=0.4)
    assert found is not None
    assert found.input is not None
    assert found.cached_input is not None
    assert found.output is not None
    paid = found.input * 6_000 + found.cached_input * 4_000 + found.output * 1_000
    assert paid / 1e6 == pytest.approx(USD_PER_S)
    assert found.cached_input < found.input / 5 < found.output


def test_output_costs_less_in_a_larger_batch() -> None:
    """Reading the weights is shared by the batch; computing a prompt is not."""
    few, many = (
        request_gpu_time(LLAMA, batch=batch, prompt_tokens=1000, cached_tokens=0, output_tokens=100)
        for batch in (4, 64)
    )
    assert many.output_s < few.output_s / 5
    assert many.input_s == pytest.approx(few.input_s, rel=0.2)
    assert few.cached_input_s == 0.0


def test_a_split_needs_a_step_time_model() -> None:
    """Without one the whole cost is stated, and why it is not split; with one, unreported cached tokens stay out."""
    tokens = [1.0 + 0.01 * place for place in range(100)]
    samples = [Sample(t_s=t, values={GENERATION: 1.0}) for t in (1.2, 1.5, 1.8)]
    summary = summarize(manifest(level(1, 0.0, 2.0)), [record(0, 0.5, tokens)], samples)
    price = GpuPrice(3.6, 1, "3.6 USD: a test")
    (plain,) = (each.cost for each in with_cost(summary, price, None).levels)
    assert plain is not None
    assert plain.split is None
    assert "--engine" in (plain.split_unknown or "")
    rate = summary.levels[0].output_tokens_per_s
    assert plain.usd_per_million_output_tokens == pytest.approx(1e6 * USD_PER_S / (rate or 0))
    (split,) = (each.cost for each in with_cost(summary, price, LLAMA).levels)
    assert split is not None
    assert split.split is not None
    assert split.split.cached_input is None
    assert "unknown" in split.split.method
