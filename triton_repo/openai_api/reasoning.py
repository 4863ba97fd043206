"""What a reasoning model thinks, told apart from what it answers, while both are streamed.

DeepSeek-R1 and Qwen3 write their reasoning between `<think>` and `</think>`. Who writes the opening tag differs: R1's
first chat templates end with it, so that a reply begins in the middle of the reasoning; R1-0528 and Qwen3 write it
themselves. What the prompt ends with decides, so no list of model names is needed.
"""

from __future__ import annotations

from enum import Enum
from typing import Literal, NamedTuple

from triton_repo.openai_api.stop_strings import longest_open_suffix

OPEN_TAG = "<think>"
CLOSE_TAG = "</think>"
Reasoning = Literal["auto", "always", "off"]


class Piece(NamedTuple):
    """Text of a reply, by what it is."""

    reasoning: str
    answer: str


class _At(Enum):
    """Where in a reply we are: before anything but white space, in its reasoning, in its answer."""

    BEGINNING = 0
    REASONING = 1
    ANSWER = 2


class ReasoningSplitter:
    """Splits a reply's text; the tags themselves are never given out, nor any part of one.

    All other text is kept as it is, the line breaks around the tags too: what comes out, with the tags put back, is
    what went in.

    Args:
        begins_inside: The reply begins in the reasoning, its opening tag in the prompt (one in the reply is allowed).

    Attributes:
        thought: Whether there was any reasoning.
    """

    def __init__(self, *, begins_inside: bool) -> None:
        self._without_tag = _At.REASONING if begins_inside else _At.ANSWER
        self._at = _At.BEGINNING
        self._held = ""
        self.thought = False

    @property
    def answers(self) -> bool:
        """Whether all text from here on is answer."""
        return self._at is _At.ANSWER

    def push(self, text: str) -> Piece:
        """Take text; return what is certain of it."""
        if self._at is _At.ANSWER:
            return Piece("", text)
        held = self._held + text
        self._held = ""
        if self._at is _At.BEGINNING:
            held = self._begin(held)
        if self._at is _At.BEGINNING:
            self._held = held
            return Piece("", "")
        return self._split(held) if self._at is _At.REASONING else Piece("", held)

    def finish(self) -> Piece:
        """Return what was held back; the beginning of a tag that never became one is text."""
        held, self._held = self._held, ""
        at = self._without_tag if self._at is _At.BEGINNING else self._at
        return Piece(held, "") if at is _At.REASONING else Piece("", held)

    def _begin(self, text: str) -> str:
        """Return the text without its opening tag, or with what turned out not to be one."""
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
        self._held = text[len(text) - keep :]
        return Piece(text[: len(text) - keep], "")


def splitter_for(prompt: str, how: Reasoning) -> ReasoningSplitter | None:
    """Return the splitter for the reply to a prompt; None where replies are not split.

    Args:
        how: `auto` goes by what the prompt ends with; `always` takes a reply for reasoning up to its closing tag
            unless the prompt has closed it, for models that forget the opening one; `off` leaves tags in the text.
    """
    if how == "off":
        return None
    end = prompt.rstrip()
    return ReasoningSplitter(begins_inside=not end.endswith(CLOSE_TAG) and (how == "always" or end.endswith(OPEN_TAG)))
