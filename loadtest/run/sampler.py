"""Samples the server's metrics during a run."""

from __future__ import annotations

import json
import os
import ssl
import threading
import time
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import TypeAlias

from engines.errors import MissingError
from engines.http_fetch import bearer, fetch
from loadtest.client import Endpoint
from loadtest.client.endpoint import tls_context
from loadtest.client.protocols import key_in
from loadtest.results import Sample, meanings_of, parse_metrics, parse_series

METRICS_PORT_AFTER = {"triton-http": 2, "triton-grpc": 1}  # Triton's own order: HTTP 8000, gRPC 8001, metrics 8002
SERVE_METRICS = "/prometheus/metrics"  # of trtllm-serve; its /metrics is JSON
ANSWER_WITHIN_S = 5.0
PAGE_LIMIT_BYTES = 1 << 24
POWER = ("gpu_power_w", "gpu_energy_j")
_BLOCKS = "nv_trt_llm_kv_cache_block_metrics{"


PageReader: TypeAlias = Callable[[], dict[str, float]]


class Monitor:
    """Threads that sample metrics pages into one file, one line per sample; a slow page does not delay others.

    Args:
        pages: Reader of each metrics page; empty: nothing is sampled.
        path: File to append to.
        interval_s: Time between samples.
        clock: Seconds since the start of the run.

    Attributes:
        failed: The system's message when a sample could not be written; sampling stops then.
    """

    def __init__(self, pages: Sequence[PageReader], path: Path, interval_s: float, clock: Callable[[], float]) -> None:
        self._path = path
        self._interval_s = interval_s
        self._clock = clock
        self.failed: str | None = None
        self._stopping = threading.Event()
        self._writing = threading.Lock()
        self._threads = [
            threading.Thread(target=self._run, args=place, name=f"monitor-{place[0]}", daemon=True)
            for place in enumerate(pages)
        ]

    def __enter__(self) -> Monitor:
        """Start sampling."""
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop after a last sample."""
        self._stopping.set()
        for thread in self._threads:
            thread.join(timeout=2 * ANSWER_WITHIN_S)

    def _run(self, page: int, read: PageReader) -> None:
        try:
            self._sample(page, read)
        except OSError as error:
            self.failed = f"{self._path}: {error.strerror}"

    def _sample(self, page: int, read: PageReader) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            due = time.monotonic()
            while not self._stopping.wait(max(0.0, due - time.monotonic())):
                due += self._interval_s
                requested_s = self._clock()
                values = read()
                if values:
                    sample = Sample(t_s=requested_s, values=values, ended_s=self._clock(), page=page)
                    with self._writing:
                        file.write(json.dumps(sample.model_dump()) + "\n")
                        file.flush()


@dataclass(frozen=True, slots=True)
class MetricsPage:
    """A metrics page.

    Attributes:
        key: Sent with the request; None: none is.
        context: For TLS; None: the system's certificates.
    """

    url: str
    key: str | None = None
    context: ssl.SSLContext | None = None


def page_of(url: str, endpoint: Endpoint) -> MetricsPage:
    """Return a metrics page for reading beside a load: the load's own server, and no other, gets its key.

    Raises:
        UserError: The key is not valid in a header.
        OSError: The server's certificate file cannot be read.
    """
    if not url.startswith(endpoint.url("/")):
        return MetricsPage(url)
    key = key_in(os.environ, endpoint.api_key_env) if endpoint.is_openai else None
    return MetricsPage(url, key, tls_context(endpoint))


def metrics_url(endpoint: Endpoint) -> str | None:
    """Return the URL of a server's metrics page by the usual order of ports; None if nothing answers there."""
    port = endpoint.port + METRICS_PORT_AFTER.get(endpoint.protocol, 0)
    beside = endpoint.model_copy(update={"port": port})
    paths = ("/metrics", *((SERVE_METRICS,) if endpoint.is_openai else ()))
    return next((url for url in map(beside.url, paths) if read_metrics(page_of(url, endpoint))), None)


def kv_block_tokens(values: Mapping[str, float]) -> int | None:
    """Return the tokens per KV cache block of a TensorRT-LLM engine from its metrics; None if not published.

    >>> kv_block_tokens({'nv_trt_llm_kv_cache_block_metrics{kv_cache_block_type="tokens_per",model="m"}': 64.0})
    64
    """
    found = (int(value) for name, value in values.items() if name.startswith(_BLOCKS) and '"tokens_per"' in name)
    return next(found, None) or None


def read_metrics(page: MetricsPage) -> dict[str, float]:
    """Return the series that this project reads, by their full text; empty if the page cannot be read now."""
    try:
        return parse_metrics(_text(page))
    except MissingError:
        return {}


def require_page(page: MetricsPage) -> None:
    """Check that a metrics page can be read.

    Raises:
        MissingError: It cannot: the message states why.
    """
    _text(page)


def _text(page: MetricsPage) -> str:
    try:
        request = urllib.request.Request(page.url, headers=bearer(page.key))
        answer = fetch(request, limit_s=ANSWER_WITHIN_S, limit_bytes=PAGE_LIMIT_BYTES, context=page.context)
        if answer.status < HTTPStatus.BAD_REQUEST:
            return answer.body.decode("utf-8", "replace")
        reason = f"status {answer.status}"
    except (OSError, ValueError) as error:
        reason = str(error)
    raise MissingError(f"{page.url}: the metrics page cannot be read: {reason}", hint="check --metrics-url, or omit it")


def power_readings(url: str, gpus: Sequence[str]) -> dict[str, float]:
    """Return the power, energy and use of some GPUs from a page; empty if the page cannot be read now.

    Args:
        gpus: Indices or UUIDs, as the page labels them; empty: every GPU.
    """
    values = read_metrics(MetricsPage(url))
    of_gpus = {series for series, each in meanings_of(values).items() if each.quantity.startswith("gpu_")}
    if not any(meanings_of([series])[series].quantity in POWER for series in of_gpus):
        return {}
    return {series: values[series] for series in values if series in of_gpus and _is_of(series, gpus)}


def gpu_of(series: str) -> str:
    """Return the UUID of a series' GPU, or its index; the series itself without either.

    >>> gpu_of('DCGM_FI_DEV_POWER_USAGE{gpu="0",UUID="GPU-1"}')
    'GPU-1'
    """
    parsed = parse_series(series)
    labels = {} if parsed is None else parsed[1]
    return labels.get("UUID") or labels.get("gpu_uuid") or labels.get("gpu") or series


def _is_of(series: str, gpus: Sequence[str]) -> bool:
    parsed = parse_series(series)
    labels = {} if parsed is None else parsed[1]
    return not gpus or any(labels.get(name) in gpus for name in ("gpu", "UUID", "gpu_uuid"))
