"""How requests are sent: connections, HTTP, TLS, time stamps; imports `traffic`, `results` and `scenario`."""

from loadtest.client.connection import Connection, Readings, ServerConnections, UnreachableError
from loadtest.client.endpoint import OPENAI_KEY, Endpoint, endpoint_of
from loadtest.client.server_info import server_facts

__all__ = [
    "OPENAI_KEY",
    "Connection",
    "Endpoint",
    "Readings",
    "ServerConnections",
    "UnreachableError",
    "endpoint_of",
    "server_facts",
]
