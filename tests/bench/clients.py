"""What load generators cost and how true their figures are (`make bench`): one server, the same work, one run.

The server (tests/timetable/server.c) sends the first token of every reply 50 ms after the request and each further one
10 ms after the one before. Each client asks for replies of 96 tokens with 1 to 128 requests at a time. Printed is what
the client itself reports, against that truth; the load that the server saw of what was asked for; the processor time of
the client's whole process tree while tokens came, for 1000 of them; its memory; and how long after the command the
first request came. ITL is of every gap for run-load, and of each reply's mean for the others, which is what they
report: a stall in one gap of fifty hardly shows in theirs. Then follows what run-load adds to every single token,
against the server's log of when it sent it. A quiet machine is needed for figures worth keeping.

    python tests/bench/clients.py                        this project's client
    python tests/bench/clients.py --peers                and the others, each installed into .venv/peers/NAME
    python tests/bench/clients.py --only guidellm --levels 16,64
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "timetable"))
from peers import CLIENTS, OWN, Client, Reported, Work
from truth import added_by_client

FIRST_S, GAP_S, TOKENS = 0.050, 0.010, 96
REPLY_S = FIRST_S + (TOKENS - 1) * GAP_S
LEVELS = (1, 16, 64, 128)
ROUNDS = 8  # replies of each stream
CLIENT_LIMIT_S = 240
SAMPLE_S = 0.05
TICK_S = 1 / os.sysconf("SC_CLK_TCK")
MEMORY_EVERY = 5
SERVER = Path(__file__).parents[1] / "timetable" / "server.c"
HEAD = (
    "client", "streams", "TTFT p50 ms", "p99", "ITL p50 ms", "p99", "load reached", "CPU s/1000 tokens", "MB loading",
    "MB peak", "first request s", "server late p99 ms",
)  # fmt: skip
ADDED_HEAD = ("streams", "to TTFT p50", "p99", "to a gap p50", "p99", "p99.9", "read late p99", "clock")


@dataclass
class Tree:
    """A process and those it started: processor time and memory, sampled until it ends."""

    pid: int
    samples: list[tuple[float, float, int]] = field(default_factory=list)  # clock, processor seconds, bytes or 0
    _ticks: dict[int, int] = field(default_factory=dict)

    def watch(self, ended: threading.Event) -> None:
        """Sample until told that it has ended; memory seldom, since to ask for it takes the process's time."""
        while not ended.wait(SAMPLE_S):
            pids = self._pids()
            for pid in pids:
                self._look(pid)
            held = 0 if len(self.samples) % MEMORY_EVERY else sum(map(_held_bytes, pids))
            self.samples.append((time.monotonic(), sum(self._ticks.values()) * TICK_S, held))

    def _pids(self) -> list[int]:
        found = [self.pid]
        for pid in found:
            try:
                for task in Path(f"/proc/{pid}/task").iterdir():
                    found += [int(child) for child in (task / "children").read_text().split()]
            except (FileNotFoundError, ProcessLookupError):
                continue
        return found

    def _look(self, pid: int) -> None:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            self._ticks[pid] = int(fields[11]) + int(fields[12])

    def processor_s(self, begin_s: float, end_s: float) -> float:
        """Return the processor seconds spent between two moments, to a sample's length."""
        return self._spent(end_s) - self._spent(begin_s)

    def _spent(self, at_s: float) -> float:
        return max((spent for clock, spent, _ in self.samples if clock <= at_s), default=0.0)

    def peak_mb(self, begin_s: float = 0.0, end_s: float = float("inf")) -> float:
        """Return the most memory held at once, in 10^6 bytes; pages that processes share are counted once."""
        return max((held for clock, _, held in self.samples if begin_s <= clock <= end_s), default=0) / 1e6


def _held_bytes(pid: int) -> int:
    """Return the resident memory of a process, its share of what it shares."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:")), 0)


def main() -> int:
    """Measure every client asked for at every level; print a line for each."""
    arguments = _arguments()
    asked = set(arguments.only.split(",")) if arguments.only else None
    clients = [each for each in CLIENTS if (each.name in asked if asked else arguments.peers or not each.requirements)]
    compiler = shutil.which("cc")
    if compiler is None:
        show("clients: no C compiler (cc) to build the server with a known timetable; nothing measured")
        return 0
    show(f"true: TTFT {FIRST_S * 1e3:g} ms, ITL {GAP_S * 1e3:g} ms; {TOKENS} tokens a reply, {os.cpu_count()} cores\n")
    show("| " + " | ".join(HEAD) + " |\n|" + " --- |" * len(HEAD))
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        program = Path(folder) / "timetable"
        subprocess.run([compiler, "-O2", "-o", program, SERVER, "-lm"], check=True)
        for client in clients:
            reason = client.prepare()
            if reason is not None:
                show(f"| {client.name} | not measured: {reason} |")
                continue
            for level in map(int, arguments.levels.split(",")):
                show(_line(client, level, program, Path(folder) / f"{client.name}-{level}"))
        if OWN in clients:
            show("\nWhat run-load adds, token by token (triton-http), ms:\n")
            show("| " + " | ".join(ADDED_HEAD) + " |\n|" + " --- |" * len(ADDED_HEAD))
            for level in map(int, arguments.levels.split(",")):
                show(_added_line(level, program, Path(folder) / f"added-{level}"))
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", action="store_true", help="measure the other load generators too")
    parser.add_argument("--only", help="clients, by name: " + ", ".join(client.name for client in CLIENTS))
    parser.add_argument("--levels", default=",".join(map(str, LEVELS)), help="streams at a time")
    return parser.parse_args()


def _line(client: Client, level: int, program: Path, out: Path) -> str:
    out.mkdir(parents=True)
    server = Server(program)
    try:
        work = Work(server.port, level, level * ROUNDS, TOKENS, out)
        tree, began_s, failure = _drive(client, work)
    finally:
        seen = server.stop()
    if failure is not None or not seen["tokens"]:
        return f"| {client.name} | {level} | failed: {failure or 'no request came'} |"
    try:
        reported = client.read(out)
    except (OSError, LookupError, ValueError, TypeError) as error:
        return f"| {client.name} | {level} | its report could not be read: {type(error).__name__}: {error} |"
    return _row(client.name, level, reported, tree, seen, began_s)


def _added_line(level: int, program: Path, out: Path) -> str:
    out.mkdir(parents=True)
    server = Server(program, log=out / "log")
    try:
        work = Work(server.port, level, level * ROUNDS, TOKENS, out, protocol="triton-http")
        _, _, failure = _drive(OWN, work)
    finally:
        server.stop()
    if failure is not None:
        return f"| {level} | failed: {failure} |"
    added = added_by_client(out / "run", out / "log")
    ttft_s, gaps_s = np.abs(added.ttft_s), np.abs(added.gaps_s)
    level_run = json.loads((out / "run" / "run.json").read_text())["levels"][0]
    values = (
        *(f"{np.percentile(ttft_s, share) * 1e3:.3f}" for share in (50, 99)),
        *(f"{np.percentile(gaps_s, share) * 1e3:.3f}" for share in (50, 99, 99.9)),
        f"{level_run['read_late_p99_s'] * 1e3:.1f}",
        level_run["clock"],
    )
    return f"| {level} | " + " | ".join(values) + " |"


def _row(name: str, level: int, reported: Reported, tree: Tree, seen: dict[str, float], began_s: float) -> str:
    begin_s, end_s = seen["first_s"], seen["last_token_s"]
    asked = level * TOKENS / REPLY_S
    values = (
        name,
        level,
        *(f"{value * 1e3:.2f}" for value in (reported.ttft_p50_s, reported.ttft_p99_s)),
        *(f"{value * 1e3:.3f}" for value in (reported.itl_p50_s, reported.itl_p99_s)),
        f"{seen['steady_tokens_per_s'] / asked:.0%}",
        f"{tree.processor_s(begin_s, end_s) / seen['tokens'] * 1e3:.4f}",
        f"{tree.peak_mb(begin_s, end_s):.0f}",
        f"{tree.peak_mb():.0f}",
        f"{begin_s - began_s:.2f}",
        f"{seen['late_p99_s'] * 1e3:.2f}",
    )
    return "| " + " | ".join(map(str, values)) + " |"


def _drive(client: Client, work: Work) -> tuple[Tree, float, str | None]:
    """Run a client to its end; return its tree, when it was started, and what went wrong."""
    environment = {**os.environ, "COLUMNS": "200", "NO_COLOR": "1", **client.environment()}
    command, log = client.command(work), work.out / "client.log"
    with log.open("wb") as output:
        began_s = time.monotonic()
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, cwd=work.out, env=environment, start_new_session=True
        )
        tree, ended = Tree(process.pid), threading.Event()
        watcher = threading.Thread(target=tree.watch, args=(ended,))
        watcher.start()
        try:
            status = process.wait(timeout=CLIENT_LIMIT_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return tree, began_s, f"not over after {CLIENT_LIMIT_S} s"
        finally:
            ended.set()
            watcher.join()
    last = log.read_text(errors="replace").strip().splitlines()[-1:] or [""]
    return tree, began_s, f"status {status}: {last[0][:160]}" if status else None


class Server:
    """The server with the timetable; what it says is read as it comes."""

    def __init__(self, program: Path, log: Path | None = None) -> None:
        times = ["--first-ms", f"{FIRST_S * 1e3:g}", "--gap-ms", f"{GAP_S * 1e3:g}"]
        command = [str(program), *times, "--seconds", str(CLIENT_LIMIT_S + 30), *(["--log", str(log)] if log else [])]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        if self._process.stdout is None:
            raise RuntimeError("the server has no output")
        self._output = self._process.stdout
        self.port = int(self._output.readline().split()[1])

    def stop(self) -> dict[str, float]:
        """End it; return what it saw: tokens, when the first request and the last token were, its own lateness."""
        self._process.terminate()
        lines = self._output.read().splitlines()
        self._output.close()
        self._process.wait(timeout=10)
        seen = json.loads(lines[-1])
        first = next((float(line.split()[1]) for line in lines if line.startswith("first ")), 0.0)
        late_p99_s = seen.pop("late_s")["p99"]
        return {**seen, "first_s": first, "late_p99_s": late_p99_s}


def show(text: str) -> None:
    """Print a line at once."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    raise SystemExit(main())
