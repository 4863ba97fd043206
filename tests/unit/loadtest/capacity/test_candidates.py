"""Demands of which no candidate can be planned."""

from __future__ import annotations

from typing import Any

import pytest

from engines.errors import UserError
from loadtest.capacity.candidates import candidates_of
from loadtest.capacity.simulation import shape_of
from tests.unit.loadtest.capacity.made import HEAD, HERE, demand


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"model": "llama-70b"}, "unknown model 'llama-70b'"),
        (
            {"traffic": {"process": "described", "rate_per_s": 1.0, "lengths": {"isl": 9000, "osl": 150}}},
            "9,150 tokens on average; the context of llama-3-8b is 8,192",
        ),
    ],
)
def test_a_demand_that_no_engine_can_serve_is_an_error_of_its_own(changed: dict[str, Any], said: str) -> None:
    """Not a row for each candidate, and not the advice to loosen objectives."""
    asked = demand(**changed)
    with pytest.raises(UserError, match=said):
        candidates_of(asked, HERE, shape_of(asked, HERE), made_by=HEAD.made_by)
