"""Where speculation pays is where its steps emit more tokens a second, and nowhere beyond."""

from __future__ import annotations

from typing import Any

from engines.files import Document, MadeBy
from engines.manifest import EngineManifest
from engines.planning import emulated_manifest, make_plan, payoff_of, resolve_recipe
from engines.steptime import StepShape, step_time_for

CONTEXT = 340


def _engine(*, draft_len: int, **flags: Any) -> EngineManifest:
    keys = {"model": "qwen3-8b", "backend": "pytorch", "step_time": "roofline", "speculative.mode": "eagle3"}
    keys |= {"speculative.draft_model": "head", "speculative.max_draft_len": draft_len}
    resolved = resolve_recipe(None, {**keys, **flags})
    return emulated_manifest(
        make_plan(resolved, head=Document(made_by=MadeBy(command="t", version="0"))), resolved.recipe
    )


def test_it_ends_where_one_token_a_step_is_as_fast() -> None:
    """At the last batch that pays, tokens a second are higher with drafts; one sequence more, they are not."""
    engine = _engine(draft_len=5)
    found = payoff_of(engine, context_tokens=CONTEXT)
    assert found is not None
    assert not found.is_open
    assert engine.speculative is not None
    drafting, plain = step_time_for(engine), step_time_for(engine.model_copy(update={"speculative": None}))
    for batch, pays in ((found.pays_to, True), (found.pays_to + 1, False)):
        shape = StepShape(batch, batch * CONTEXT)
        tokens = engine.speculative.tokens_per_step * plain.seconds(shape)
        assert (tokens > drafting.seconds(shape)) is pays


def test_longer_drafts_stop_paying_earlier() -> None:
    """Positions that are seldom accepted cost as much to verify as the first: a draft of 8 ends before one of 2."""
    ends = [payoff_of(_engine(draft_len=length), context_tokens=CONTEXT) for length in (2, 8)]
    assert ends[0] is not None
    assert ends[1] is not None
    assert ends[1].pays_to < ends[0].pays_to


def test_what_is_never_accepted_never_pays() -> None:
    """Drafts that are all rejected are slower at every batch size; without speculation there is nothing to say."""
    found = payoff_of(_engine(draft_len=3, **{"speculative.acceptance": (0.0, 0.0, 0.0)}), context_tokens=CONTEXT)
    assert found is not None
    assert found.pays_to == 0
    assert all(ratio < 1 for _, ratio in found.speedups)
    plain = _engine(draft_len=2).model_copy(update={"speculative": None})
    assert payoff_of(plain, context_tokens=CONTEXT) is None
