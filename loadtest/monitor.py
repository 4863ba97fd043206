"""What the server says of itself: facts before a run, metrics during it."""

from __future__ import annotations

import json
import re
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from engines.errors import MissingError, UserError
from loadtest.records import Sample, ServerFacts
from loadtest.scenario import Protocol

KEPT_PREFIXES = ("nv_trt_llm_", "emulator_", "nv_inference_pending_request_count", "nv_gpu_", "nv_inference_count")
METRICS_PORT_AFTER = {"triton-http": 2, "triton-grpc": 1}  # Triton's own order: HTTP 8000, gRPC 8001, metrics 8002
ANSWER_WITHIN_S = 5.0
_SERIES = re.compile(r"^([A-Za-z_:][\w:]*(?:\{[^}]*\})?) (\S+)$")


def host_and_port(url: str, protocol: Protocol) -> tuple[str, int]:
    """Return where a URL points; a bare HOST:PORT is taken too.

    Raises:
        UserError: It has no port or another scheme.
    """
    parts = urlsplit(url if "://" in url else f"//{url}")
    if parts.scheme not in {"", "http", "grpc"} or not parts.hostname:
        raise UserError(f"--url {url}: http://HOST:PORT is expected")
    return parts.hostname, parts.port or (8000 if protocol == "triton-http" else 8001)


def server_facts(url: str, protocol: Protocol, model: str) -> tuple[ServerFacts, str | None]:
    """Ask a server what it is, through tritonclient.

    Returns:
        Its facts, and the folder its preprocessing model takes the tokenizer from, where it has one.

    Raises:
        MissingError: No server answers there, or it does not serve the model.
    """
    host, port = host_and_port(url, protocol)
    address = f"{host}:{port}"
    read = _read_http if protocol == "triton-http" else _read_grpc
    metadata, config, preprocessing = read(address, model)
    parameters = _parameters(config)
    engine = parameters if model == "tensorrt_llm" else _parameters(read(address, "tensorrt_llm")[1])
    emulated = engine.get("emulated") == "true"
    facts = ServerFacts(
        url=url,
        protocol=protocol,
        model=model,
        triton_version=str(metadata.get("version", "unknown")),
        emulated=emulated,
        time_scale=float(engine["emulator_time_scale"]) if emulated else 1.0,
        engine=engine.get("engine_name"),
    )
    return facts, _parameters(preprocessing).get("tokenizer_dir") if preprocessing else None


def _read_http(address: str, model: str) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any] | None]:
    import tritonclient.http as triton  # noqa: PLC0415 (loads gevent, which only this call needs)
    from tritonclient.utils import InferenceServerException  # noqa: PLC0415

    client = triton.InferenceServerClient(address, connection_timeout=ANSWER_WITHIN_S, network_timeout=ANSWER_WITHIN_S)
    try:
        metadata = client.get_server_metadata()
        config = client.get_model_config(model)
        preprocessing = client.get_model_config("preprocessing") if client.is_model_ready("preprocessing") else None
    except InferenceServerException as error:
        raise _no_model(address, model, str(error.message())) from error
    except (OSError, ValueError) as error:
        raise _no_server(address, error) from error
    finally:
        client.close()
    return metadata, config, preprocessing


def _read_grpc(address: str, model: str) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any] | None]:
    import tritonclient.grpc as triton  # noqa: PLC0415 (loads grpc, which only this call needs)
    from tritonclient.utils import InferenceServerException  # noqa: PLC0415

    client = triton.InferenceServerClient(address)
    wait = {"client_timeout": ANSWER_WITHIN_S}
    try:
        metadata = client.get_server_metadata(as_json=True, **wait)
        config = client.get_model_config(model, as_json=True, **wait)["config"]
        ready = client.is_model_ready("preprocessing", **wait)
        preprocessing = client.get_model_config("preprocessing", as_json=True, **wait)["config"] if ready else None
    except InferenceServerException as error:
        if "UNAVAILABLE" in str(error.status()) or "DEADLINE" in str(error.status()):
            raise _no_server(address, error) from error
        raise _no_model(address, model, str(error.message())) from error
    finally:
        client.close()
    return metadata, config, preprocessing


def _no_server(address: str, error: Exception) -> MissingError:
    return MissingError(
        f"no Triton server answers at {address}: {str(error) or type(error).__name__}",
        hint="is it started (serve-repo), and are --url and --protocol its own?",
    )


def _no_model(address: str, model: str, message: str) -> MissingError:
    return MissingError(f"{address}: {model}: {message}", hint="serve-repo serves a repository that has it")


def _parameters(config: dict[str, Any]) -> dict[str, str]:
    return {
        key: str(value.get("string_value", value.get("stringValue", "")))
        for key, value in config.get("parameters", {}).items()
    }


class Monitor:
    """A thread that samples a server's metrics into a file, a line a sample.

    Args:
        url: Of the metrics page; None samples nothing.
        path: File to append to.
        interval_s: Between samples.
        clock: Seconds since the run began.
    """

    def __init__(self, url: str | None, path: Path, interval_s: float, clock: Callable[[], float]) -> None:
        self._url = url
        self._path = path
        self._interval_s = interval_s
        self._clock = clock
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="monitor", daemon=True)

    def __enter__(self) -> Monitor:
        """Start sampling."""
        if self._url is not None:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop after a last sample."""
        self._stopping.set()
        if self._url is not None:
            self._thread.join(timeout=2 * ANSWER_WITHIN_S)

    def _run(self) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            due = time.monotonic()
            while not self._stopping.wait(max(0.0, due - time.monotonic())):
                due += self._interval_s
                values = read_metrics(self._url or "")
                if values:
                    sample = Sample(t_s=self._clock(), values=values)
                    file.write(json.dumps(sample.model_dump()) + "\n")
                    file.flush()


def metrics_url(url: str, protocol: Protocol) -> str | None:
    """Return where a server's metrics are, by Triton's usual order of ports; None where nothing answers there."""
    host, port = host_and_port(url, protocol)
    candidate = f"http://{host}:{port + METRICS_PORT_AFTER[protocol]}/metrics"
    return candidate if read_metrics(candidate) else None


def read_metrics(url: str) -> dict[str, float]:
    """Return the series this project reads, by their full text; none where the page cannot be read just now."""
    try:
        with urllib.request.urlopen(url, timeout=ANSWER_WITHIN_S) as reply:
            return parse_metrics(reply.read().decode("utf-8", "replace"))
    except (urllib.error.URLError, OSError, ValueError):
        return {}


def parse_metrics(text: str) -> dict[str, float]:
    r"""Return the kept series of a Prometheus page.

    >>> parse_metrics('# HELP x y\nemulator_steps_total{model="m"} 3\nother 1\n')
    {'emulator_steps_total{model="m"}': 3.0}
    """
    found = (_SERIES.match(line) for line in text.splitlines() if line.startswith(KEPT_PREFIXES))
    return {match[1]: float(match[2]) for match in found if match}
