"""Decode lines of an engine's step time, remembered while a simulation runs."""

from __future__ import annotations

import math
from bisect import bisect_right, insort

from engines.steptime import DecodeLine, StepTime

_NO_LINE = (1, DecodeLine(0.0, 0.0, 0.0))  # a line that is valid nowhere


class DecodeLines:
    """The lines of a step-time source; each serves the contexts from the lowest it was computed at to its end."""

    def __init__(self, step_time: StepTime) -> None:
        self._step_time = step_time
        # By number of sequences: the latest line, after the lowest context it was computed at.
        self._latest: dict[int, tuple[int, DecodeLine]] = {}
        # All of them, by where they end.
        self._known: dict[int, list[tuple[float, int, DecodeLine]]] = {}

    def at(self, sequences: int, context_tokens: int) -> DecodeLine:
        """Return the line at a sum of contexts of decoding sequences."""
        known_from, line = self._latest.get(sequences, _NO_LINE)
        if known_from <= context_tokens <= line.valid_to_context_tokens:
            return line
        known_from, line = self._latest[sequences] = self._found(sequences, context_tokens)
        return line

    def _found(self, sequences: int, context_tokens: int) -> tuple[int, DecodeLine]:
        known = self._known.setdefault(sequences, [])
        place = bisect_right(known, (context_tokens, math.inf))
        if place < len(known) and known[place][1] <= context_tokens:
            return known[place][1:]
        line = self._step_time.decode_line(sequences, context_tokens)
        if place < len(known) and known[place][0] == line.valid_to_context_tokens:
            del known[place]
        insort(known, (line.valid_to_context_tokens, context_tokens, line))
        return context_tokens, line
