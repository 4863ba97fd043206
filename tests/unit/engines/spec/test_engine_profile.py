"""Engine profiles: what ships, how a spread is chosen, and what an unknown name is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from engines.errors import UserError
from engines.spec import KvFormat, PlacedModel, gpu_named, model_named, waves_on
from engines.spec.deployment import Factors, Host, loaded
from engines.spec.engine_profile import DEFAULT_ENGINE_PROFILE, engine_profile_named, engine_profiles

VALIDATION = Path(__file__).parents[4] / "validation"


def test_every_profile_names_evidence_that_is_there() -> None:
    """Each was fitted to folders of validation/ that exist, and says how each number came about."""
    assert DEFAULT_ENGINE_PROFILE in engine_profiles()
    for profile in engine_profiles().values():
        assert len(profile.source) > 30
        assert profile.fitted_to
        for folder in profile.fitted_to:
            assert (VALIDATION.parent / folder).is_dir(), folder


def test_an_engine_alone_has_no_host() -> None:
    """The engine's factors are the executor's; the server above takes from its loop only where it runs."""
    triton, bench = engine_profile_named("triton"), engine_profile_named("trtllm-bench")
    assert bench.host == Host()
    assert triton.factors == bench.factors
    assert loaded(triton.factors, None) == triton.factors
    served = loaded(triton.factors, triton.host)
    assert served.prompt_s == pytest.approx(triton.factors.prompt_s + triton.host.prompt_s)
    assert loaded(Factors(), Host(latency_s=1.0)) == Factors()


def test_a_spread_of_the_load_is_preferred() -> None:
    """Running alone has the spread of engines, where the profile knows it; a precision nobody measured takes any."""
    triton = engine_profile_named("trtllm-1.x-triton")
    assert triton.spread(precision="fp8", load="engine").load == "engine"
    assert triton.spread(precision="fp8", load="served").precision == "any"
    assert engine_profile_named("vllm-v1").spread(precision="bf16", load="engine").load == "served"


@pytest.mark.parametrize(
    ("gpu", "kv_format", "tensor", "waves"),
    [
        ("h100-sxm-80gb", "fp8", 1, (132 / 32, 4.0, 4)),
        ("h100-sxm-80gb", "fp8", 2, (132 * 2 / 32, 4.0, 4)),
        ("a100-sxm-80gb", "16bit", 1, (108 / 32, 4.0, 1)),  # its kernel's registers are not stated
    ],
)
def test_waves_follow_from_gpu_model_and_cache(
    gpu: str, kv_format: KvFormat, tensor: int, waves: tuple[float, float, int]
) -> None:
    """Llama-3-8B has 32 query heads, four to a KV head; the GPUs have 132 and 108 multiprocessors."""
    placed = PlacedModel(model_named("llama-3-8b"), gpu_named(gpu), "fp8", kv_format, tensor)
    factors = engine_profile_named("nim-2024").factors_on(placed)
    assert (factors.wave_sequences, factors.wave_reads, factors.wave_blocks) == waves
    assert engine_profile_named("trtllm-1.x-triton").factors_on(placed).wave_sequences == 1.0


def test_a_head_of_256_is_not_bounded() -> None:
    """Upstream bounds the registers of heads of 64 and 128, and of 256 with beams alone."""
    wide = model_named("llama-3-8b").model_copy(update={"head_size": 256})
    assert waves_on(PlacedModel(wide, gpu_named("h100-sxm-80gb"), "fp8", "fp8")).blocks == 1


def test_an_unknown_profile_is_refused_with_the_nearest() -> None:
    """A slip of the pen is answered with what was meant."""
    with pytest.raises(UserError, match="unknown engine profile") as refused:
        engine_profile_named("vlm-v1")
    assert "vllm-v1" in (refused.value.hint or "")
