"""TCP ports: free ones, and whether an address can be listened on."""

from __future__ import annotations

import socket
from contextlib import ExitStack

LOOPBACK = "127.0.0.1"


def free_ports(count: int) -> list[int]:
    """Return different loopback ports that nobody listens on now."""
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind((LOOPBACK, 0))
        return [int(probe.getsockname()[1]) for probe in probes]


def ipv4_of(address: str) -> str | None:
    """Return the IPv4 address that an address or a host's name stands for; None if there is none.

    >>> ipv4_of("127.0.0.1"), ipv4_of("::1")
    ('127.0.0.1', None)
    """
    try:
        found = socket.getaddrinfo(address, None, socket.AF_INET, socket.SOCK_STREAM)
    except (OSError, UnicodeError):  # UnicodeError: no name of a host
        return None
    return str(found[0][4][0])


def why_not_free(address: str, port: int) -> str | None:
    """Return the system's reason why an address cannot be listened on; None if it can."""
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
        except OSError as error:
            return str(error.strerror)
    return None
