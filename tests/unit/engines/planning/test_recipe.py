"""Reading recipes."""

from __future__ import annotations

from pathlib import Path

import pytest

from engines.errors import UserError
from engines.files import Document, MadeBy
from engines.planning.plan import make_plan
from engines.planning.recipe import resolve_recipe

HEAD = Document(made_by=MadeBy(command="test", version="0"))


def test_workload_keys_of_earlier_versions_are_read_with_a_notice(tmp_path: Path) -> None:
    """`input_tokens` and its like set `isl` and its like; the plan's notices name the present keys."""
    path = tmp_path / "recipe.yaml"
    path.write_text(
        "workload: {input_tokens: 100, output_tokens: 50, longest_input_tokens: 200, longest_output_tokens: 300}\n",
        encoding="utf-8",
    )
    resolved = resolve_recipe(str(path), {"workload.osl": 60})
    assert resolved.recipe.workload.model_dump() == {"isl": 100, "osl": 60, "longest_isl": 200, "longest_osl": 300}
    assert (resolved.origin("workload.isl"), resolved.origin("workload.osl")) == ("recipe", "flag")
    notices = [notice.text for notice in make_plan(resolved, head=HEAD).notices if notice.code == "renamed-key"]
    assert len(notices) == 4
    assert notices[0] == "the recipe's workload.input_tokens is now called workload.isl; the old name is still read"


def test_present_workload_keys_bring_no_notice(tmp_path: Path) -> None:
    """A recipe in present names has nothing renamed."""
    path = tmp_path / "recipe.yaml"
    path.write_text("workload: {isl: 100, longest_osl: 300}\n", encoding="utf-8")
    assert resolve_recipe(str(path), {}).renamed == {}


def test_a_length_under_both_names_is_refused(tmp_path: Path) -> None:
    """Which of the two values counts would be a guess."""
    path = tmp_path / "recipe.yaml"
    path.write_text("workload: {isl: 100, input_tokens: 200}\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"workload\.input_tokens is the earlier name of workload\.isl"):
        resolve_recipe(str(path), {})


@pytest.mark.parametrize(("longest", "said"), [(100, True), (2023, True), (2024, False), ("auto", False)])
def test_a_sequence_shorter_than_the_workload_is_said(longest: int | str, said: bool) -> None:
    """The figures are those of the workload, which such an engine refuses."""
    resolved = resolve_recipe(None, {"limits.max_seq_len": longest, "workload.isl": 1000, "workload.osl": 1024})
    codes = {notice.code for notice in make_plan(resolved, head=HEAD).notices}
    assert ("workload-too-long" in codes) is said
