"""Clients: connections, HTTP, TLS, timestamps, protocols. May import `traffic`, `results` and `scenario`."""

from loadtest.client.connection import Connection, Readings, ServerConnections, UnreachableError
from loadtest.client.discovery import discover_protocol
from loadtest.client.endpoint import PROTOCOLS, Endpoint, ProtocolName, endpoint_of
from loadtest.client.protocols.triton_http import ENGINE_MODEL
from loadtest.client.served_models import ServedModel, default_model, served_models
from loadtest.client.server_info import server_facts
from loadtest.client.timestamps import whole_microseconds

__all__ = [
    "ENGINE_MODEL",
    "PROTOCOLS",
    "Connection",
    "Endpoint",
    "ProtocolName",
    "Readings",
    "ServedModel",
    "ServerConnections",
    "UnreachableError",
    "default_model",
    "discover_protocol",
    "endpoint_of",
    "served_models",
    "server_facts",
    "whole_microseconds",
]
