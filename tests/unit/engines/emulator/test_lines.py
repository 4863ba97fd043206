"""Remembered decode lines: the source's own at every context, computed once for each of its segments."""

from __future__ import annotations

import math

import numpy as np
import pytest

from engines.emulator.lines import LONG_RUN, DecodeLines, decode_run
from engines.steptime import DecodeLine, StepCost, StepShape

SEGMENT_TOKENS = 100


class Segments:
    """A source whose line changes every 100 tokens of context; counts how often it is asked."""

    def __init__(self) -> None:
        self.asked = 0

    def cost(self, shape: StepShape) -> StepCost:
        """Return no cost."""
        raise NotImplementedError

    def seconds(self, shape: StepShape) -> float:
        """Return no duration."""
        raise NotImplementedError

    def decode_line(self, decode_sequences: int, decode_context_tokens: int) -> DecodeLine:
        """Return the segment's line."""
        self.asked += 1
        segment = decode_context_tokens // (SEGMENT_TOKENS * decode_sequences)
        return DecodeLine(decode_sequences, segment, SEGMENT_TOKENS * decode_sequences * (segment + 1))


def test_a_remembered_line_is_the_sources_own() -> None:
    """At contexts in any order, it is the source's line there, or at a segment's end the line up to it."""
    source, fresh = Segments(), Segments()
    lines = DecodeLines(source)
    rng = np.random.default_rng(0)
    for sequences, context in zip(rng.integers(1, 4, 4000).tolist(), rng.integers(1, 2000, 4000).tolist(), strict=True):
        found = lines.at(sequences, context)
        assert found in (fresh.decode_line(sequences, context), fresh.decode_line(sequences, context - 1))
    assert source.asked < 0.1 * fresh.asked / 2


def test_a_segment_is_computed_once() -> None:
    """A request after another one asks the source nothing."""
    source = Segments()
    lines = DecodeLines(source)
    for context in range(1, 1000):
        lines.at(1, context)
    asked = source.asked
    assert asked == 10
    for context in range(50, 1000):
        lines.at(1, context)
    assert source.asked == asked


@pytest.mark.parametrize("valid_to", [math.inf, 5_000.0, 5_000.7, 1_204.0, 900.0])
@pytest.mark.parametrize("sequences", [1, 3, 7])
@pytest.mark.parametrize("until_s", [math.inf, 2.0, 1.1, 0.5])
def test_a_long_run_is_the_same_as_one_iteration_at_a_time(valid_to: float, sequences: int, until_s: float) -> None:
    """Whether as an array or one by one, a run has the same ends to the last digit, and stops at the same iteration."""
    line = DecodeLine(0.0071, 1.3e-7, valid_to)
    for steps in (1, LONG_RUN - 1, LONG_RUN, 90, 4_000):
        contexts = range(1_001 + sequences, 1_001 + steps * sequences, sequences)
        seconds, ends_s = decode_run(line, 1_001, contexts, 0.7, until_s)
        one_by_one, each_s = decode_run(line, 1_001, list(contexts), 0.7, until_s)
        assert (seconds, list(ends_s)) == (one_by_one, each_s)
