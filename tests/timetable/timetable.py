"""A running server with a known timetable, and how a test asks it for something."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass

from loadtest.client.connection import Connection, Door
from loadtest.client.endpoint import Endpoint
from loadtest.client.protocols import dialect_of
from loadtest.client.protocols.base import Answer, Asked
from loadtest.scenario.schema import Protocol
from loadtest.traffic.prompts import Prompt


@dataclass
class Timetable:
    """A running server: its process and its port."""

    process: subprocess.Popen[str]
    port: int

    def stop(self) -> str:
        """End it; return what it said of its own lateness."""
        self.process.terminate()
        return self.process.communicate(timeout=10)[0]


Start = Callable[..., Timetable]


def door_to(port: int, protocol: Protocol, model: str = "timetable", **more: float | bool) -> Door:
    """Return a door to a server on this machine."""
    endpoint = Endpoint(host="127.0.0.1", port=port, protocol=protocol)
    began = time.monotonic()
    limits = {"silence_s": 5.0, "reply_s": 20.0, **more}
    return Door(endpoint, dialect_of(endpoint, model, environment={}), clock=lambda: time.monotonic() - began, **limits)


def ask(connection: Connection, tokens: int = 16) -> tuple[Answer, Asked]:
    """Send one request of a connection and wait for its answer."""
    answer, asked = Answer(), Asked("r0", Prompt(tokens=1, text="hello"), tokens)
    connection.ask(asked, answer)
    return answer, asked
