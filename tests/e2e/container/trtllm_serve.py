"""Stands in for trtllm-serve: its arguments, its health page, and OpenAI's models and text completions."""

from __future__ import annotations

import argparse
import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import yaml


class Handler(BaseHTTPRequestHandler):
    """Answers every completion with one word for each token asked for."""

    protocol_version = "HTTP/1.1"
    model = ""

    def do_GET(self) -> None:
        """Answer /health, /v1/models and /prometheus/metrics."""
        if self.path == "/health":
            self._answer(b"")
        elif self.path == "/v1/models":
            self._answer(json.dumps({"object": "list", "data": [{"id": self.model, "object": "model"}]}).encode())
        elif self.path == "/prometheus/metrics":
            self._answer(b"trtllm_request_queue_time_seconds_count 1\n")
        else:
            self.send_error(404)

    def do_POST(self) -> None:
        """Answer /v1/completions, streamed or whole."""
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        words = [" Paris", *[" w1"] * (asked["max_tokens"] - 1)]
        usage = {"prompt_tokens": 1, "completion_tokens": len(words)}
        if not asked.get("stream"):
            self._answer(json.dumps({"choices": [{"index": 0, "text": "".join(words)}], "usage": usage}).encode())
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        for word in words:
            self._event({"choices": [{"index": 0, "text": word, "finish_reason": None}]})
        self._event({"choices": [{"index": 0, "text": "", "finish_reason": "length"}]})
        self._event({"choices": [], "usage": usage})
        self.wfile.write(b"data: [DONE]\n\n")
        self.close_connection = True

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def _answer(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _event(self, said: dict[str, Any]) -> None:
        self.wfile.write(b"data: " + json.dumps(said).encode() + b"\n\n")


def main() -> None:
    """Serve until ended."""
    parser = argparse.ArgumentParser()
    parser.add_argument("verb", choices=["serve"])
    parser.add_argument("model")
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--host", required=True)
    parser.add_argument("--port", type=int, required=True)
    asked = parser.parse_args()
    yaml.safe_load(asked.config.read_text())
    Handler.model = asked.model.rpartition("/")[2]
    ThreadingHTTPServer((asked.host, asked.port), Handler).serve_forever()


if __name__ == "__main__":
    main()
