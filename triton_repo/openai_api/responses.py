"""The JSON of replies, whole and streamed, in OpenAI's formats."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from triton_repo.openai_api.reasoning import Piece
from triton_repo.openai_api.reply_text import ReplyText

Finish = Literal["stop", "length"]
DONE = b"data: [DONE]\n\n"
_quoted: Callable[[str], str] = json.encoder.encode_basestring_ascii


@dataclass(frozen=True, slots=True)
class Head:
    """What all chunks of one reply repeat."""

    reply_id: str
    created: int
    model: str


def usage_of(prompt_tokens: int, text: ReplyText) -> dict[str, Any]:
    """Return OpenAI's usage object; output tokens are those that the engine sent."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": text.tokens,
        "total_tokens": prompt_tokens + text.tokens,
        "completion_tokens_details": {"reasoning_tokens": text.reasoning_tokens},
    }


class ChatShape:
    """Replies of /v1/chat/completions."""

    prefix = "chatcmpl-"

    def whole(self, head: Head, piece: Piece, finish: Finish, usage: dict[str, Any]) -> bytes:
        """Return a whole reply."""
        message: dict[str, Any] = {"role": "assistant", "content": piece.answer, "refusal": None}
        if piece.reasoning:
            message["reasoning_content"] = piece.reasoning
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": finish}
        return _reply(head, "chat.completion", [choice], usage)

    def stream(self, head: Head, *, with_usage: bool) -> ChunkWriter:
        """Start a stream."""
        return ChunkWriter(head, "chat.completion.chunk", '"delta":{', "}", with_usage=with_usage)

    def first(self, writer: ChunkWriter) -> bytes:
        """Return the first chunk of a stream."""
        return writer.chunk('"role":"assistant","content":""')

    def texts(self, piece: Piece) -> list[str]:
        """Return the deltas of a piece, reasoning first."""
        found = []
        if piece.reasoning:
            found.append(f'"reasoning_content":{_quoted(piece.reasoning)}')
        if piece.answer:
            found.append(f'"content":{_quoted(piece.answer)}')
        return found

    last = ""


class CompletionShape:
    """Replies of /v1/completions."""

    prefix = "cmpl-"

    def whole(self, head: Head, piece: Piece, finish: Finish, usage: dict[str, Any]) -> bytes:
        """Return a whole reply."""
        choice = {"index": 0, "text": piece.answer, "logprobs": None, "finish_reason": finish}
        return _reply(head, "text_completion", [choice], usage)

    def stream(self, head: Head, *, with_usage: bool) -> ChunkWriter:
        """Start a stream."""
        return ChunkWriter(head, "text_completion", "", "", with_usage=with_usage)

    def first(self, writer: ChunkWriter) -> bytes:  # noqa: ARG002 (chat begins with a role)
        """Return the first chunk of a stream, which is empty."""
        return b""

    def texts(self, piece: Piece) -> list[str]:
        """Return the text of a piece."""
        return [f'"text":{_quoted(piece.answer)}'] if piece.answer else []

    last = '"text":""'


Shape = ChatShape | CompletionShape


class ChunkWriter:
    """Writes the chunks of one stream; everything but the text is serialized once."""

    def __init__(self, head: Head, kind: str, opening: str, closing: str, *, with_usage: bool) -> None:
        fixed = _compact({"id": head.reply_id, "object": kind, "created": head.created, "model": head.model})[:-1]
        usage = ',"usage":null' if with_usage else ""
        self._begin = f'data: {fixed},"choices":[{{"index":0,{opening}'
        self._end = f'{closing},"logprobs":null,"finish_reason":null}}]{usage}}}\n\n'
        self._closing = closing
        self._fixed = fixed
        self._usage = usage

    def chunk(self, inner: str) -> bytes:
        """Return the chunk for some text."""
        return f"{self._begin}{inner}{self._end}".encode()

    def last(self, inner: str, finish: Finish) -> bytes:
        """Return the chunk with the finish reason."""
        end = f'{self._closing},"logprobs":null,"finish_reason":"{finish}"}}]{self._usage}}}\n\n'
        return f"{self._begin}{inner}{end}".encode()

    def usage(self, usage: dict[str, Any]) -> bytes:
        """Return the chunk with the token counts, without a choice."""
        return f'data: {self._fixed},"choices":[],"usage":{_compact(usage)}}}\n\n'.encode()


def _reply(head: Head, kind: str, choices: list[dict[str, Any]], usage: dict[str, Any]) -> bytes:
    whole = {"id": head.reply_id, "object": kind, "created": head.created, "model": head.model}
    return _compact({**whole, "choices": choices, "usage": usage}).encode()


def _compact(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))
