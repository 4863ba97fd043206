"""Limits on requests, enforced where text enters, before the engine sees the request."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from tokenizers import Tokenizer


class LimitError(ValueError):
    """A request exceeds a limit, which the text names."""


class InputLimits:
    """Limits on prompts and replies, from a model's parameters; a missing parameter means no limit.

    Args:
        parameters: May contain `max_prompt_tokens` and `max_output_tokens`.
        tokenizer: Its longest token bounds the text that a number of tokens can represent.
    """

    def __init__(self, parameters: Mapping[str, str], tokenizer: Tokenizer) -> None:
        self._prompt_tokens = _limit(parameters, "max_prompt_tokens")
        self._output_tokens = _limit(parameters, "max_output_tokens")
        longest = max(map(len, tokenizer.get_vocab(with_added_tokens=True)), default=1)
        self._characters = self._prompt_tokens * longest

    def require_text(self, texts: Sequence[str], what: str) -> None:
        """Refuse text with more characters than the allowed tokens can represent, before tokenizing it.

        Raises:
            LimitError: The text is too long.
        """
        characters = sum(map(len, texts))
        if characters > self._characters:
            raise LimitError(
                f"{what} has {characters} characters, more than fit the {self._prompt_tokens:g} tokens "
                "allowed here (max_prompt_tokens)"
            )

    def require_prompt(self, ids: Sequence[int]) -> None:
        """Refuse an empty prompt, and one with too many tokens.

        Raises:
            LimitError: The prompt is refused; the message is TensorRT-LLM's.
        """
        if not ids:
            raise LimitError("the prompt has no tokens")
        if len(ids) > self._prompt_tokens:
            raise LimitError(f"Prompt length ({len(ids)}) exceeds maximum input length ({self._prompt_tokens:g})")

    def require_reply(self, tokens: int, name: str) -> None:
        """Refuse a reply limit below one or above the maximum.

        Raises:
            LimitError: The value is out of range.
        """
        if not 1 <= tokens <= self._output_tokens:
            raise LimitError(
                f"{name} is {tokens}; from 1 to {self._output_tokens:g} is allowed here (max_output_tokens)"
            )


def _limit(parameters: Mapping[str, str], name: str) -> float:
    text = parameters.get(name, "")
    return int(text) if text.isdecimal() else math.inf
