"""Where speculation pays is where its steps emit more tokens a second, and nowhere beyond."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from engines.files import Document, MadeBy
from engines.manifest import EngineManifest
from engines.planning import Workload, emulated_manifest, engine_of, make_plan, outlook, payoff_of, resolve_recipe

ISL, OSL, LONG_OSL = 233, 221, 600


def _engine(*, draft_len: int, **flags: Any) -> EngineManifest:
    keys = {
        "model": "qwen3-8b",
        "backend": "pytorch",
        "step_time": "roofline",
        "speculative.mode": "eagle3",
        "limits.max_num_tokens": 8192,
    }
    keys |= {"speculative.draft_model": "head", "speculative.max_draft_len": draft_len}
    resolved = resolve_recipe(None, {**keys, **flags})
    return emulated_manifest(
        make_plan(resolved, head=Document(made_by=MadeBy(command="t", version="0"))), resolved.recipe
    )


def test_it_ends_where_one_token_a_step_is_as_fast() -> None:
    """A full engine at the last batch that pays makes more tokens a second with drafts; with one more, it does not."""
    engine = _engine(draft_len=8)
    found = payoff_of(engine, isl=ISL, osl=LONG_OSL)
    assert found is not None
    assert not found.is_open
    drafting = engine_of(engine)
    plain, workload = (
        replace(drafting, speculation=None),
        Workload(isl=ISL, osl=LONG_OSL, longest_isl=ISL, longest_osl=LONG_OSL),
    )
    for batch, pays in ((found.pays_to, True), (found.pays_to + 1, False)):
        ours, theirs = (
            outlook(each.limited(max_batch_size=batch, max_num_tokens=8192), workload) for each in (drafting, plain)
        )
        assert (ours.tokens_per_s > theirs.tokens_per_s) is pays


def test_no_batch_is_listed_whose_prompts_fill_every_iteration() -> None:
    """With replies of 40 tokens, a batch of 40 starts a prompt in every step: the closed form ends before it."""
    found = payoff_of(_engine(draft_len=2), isl=ISL, osl=40)
    assert found is not None
    assert found.speedups[-1][0] < 40


def test_longer_drafts_stop_paying_earlier() -> None:
    """Positions that are seldom accepted cost as much to verify as the first: a draft of 8 ends before one of 2."""
    ends = [payoff_of(_engine(draft_len=length), isl=ISL, osl=OSL) for length in (2, 8)]
    assert ends[0] is not None
    assert ends[1] is not None
    assert ends[1].pays_to < ends[0].pays_to


def test_what_is_never_accepted_never_pays() -> None:
    """Drafts that are all rejected are slower at every batch size; without speculation there is nothing to say."""
    found = payoff_of(_engine(draft_len=3, **{"speculative.acceptance": (0.0, 0.0, 0.0)}), isl=ISL, osl=OSL)
    assert found is not None
    assert found.pays_to == 0
    assert all(ratio < 1 for _, ratio in found.speedups)
    plain = _engine(draft_len=2).model_copy(update={"speculative": None})
    assert payoff_of(plain, isl=ISL, osl=OSL) is None
