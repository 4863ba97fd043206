"""OpenAI's chat and text completions over server-sent events, as in vLLM, SGLang, TGI and many gateways."""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

from engines.http_fetch import bearer
from loadtest.client.http1 import CutError, ProtocolError, error_text, stated_text
from loadtest.client.protocols.base import (
    MAX_REPLY_TOKENS,
    Protocol,
    Reply,
    RequestSpec,
    json_of,
    merged_over,
    stated_count,
    stated_queue_s,
)
from loadtest.client.protocols.shape import Shape

DONE = b"[DONE]"
_encoded = json.JSONEncoder(separators=(",", ":")).encode  # json.dumps would make an encoder for each request
_TEXTS = ("content", "reasoning_content", "reasoning")


class OpenAi(Protocol):
    """Common base; the usage in the last event determines how many tokens the events contained.

    Args:
        v1_path: As of `Endpoint`.
        key: Sent in the requests' headers and nowhere else; None: no key.
        extra: Merged into every request's body.
    """

    def __init__(self, model: str, *, v1_path: str, key: str | None, extra: Mapping[str, Any]) -> None:
        self.model = model
        self.path = f"{v1_path}/{self.name}"
        self._key = key
        self._extra = extra

    name: str
    last_event = b"data: [DONE]\n\n"

    @abstractmethod
    def prompt(self, spec: RequestSpec) -> dict[str, Any]:
        """Return the fields with the prompt."""

    @abstractmethod
    def text_of(self, choice: dict[str, Any]) -> int:
        """Return the number of reply characters in a choice of an event."""

    @abstractmethod
    def text_in(self, choice: dict[str, Any]) -> str:
        """Return the reply text in a choice that later prompts repeat."""

    @abstractmethod
    def texts_in(self, choice: dict[str, Any]) -> dict[str, Any]:
        """Return the fields of a choice that may contain reply text, by their names."""

    def headers(self) -> dict[str, str]:
        """Return the key's header, if there is a key."""
        return bearer(self._key)

    def without_secrets(self, text: str) -> str:
        """Return a server's message without the key, which some servers quote."""
        return text.replace(self._key, "[key]") if self._key else text

    def body(self, spec: RequestSpec) -> bytes:
        """Return the JSON of a request."""
        values = {
            "model": self.model,
            **self.prompt(spec),
            "max_tokens": spec.output_tokens,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if spec.exact:
            values |= {"min_tokens": spec.output_tokens, "ignore_eos": True}
        return _encoded(merged_over(values, self._extra)).encode()

    def take(self, message: bytes, arrived_s: float, reply: Reply) -> None:
        """Process an event: text, finish reason, usage, or the end."""
        if message == DONE:
            reply.finished = True
            return
        document = json_of(message)
        if document.get("error") or document.get("object") == "error":
            raise ProtocolError(error_text(message) or "an error without text")
        characters = 0
        for choice in document["choices"]:
            characters += self.text_of(choice)
            if reply.content is not None:
                reply.content.append(self.text_in(choice))
            if reason := choice.get("finish_reason"):
                reply.finish_reason = stated_text(reason)
        if characters:
            reply.add(arrived_s)
            reply.sizes.append(characters)
        if document.get("usage"):
            _note_usage(document["usage"], reply)

    def shape_of(self, message: bytes) -> Shape | None:
        """Return the shape of an event with one choice and one text."""
        choices = [] if message == DONE else json_of(message)["choices"]
        if len(choices) != 1:
            return None
        return next(
            (
                Shape.of(message, name, text, is_kept=self.text_in(choices[0]) == text)
                for name, text in self.texts_in(choices[0]).items()
                if isinstance(text, str) and text and len(text) == self.text_of(choices[0])
            ),
            None,
        )

    def settle(self, reply: Reply) -> None:
        """Set the token count from the usage."""
        if not reply.finished and reply.finish_reason is None:
            raise CutError("the stream ended without [DONE] and without a finish_reason")
        super().settle(reply)


class OpenAiChat(OpenAi):
    """`/v1/chat/completions`; reasoning and tool calls are also tokens of the reply."""

    name = "chat/completions"

    def prompt(self, spec: RequestSpec) -> dict[str, Any]:
        """Return the history and the prompt, each as a message with its role."""
        messages = spec.prompt.messages or (("user", spec.prompt.text),)
        return {"messages": [{"role": role, "content": text} for role, text in messages]}

    def text_in(self, choice: dict[str, Any]) -> str:
        """Return the content; reasoning is not repeated in later prompts."""
        return choice["delta"].get("content") or ""

    def texts_in(self, choice: dict[str, Any]) -> dict[str, Any]:
        """Return content and reasoning; of its two names, the one that counts."""
        delta = choice["delta"]
        uncounted = "reasoning" if "reasoning_content" in delta else ""
        return {name: text for name, text in delta.items() if name in _TEXTS and name != uncounted}

    def text_of(self, choice: dict[str, Any]) -> int:
        """Return the number of characters of content, reasoning (under either name) and tool calls."""
        delta = choice["delta"]
        characters = len(delta.get("content") or "")
        if len(delta) == 1 and characters:  # nearly every event: nothing else to look for
            return characters
        characters += len(delta.get("reasoning_content") or "")
        if "reasoning" in delta and "reasoning_content" not in delta:
            characters += len(delta["reasoning"] or "")
        return characters + (len(json.dumps(delta["tool_calls"])) if delta.get("tool_calls") else 0)


class OpenAiCompletions(OpenAi):
    """`/v1/completions`; a prompt of token ids is sent unchanged."""

    name = "completions"

    def prompt(self, spec: RequestSpec) -> dict[str, Any]:
        """Return the prompt as ids if it has them, else as text."""
        return {"prompt": list(spec.prompt.ids) or spec.prompt.text}

    def text_in(self, choice: dict[str, Any]) -> str:
        """Return the text."""
        return choice.get("text") or ""

    def texts_in(self, choice: dict[str, Any]) -> dict[str, Any]:
        """Return the text."""
        return {"text": choice.get("text")}

    def text_of(self, choice: dict[str, Any]) -> int:
        """Return the characters of text."""
        return len(choice.get("text") or "")


def _note_usage(usage: Mapping[str, Any], reply: Reply) -> None:
    reply.stated_tokens = stated_count(usage["completion_tokens"], MAX_REPLY_TOKENS)
    reply.prompt_tokens = stated_count(usage.get("prompt_tokens") or 0) or None
    details = usage.get("prompt_tokens_details") or {}
    cached_tokens = details.get("cached_tokens")
    # More cached tokens than the prompt has: the server counts something else, so the number is unknown.
    if cached_tokens is not None and stated_count(cached_tokens) <= (reply.prompt_tokens or 0):
        reply.cached_tokens = int(cached_tokens)
    if usage.get("queue_time") is not None:
        reply.queue_s = stated_queue_s(usage["queue_time"])
