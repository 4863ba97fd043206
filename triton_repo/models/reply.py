"""Replies of an emulated engine: the prompt's own tokens, repeated, subject to the request's rules."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from typing import Any, Literal

import numpy as np

Words = tuple[tuple[int, ...], ...]
Array = np.ndarray[Any, Any]


class ReplyError(Exception):
    """A request's rules cannot be followed; the text is TensorRT-LLM's."""


@dataclass(frozen=True, slots=True)
class Rules:
    """A request's rules for its reply.

    Attributes:
        end_id: Token that ends the reply and is not part of it; None or negative: no such token.
        min_tokens: Number of tokens before `end_id` may be chosen.
        stop_words: Token sequences that end the reply and are its last part.
        bad_words: Token sequences that never occur.
    """

    end_id: int | None = None
    min_tokens: int = 0
    stop_words: Words = ()
    bad_words: Words = ()


class Reply:
    """The tokens of one reply, by engine step.

    An end token costs a step like any other but is not part of the output, as in TensorRT-LLM's sampling ("seq len
    should always contain only tokens to be outputted").

    Attributes:
        ends_after: Steps after which the reply ends by its rules; None: it has the requested length.
        why: What ends it then.
    """

    def __init__(self, prompt: Array, limit: int, rules: Rules, *, vocabulary: int) -> None:
        self._prompt = prompt
        self._ruled: list[int | None] | None = None
        self.ends_after: int | None = None
        self.why: Literal["length", "end", "stop"] = "length"
        if _binds(prompt, rules):
            self._ruled = list(self._by_rule(limit, rules, vocabulary))
            if self.why != "length":
                self.ends_after = len(self._ruled)

    def token(self, index: int) -> int | None:
        """Return the token of a step; None for the end token."""
        if self._ruled is not None:
            return self._ruled[index]
        return int(self._prompt[index % len(self._prompt)])

    def tokens(self, limit: int) -> Array:
        """Return the output tokens of the whole reply; shape (at most limit,)."""
        if self._ruled is None:
            return np.resize(self._prompt, limit)
        return np.array([token for token in self._ruled if token is not None], self._prompt.dtype)

    def cut(self, steps: int) -> None:
        """End the reply after this many steps, as a stop word would."""
        self.ends_after, self.why = steps, "stop"

    def _by_rule(self, limit: int, rules: Rules, vocabulary: int) -> Iterator[int | None]:
        walk = _Walk(self._prompt.tolist(), rules, vocabulary)
        while len(walk.made) < limit:
            token = walk.step()
            if token == rules.end_id:
                self.why = "end"
                yield None
                return
            yield token
            if walk.is_stopped():
                self.why = "stop"
                return


class _Walk:
    """Generates a reply under rules.

    The cost of a step grows with the prompt and with the number of different word lengths, not with the number of
    words, so a request with thousands of words delays nobody.
    """

    def __init__(self, prompt: list[int], rules: Rules, vocabulary: int) -> None:
        self.made: list[int] = []
        never = {word[0] for word in rules.bad_words if len(word) == 1}
        self._prompt = [token for token in prompt if token not in never]
        self._others = (token for token in range(vocabulary) if token not in never and token != rules.end_id)
        self._spare: list[int] = []  # of other tokens, those computed so far
        self._position = 0
        self._rules = rules
        self._stops = _by_length(rules.stop_words)
        self._stop_ends = {word[-1] for word in rules.stop_words if word}
        self._bad: dict[int, dict[tuple[int, ...], set[int]]] = {}  # by the length before the last token
        for word in rules.bad_words:
            if len(word) > 1:
                self._bad.setdefault(len(word) - 1, {}).setdefault(word[:-1], set()).add(word[-1])

    def step(self) -> int:
        """Return the prompt's next token, cyclically, that is allowed; any other allowed token if none is.

        Raises:
            ReplyError: No token is allowed.
        """
        barred = self._barred()
        count = len(self._prompt)
        for offset in range(count):
            token = self._prompt[(self._position + offset) % count]
            if token not in barred:
                self._position = (self._position + offset + 1) % count
                return self._made(token)
        for token in chain(self._spare, self._more()):
            if token not in barred:
                return self._made(token)
        raise ReplyError("bad_words_list leaves no token to choose")

    def _more(self) -> Iterator[int]:
        for token in self._others:
            self._spare.append(token)
            yield token

    def is_stopped(self) -> bool:
        """Return whether the output ends with a stop word."""
        if self.made[-1] not in self._stop_ends:
            return False
        return any(self._last(length) in words for length, words in self._stops.items())

    def _barred(self) -> set[int]:
        """Return the tokens that would complete a bad word or end the reply too early."""
        early = len(self.made) < self._rules.min_tokens and self._rules.end_id is not None
        barred = {self._rules.end_id} if early and self._rules.end_id is not None else set()
        return barred.union(*(words.get(self._last(length), ()) for length, words in self._bad.items()))

    def _made(self, token: int) -> int:
        if token != self._rules.end_id:
            self.made.append(token)
        return token

    def _last(self, length: int) -> tuple[int, ...]:
        return tuple(self.made[len(self.made) - length :]) if 0 < length <= len(self.made) else ()


def prompt_words(flat: Sequence[int]) -> Words:
    """Return the words of a list in TensorRT-LLM's format: all tokens, then each word's end offset, then -1s.

    Raises:
        ReplyError: The list is malformed; the message is the backend's.

    >>> prompt_words([7, 8, 9, 1, 3, -1])
    ((7,), (8, 9))
    """
    values = "".join(f"{value} " for value in flat)
    if len(flat) % 2:
        raise ReplyError(f"Sparse list must not have odd length: {values}")
    count = len(flat) // 2
    tokens, ends = list(flat[:count]), list(flat[count:])
    real = ends[: ends.index(-1)] if -1 in ends else ends
    if any(end != -1 for end in ends[len(real) :]):
        raise ReplyError(f"Sparse list must not have additional -1s: {values}")
    if any(end > count for end in real):
        raise ReplyError(f"Sparse list must not have out-of-bound offsets: {values}")
    if any(after <= before for before, after in pairwise(real)):
        raise ReplyError(f"Sparse list must not have non-increasing offsets: {values}")
    begins = [0, *real][: len(real)]
    return tuple(tuple(tokens[begin : max(begin, end)]) for begin, end in zip(begins, real, strict=True))


def _binds(prompt: Array, rules: Rules) -> bool:
    """Return whether any rule can affect the prompt's own tokens; most requests need no walk."""
    seen = {rules.end_id} if rules.end_id is not None and rules.end_id >= 0 else set()
    words = [word for word in (*rules.stop_words, *rules.bad_words) if word]
    if not seen and not words:
        return False
    here = set(prompt.tolist())
    return bool(seen & here) or any(set(word) <= here for word in words)


def _by_length(words: Words) -> dict[int, set[tuple[int, ...]]]:
    found: dict[int, set[tuple[int, ...]]] = {}
    for word in words:
        if word:
            found.setdefault(len(word), set()).add(word)
    return found
