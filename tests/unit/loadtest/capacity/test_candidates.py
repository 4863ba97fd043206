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


@pytest.mark.parametrize("gpu", ["l4-24gb", "a100-sxm-80gb"])
def test_another_objective_never_enlarges_an_engine(gpu: str) -> None:
    """A demand with fewer objectives allows every engine that one with more does: its batch is at least as large."""
    objectives: dict[str, Any] = {"ttft_s": {"p95": 1.5}}
    few = _batches(gpu, objectives)
    more = _batches(gpu, objectives | {"itl_s": {"p95": 0.1}})
    assert few
    assert all(few[name] >= batch > 1 for name, batch in more.items())


def _batches(gpu: str, objectives: dict[str, Any]) -> dict[tuple[str, int], int]:
    """Return the batch limit of each engine, by precision and token budget of 512 or 2,048."""
    asked = demand(
        model="llama-3.1-8b",
        traffic={"process": "described", "rate_per_s": 1.0, "lengths": {"isl": 700, "osl": 150}},
        objectives=objectives,
        limits={"gpus": [gpu], "precisions": ["bf16", "int8_sq"]},
        candidates={"max_num_tokens": [512, 2048], "scheduler_policy": "guaranteed_no_evict"},
    )
    found = candidates_of(asked, HERE, shape_of(asked, HERE), made_by=HEAD.made_by)
    engines = [each.manifest for each in found if each.manifest is not None]
    return {(each.precision.name, each.limits.max_num_tokens): each.limits.max_batch_size for each in engines}
