"""An OpenAI-compatible server of another project, and what every test of one needs."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.servers.environments import OPT, python_of
from validation.real.commands import pinned_to

BIN = Path(sys.executable).parent
MODEL = "smollm2"
FRONT_KEY, GATEWAY_KEY = "sk-of-the-front", "sk-of-the-gateway"
QUESTION = "What is the capital of France?"


def require(name: str) -> Path:
    """Return the Python of an environment; without it, the test is skipped with what installs it."""
    python = python_of(name)
    if python is None:
        pytest.skip(f"no {name} in {OPT / name}: make servers installs it")
    return python


def command(*words: object, core: int | None = None) -> str:
    """Run one of this project's commands, which must succeed; return what it printed.

    Args:
        core: It and its children are pinned to this one; None: wherever the system puts them.
    """
    done = subprocess.run(
        [BIN / str(words[0]), *map(str, words[1:])],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        preexec_fn=None if core is None else pinned_to(core),
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@dataclass(frozen=True)
class Endpoint:
    """An OpenAI-compatible server.

    Attributes:
        url: `http://HOST:PORT`.
        model: The name of its model.
    """

    url: str
    model: str
    key: str = "none"

    def post(self, path: str, body: dict[str, Any], key: str | None = None) -> tuple[int, dict[str, Any]]:
        """Send a request, with another key than its own if one is given; return the status and the JSON."""
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key or self.key}"}
        sent = urllib.request.Request(f"{self.url}/v1/{path}", json.dumps(body).encode(), headers)
        try:
            with urllib.request.urlopen(sent, timeout=120) as reply:
                return reply.status, json.load(reply)
        except urllib.error.HTTPError as refused:
            with refused:
                return refused.code, json.load(refused)

    def chat(self, text: str = QUESTION, **more: Any) -> dict[str, Any]:
        """Return the greedy reply to one message."""
        body = {"model": self.model, "messages": [{"role": "user", "content": text}], "temperature": 0, **more}
        status, reply = self.post("chat/completions", body)
        assert status == 200, reply
        return reply
