"""The load generators of `make bench`: how each is installed, told the work, and what it reports."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

BIN = Path(sys.executable).parent
PEERS = Path(sys.prefix) / "peers"
TOKENIZER = Path(sys.prefix) / "share" / "tokenizers" / "qwen3"
TORCH = "torch==2.13.0"  # asked for by name, the index's own build is a CPU's
INSTALL_LIMIT_S = 1200
PROMPT_TOKENS = 32
LIB_B64 = sorted((Path(sys.prefix) / "opt" / "triton").glob("wheel/nvidia_pytriton.libs/libb64-*.so.0d"))
MODEL = "timetable"


class Work(NamedTuple):
    """What a client is to do: `requests` in all, `streams` at a time, `tokens` in each reply."""

    port: int
    streams: int
    requests: int
    tokens: int
    out: Path
    protocol: str = "openai-chat"

    @property
    def url(self) -> str:
        """Return the server's address."""
        return f"http://127.0.0.1:{self.port}"


class Reported(NamedTuple):
    """What a client says of its run, in seconds."""

    ttft_p50_s: float
    ttft_p99_s: float
    itl_p50_s: float
    itl_p99_s: float


def _offline() -> dict[str, str]:
    return {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}


@dataclass(frozen=True)
class Client:
    """A load generator.

    Attributes:
        requirements: Lists of packages to install, one after the other; none for this project's own.
        command: The command line for a work.
        read: What it reported, from the folder it ran in.
        environment: Variables it needs.
    """

    name: str
    requirements: tuple[tuple[str, ...], ...]
    command: Callable[[Work], list[str]]
    read: Callable[[Path], Reported]
    environment: Callable[[], dict[str, str]] = _offline

    def prepare(self) -> str | None:
        """Install it where it is not; return why it cannot be had, or None."""
        folder = PEERS / self.name
        if not self.requirements or (folder / "installed").is_file():
            return None
        if self.name == "genai-perf" and not LIB_B64:
            return "perf_analyzer needs libb64.so.0d, which the local Triton has: make setup"
        log = PEERS / f"{self.name}.log"
        PEERS.mkdir(exist_ok=True)
        with log.open("w") as output:
            steps = [[sys.executable, "-m", "venv", str(folder)]]
            pip = [str(folder / "bin" / "pip"), "--disable-pip-version-check", "install"]
            steps += [[*pip, *packages] for packages in self.requirements]
            for step in steps:
                try:
                    status = subprocess.run(step, stdout=output, stderr=output, timeout=INSTALL_LIMIT_S, check=False)
                except subprocess.TimeoutExpired:
                    return f"not installed within {INSTALL_LIMIT_S} s"
                if status.returncode:
                    errors = [line for line in log.read_text().splitlines() if line.startswith("ERROR")]
                    return f"cannot be installed: {errors[0] if errors else f'status {status.returncode}'}"
        (folder / "installed").touch()
        return None


def _program(peer: str, name: str) -> str:
    return str(PEERS / peer / "bin" / name)


def _found(out: Path, pattern: str) -> Any:
    paths = sorted(out.rglob(pattern))
    if not paths:
        raise FileNotFoundError(f"no {pattern}")
    return json.loads(paths[-1].read_text())


def _own_command(work: Work) -> list[str]:
    target = ["--url", work.url, "--protocol", work.protocol, "--model", MODEL]
    shape = ["--isl", PROMPT_TOKENS, "--osl", work.tokens, "--concurrency", work.streams, "--requests", work.requests]
    tokenizer = ["--tokenizer", TOKENIZER / "tokenizer.json", "--out", work.out / "run"]
    return [str(BIN / "run-load"), *map(str, [*target, *shape, *tokenizer])]


def _own_report(out: Path) -> Reported:
    command = [str(BIN / "report-load"), str(out / "run"), "--out", str(out / "report"), "--json"]
    level = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)["levels"][0]
    ttft, itl = level["ttft_s"], level["itl_s"]
    return Reported(ttft["p50"], ttft["p99"], itl["p50"], itl["p99"])


def _aiperf_command(work: Work) -> list[str]:
    target = ["--url", work.url, "--model", MODEL, "--endpoint-type", "chat", "--streaming", "--use-legacy-max-tokens"]
    shape = ["--concurrency", work.streams, "--request-count", work.requests]
    prompt = ["--isl", PROMPT_TOKENS, "--osl", work.tokens, "--tokenizer", TOKENIZER]
    command = [*target, *shape, *prompt, "--artifact-dir", work.out, "--ui-type", "none"]
    return [_program("aiperf", "aiperf"), "profile", *map(str, command)]


def _aiperf_report(out: Path) -> Reported:
    said = _found(out, "profile_export_aiperf.json")
    ttft, itl = said["time_to_first_token"], said["inter_token_latency"]
    return Reported(*(value / 1e3 for value in (ttft["p50"], ttft["p99"], itl["p50"], itl["p99"])))


def _guidellm_command(work: Work) -> list[str]:
    backend = f"kind=openai_http,target={work.url},model={MODEL}"
    data = f"kind=synthetic_text,prompt_tokens={PROMPT_TOKENS},output_tokens={work.tokens}"
    target = ["--backend", backend, "--tokenizer", f"kind=huggingface_auto,model={TOKENIZER}", "--data", data]
    shape = ["--profile", f"kind=concurrent,streams={work.streams}"]
    shape += ["--constraint", f"kind=max_requests,count={work.requests}"]
    output = ["--output", f"kind=json,path={work.out / 'benchmarks.json'}", "--disable-progress"]
    return [_program("guidellm", "guidellm"), "run", *target, *shape, *output]


def _guidellm_report(out: Path) -> Reported:
    metrics = _found(out, "benchmarks.json")["benchmarks"][0]["metrics"]
    ttft = metrics["time_to_first_token_ms"]["successful"]["percentiles"]
    itl = metrics["inter_token_latency_ms"]["successful"]["percentiles"]
    return Reported(*(value / 1e3 for value in (ttft["p50"], ttft["p99"], itl["p50"], itl["p99"])))


def _genai_bench_command(work: Work) -> list[str]:
    target = ["--api-backend", "openai", "--api-base", work.url, "--api-key", "none", "--api-model-name", MODEL]
    shape = ["--num-concurrency", work.streams, "--max-requests-per-run", work.requests, "--max-time-per-run", 2]
    prompt = ["--task", "text-to-text", "--traffic-scenario", f"D({PROMPT_TOKENS},{work.tokens})"]
    rest = ["--model-tokenizer", TOKENIZER, "--experiment-base-dir", work.out, "--experiment-folder-name", "run"]
    return [_program("genai-bench", "genai-bench"), "benchmark", *map(str, [*target, *shape, *prompt, *rest])]


def _genai_bench_report(out: Path) -> Reported:
    said = _found(out / "run", "D*.json")["aggregated_metrics"]["stats"]
    return Reported(said["ttft"]["p50"], said["ttft"]["p99"], said["tpot"]["p50"], said["tpot"]["p99"])


def _genai_perf_environment() -> dict[str, str]:
    """Return where perf_analyzer finds itself and the libraries it wants: libb64 is the local Triton's."""
    folder = PEERS / "genai-perf"
    libraries = [*(str(found) for found in folder.glob("lib/python*/site-packages/nvidia/cuda_runtime/lib"))]
    if folder.is_dir() and LIB_B64:
        link = folder / "lib" / "more" / "libb64.so.0d"
        link.parent.mkdir(exist_ok=True)
        link.unlink(missing_ok=True)
        link.symlink_to(LIB_B64[0])
        libraries.append(str(link.parent))
    return _offline() | {"LD_LIBRARY_PATH": ":".join(libraries), "PATH": f"{folder / 'bin'}:{os.environ['PATH']}"}


def _genai_perf_command(work: Work) -> list[str]:
    target = ["-m", MODEL, "--url", f"127.0.0.1:{work.port}", "--endpoint-type", "chat"]
    shape = ["--streaming", "--concurrency", work.streams, "--request-count", work.requests]
    prompt = ["--synthetic-input-tokens-mean", PROMPT_TOKENS, "--output-tokens-mean", work.tokens]
    rest = ["--tokenizer", TOKENIZER, "--artifact-dir", work.out]
    return [_program("genai-perf", "genai-perf"), "profile", *map(str, [*target, *shape, *prompt, *rest])]


def _genai_perf_report(out: Path) -> Reported:
    said = _found(out, "*genai_perf.json")
    ttft, itl = said["time_to_first_token"], said["inter_token_latency"]
    return Reported(*(value / 1e3 for value in (ttft["p50"], ttft["p99"], itl["p50"], itl["p99"])))


# perf_analyzer's program comes with an older tritonclient: newer ones want a glibc of 2.38.
GENAI_PERF = (("genai-perf==0.0.16", "nvidia-cuda-runtime-cu12"), ("--no-deps", "tritonclient==2.47.0"))

OWN = Client("run-load", (), _own_command, _own_report)
CLIENTS = (
    OWN,
    # Told to be offline, it takes no tokenizer from a folder.
    Client("aiperf", (("aiperf==0.13.0",),), _aiperf_command, _aiperf_report, dict),
    Client("genai-bench", ((TORCH,), ("genai-bench==0.0.5",)), _genai_bench_command, _genai_bench_report),
    Client("guidellm", ((TORCH,), ("guidellm==0.8.1",)), _guidellm_command, _guidellm_report),
    Client("genai-perf", GENAI_PERF, _genai_perf_command, _genai_perf_report, _genai_perf_environment),
)
