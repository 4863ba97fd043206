"""Decode lines of an engine's step time, remembered while a simulation runs, and runs of iterations along them."""

from __future__ import annotations

import math
from array import array
from bisect import bisect_right, insort
from collections.abc import Iterable

import numpy as np

from engines.steptime import DecodeLine, StepTime

_NO_LINE = (1, DecodeLine(0.0, 0.0, 0.0))  # a line that is valid nowhere
LONG_RUN = 40  # iterations from which a run is faster as an array than one by one


def decode_run(
    line: DecodeLine, context_tokens: int, later: Iterable[int], now_s: float, until_s: float
) -> tuple[float, list[float] | array[float]]:
    """Return the duration and the ends of decode iterations, up to the first that ends at `until_s` or later.

    Args:
        context_tokens: Sum of contexts of the first iteration; `later` has those of the iterations that may follow. The
            run ends before the first that the line does not serve.
    """
    base_s, slope_s, valid_to = line
    seconds = base_s + slope_s * context_tokens
    if isinstance(later, range) and len(later) >= LONG_RUN and now_s + LONG_RUN * seconds < until_s:
        upto = max(0, int(min(valid_to, later[-1]) - context_tokens) // later.step)
        if upto >= LONG_RUN:
            return _long_run(line, range(context_tokens, later[upto - 1] + 1, later.step), now_s, until_s)
    end_s = now_s + seconds
    ends_s = [end_s]
    for context in later:
        if end_s >= until_s or context > valid_to:
            break
        seconds += base_s + slope_s * context
        end_s = now_s + seconds
        ends_s.append(end_s)
    return seconds, ends_s


def _long_run(line: DecodeLine, contexts: range, now_s: float, until_s: float) -> tuple[float, array[float]]:
    """Return the same of iterations that the line serves all: the same sums, so the same figures to the last digit."""
    steps_s = np.arange(contexts.start, contexts.stop, contexts.step, dtype=np.float64)
    steps_s *= line.per_context_token_s
    steps_s += line.base_s
    spent_s = np.add.accumulate(steps_s)
    ends_s = now_s + spent_s
    count = len(ends_s)
    if ends_s[-1] > until_s:
        count = int(np.searchsorted(ends_s, until_s)) + 1
    return float(spent_s[count - 1]), array("d", ends_s[:count].tobytes())


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
