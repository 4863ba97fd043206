"""A head that never ends: bounded in size and in time."""

from __future__ import annotations

import socket
import time
from urllib.parse import urlsplit

import pytest

from tests.integration.triton_repo.openai_api.conftest import Front
from triton_repo.openai_api import head_limit

LIMIT_S = 0.3


@pytest.mark.quiet
@pytest.mark.parametrize("head", [b"", b"GET /health HTTP/1.1\r\nX: "])
def test_a_head_that_does_not_end_is_cut_in_time(front: Front, monkeypatch: pytest.MonkeyPatch, head: bytes) -> None:
    """A connection that sends a byte now and then, or nothing, is closed; others are served meanwhile."""
    monkeypatch.setattr(head_limit, "HEAD_WITHIN_S", LIMIT_S)
    address = urlsplit(front.url)
    said = b""
    with socket.create_connection((address.hostname, address.port), timeout=10) as slow:
        began_s = time.monotonic()
        slow.sendall(head)
        while data := slow.recv(4096):
            said += data
        took_s = time.monotonic() - began_s
    assert LIMIT_S * 0.9 < took_s < 10 * LIMIT_S
    assert said.startswith(b"HTTP/1.1 400") if head else said == b""


def test_a_reply_may_take_longer_than_a_head(front: Front, monkeypatch: pytest.MonkeyPatch) -> None:
    """The time limit is for the head alone: a connection kept alive past it still answers."""
    monkeypatch.setattr(head_limit, "HEAD_WITHIN_S", LIMIT_S)
    address = urlsplit(front.url)
    request = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"
    with socket.create_connection((address.hostname, address.port), timeout=10) as client:
        for wait_s in (0.0, 2 * LIMIT_S):
            time.sleep(wait_s)
            client.sendall(request)
            assert _reply(client).startswith(b"HTTP/1.1 ")


def _reply(client: socket.socket) -> bytes:
    """Return one reply of /health, head and body: they may come apart."""
    found = b""
    while not found.endswith(b"}"):
        data = client.recv(4096)
        assert data, f"closed after {found!r}"
        found += data
    return found
