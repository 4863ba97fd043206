"""Client of a running Triton's control interfaces: models, readiness, requests in flight; and draining.

Standard library only: deployments copy this file into containers without this package, as startup probe and preStop
hook (`python3 control.py probe`, `python3 control.py drain`).
"""

from __future__ import annotations

import argparse
import json
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException, HTTPSConnection, RemoteDisconnected
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

KEY_HEADER = "admin-key"
# Access to shared memory, model loading and trace files allows writing on the server: see docs/explanation.
RESTRICTED = ("model-repository", "shared-memory", "trace", "logging")
ENGINE_MODEL = "tensorrt_llm"
FRONTS = ("ensemble", "tensorrt_llm_bls")  # they call the engine, so they must be unloaded first
CALL_LIMIT_S = 10.0
POLL_S = 0.1
SETTLE_S = 0.5  # metrics are at most this old, and last tokens may still be on their way through the ensemble
_REQUESTS = "nv_trt_llm_request_metrics{"
_PENDING = "nv_inference_pending_request_count{"
_STILL_THERE = {"READY", "UNLOADING", "LOADING"}


class ControlError(Exception):
    """The server did not answer, or did not carry out a command."""


@dataclass(frozen=True, slots=True)
class Control:
    """A server's control interfaces.

    Attributes:
        url: Its HTTP address.
        metrics_url: Its metrics page.
        key: Secret of the restricted interfaces; empty if there is none.
    """

    url: str
    metrics_url: str
    key: str = ""

    def is_ready(self) -> bool:
        """Whether the server reports that all its models are ready."""
        try:
            self._call("/v2/health/ready", None)
        except ControlError:
            return False
        return True

    def states(self) -> dict[str, set[str]]:
        """Return each model's states over its versions: READY, LOADING, UNLOADING, UNAVAILABLE."""
        found: dict[str, set[str]] = {}
        path = "/v2/repository/index"
        try:
            for row in json.loads(self._call(path, {})):
                found.setdefault(row["name"], set()).add(row.get("state", ""))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ControlError(f"{self.url}{path}: not a list of models") from error
        return found

    def load(self, model: str) -> None:
        """Load or reload a model; the previous version serves until the new one is ready, and finishes its requests."""
        self._call(f"/v2/repository/models/{model}/load", {}, limit_s=600)

    def unload(self, model: str) -> None:
        """Stop accepting requests for a model; it is unloaded after those in flight. Returns at once."""
        self._call(f"/v2/repository/models/{model}/unload", {"parameters": {"unload_dependents": False}})

    def in_flight(self) -> int | None:
        """Return the number of requests in the engine according to its metrics; None if not published."""
        return self._sum(_REQUESTS, 'request_type="active"')

    def pending(self, model: str) -> int | None:
        """Return the number of requests in Triton's queue for a model; None if not published."""
        return self._sum(_PENDING, f'model="{model}"')

    def _sum(self, family: str, label: str) -> int | None:
        lines = _read(self.metrics_url, None, {}, CALL_LIMIT_S).splitlines()
        try:
            values = [float(line.split()[-1]) for line in lines if line.startswith(family) and label in line]
            return int(sum(values)) if values else None
        except (ValueError, OverflowError) as error:
            raise ControlError(f"{self.metrics_url}: {family.rstrip('{')} is not a number") from error

    def probe(self) -> None:
        """Generate one token along the whole path of a request.

        Raises:
            ControlError: It failed: a server may report that it is ready while every request fails.
        """
        text = "ensemble" in self.states()
        body = {"text_input": "ready?", "max_tokens": 1} if text else _LLMAPI_PROBE
        model = "ensemble" if text else ENGINE_MODEL
        reply = self._call(f"/v2/models/{model}/generate", body, limit_s=60)
        if '"text_output"' not in reply or '"error"' in reply:
            raise ControlError(f"{model} answered a request of one token with: {reply.strip()[:300] or '(nothing)'}")

    def _call(self, path: str, body: Mapping[str, Any] | None, limit_s: float = CALL_LIMIT_S) -> str:
        data = None if body is None else json.dumps(body).encode()
        return _read(self.url + path, data, {KEY_HEADER: self.key} if self.key else {}, limit_s)


def _read(url: str, data: bytes | None, headers: Mapping[str, str], limit_s: float) -> str:
    try:
        try:
            status, body = _exchange(url, data, headers, limit_s)
        except ConnectionResetError as error:  # a busy server drops one at times; every call here may be repeated
            if isinstance(error, RemoteDisconnected):  # it read the request, and left
                raise
            status, body = _exchange(url, data, headers, limit_s)
    except (OSError, HTTPException, ValueError) as error:
        raise ControlError(f"{url}: {error or type(error).__name__}") from error
    text = body.decode(errors="replace")
    if status != HTTPStatus.OK:
        raise ControlError(f"{url}: HTTP {status}: {text[:2000]}")
    return text


def _exchange(url: str, data: bytes | None, headers: Mapping[str, str], limit_s: float) -> tuple[int, bytes]:
    """Return the status and the body of an answer, without a proxy.

    The limit covers the whole answer: at its end the connection is shut down. A socket's timeout counts for each read.
    """
    address = urlsplit(url)
    if address.scheme not in {"http", "https"} or not address.netloc:
        raise ValueError("not of the form http://HOST:PORT")
    kind = HTTPSConnection if address.scheme == "https" else HTTPConnection
    is_late = threading.Event()
    with closing(kind(address.netloc, timeout=limit_s)) as connection:
        connection.connect()
        watch = threading.Timer(limit_s, _shut_down, (connection.sock, is_late))
        watch.start()
        try:
            path = address._replace(scheme="", netloc="").geturl() or "/"
            connection.request("GET" if data is None else "POST", path, data, dict(headers))
            reply = connection.getresponse()
            body = reply.read()
        except TimeoutError:  # of one read, no sooner than the limit of all
            is_late.set()
        except (OSError, HTTPException):
            if not is_late.is_set():
                raise
        finally:
            watch.cancel()
        if is_late.is_set():  # the end of the connection may be the end of the body
            raise TimeoutError(f"no complete answer within {limit_s:g} s")
        return reply.status, body


def _shut_down(connection: socket.socket, is_late: threading.Event) -> None:
    is_late.set()
    with suppress(OSError):  # the server may have left first
        connection.shutdown(socket.SHUT_RDWR)


_LLMAPI_PROBE = {"text_input": "ready?", "sampling_param_max_tokens": 1}


def drain(
    control: Control,
    within_s: float,
    *,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> int:
    """Refuse new requests, and wait until those in flight have finished or the limit has passed.

    From the first unload on, the server reports that it is not ready, so load balancers send nothing more. Requests
    that still arrive are answered "has no available versions" (HTTP 404, gRPC NOT_FOUND) without being processed.

    Returns:
        Requests still in flight at the limit; 0: all finished.

    Raises:
        ControlError: The server does not answer or refuses the key.
    """
    end = clock() + within_s
    there = control.states()
    for model in FRONTS:
        if "READY" in there.get(model, ()):
            control.unload(model)
    # Business-logic requests call the engine by name: if the engine were unloaded first, waiting ones would fail.
    _wait_for_none(lambda: _queued(control), end, clock, sleep)
    if "READY" in there.get(ENGINE_MODEL, ()):
        control.unload(ENGINE_MODEL)
    return _wait_for_none(lambda: _left(control), end, clock, sleep)


def _wait_for_none(
    count: Callable[[], int], end: float, clock: Callable[[], float], sleep: Callable[[float], None]
) -> int:
    """Wait until a count has been 0 for a while, or until `end`; return the count."""
    since = clock()
    while clock() < end:
        if (found := count()) > 0:
            since = clock()
        elif clock() - since >= SETTLE_S:
            return found
        sleep(POLL_S)
    return count()


def _has(control: Control, model: str) -> bool:
    return bool(control.states().get(model, set()) & _STILL_THERE)


def _queued(control: Control) -> int:
    """Return the number of waiting business-logic requests; an open gRPC stream keeps even an idle model loaded."""
    return (control.pending(FRONTS[1]) or 0) if _has(control, FRONTS[1]) else 0


def _left(control: Control) -> int:
    """Return the number of requests in flight; an unloaded engine has none, regardless of stale metrics."""
    if not _has(control, ENGINE_MODEL):
        return 0
    known = control.in_flight()
    return 1 if known is None else known


def main(arguments: list[str] | None = None) -> int:
    """Run as a program; return the exit status."""
    parser = argparse.ArgumentParser(description="Probe or drain the Triton on this machine.")
    parser.add_argument("do", choices=("probe", "drain"))
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--metrics-url", default="http://127.0.0.1:8002/metrics")
    parser.add_argument("--key-file", type=Path, required=True, help="the secret that serve.sh wrote")
    parser.add_argument(
        "--once", type=Path, help="probe: after the first answer, leave this file and ask for /ready only"
    )
    parser.add_argument("--before", type=float, default=0.0, help="drain: seconds to wait first, still serving")
    parser.add_argument("--within", type=float, default=30.0, help="drain: seconds for the requests in flight")
    options = parser.parse_args(arguments)
    try:
        control = Control(options.url, options.metrics_url, options.key_file.read_text(encoding="utf-8").strip())
        return (
            _probe(control, options.once) if options.do == "probe" else _drain(control, options.before, options.within)
        )
    except (ControlError, OSError) as error:
        text = str(error).encode("unicode_escape").decode()  # one line, without control characters
        sys.stderr.write(f"{options.do}: {text}\n")
        return 1


def _probe(control: Control, once: Path | None) -> int:
    """Request a token until one succeeds; afterwards a full queue must not make a busy server look broken."""
    if once is not None and once.exists():
        return 0 if control.is_ready() else 1
    if not control.is_ready():
        return 1
    control.probe()
    if once is not None:
        once.touch()
    return 0


def _drain(control: Control, before_s: float, within_s: float) -> int:
    time.sleep(before_s)
    left = drain(control, within_s)
    sys.stderr.write(f"drain: {left} requests still in flight after {within_s:g} s\n" if left else "drain: done\n")
    return 1 if left else 0


if __name__ == "__main__":
    sys.exit(main())
