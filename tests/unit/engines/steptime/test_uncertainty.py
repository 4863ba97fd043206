"""How far a profile may be off: ratios on step and host times, applied once."""

from __future__ import annotations

import math

import pytest

from engines.manifest import StepTimeChoice
from engines.spec import Factors, Host, PlacedModel, SpeculativeDecoding, engine_profile_named, gpu_named, model_named
from engines.steptime import Slowdown, StepShape, cached_step_time, step_time_of, uncertainty, uniform

LLAMA, H100 = model_named("llama-3.1-8b"), gpu_named("h100-sxm-80gb")
PLACED = PlacedModel(LLAMA, H100, "bf16", "16bit", tensor_parallel=2)
NGRAMS = SpeculativeDecoding(
    method="ngram", draft_len=2, verified_tokens=2, acceptance=(0.5, 0.5), acceptance_source="an assumption"
)
ADDED = {"iteration_s": 1e-3, "sequence_s": 1e-5, "prompt_s": 1e-4}


def test_nine_of_ten_lie_between_the_ends() -> None:
    """The ends are 1.645 standard deviations of the logarithm away, and say what they rest on."""
    profile = engine_profile_named("trtllm-1.x-triton")
    spread = profile.spread(precision="fp8", load="served")
    found = uncertainty(profile, precision="fp8")
    assert math.log(found.slow.step) == pytest.approx(1.645 * spread.step_log_sd)
    assert math.log(found.slow.host) == pytest.approx(1.645 * spread.host_log_sd)
    assert found.fast == pytest.approx((1 / found.slow.step, 1 / found.slow.host))
    assert str(spread.deployments) in found.provenance
    assert profile.name in found.provenance


def test_a_borrowed_spread_names_whose_it_is() -> None:
    """The current vLLM has no deployments of its own yet: it is not claimed to have."""
    found = uncertainty(engine_profile_named("vllm-v1-async"), precision="bf16")
    assert found.provenance.startswith("spread of 4 deployments of vllm-v1 (")


@pytest.mark.parametrize("source", ["roofline", "silicon"])
@pytest.mark.parametrize("speculative", [None, NGRAMS], ids=["plain", "n-grams"])
@pytest.mark.parametrize("shape", [StepShape(1, 500), StepShape(64, 64_000), StepShape(8, 4_000, 1, 256, 32_896)])
def test_an_end_slows_the_gpu_by_one_ratio_and_the_host_by_the_other(
    source: str, speculative: SpeculativeDecoding | None, shape: StepShape
) -> None:
    """Kernels, gaps, all-reduces and drafting are the GPU's, by whichever source; the rest is the host's."""
    choice = StepTimeChoice.model_validate({"source": source, "factors": Factors(verify_s=2e-3, **ADDED)})
    on_gpu = choice.model_copy(update={"factors": Factors(verify_s=2e-3)})
    gpu_s = step_time_of(on_gpu, PLACED, speculative=speculative).seconds(shape)
    host_s = step_time_of(choice, PLACED, speculative=speculative).seconds(shape) - gpu_s
    assert min(gpu_s, host_s) > 0
    ratios = Slowdown(step=1.2, host=3.7).parts(uniform(2.0))
    slow = cached_step_time(choice, PLACED, speculative=speculative, ratios=ratios)
    assert slow.seconds(shape) == pytest.approx(2 * (1.2 * gpu_s + 3.7 * host_s))
    assert slow.cost(shape).seconds == pytest.approx(slow.seconds(shape))


def test_an_end_slows_what_is_above_the_engine_as_host() -> None:
    """Latency and the rest above the engine take the host's ratio; an engine without a server has none."""
    choice = StepTimeChoice(source="roofline", host=Host(latency_s=2e-3, iteration_s=1e-3))
    assert Slowdown(1.2, 2.0).host_of(choice) == Host(latency_s=4e-3, iteration_s=2e-3)
    assert Slowdown(1.2, 2.0).host_of(StepTimeChoice(source="roofline")) == Host()
