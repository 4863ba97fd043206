"""What virtual time costs (`make bench`): simulated requests per second of one core, and the memory it takes."""

from __future__ import annotations

import resource
import sys
import time
from typing import NamedTuple

import numpy as np

from engines.emulator.settings import batcher_for
from engines.files import Document, MadeBy
from engines.planning import emulated_manifest
from engines.planning.plan import make_plan
from engines.planning.recipe import resolve_recipe
from loadtest.simulate.virtual_server import Arrivals, Sent, VirtualServer
from loadtest.traffic.levels import Turn

HEAD = Document(made_by=MadeBy(command="make bench", version="0"))


class Work(NamedTuple):
    """An open loop of fixed lengths, and the seconds that are our goal or another simulator's figure."""

    name: str
    requests: int
    rate_per_s: float
    isl: int
    osl: int
    against: str


WORKS = (
    Work("an hour at 20/s", 72_000, 20.0, 1000, 300, "goal: under 10 s"),
    Work("10,000 of 1000/200", 10_000, 20.0, 1000, 200, "NVIDIA's simulator, as stated: 1.2 s inside, 2.8 s in all"),
)


def main() -> int:
    """Run every work with each source of step times; print what it took."""
    show("| work | step time | seconds | requests/s | tokens/s | virtual s | peak memory | against |")
    show("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for work in WORKS:
        for source in ("roofline", "silicon"):
            show(_line(work, source))
    return 0


def _line(work: Work, source: str) -> str:
    resolved = resolve_recipe(None, {"step_time": source})
    manifest = emulated_manifest(make_plan(resolved, head=HEAD), resolved.recipe)
    batcher = batcher_for(manifest)
    times_s = np.cumsum(np.random.default_rng(0).exponential(1 / work.rate_per_s, work.requests)).tolist()
    requests = [Sent(Turn(number, "measure", work.osl), t_s, work.isl) for number, t_s in enumerate(times_s)]
    began = time.perf_counter()
    server = VirtualServer(batcher, Arrivals(requests))
    tokens = sum(last - first + 1 for ended in server.run() for first, last in ended.spans)
    seconds = time.perf_counter() - began
    if tokens != work.requests * work.osl:
        raise RuntimeError(f"{tokens} tokens came out where {work.requests * work.osl} were asked for")
    memory_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return (
        f"| {work.name} | {source} | {seconds:.2f} | {work.requests / seconds:,.0f} | {tokens / seconds:,.0f} | "
        f"{server.now_s:,.0f} | {memory_mib:.0f} MiB | {work.against} |"
    )


def show(text: str) -> None:
    """Print a line at once."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    raise SystemExit(main())
