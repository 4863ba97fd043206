"""A scenario's file: what it may state."""

from __future__ import annotations

from pathlib import Path

import pytest

from engines.errors import UserError
from loadtest.scenario.schema import read_scenario, scenario_names


def test_a_scenario_states_one_kind_of_load(tmp_path: Path) -> None:
    """Users beside a rate, or a rate beside a process: one of them would be ignored in silence."""
    path = tmp_path / "two.yaml"
    for text, both in (
        ("concurrency: [4]\nrate_per_s: [2]\n", "both concurrency and rate_per_s are given"),
        (
            "rate_per_s: [2]\narrivals: {process: poisson, rate_per_s: 1, duration_s: 9}\n",
            "both rate_per_s and arrivals",
        ),
    ):
        path.write_text(text)
        with pytest.raises(UserError, match=both):
            read_scenario(str(path))
    path.write_text("concurrency: [4]\nrate_per_s:\n")
    assert read_scenario(str(path)).concurrency == (4,)


@pytest.mark.parametrize("name", scenario_names())
def test_each_shipped_scenario_is_read(name: str) -> None:
    """None of them states two."""
    assert read_scenario(name).name == name
