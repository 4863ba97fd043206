"""From the tokens of one reply to the text that a client sees."""

from __future__ import annotations

from collections.abc import Sequence

from triton_repo.models.text import TextStream
from triton_repo.openai_api.reasoning import Piece, ReasoningSplitter
from triton_repo.openai_api.stop_strings import StopStrings


class ReplyText:
    """Decodes bytes, then applies stop strings, then splits reasoning; each stage holds back only uncertain text.

    Attributes:
        tokens: Tokens received so far.
    """

    def __init__(self, stream: TextStream, stops: Sequence[str], splitter: ReasoningSplitter | None) -> None:
        self._stream = stream
        self._stops = StopStrings(stops)
        self._splitter = splitter
        self._before_answer = 0
        self.tokens = 0

    @property
    def reasoning_tokens(self) -> int:
        """Return the number of reasoning tokens, tags included."""
        return self._before_answer if self._splitter is not None and self._splitter.thought else 0

    @property
    def stopped(self) -> bool:
        """Whether a stop string was found, which ends the reply."""
        return self._stops.met is not None

    def push(self, token_ids: Sequence[int]) -> Piece:
        """Add tokens; return the text that is now certain."""
        splitter = self._splitter
        if splitter is None or splitter.answers or len(token_ids) == 1:
            return self._push(token_ids)
        pieces = [self._push([token_id]) for token_id in token_ids]  # each token counts as reasoning or not
        return Piece("".join(piece.reasoning for piece in pieces), "".join(piece.answer for piece in pieces))

    def _push(self, token_ids: Sequence[int]) -> Piece:
        self.tokens += len(token_ids)
        text = self._stops.push(self._stream.push(token_ids))
        if self._splitter is None or self._splitter.answers:
            return Piece("", text)
        self._before_answer += len(token_ids)
        return self._splitter.push(text)

    def finish(self) -> Piece:
        """Return the remaining text at the end of the tokens."""
        text = self._stops.push(self._stream.finish()) + self._stops.finish()
        if self._splitter is None:
            return Piece("", text)
        first, last = self._splitter.push(text), self._splitter.finish()
        return Piece(first.reasoning + last.reasoning, first.answer + last.answer)
