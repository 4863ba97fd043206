"""A running server with a known timetable, and how a test asks it for something."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from loadtest.client.connection import Connection, ServerConnections
from loadtest.client.endpoint import Endpoint, ProtocolName
from loadtest.client.protocols import protocol_for
from loadtest.client.protocols.base import Reply, RequestSpec
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


def door_to(port: int, protocol: ProtocolName, model: str = "timetable", **more: Any) -> ServerConnections:
    """Return a door to a server on this machine."""
    endpoint = Endpoint(host="127.0.0.1", port=port, protocol=protocol)
    began_s = time.monotonic()
    limits = {"silence_s": 5.0, "reply_s": 20.0, **more}
    return ServerConnections(endpoint, protocol_for(endpoint, model, environment={}), began_s=began_s, **limits)


def ask(connection: Connection, tokens: int = 16, *, may_wait: bool = False) -> tuple[Reply, RequestSpec]:
    """Send one request of a connection and wait for its answer; read it later if it may wait and does."""
    answer, asked = Reply(), RequestSpec("r0", Prompt(tokens=1, text="hello"), tokens)
    connection.ask(asked, answer, may_wait=may_wait)
    if answer.rest is not None:
        answer.rest()
    return answer, asked
