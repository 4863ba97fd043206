"""One question to a model that an OpenAI-compatible server serves."""

from __future__ import annotations

import json
import urllib.request
from http import HTTPStatus

from engines.files import one_line
from engines.http_fetch import FetchError, fetch

ANSWER_TOKENS = 48
ANSWER_WITHIN_S = 300.0
ANSWER_BYTES = 1 << 20


def answer(url: str, model: str, question: str, *, within_s: float = ANSWER_WITHIN_S) -> str:
    """Return the model's greedy answer.

    Args:
        url: `http://HOST:PORT`.
        within_s: For the whole answer.

    Raises:
        FetchError: The server refuses, or does not answer in time.
    """
    body = {
        "model": model,
        "messages": [{"role": "user", "content": question}],
        "max_tokens": ANSWER_TOKENS,
        "temperature": 0,
    }
    sent = urllib.request.Request(
        f"{url}/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    reply = fetch(sent, limit_s=within_s, limit_bytes=ANSWER_BYTES)
    if reply.status != HTTPStatus.OK:
        raise FetchError(f"{url}: status {reply.status}: {one_line(reply.body.decode(errors='replace'))}")
    return str(json.loads(reply.body)["choices"][0]["message"]["content"])
