"""Remembered decode lines: the source's own at every context, computed once for each of its segments."""

from __future__ import annotations

import numpy as np

from engines.emulator.lines import DecodeLines
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
