"""From the tokens of one reply to the text that a client sees of it."""

from __future__ import annotations

from collections.abc import Sequence

from triton_repo.front.reasoning import Piece, ReasoningSplitter
from triton_repo.front.stops import StopStrings
from triton_repo.models.text import TextStream


class ReplyText:
    """Bytes to characters, then stop strings, then reasoning: each holds back only what it cannot yet be sure of.

    Attributes:
        tokens: Tokens taken so far.
        reasoning_tokens: Those that came before the reasoning's end.
    """

    def __init__(self, stream: TextStream, stops: Sequence[str], splitter: ReasoningSplitter | None) -> None:
        self._stream = stream
        self._stops = StopStrings(stops)
        self._splitter = splitter
        self.tokens = 0
        self.reasoning_tokens = 0

    @property
    def stopped(self) -> bool:
        """Whether a stop string was met: the reply ends here."""
        return self._stops.met is not None

    def push(self, token_ids: Sequence[int]) -> Piece:
        """Take tokens; return the text they make certain."""
        if self._splitter is None:
            self.tokens += len(token_ids)
            return Piece("", self._stops.push(self._stream.push(token_ids)))
        if len(token_ids) == 1 or not self._splitter.thinks:
            return self._push(token_ids, self._splitter)
        pieces = [self._push([token_id], self._splitter) for token_id in token_ids]  # each is reasoning or is not
        return Piece("".join(piece.reasoning for piece in pieces), "".join(piece.answer for piece in pieces))

    def _push(self, token_ids: Sequence[int], splitter: ReasoningSplitter) -> Piece:
        self.tokens += len(token_ids)
        if splitter.thinks:
            self.reasoning_tokens += len(token_ids)
        text = self._stops.push(self._stream.push(token_ids))
        return splitter.push(text) if text else _NOTHING

    def finish(self) -> Piece:
        """Return what is left when the tokens end."""
        text = self._stops.push(self._stream.finish()) + self._stops.finish()
        if self._splitter is None:
            return Piece("", text)
        first, last = self._splitter.push(text), self._splitter.finish()
        return Piece(first.reasoning + last.reasoning, first.answer + last.answer)


_NOTHING = Piece("", "")
