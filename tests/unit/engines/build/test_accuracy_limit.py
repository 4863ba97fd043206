"""The accuracy gate of build-engine."""

from __future__ import annotations

import pytest

from engines.cli.actions.build_engine import require_accuracy
from engines.errors import TargetMissedError, UserError
from engines.files import Document, MadeBy
from engines.manifest import CheckpointQuality, EngineManifest
from engines.planning import emulated_manifest
from engines.planning.plan import make_plan
from engines.planning.recipe import resolve_recipe


def _manifest(quality: CheckpointQuality | None) -> EngineManifest:
    asked = resolve_recipe(None, {})
    plan = make_plan(asked, head=Document(made_by=MadeBy(command="test", version="0")))
    return emulated_manifest(plan, asked.recipe).model_copy(update={"quality": quality})


QUALITY = CheckpointQuality(
    tokens=100, perplexity_source=10.0, perplexity_quantized=10.4, kl_divergence_nats=0.04, top1_agreement_ratio=0.9
)


def test_an_increase_within_the_limit_passes() -> None:
    """Four percent more is fine where five are allowed, and where nothing was asked."""
    require_accuracy(_manifest(QUALITY), 0.05)
    require_accuracy(_manifest(QUALITY), None)


def test_an_increase_beyond_the_limit_is_a_missed_target() -> None:
    """Status 3, with both figures."""
    with pytest.raises(TargetMissedError, match=r"raised perplexity by 4\.0%; the limit is 3\.0%") as missed:
        require_accuracy(_manifest(QUALITY), 0.03)
    assert missed.value.exit_status == 3


def test_a_gate_needs_something_to_measure() -> None:
    """An emulated engine has no accuracy to hold to anything."""
    with pytest.raises(UserError, match="nothing was quantized"):
        require_accuracy(_manifest(None), 0.05)
