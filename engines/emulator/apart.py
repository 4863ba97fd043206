"""Iterations of prompts alone: sequences that decode stand still meanwhile, as in SGLang.

Without `--enable-mixed-chunk`, SGLang computes prompts as soon as it may, and lets its running requests decode only
when no prompt can start. The batcher then counts decode steps, by which every counter of a sequence follows, and this
class says which iterations those were.

Source:
    SGLang 0.5, `managers/scheduler.py` (get_next_batch_to_run, get_new_batch_prefill, update_running_batch), read
    2026-11-30.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable
from typing import Protocol

KEPT = 4096  # iterations of prompts beyond which those are dropped that no decoding sequence has seen


class Decoding(Protocol):
    """A sequence, as far as its decode steps are concerned."""

    decode_index: int


class PromptIterations:
    """The iterations of prompts alone, by the decode steps before them.

    Decode step `s` is iteration `s` plus the iterations of prompts before it.
    """

    def __init__(self) -> None:
        self._steps: list[int] = []  # of each iteration of prompts, the decode step that followed; ascending
        self._dropped = 0
        self._limit = KEPT

    def __len__(self) -> int:
        """Return how many there have been."""
        return self._dropped + len(self._steps)

    def note(self, step: int, decoding: Iterable[Decoding]) -> None:
        """Note one before a decode step.

        Args:
            decoding: The sequences whose spans will be asked for.
        """
        self._steps.append(step)
        if len(self._steps) > self._limit:
            oldest = min((each.decode_index for each in decoding), default=step)
            seen = bisect_left(self._steps, oldest)
            del self._steps[:seen]
            self._dropped += seen
            self._limit = KEPT + 2 * len(self._steps)

    def spans(self, first: int, step: int, last: int) -> list[tuple[int, int]]:
        """Return the iterations of a sequence's tokens as spans: its first token's, then those of its decode steps.

        Args:
            first: Iteration of its first token.
            step: Its first decode step; `last`: its last one, before `step` if it has made none.

        >>> prompts = PromptIterations()
        >>> for before in (0, 2, 2):
        ...     prompts.note(before, ())
        >>> prompts.spans(0, 0, 3)
        [(0, 2), (5, 6)]
        """
        begin, end = bisect_right(self._steps, step), bisect_right(self._steps, last)
        pieces = [(first, first)]
        for place in range(begin, end + 1):
            until = self._steps[place] - 1 if place < end else last
            if until >= step:
                before = self._dropped + place
                pieces.append((step + before, until + before))
                step = until + 1
        joined = pieces[:1]
        for piece in pieces[1:]:
            if piece[0] == joined[-1][1] + 1:
                joined[-1] = (joined[-1][0], piece[1])
            else:
                joined.append(piece)
        return joined
