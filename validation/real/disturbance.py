"""Whether server and load disturb each other: measured before any figure of the two together is believed."""

from __future__ import annotations

import http.client
import json
import multiprocessing
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np

from engines.files import Strict
from engines.http_fetch import fetch
from engines.machine import read_bandwidth
from loadtest.results import read_records
from validation.real.commands import ours
from validation.real.server_process import Server
from validation.real.settings import Shape

SHAPE, REQUESTS, USERS = Shape(96, 40), 16, 8
PAGE_WITHIN_S, PAGE_BYTES = 10.0, 1 << 24
_OF_SERVER = re.compile(r"^vllm:inter_token_latency_seconds_(sum|count)\{[^}]*\} (\S+)$", re.MULTILINE)


class Disturbance(Strict):
    """What the two cores take from each other.

    Attributes:
        other_processes_ratio: Of both cores' time, what others used while nothing of ours ran.
        bandwidth_alone_bytes_per_s: Reading, on the server's core while the load's core is idle.
        bandwidth_shared_bytes_per_s: The same while the load's core copies memory as fast as it can: the worst case.
        light_itl_p50_s: One request at a time by a client of twenty lines, pinned where the load will be.
        run_load_itl_p50_s: The same requests by run-load.
        server_itl_mean_s: Of run-load's requests at full load, by the server's own count; `client_itl_mean_s` beside.
        load_cpu_share: Of its core, what run-load took at full load.
    """

    other_processes_ratio: float
    bandwidth_alone_bytes_per_s: float
    bandwidth_shared_bytes_per_s: float
    light_itl_p50_s: float
    run_load_itl_p50_s: float
    server_itl_mean_s: float
    client_itl_mean_s: float
    load_cpu_share: float

    @property
    def sentences(self) -> list[str]:
        """What was found, in words."""
        lost = 1 - self.bandwidth_shared_bytes_per_s / self.bandwidth_alone_bytes_per_s
        client = self.run_load_itl_p50_s / self.light_itl_p50_s - 1
        seen = self.client_itl_mean_s / self.server_itl_mean_s - 1
        return [
            f"Other processes used {self.other_processes_ratio:.1%} of the machine before the measurement.",
            f"The server's core reads {self.bandwidth_alone_bytes_per_s / 1e9:.1f} GB/s while the other core is idle, "
            f"and {lost:.0%} less while it copies memory as fast as it can.",
            f"One user's ITL p50 is {1e3 * self.light_itl_p50_s:.2f} ms with a client of twenty lines and "
            f"{1e3 * self.run_load_itl_p50_s:.2f} ms with run-load ({client:+.1%}).",
            f"With {USERS} users the server counts a mean ITL of {1e3 * self.server_itl_mean_s:.2f} ms, run-load "
            f"{1e3 * self.client_itl_mean_s:.2f} ms ({seen:+.1%}); run-load takes {self.load_cpu_share:.0%} of its "
            "core.",
        ]


def measure_disturbance(server: Server, tokenizer: Path, out: Path, *, load_core: int, before: Idle) -> Disturbance:
    """Measure a running server alone, with a light client, and under load.

    Args:
        out: Folder for the two runs of run-load.
        before: What was measured before the server started.
    """
    light = float(np.median(light_client_gaps_s(server)))
    flags: tuple[object, ...] = ("--url", server.url, "--protocol", "openai-completions", "--model", server.model)
    flags += ("--tokenizer", str(tokenizer), "--isl", str(SHAPE.isl), "--osl", str(SHAPE.osl), "--force")
    one = out / "one-user"
    ours("run-load", *flags, "--concurrency", 1, "--requests", REQUESTS, "--out", one, core=load_core)
    first = server_itl(server.url)
    full = out / "full"
    ran = ours("run-load", *flags, "--concurrency", USERS, "--requests", 6 * USERS, "--out", full, core=load_core)
    last = server_itl(server.url)
    return Disturbance(
        other_processes_ratio=before.others_ratio,
        bandwidth_alone_bytes_per_s=before.alone_bytes_per_s,
        bandwidth_shared_bytes_per_s=before.shared_bytes_per_s,
        light_itl_p50_s=light,
        run_load_itl_p50_s=float(np.median(_gaps_s(one))),
        server_itl_mean_s=(last[0] - first[0]) / (last[1] - first[1]),
        client_itl_mean_s=float(np.mean(_gaps_s(full, every=True))),
        load_cpu_share=ran.cpu_share,
    )


class Idle(Strict):
    """The machine before anything of ours runs; bandwidths as in `Disturbance`."""

    others_ratio: float
    alone_bytes_per_s: float
    shared_bytes_per_s: float


def measure_idle(server_core: int, load_core: int) -> Idle:
    """Return what others use of the machine, and what the server's core reads while the load's is idle, or copies."""
    others = others_ratio()
    alone = read_bandwidth((server_core,))
    with copying(load_core):
        return Idle(others_ratio=others, alone_bytes_per_s=alone, shared_bytes_per_s=read_bandwidth((server_core,)))


@contextmanager
def copying(core: int) -> Iterator[None]:
    """Keep a core copying memory while the block runs."""
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=_copy_for_ever, args=(core,), daemon=True)
    process.start()
    time.sleep(2.0)  # until numpy is loaded and the copies have begun
    try:
        yield
    finally:
        process.terminate()
        process.join()


def _copy_for_ever(core: int) -> None:
    import os  # noqa: PLC0415 (of the child alone)

    os.sched_setaffinity(0, {core})
    left, right = np.ones(32 << 20, dtype=np.float32), np.empty(32 << 20, dtype=np.float32)
    while True:
        np.copyto(right, left)


def others_ratio(seconds: float = 3.0) -> float:
    """Return how much of this machine other processes use, while this one sleeps."""
    before = _busy_and_all()
    time.sleep(seconds)
    after = _busy_and_all()
    return (after[0] - before[0]) / max(1, after[1] - before[1])


def _busy_and_all() -> tuple[int, int]:
    """Return the ticks that all cores were busy, and all of them; /proc/stat: idle and iowait are the 4th and 5th."""
    first = Path("/proc/stat").read_text(encoding="utf-8").splitlines()[0].split()[1:9]
    ticks = list(map(int, first))
    return sum(ticks) - ticks[3] - ticks[4], sum(ticks)


def light_client_gaps_s(server: Server) -> list[float]:
    """Return the gaps between the tokens of requests sent one after the other, by nothing but a socket and a clock."""
    address = urlsplit(server.url)
    gaps: list[float] = []
    for number in range(REQUESTS):
        words = " ".join(f"word{number}-{place}" for place in range(SHAPE.isl // 5))
        body = {"model": server.model, "prompt": words, "max_tokens": SHAPE.osl, "ignore_eos": True, "stream": True}
        connection = http.client.HTTPConnection(str(address.hostname), int(address.port or 80), timeout=60)
        connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
        reply = connection.getresponse()
        times: list[float] = []
        while line := reply.readline():
            if line.startswith(b"data: {"):
                times.append(time.perf_counter())
        connection.close()
        gaps += np.diff(times).tolist()
    return gaps


def _gaps_s(run: Path, *, every: bool = False) -> list[float]:
    """Return the gaps of a run's measured requests, or of all: the server counts those of the warm-up, too."""
    chosen = [record for record in read_records(run) if every or record.phase == "measure"]
    return [float(gap) for record in chosen for gap in np.diff(record.token_times_s)]


def server_itl(url: str, *, within_s: float = PAGE_WITHIN_S) -> tuple[float, float]:
    """Return the server's own sum, in seconds, and count of gaps.

    Raises:
        FetchError: Its metrics page did not arrive whole in time.
    """
    page = fetch(f"{url}/metrics", limit_s=within_s, limit_bytes=PAGE_BYTES)
    found = dict(_OF_SERVER.findall(page.body.decode()))
    return float(found["sum"]), float(found["count"])
