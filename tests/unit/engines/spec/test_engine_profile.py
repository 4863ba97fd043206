"""Engine profiles: what ships, how a spread is chosen, and what an unknown name is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from engines.errors import UserError
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


def test_an_unknown_profile_is_refused_with_the_nearest() -> None:
    """A slip of the pen is answered with what was meant."""
    with pytest.raises(UserError, match="unknown engine profile") as refused:
        engine_profile_named("vlm-v1")
    assert "vllm-v1" in (refused.value.hint or "")
