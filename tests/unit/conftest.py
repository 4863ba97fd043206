"""A server that answers with the bytes that a test gives it, at the test's pace."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import repeat

import pytest

OK = b"HTTP/1.1 200 OK\r\n"
LIMIT_S = 10
DRIPPED = {
    "headers": [b"HTTP/1.1 200 OK\r\nX: ", *[b"y"] * 200],
    "a body to the end of the connection": [OK + b"\r\n", *[b"y"] * 200],
    "a body of a length": [OK + b"Content-Length: 1000\r\n\r\n", *[b"y"] * 200],
    "chunks": [OK + b"Transfer-Encoding: chunked\r\n\r\n", *[b"1\r\ny\r\n"] * 200],
    "interim answers": list(repeat(b"HTTP/1.1 100 Continue\r\n\r\n", 200)),
    "the body of an error": [b"HTTP/1.1 500 Oh\r\n\r\n", *[b"y"] * 200],
    "nothing": list(repeat(b"", 200)),
}
Answering = Callable[..., str]


@pytest.fixture
def answering() -> Iterator[Answering]:
    """Serve one connection: each piece `pause_s` after the one before it."""
    over = threading.Event()
    threads: list[threading.Thread] = []

    def started(pieces: list[bytes], pause_s: float = 0.0) -> str:
        listener = socket.create_server(("127.0.0.1", 0))
        listener.settimeout(LIMIT_S)  # for a test that fails before it asks

        def serve() -> None:
            with listener, suppress(OSError), listener.accept()[0] as client:
                client.settimeout(LIMIT_S)
                client.recv(65_536)
                for piece in pieces:
                    client.sendall(piece)
                    if over.wait(pause_s):
                        return
                client.shutdown(socket.SHUT_WR)
                while client.recv(65_536):  # a body after its head: unread, it would make the end a reset
                    pass

        threads.append(threading.Thread(target=serve))
        threads[-1].start()
        return f"127.0.0.1:{listener.getsockname()[1]}/"

    yield started
    over.set()
    for thread in threads:
        thread.join()
