"""How far a profile may be off: factors on step and host times, laid on once."""

from __future__ import annotations

import math

import pytest

from engines.manifest import StepTimeChoice
from engines.spec import Factors, Host, PlacedModel, engine_profile_named, gpu_named, model_named
from engines.steptime import StepShape, step_time_of, uncertainty, with_time_ratios

LLAMA, H100 = model_named("llama-3.1-8b"), gpu_named("h100-sxm-80gb")


def test_nine_of_ten_lie_between_the_ends() -> None:
    """The ends are 1.645 standard deviations of the logarithm away, and say what they rest on."""
    profile = engine_profile_named("trtllm-1.x-triton")
    spread = profile.spread(precision="fp8", load="served")
    found = uncertainty(profile, precision="fp8")
    assert math.log(found.step_high) == pytest.approx(1.645 * spread.step_log_sd)
    assert found.step_low == pytest.approx(1 / found.step_high)
    assert str(spread.deployments) in found.provenance
    assert profile.name in found.provenance


def test_a_slowed_engine_takes_that_much_longer() -> None:
    """Kernels by the one ratio, host time by the other; nothing twice."""
    choice = StepTimeChoice(
        source="roofline",
        factors=Factors(iteration_s=1e-3, sequence_s=1e-5, prompt_s=1e-4),
        host=Host(latency_s=2e-3, iteration_s=1e-3),
    )
    slow = with_time_ratios(choice, step_ratio=1.2, host_ratio=2.0)
    shape = StepShape(8, 8000)
    plain = step_time_of(choice, PlacedModel(LLAMA, H100, "bf16", "16bit")).cost(shape)
    slower = step_time_of(slow, PlacedModel(LLAMA, H100, "bf16", "16bit")).cost(shape)
    assert slower.weights_s == pytest.approx(1.2 * plain.weights_s)
    assert slower.kv_read_s == pytest.approx(1.2 * plain.kv_read_s)
    assert slower.host_s - plain.host_s == pytest.approx(2e-3 + 8e-5)
    assert slow.host == Host(latency_s=4e-3, iteration_s=2e-3)
