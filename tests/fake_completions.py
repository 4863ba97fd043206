"""A stand-in for an OpenAI-compatible server that takes and returns token ids, as vLLM does."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

MODEL = "smollm2"


class CompletionsStandIn(BaseHTTPRequestHandler):
    """Answers with the prompt's tokens counted up by one, two in a piece; 999 in the prompt never ends."""

    asked: ClassVar[list[dict[str, Any]]] = []
    left: ClassVar[threading.Event] = threading.Event()
    listed: ClassVar[Any] = [{"id": MODEL}]
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """List the models."""
        self._send(200, {"data": self.listed})

    def do_POST(self) -> None:
        """Stream a completion."""
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.asked.append(asked)
        if asked["prompt"] == [400]:
            self._send(400, {"error": {"message": "too long for me"}})
            return
        self.send_response(200)
        self.send_header("connection", "close")
        self.end_headers()
        made = [token + 1 for token in asked["prompt"]][: asked["max_tokens"]]
        try:
            for begin in range(0, len(made), 2):
                self._piece(made[begin : begin + 2], None)
            while asked["prompt"] == [999]:
                self._piece([5], None)
                self.left.wait(0.02)
        except OSError:
            self.left.set()
            return
        if asked["prompt"] == [500]:
            return  # breaks off
        stops = asked["stop_token_ids"]
        self._piece(stops, "stop") if stops else self._piece([], "length")
        self.wfile.write(b"data: [DONE]\n\n")

    def log_message(self, *_: Any) -> None:
        """Say nothing."""

    def _piece(self, ids: list[int], reason: str | None) -> None:
        document = {"choices": [{"token_ids": ids, "finish_reason": reason, "text": ""}]}
        self.wfile.write(f"data: {json.dumps(document)}\n\n".encode())

    def _send(self, status: int, document: dict[str, Any]) -> None:
        body = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@contextmanager
def serving() -> Iterator[str]:
    """Serve the stand-in on loopback; yield its URL."""
    CompletionsStandIn.asked.clear()
    CompletionsStandIn.left.clear()
    server = ThreadingHTTPServer(("127.0.0.1", 0), CompletionsStandIn)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
