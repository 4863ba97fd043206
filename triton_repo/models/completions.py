"""A client of the OpenAI-compatible server behind a relayed engine; prompts and replies are token ids.

Source:
    vLLM, `/v1/completions`: `prompt` as token ids, `return_token_ids` (0.10.2 and later), `stop_token_ids`,
    `ignore_eos`; the end of a stream is the line `data: [DONE]`.
"""

from __future__ import annotations

import http.client
import json
import socket
import threading
import urllib.parse
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from engines.http_fetch import fetch
from engines.model_list import listed_models

CONNECT_LIMIT_S = 10.0
ANSWER_LIMIT_S = 5.0  # of a description, from connecting to its last byte
ANSWER_LIMIT_BYTES = 1 << 22  # of a description; a reply is read as it comes
READ_LIMIT_S = 600.0  # a request may wait in the server's queue for long
DATA, DONE = "data:", "[DONE]"
NO_IDS = (
    "the server's response has no token_ids; it must be one that returns them (return_token_ids: vLLM 0.10.2 or later)"
)


class RelayError(Exception):
    """The server did not answer a request; the text is sent to the client."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Part of a reply: new token ids and, at its end, the reason (`length` or `stop`)."""

    tokens: tuple[int, ...]
    finish_reason: str | None


class CompletionsServer:
    """One server.

    Args:
        url: `http://HOST:PORT`, without a path.
    """

    def __init__(self, url: str) -> None:
        self._host = urllib.parse.urlsplit(url).netloc
        self._url = url

    def models(self) -> list[str]:
        """Return the names of the served models.

        Raises:
            RelayError: It does not answer, or with something other than names.
        """
        path = "/v1/models"
        try:
            return [str(row["id"]) for row in listed_models(self._get(path))]
        except ValueError as error:
            raise RelayError(f"{self._url}{path}: {error}") from error

    def start(self, model: str, prompt: list[int], output_tokens: int, options: dict[str, Any]) -> Exchange:
        """Prepare a request; `Exchange.pieces` sends it and yields the reply.

        Args:
            options: Further fields of the request, by vLLM's names.
        """
        request = {
            "model": model,
            "prompt": prompt,
            "max_tokens": output_tokens,
            "stream": True,
            "return_token_ids": True,
            **options,
        }
        return Exchange(http.client.HTTPConnection(self._host, timeout=CONNECT_LIMIT_S), self._url, request)

    def _get(self, path: str) -> dict[str, Any]:
        try:
            answer = fetch(f"http://{self._host}{path}", limit_s=ANSWER_LIMIT_S, limit_bytes=ANSWER_LIMIT_BYTES)
            document = json.loads(answer.body)
        except (OSError, ValueError, RecursionError) as error:  # the last: nested brackets
            raise RelayError(f"{self._url}{path}: {error}") from error
        if answer.status != http.HTTPStatus.OK or not isinstance(document, dict):
            raise RelayError(f"{self._url}{path}: HTTP {answer.status}")
        return document


class Exchange:
    """One request in flight. Read it in one thread; `cancel` may be called from any."""

    def __init__(self, connection: http.client.HTTPConnection, url: str, request: dict[str, Any]) -> None:
        self._connection = connection
        self._url = url
        self._request = request
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self._is_cancelled = False

    def pieces(self) -> Iterator[Piece]:
        """Yield the parts of the reply as they arrive.

        Raises:
            RelayError: The server refused, closed the connection or sent an invalid response; also after `cancel`.
        """
        try:
            self._connect()
            self._connection.request(
                "POST", "/v1/completions", json.dumps(self._request), {"content-type": "application/json"}
            )
            response = self._connection.getresponse()
            if response.status != http.HTTPStatus.OK:
                raise RelayError(f"{self._url}: HTTP {response.status}: {_message(response.read(4000))}")
            yield from _pieces(response)
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise RelayError(f"{self._url}: {error or type(error).__name__}") from error
        finally:
            self._connection.close()

    def cancel(self) -> None:
        """Close the connection, which aborts the request in the server and ends `pieces`."""
        with self._lock:
            self._is_cancelled = True
            if self._socket is not None:
                with suppress(OSError):  # the server may have left first
                    self._socket.shutdown(socket.SHUT_RDWR)

    def _connect(self) -> None:
        self._connection.connect()
        with self._lock:
            if self._is_cancelled:
                raise RelayError("cancelled")
            self._socket = self._connection.sock
            self._socket.settimeout(READ_LIMIT_S)


def _pieces(response: http.client.HTTPResponse) -> Iterator[Piece]:
    for raw in response:
        line = raw.decode("utf-8").strip()
        if not line.startswith(DATA):
            continue
        data = line.removeprefix(DATA).strip()
        if data == DONE:
            return
        document = json.loads(data)
        if "error" in document:
            raise RelayError(_message(data.encode()))
        for choice in document.get("choices", ()):
            ids, reason = choice.get("token_ids"), choice.get("finish_reason")
            if ids is None and not reason:
                raise RelayError(NO_IDS)
            yield Piece(tuple(ids or ()), reason)
    raise RelayError("the response ended without [DONE]")


def _message(body: bytes) -> str:
    """Return the message of an error document, or the body's text."""
    try:
        document = json.loads(body)
        found = document.get("error", document)
        return str(found.get("message", found)) if isinstance(found, dict) else str(found)
    except (ValueError, AttributeError):
        return body.decode("utf-8", "replace")[:500]
