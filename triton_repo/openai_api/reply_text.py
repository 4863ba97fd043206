"""From the tokens of one reply to the text that a client sees of it."""

from __future__ import annotations

from collections.abc import Sequence

from triton_repo.models.text import TextStream
from triton_repo.openai_api.reasoning import Piece, ReasoningSplitter
from triton_repo.openai_api.stop_strings import StopStrings


class ReplyText:
    """Bytes to characters, then stop strings, then reasoning: each holds back only what it cannot yet be sure of.

    Attributes:
        tokens: Tokens taken so far.
    """

    def __init__(self, stream: TextStream, stops: Sequence[str], splitter: ReasoningSplitter | None) -> None:
        self._stream = stream
        self._stops = StopStrings(stops)
        self._splitter = splitter
        self._before_answer = 0
        self.tokens = 0

    @property
    def reasoning_tokens(self) -> int:
        """Return how many tokens the reasoning took, its tags among them."""
        return self._before_answer if self._splitter is not None and self._splitter.thought else 0

    @property
    def stopped(self) -> bool:
        """Whether a stop string was met: the reply ends here."""
        return self._stops.met is not None

    def push(self, token_ids: Sequence[int]) -> Piece:
        """Take tokens; return the text they make certain."""
        splitter = self._splitter
        if splitter is None or splitter.answers or len(token_ids) == 1:
            return self._push(token_ids)
        pieces = [self._push([token_id]) for token_id in token_ids]  # each is of the reasoning or is not
        return Piece("".join(piece.reasoning for piece in pieces), "".join(piece.answer for piece in pieces))

    def _push(self, token_ids: Sequence[int]) -> Piece:
        self.tokens += len(token_ids)
        text = self._stops.push(self._stream.push(token_ids))
        if self._splitter is None or self._splitter.answers:
            return Piece("", text)
        self._before_answer += len(token_ids)
        return self._splitter.push(text)

    def finish(self) -> Piece:
        """Return what is left when the tokens end."""
        text = self._stops.push(self._stream.finish()) + self._stops.finish()
        if self._splitter is None:
            return Piece("", text)
        first, last = self._splitter.push(text), self._splitter.finish()
        return Piece(first.reasoning + last.reasoning, first.answer + last.answer)
