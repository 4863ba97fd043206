"""One question to a model that an OpenAI-compatible server serves."""

from __future__ import annotations

import json
import urllib.request

ANSWER_TOKENS = 48
ANSWER_WITHIN_S = 300


def answer(url: str, model: str, question: str) -> str:
    """Return the model's greedy answer.

    Args:
        url: `http://HOST:PORT`.

    Raises:
        OSError: The server does not answer, or refuses.
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
    with urllib.request.urlopen(sent, timeout=ANSWER_WITHIN_S) as reply:
        return str(json.load(reply)["choices"][0]["message"]["content"])
