"""Bytes to token events and requests to bytes, for Triton's HTTP streaming; no sockets in here.

Triton's `generate_stream` answers with server-sent events in chunked transfer encoding, one event a response. A
general HTTP and SSE stack costs several times what the rest of a load generator does, so this reader does only what
that answer needs, and refuses what it does not know.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any, Literal

from loadtest.prompts import Prompt

ENGINE_MODEL = "tensorrt_llm"
HEAD_LIMIT_BYTES = 65_536
LINE_LIMIT_BYTES = 1_048_576
HTTP_OK = 200
QUEUE_FULL = ("Maximum queue size", "Exceeds maximum queue size")
_LENGTH = re.compile(rb'"sequence_length":\s*(\d+)')


class ProtocolError(Exception):
    """The server sent what this reader does not understand, or an error in its own words."""


def generate_body(model: str, prompt: Prompt, output_tokens: int, request_id: str) -> dict[str, Any]:
    """Return the JSON of one streamed request; the reply is to be exactly `output_tokens` long."""
    if model == ENGINE_MODEL:
        return {
            "id": request_id,
            "input_ids": list(prompt.ids),
            "input_lengths": prompt.tokens,
            "request_output_len": output_tokens,
            "min_tokens": output_tokens,
            "streaming": True,
        }
    return {
        "id": request_id,
        "text_input": prompt.text,
        "max_tokens": output_tokens,
        "min_tokens": output_tokens,
        "stream": True,
    }


def generate_request(host: str, model: str, body: dict[str, Any]) -> bytes:
    """Return the bytes of one HTTP request on a connection that is kept."""
    payload = json.dumps(body, separators=(",", ":")).encode()
    head = (
        f"POST /v2/models/{model}/generate_stream HTTP/1.1\r\nHost: {host}\r\n"
        f"Content-Type: application/json\r\nAccept: text/event-stream\r\nContent-Length: {len(payload)}\r\n\r\n"
    )
    return head.encode() + payload


def outcome_of(message: str) -> Literal["rejected", "error"]:
    """Return whether an error's text is a full queue's."""
    return "rejected" if any(mark in message for mark in QUEUE_FULL) else "error"


@dataclass(slots=True)
class StreamReader:
    """Reads one streamed reply, fed with bytes as they come; a new one for each request.

    Attributes:
        ended: The reply is whole; the connection can carry the next request.
        keeps_connection: Whether the server lets it.
    """

    ended: bool = False
    keeps_connection: bool = True
    _buffer: bytes = b""
    _status: int = 0
    _chunk_left: int = 0
    _body_left: int | None = None
    _chunked: bool = False
    _line: bytes = b""
    _after_last_chunk: bool = False

    def feed(self, data: bytes) -> int:
        """Take bytes; return how many tokens they completed.

        Raises:
            ProtocolError: The server answered with an error, or with something that is no such stream.
        """
        self._buffer += data
        if not self._status and not self._read_head():
            return 0
        return self._count(self._take_body())

    def close(self) -> None:
        """Say that the connection ended.

        Raises:
            ProtocolError: The reply was not whole.
        """
        if not self.ended:
            raise ProtocolError("the server closed the connection before the end of the reply")

    def _read_head(self) -> bool:
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            if len(self._buffer) > HEAD_LIMIT_BYTES:
                raise ProtocolError("no end of the HTTP headers in sight")
            return False
        head, self._buffer = self._buffer[:end].decode("latin-1"), self._buffer[end + 4 :]
        status, *lines = head.split("\r\n")
        match = re.match(r"HTTP/1\.[01] (\d{3})", status)
        if match is None:
            raise ProtocolError(f"not HTTP: {status[:80]!r}")
        headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        self._status = int(match[1])
        self._chunked = headers.get("transfer-encoding", "").lower() == "chunked"
        if "content-length" in headers:
            self._body_left = int(headers["content-length"])
        self.keeps_connection = headers.get("connection", "").lower() != "close"
        return True

    def _take_body(self) -> bytes:
        if self._chunked:
            return self._take_chunks()
        if self._body_left is None:
            raise ProtocolError("the reply states neither its length nor chunks")
        body, self._buffer = self._buffer[: self._body_left], self._buffer[self._body_left :]
        self._body_left -= len(body)
        self.ended = self._body_left == 0
        return body

    def _take_chunks(self) -> bytes:
        parts = []
        while self._buffer:
            if self._chunk_left > 2:  # noqa: PLR2004 (its line end is counted with the chunk)
                part = self._buffer[: self._chunk_left - 2]
                parts.append(part)
                self._buffer = self._buffer[len(part) :]
                self._chunk_left -= len(part)
            elif self._chunk_left:
                skipped = min(self._chunk_left, len(self._buffer))
                self._buffer = self._buffer[skipped:]
                self._chunk_left -= skipped
                if not self._chunk_left and self._after_last_chunk:
                    self.ended = True
                    break
            elif not self._read_chunk_size():
                break
        return b"".join(parts)

    def _read_chunk_size(self) -> bool:
        end = self._buffer.find(b"\r\n")
        if end < 0:
            return False
        try:
            size = int(self._buffer[:end].split(b";")[0], 16)
        except ValueError as error:
            raise ProtocolError(f"not a chunk size: {self._buffer[:end][:40]!r}") from error
        self._buffer = self._buffer[end + 2 :]
        self._chunk_left = size + 2
        self._after_last_chunk = size == 0
        return True

    def _count(self, body: bytes) -> int:
        if self._status != HTTP_OK:
            self._line += body
            if self.ended or b"\n" in self._line:
                raise ProtocolError(_error_text(self._line) or f"HTTP status {self._status}")
            return 0
        *lines, self._line = (self._line + body).split(b"\n")
        if len(self._line) > LINE_LIMIT_BYTES:
            raise ProtocolError(f"an event of more than {LINE_LIMIT_BYTES} bytes")
        if self.ended and self._line.strip():
            lines.append(self._line)
        return sum(_tokens_of(line) for line in lines)


def _tokens_of(line: bytes) -> int:
    """Return the tokens of one line of the event stream; blank lines and comments have none."""
    if not line.startswith(b"data:"):
        if line.startswith(b"{"):
            raise ProtocolError(_error_text(line) or "a reply that is no event stream")
        return 0
    if b'"error"' in line:
        raise ProtocolError(_error_text(line) or "an error without a text")
    found = _LENGTH.search(line)
    return int(found[1]) if found else 1


def _error_text(body: bytes) -> str | None:
    """Return what stands under `error` in a JSON body or event."""
    text = body.decode("utf-8", "replace").strip().removeprefix("data:").strip()
    try:
        loaded = json.loads(text)
    except ValueError:
        return text[:300] or None
    return str(loaded["error"]) if isinstance(loaded, dict) and "error" in loaded else None
