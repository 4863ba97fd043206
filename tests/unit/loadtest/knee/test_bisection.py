"""The search for the highest load that keeps every objective."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engines.errors import UserError
from loadtest.knee.bisection import MAX_PROBES, Probe, find_knee


@given(
    limit=st.floats(0.1, 1000),
    start=st.floats(0.1, 1000),
    tolerance=st.sampled_from([0.02, 0.05, 0.2]),
    whole=st.booleans(),
)
def test_the_bracket_holds_the_limit(limit: float, start: float, tolerance: float, whole: bool) -> None:
    """Whatever the limit and the start, the knee is met, what is above it is not, and the two are close."""
    lowest, highest = (1, 1000) if whole else (0.1, 1000.0)
    start = max(1, round(start)) if whole else start
    found = find_knee(
        lambda load: Probe(load, load <= limit),
        start=start,
        lowest=lowest,
        highest=highest,
        tolerance=tolerance,
        is_whole=whole,
    )
    assert len(found.probes) <= MAX_PROBES
    if limit < lowest:
        assert (found.load, found.above) == (None, lowest)
    elif limit >= highest:
        assert (found.load, found.above) == (highest, None)
    else:
        assert found.load is not None
        assert found.above is not None
        assert found.load <= limit < found.above
        assert found.above <= found.load * (1 + tolerance) or (whole and found.above == found.load + 1)


def test_no_load_is_tried_twice() -> None:
    """A probe costs minutes on a wall clock: each load is asked for once."""
    found = find_knee(lambda load: Probe(load, load <= 37), start=8, lowest=1, highest=512, is_whole=True)
    loads = [probe.load for probe in found.probes]
    assert len(loads) == len(set(loads))


def test_a_lower_miss_is_believed() -> None:
    """Where noise lets a higher load pass and a lower one fail, the knee is below everything that was missed."""
    rng = random.Random(1)
    for _ in range(50):
        found = find_knee(lambda load: Probe(load, load + rng.gauss(0, 20) <= 100), start=64, lowest=1, highest=1024)
        missed = [probe.load for probe in found.probes if not probe.met]
        assert found.load is None or not missed or found.load < min(missed)


def test_the_binding_objective_is_named() -> None:
    """What the load just above the knee missed is what binds."""
    found = find_knee(
        lambda load: Probe(load, load <= 10, () if load <= 10 else ("ttft_s p95",)), start=1, lowest=1, highest=100
    )
    assert found.missed == ("ttft_s p95",)


def test_limits_out_of_order_are_refused() -> None:
    """A search has to begin inside its limits."""
    with pytest.raises(UserError, match="from 10 to 5"):
        find_knee(lambda load: Probe(load, met=True), start=7, lowest=10, highest=5)
