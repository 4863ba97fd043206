"""A demand file: what its errors suggest."""

from __future__ import annotations

import pytest

from engines.errors import UserError
from engines.files import validate
from loadtest.capacity.inputs import Demand

_OBJECTIVES = {"ttft_s": {"p95": 1.0}}


@pytest.mark.parametrize(
    ("traffic", "said", "hint"),
    [
        ({"process": "poisson", "rate_per_s": 3}, "not 'poisson'", "did you mean 'described'? It draws random"),
        ({"rate_per_s": 3}, "it is missing", "'described' draws random"),
    ],
)
def test_a_scenarios_arrivals_in_a_demand_are_told_what_a_demand_calls_them(
    traffic: dict[str, object], said: str, hint: str
) -> None:
    """`poisson` is right in a scenario; in a demand it is `described`."""
    with pytest.raises(UserError) as caught:
        validate({"name": "x", "objectives": _OBJECTIVES, "traffic": traffic}, Demand, where="demand.yaml")
    assert caught.value.message.startswith("demand.yaml: traffic: 'process' must be one of 'described', 'trace'")
    assert said in caught.value.message
    assert caught.value.hint is not None
    assert caught.value.hint.startswith(hint)
