"""What everyday commands cost (`make bench`): CPU seconds of the whole process and all it starts, and its peak memory.

Goals are the issue's; a machine that others use at the same time makes CPU seconds longer, so compare within one run.
NVIDIA's aisimulate has the same work beside ours where AISIMULATE names its command.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parent))
from clients import GAP_S, SERVER, TOKENS, Server
from peers import MODEL
from processes import BIN, machine, show

ENGINE = ("--model", "deepseek-r1-0528-qwen3-8b", "--gpu", "h100-sxm-80gb", "--precision", "fp8")
PREDICT = ("predict-load", *ENGINE, "--isl", "1000", "--rate", "20", "--json")
HELPS = (
    *("build-engine", "build-repo", "serve-repo", "run-load", "report-load", "predict-load"),
    *("calibrate-engine", "find-knee", "plan-capacity"),
)
STREAMS, SHORT, LONG = 64, 2, 20  # of a stream: replies in the shorter and the longer run


class Cost(NamedTuple):
    """What a command took, with every process it started; seconds and 10^6 bytes of the largest process."""

    cpu_s: float
    wall_s: float
    peak_mb: float


_MEASURE = """
import json, resource, subprocess, sys, time
began_s = time.monotonic()
status = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(json.dumps([status, used.ru_utime + used.ru_stime, time.monotonic() - began_s, used.ru_maxrss * 1024 / 1e6]))
"""


def cost_of(*command: str, folder: Path | None = None) -> Cost:
    """Return what a command of ours took.

    Raises:
        RuntimeError: It failed.
    """
    name, *arguments = command
    program = str(BIN / name) if (BIN / name).is_file() else name
    told = subprocess.run(
        [sys.executable, "-c", _MEASURE, program, *arguments], capture_output=True, text=True, check=True, cwd=folder
    ).stdout
    status, cpu_s, wall_s, peak_mb = (float(word) for word in told.strip("[]\n").split(","))
    if status:
        raise RuntimeError(f"{shlex.join(command)}: status {status:g}")
    return Cost(cpu_s, wall_s, peak_mb)


def main() -> int:
    """Print the table."""
    show(f"everyday work on {machine()}\n")
    show("| work | goal | CPU s | wall s | MB |\n| --- | --- | --- | --- | --- |")
    helps = {name: cost_of(name, "--help") for name in HELPS}
    slowest = max(helps, key=lambda name: helps[name].cpu_s)
    _line(f"`--help`, the slowest: {slowest}", "0.25", helps[slowest])
    _line("predict-load, 72,000 of 1000/300", "6; 200 MB", cost_of(*PREDICT, "--osl", "300", "--duration", "3600"))
    _line("predict-load, 10,000 of 1000/200", "1.5", cost_of(*PREDICT, "--osl", "200", "--duration", "500"))
    with tempfile.TemporaryDirectory() as name:
        _runs(Path(name))
    for words in filter(None, [os.environ.get("AISIMULATE")]):
        _line("aisimulate, as AISIMULATE says", "-", cost_of(*shlex.split(words)))
    return 0


def _runs(folder: Path) -> None:
    """Measure a run, the same run with more replies, and its report."""
    compiler = shutil.which("cc")
    if compiler is None:
        show("| run-load, report-load: no C compiler (cc) for the server with a known timetable | - | - | - | - |")
        return
    program = folder / "timetable"
    subprocess.run([compiler, "-O2", "-o", program, SERVER, "-lm"], check=True)
    server = Server(program)
    try:
        fixed = cost_of(*_load(server.port, folder / "fixed", users=1, requests=1, osl=1))
        short, long = (
            cost_of(*_load(server.port, folder / str(each), users=STREAMS, requests=STREAMS * each, osl=TOKENS))
            for each in (SHORT, LONG)
        )
    finally:
        server.stop()
    tokens = STREAMS * (LONG - SHORT) * TOKENS
    _line("run-load, one request of one token", "1.2; 1.5 s of wall", fixed)
    more = (long.cpu_s - short.cpu_s) / tokens * 1000
    show(f"| run-load, 1,000 tokens more at {STREAMS} streams, {GAP_S * 1e3:g} ms apart | 0.02 | {more:.4f} | - | - |")
    report = cost_of("report-load", str(folder / str(LONG)), "--out", str(folder / "report"))
    _line(f"report-load, {STREAMS * LONG:,} requests of {TOKENS} tokens", "2", report)


def _load(port: int, out: Path, *, users: int, requests: int, osl: int) -> tuple[str, ...]:
    url = f"http://127.0.0.1:{port}"
    sizes = ("--concurrency", str(users), "--requests", str(requests), "--isl", "64", "--osl", str(osl))
    target = ("--url", url, "--protocol", "openai-chat", "--model", MODEL)
    tokenizer = ("--tokenizer", str(BIN.parent / "share" / "tokenizers" / "qwen3" / "tokenizer.json"))
    return ("run-load", *target, *tokenizer, *sizes, "--out", str(out))


def _line(work: str, goal: str, cost: Cost) -> None:
    show(f"| {work} | {goal} | {cost.cpu_s:.2f} | {cost.wall_s:.1f} | {cost.peak_mb:.0f} |")


if __name__ == "__main__":
    raise SystemExit(main())
