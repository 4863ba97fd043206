"""The growth of decoding sequences: the blocks of a run of iterations are those of its iterations."""

from __future__ import annotations

import pytest

from engines.emulator.growth import SteadyGrowth
from engines.emulator.request import Request
from engines.emulator.scheduler import Sequence

BLOCK = 4
PROMPTS = (1, 2, 3, 3, 4, 9)  # several need a block at the same iteration


@pytest.mark.parametrize("first", range(2 * BLOCK))
@pytest.mark.parametrize("count", range(3 * BLOCK))
def test_a_run_takes_the_blocks_of_its_iterations(first: int, count: int) -> None:
    """Over any run, shorter or longer than a block, it is the sum over its iterations."""
    growth = SteadyGrowth(BLOCK)
    for order, tokens in enumerate(PROMPTS):
        sequence = Sequence(Request(order, tokens, 100), order, 0.0, 100)
        sequence.start(order)
        growth.start(sequence)
    expected = sum(growth.blocks_at(index) for index in range(first, first + count))
    assert growth.blocks_between(first, first + count) == expected
