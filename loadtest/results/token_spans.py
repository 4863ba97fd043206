"""Token times of simulated requests: a list of iterations shared by all, and each request's spans of it.

All tokens of an iteration leave at the same time, so they need not be stored individually; with speculation, a request
may have several in one. An hour of 72,000 replies
has 22 million tokens but a quarter of a million iterations; every figure is computed from iterations and their weights.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

_Floats = npt.NDArray[np.float64]
_Ints = npt.NDArray[np.int64]
_Bools = npt.NDArray[np.bool_]


class Weighted(NamedTuple):
    """Values with multiplicities; both of shape (values,)."""

    values: _Floats
    weights: _Ints

    def sorted(self) -> Weighted:
        """Return them sorted."""
        if (self.weights == self.weights[:1]).all():  # all alike: numpy sorts values alone ten times faster
            return Weighted(np.sort(self.values), self.weights)
        order = np.argsort(self.values, kind="stable")
        return Weighted(self.values[order], self.weights[order])


@dataclass(frozen=True, slots=True)
class TokenSpans:
    """The token times of some requests.

    Attributes:
        left_s: When the tokens of each iteration left; shape (iterations,).
        row: The request of each span, ascending; shape (spans,).
        first: Iteration of the span's first token; `last`: of its last one; one response in each from first to last.
        requests: Number of requests, including those without a token.
        counts: Tokens of each response, span after span; None: one each. Gaps are between responses.
    """

    left_s: _Floats
    row: _Ints
    first: _Ints
    last: _Ints
    requests: int
    counts: _Ints | None = None

    def select(self, chosen: _Bools) -> TokenSpans:
        """Return the spans of the selected requests, renumbered in the same order."""
        in_span = chosen[self.row]
        numbers = np.cumsum(chosen) - 1
        return replace(
            self,
            row=numbers[self.row[in_span]],
            first=self.first[in_span],
            last=self.last[in_span],
            requests=int(chosen.sum()),
            counts=None if self.counts is None else self.counts[np.repeat(in_span, self.last - self.first + 1)],
        )

    def times_s(self) -> Weighted:
        """Return when tokens left, and how many at each time."""
        if self.counts is None:
            weights = _coverage(len(self.left_s), self.first, self.last)
        else:
            weights = np.zeros(len(self.left_s), dtype=np.int64)
            np.add.at(weights, self._iterations(), self.counts)
        some = weights > 0
        return Weighted(self.left_s[some], weights[some])

    def gaps(self) -> tuple[Weighted, _Floats]:
        """Return the gaps between a request's responses with their multiplicities, and their midpoints in time."""
        weights = _coverage(len(self.left_s), self.first + 1, self.last)
        some = np.flatnonzero(weights)
        before, after = self._pauses()
        earlier = np.concatenate([self.left_s[some - 1], before])
        later = np.concatenate([self.left_s[some], after])
        counts = np.concatenate([weights[some], np.ones(len(before), dtype=np.int64)])
        return Weighted(later - earlier, counts), (later + earlier) / 2

    def gap_counts(self) -> _Ints:
        """Return the number of gaps of each request; shape (requests,)."""
        return np.maximum(self.response_counts() - 1, 0)

    def response_counts(self) -> _Ints:
        """Return the number of responses with tokens of each request; shape (requests,)."""
        return np.bincount(self.row, weights=self.last - self.first + 1, minlength=self.requests).astype(np.int64)

    def token_counts(self) -> _Ints:
        """Return the number of tokens of each request; shape (requests,)."""
        if self.counts is None:
            return self.response_counts()
        rows = np.repeat(self.row, self.last - self.first + 1)
        return np.bincount(rows, weights=self.counts, minlength=self.requests).astype(np.int64)

    def gaps_passing(self, limit_s: float, *, or_equal: bool) -> _Floats:
        """Return the number of each request's gaps above a limit, or also at it; shape (requests,)."""
        steps = np.diff(self.left_s, prepend=np.nan)
        passes = steps >= limit_s if or_equal else steps > limit_s
        upto = np.concatenate([[0], np.cumsum(passes)])
        found: _Floats = np.bincount(
            self.row, weights=upto[self.last + 1] - upto[self.first + 1], minlength=self.requests
        ).astype(np.float64)
        before, after = self._pauses()
        pauses = after - before
        found += np.bincount(
            self.row[1:][self._goes_on()],
            weights=pauses >= limit_s if or_equal else pauses > limit_s,
            minlength=self.requests,
        )
        return found

    def longest_gap_s(self) -> _Floats:
        """Return the longest gap of each request; 0 without gaps; shape (requests,)."""
        found = np.zeros(self.requests)
        some = self.last > self.first
        if some.any():
            steps = np.diff(self.left_s, prepend=0.0, append=0.0)  # one past the end: a span may end with the list
            ends = np.stack([self.first[some] + 1, self.last[some] + 1], axis=1).ravel()
            np.maximum.at(found, self.row[some], np.maximum.reduceat(steps, ends)[::2])
        before, after = self._pauses()
        np.maximum.at(found, self.row[1:][self._goes_on()], after - before)
        return found

    def gaps_s(self) -> _Floats:
        """Return every gap, one request after another, not by weight: nearly as many values as tokens."""
        iterations = self._iterations()
        lengths = self.last - self.first + 1
        starts = np.cumsum(lengths) - lengths
        is_gap = np.ones(len(iterations), dtype=bool)
        is_gap[starts[np.diff(self.row, prepend=-1) > 0]] = False
        found: _Floats = np.diff(self.left_s[iterations], prepend=0.0)[is_gap]
        return found

    def notable_times_s(self) -> tuple[_Floats, _Floats, _Floats]:
        """Return when the first, the second and the last token of each request left; nan without one."""
        first_s, second_s, last_s = (np.full(self.requests, np.nan) for _ in range(3))
        last_s[self.row] = self.left_s[self.last]  # of several spans of a request, the last assignment counts
        opens = np.diff(self.row, prepend=-1) > 0
        first_s[self.row[opens]] = self.left_s[self.first[opens]]
        seconds = np.where(self.last > self.first, self.first + 1, -1)
        goes_on = np.append(self._goes_on(), [False]) if len(self.row) else np.zeros(0, dtype=bool)
        # After a first span of one token, the second token is in the next span.
        behind = np.flatnonzero(goes_on & (seconds < 0))
        seconds[behind] = self.first[behind + 1]
        known = opens & (seconds >= 0)
        second_s[self.row[known]] = self.left_s[seconds[known]]
        return first_s, second_s, last_s

    def _iterations(self) -> _Ints:
        """Return the iteration of every response, span after span."""
        lengths = self.last - self.first + 1
        starts = np.cumsum(lengths) - lengths
        found: _Ints = np.arange(int(lengths.sum())) + np.repeat(self.first - starts, lengths)
        return found

    def _goes_on(self) -> _Bools:
        """Whether each span but the first continues the request of the span before it, after a pause."""
        found: _Bools = self.row[1:] == self.row[:-1]
        return found

    def _pauses(self) -> tuple[_Floats, _Floats]:
        """Return when the token before and the token after each pause left."""
        goes_on = self._goes_on()
        return self.left_s[self.last[:-1][goes_on]], self.left_s[self.first[1:][goes_on]]


def _coverage(length: int, first: _Ints, last: _Ints) -> _Ints:
    """Return the number of ranges, ends included, that cover each index."""
    begins = np.bincount(first, minlength=length + 1)[: length + 1]
    ends = np.bincount(last + 1, minlength=length + 1)[: length + 1]
    return np.cumsum(begins - ends)[:length]
