"""Separates a reasoning model's reasoning from its answer, also while streaming.

DeepSeek-R1 and Qwen3 write their reasoning between `<think>` and `</think>`. Where the opening tag comes from differs:
R1's first chat templates end with it, so a reply starts inside the reasoning; R1-0528 and Qwen3 write it themselves.
The end of the prompt decides, so no list of model names is needed.
"""

from __future__ import annotations

from enum import Enum
from typing import Literal, NamedTuple

from triton_repo.openai_api.stop_strings import longest_open_suffix

OPEN_TAG = "<think>"
CLOSE_TAG = "</think>"
Reasoning = Literal["auto", "always", "off"]


class Piece(NamedTuple):
    """A piece of a reply's text, split into reasoning and answer."""

    reasoning: str
    answer: str


class _At(Enum):
    """Position in a reply: before any text but white space, in the reasoning, in the answer."""

    BEGINNING = 0
    REASONING = 1
    ANSWER = 2


class ReasoningSplitter:
    """Splits a reply's text; tags, and parts of tags, are never part of the output.

    All other text is preserved, including line breaks around the tags: the output with the tags inserted equals the
    input.

    Args:
        begins_inside: The reply starts inside the reasoning because the prompt has the opening tag (a second one in
            the reply is allowed).

    Attributes:
        thought: Whether there was any reasoning.
    """

    def __init__(self, *, begins_inside: bool) -> None:
        self._without_tag = _At.REASONING if begins_inside else _At.ANSWER
        self._at = _At.BEGINNING
        self._pending = ""
        self.thought = False

    @property
    def answers(self) -> bool:
        """Whether all further text is part of the answer."""
        return self._at is _At.ANSWER

    def push(self, text: str) -> Piece:
        """Add text; return the part whose kind is certain."""
        if self._at is _At.ANSWER:
            return Piece("", text)
        pending = self._pending + text
        self._pending = ""
        if self._at is _At.BEGINNING:
            pending = self._begin(pending)
        if self._at is _At.BEGINNING:
            self._pending = pending
            return Piece("", "")
        return self._split(pending) if self._at is _At.REASONING else Piece("", pending)

    def finish(self) -> Piece:
        """Return the text held back; an incomplete tag is text."""
        pending, self._pending = self._pending, ""
        at = self._without_tag if self._at is _At.BEGINNING else self._at
        return Piece(pending, "") if at is _At.REASONING else Piece("", pending)

    def _begin(self, text: str) -> str:
        """Return the text without its opening tag, or with text that turned out not to be a tag."""
        stripped = text.lstrip()
        if stripped.startswith(OPEN_TAG):
            self._at = _At.REASONING
            return stripped[len(OPEN_TAG) :]
        if not OPEN_TAG.startswith(stripped):
            self._at = self._without_tag
        return text

    def _split(self, text: str) -> Piece:
        self.thought = True
        reasoning, tag, answer = text.partition(CLOSE_TAG)
        if tag:
            self._at = _At.ANSWER
            return Piece(reasoning, answer)
        keep = longest_open_suffix(text, CLOSE_TAG)
        self._pending = text[len(text) - keep :]
        return Piece(text[: len(text) - keep], "")


def splitter_for(prompt: str, how: Reasoning) -> ReasoningSplitter | None:
    """Return the splitter for the reply to a prompt; None if replies are not split.

    Args:
        how: `auto` decides by the end of the prompt; `always` treats a reply as reasoning up to its closing tag unless
            the prompt has closed it, for models that omit the opening tag; `off` leaves tags in the text.
    """
    if how == "off":
        return None
    end = prompt.rstrip()
    return ReasoningSplitter(begins_inside=not end.endswith(CLOSE_TAG) and (how == "always" or end.endswith(OPEN_TAG)))
