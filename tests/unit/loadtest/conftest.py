"""Servers on loopback that answer what a test says."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

Pages = dict[str, tuple[int, Any]]


@pytest.fixture
def serve() -> Iterator[Callable[..., int]]:
    """Serve pages by path; what was asked with which key is in `keys`."""
    servers: list[tuple[ThreadingHTTPServer, threading.Thread]] = []

    def started(pages: Pages, headers: dict[str, str] | None = None, key: str | None = None) -> int:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                allowed = key is None or self.headers.get("Authorization") == f"Bearer {key}"
                status, page = pages.get(self.path, (404, {})) if allowed else (401, {})
                body = page if isinstance(page, bytes) else json.dumps(page).encode()
                self.send_response(status)
                for name, value in (headers or {}).items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def do_POST(self) -> None:
                self.do_GET()

            def log_message(self, *_: Any) -> None:
                """Say nothing."""

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        servers.append((server, thread))
        return int(server.server_address[1])

    yield started
    for server, thread in servers:
        server.shutdown()
        thread.join()
        server.server_close()
