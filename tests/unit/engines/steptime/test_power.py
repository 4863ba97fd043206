"""The power model: limits of physics, a measured GPU, and what it is not made for."""

from __future__ import annotations

import numpy as np
import pytest

from engines.spec import PlacedModel, SpeculativeDecoding, gpu_named, model_named, power_prior
from engines.steptime import PowerModel, StepShape, why_no_power

H100 = gpu_named("h100-sxm-80gb")
LLAMA = model_named("llama-3.1-8b")


def _model(precision: str = "bf16", **flags: int) -> PowerModel:
    return PowerModel(PlacedModel(LLAMA, H100, precision, "16bit", **flags))


def test_a_steady_batch_draws_what_nvml_reports() -> None:
    """ML.ENERGY's Llama-3.1-8B on an H100 with 64 sequences, 12.4 ms a step: 610 W."""
    shape = StepShape(64, 64 * 500)
    assert _model().joules(shape, 12.42e-3) / 12.42e-3 == pytest.approx(610, rel=0.1)


def test_a_slow_host_leaves_the_base_power() -> None:
    """The longer an iteration of the same work takes, the nearer its watts are to the base."""
    shape = StepShape(8, 8 * 500)
    watts = [_model().joules(shape, seconds) / seconds for seconds in (0.01, 0.1, 10.0)]
    assert watts == sorted(watts, reverse=True)
    assert watts[-1] == pytest.approx(0.182 * 700, rel=0.02)


def test_no_iteration_exceeds_the_board_s_limit() -> None:
    """A prompt at the peak rate is held at the limit, and its parts add up to it."""
    shape = StepShape(prefill_sequences=1, prefill_tokens=8192, prefill_attended_tokens=8192 * 4096)
    seconds = 8192 * 2 * LLAMA.linear_parameters / H100.dense_flops["bf16"]
    energy = _model().energy(shape, seconds)
    assert energy.joules / seconds == pytest.approx(0.985 * 700)
    assert energy.arithmetic_j > energy.memory_j


def test_many_iterations_at_once_have_each_one_s_joules() -> None:
    """As arrays and one by one, the joules are the same to the last digit, at the board's limit too."""
    rng = np.random.default_rng(0)
    shapes = [StepShape(*row) for row in rng.integers(0, 2_000, (200, 6)).tolist()]
    seconds = rng.uniform(1e-4, 0.3, 200)
    one_by_one = [_model().joules(shape, each_s) for shape, each_s in zip(shapes, seconds.tolist(), strict=True)]
    columns = [np.array(column, dtype=np.float64) for column in zip(*shapes, strict=True)]
    assert _model().joules_of(columns, seconds, np.minimum).tolist() == one_by_one
    at_limit = [joules / each_s > 0.984 * 700 for joules, each_s in zip(one_by_one, seconds.tolist(), strict=True)]
    assert 20 < sum(at_limit) < 180


def test_fp8_takes_less_energy_than_bf16_and_two_gpus_more_base_power() -> None:
    """Half the bytes and twice the peak; a second GPU draws its own base power for the same work."""
    shape = StepShape(64, 64 * 500)
    fp8, bf16 = _model("fp8").energy(shape, 0.02), _model().energy(shape, 0.02)
    assert fp8.memory_j < 0.8 * bf16.memory_j
    assert fp8.arithmetic_j < bf16.arithmetic_j
    two = _model(tensor_parallel=2).energy(shape, 0.02)
    assert two.base_j == pytest.approx(2 * bf16.base_j)
    assert two.memory_j == pytest.approx(bf16.memory_j)


def test_the_interval_is_wider_on_a_gpu_that_was_not_fitted() -> None:
    """The spread of other GPUs is twice that of the fitted ones."""
    other = PowerModel(PlacedModel(LLAMA, gpu_named("a100-sxm-80gb"), "bf16", "16bit"))
    assert other.interval[1] > _model().interval[1] > 1 > _model().interval[0]
    assert "other GPUs" in other.provenance


def test_no_power_is_invented() -> None:
    """A slice of a GPU has no board power of its own; the reason is stated."""
    slice_ = gpu_named("h100-sxm-80gb-mig-3g.40gb")
    assert "slice of a GPU" in (why_no_power(slice_) or "")
    with pytest.raises(ValueError, match="no board power"):
        PowerModel(PlacedModel(LLAMA, slice_, "bf16", "16bit"))


def test_power_of_speculative_decoding_is_not_guessed() -> None:
    """No run with drafts was measured: the reason is stated where the GPU alone would be known."""
    drafting = SpeculativeDecoding(
        method="ngram", draft_len=1, verified_tokens=1, acceptance=(0.5,), acceptance_source="the test"
    )
    assert why_no_power(gpu_named("h100-sxm-80gb")) is None
    assert "speculative decoding" in (why_no_power(gpu_named("h100-sxm-80gb"), drafting) or "")


def test_the_prior_states_its_evidence() -> None:
    """Source and spread are there, and the last spread holds for any GPU."""
    prior = power_prior()
    assert len(prior.source) > 30
    assert prior.spreads[-1].gpus == ()
