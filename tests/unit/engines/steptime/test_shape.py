"""Sums of step times."""

from __future__ import annotations

import numpy as np

from engines.steptime.shape import StepCost, in_order


def test_a_sum_is_the_same_on_every_python() -> None:
    """Added one by one, as compiled loops and arrays add; `sum` gives 1.0 from Python 3.12 on."""
    assert in_order([0.1] * 10) == 0.9999999999999999
    assert StepCost(*[0.1] * 10).seconds == 0.9999999999999999
    parts = np.random.default_rng(0).uniform(0, 1, (10, 500))
    assert sum(parts, start=np.zeros(500)).tolist() == [in_order(each) for each in parts.T.tolist()]
