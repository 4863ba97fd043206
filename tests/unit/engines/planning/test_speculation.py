"""Speculation in a plan: its draft model's memory, its acceptance, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from engines.errors import UserError
from engines.files import Document, MadeBy
from engines.planning import BuildPlan, emulated_manifest, make_plan, resolve_recipe

HEAD = Document(made_by=MadeBy(command="test", version="0"))
EAGLE3 = {
    "model": "qwen3-8b",
    "backend": "pytorch",
    "step_time": "roofline",
    "speculative.mode": "eagle3",
    "speculative.draft_model": "Tengyunw/qwen3_8b_eagle3",
    "speculative.max_draft_len": 3,
}


def _plan(**flags: Any) -> BuildPlan:
    return make_plan(resolve_recipe(None, {**EAGLE3, **flags}), head=HEAD)


def test_the_plan_holds_the_head_and_its_cache() -> None:
    """A head of 0.8 GB (as published) and one more layer of 36 in every block leave the cache that much smaller."""
    plan = _plan()
    plain = _plan(**{"speculative.mode": "none", "speculative.draft_model": None, "speculative.max_draft_len": 0})
    assert plan.memory.draft_weights_bytes == pytest.approx(0.8e9, rel=0.01)
    assert plan.kv_bytes_per_token == plain.kv_bytes_per_token * 37 // 36
    assert emulated_manifest(plan, resolve_recipe(None, EAGLE3).recipe).speculative == plan.speculation


def test_acceptance_has_a_source() -> None:
    """The default of a chain of two accepts 2.0 tokens a step, as measured; a given profile is used as it is."""
    two = _plan(**{"speculative.max_draft_len": 2}).speculation
    assert two is not None
    assert two.tokens_per_step == pytest.approx(2.0)
    assert "gpustack" in two.acceptance_source
    given = _plan(**{"speculative.acceptance": (0.596, 0.283, 0.145)}).speculation
    assert given is not None
    assert given.tokens_per_step == pytest.approx(2.023, abs=0.002)  # vLLM's own mean acceptance length beside these


def test_a_folder_of_a_head_states_its_size(tmp_path: Path) -> None:
    """A head of half the width of the feed-forward block and a full vocabulary is planned as its config.json says."""
    config = {"num_hidden_layers": 1, "hidden_size": 4096, "intermediate_size": 6144, "draft_vocab_size": 64_000}
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    found = _plan(**{"speculative.draft_model": str(tmp_path)}).speculation
    assert found is not None
    assert found.draft is not None
    assert (found.draft.intermediate_size, found.draft.vocab_size) == (6144, 64_000)


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        ({"speculative.acceptance": (0.6,)}, "has 1 rates"),
        ({"speculative.acceptance": (0.5, 0.6, 0.1)}, "rises"),
        ({"speculative.max_draft_len": 9}, "has 8 positions"),
        ({"speculative.max_total_draft_tokens": 2, "speculative.acceptance": (0.6, 0.4, 0.2)}, "less than"),
    ],
)
def test_what_cannot_be_accepted_is_refused(flags: dict[str, Any], text: str) -> None:
    """A profile of another length, one that rises, a draft beyond the default, a tree smaller than its depth."""
    with pytest.raises(UserError, match=text):
        _plan(**flags)


def test_without_a_source_nothing_is_predicted() -> None:
    """N-grams have no default acceptance: the plan says that its figures decode one token a step."""
    plan = _plan(**{"speculative.mode": "ngram", "speculative.draft_model": None})
    assert plan.speculation is None
    assert any(notice.code == "speculative-not-predicted" for notice in plan.notices)
