"""Prints what simulations of many kinds give, to the last digit: `simulated_work.py python` or `compiled`.

Drawn batchers with every setting, and whole commands: closed and open loops, conversations, traces of shared prefixes,
speculation, other engines' ways of batching, a plan with its autoscaler, a calibration.
"""

from __future__ import annotations

import contextlib
import math
import random
import sys
import tempfile
from collections import deque
from pathlib import Path

from click.testing import CliRunner

DRAFTS = ((0, ()), (0, ()), (2, (0.7, 0.4)), (7, (0.8, 0.3)))
BLOCK = 16
ENGINE = ("--model", "deepseek-r1-0528-qwen3-8b", "--gpu", "h100-sxm-80gb", "--precision", "fp8")
SCENARIOS = {
    "shared": """
name: shared
arrivals: {process: gamma, rate_per_s: 12, burstiness: 1.5, duration_s: 30}
classes:
  - {name: chat, weight: 8, prefixes: {count: 4, tokens: 512},
     lengths: {isl: "lognormal(mean=900, cv=1.0, max=6000)", osl: "lognormal(mean=120, cv=0.9, max=900)"}}
  - {name: long, weight: 2, lengths: {isl: "lognormal(mean=3000, cv=0.5, max=7000)", osl: 60}}
""",
    "talks": """
name: talks
concurrency: [12]
requests: 120
lengths: {isl: "uniform(20, 400)", osl: "lognormal(mean=80, cv=0.7, max=400)"}
conversation: {turns: "uniform(1, 5)", think_s: "exponential(mean=0.5)"}
prefixes: {count: 2, tokens: 300, share: 0.7}
""",
}
DEMAND = """
name: day
model: llama-3-8b
traffic:
  process: described
  rate_by_hour_per_s: [4, 4, 4, 4, 9, 18, 20, 20, 18, 9, 4, 4, 4, 4, 4, 4, 9, 18, 20, 20, 18, 9, 4, 4]
  burstiness: 1.3
  classes:
    - {name: chat, prefixes: {count: 4, tokens: 512},
       lengths: {isl: "lognormal(mean=900, cv=1.0, max=6000)", osl: "lognormal(mean=220, cv=0.9, max=1500)"}}
objectives: {ttft_s: {p95: 0.2}}
availability: {n_plus: 1}
limits: {gpus: [h100-sxm-80gb], precisions: [fp8]}
"""
MEASURED = """\
concurrency_or_batch,isl,osl,throughput_out_tok_s,itl_ms,ttft_ms
1,200,200,180,5.5,20
10,200,200,1450,6.5,35
50,200,200,5800,8.0,110
1,2000,200,170,5.6,70
10,2000,200,1100,7.9,105
25,2000,200,1850,12.0,210
"""


def batcher_lines(cases: int) -> list[str]:
    """Return every token's time, and the state at the end, of drawn batchers under drawn requests."""
    from engines.emulator.engine import Batcher  # noqa: PLC0415 (after the choice of what to import)
    from engines.emulator.request import BatcherSettings, Request, RequestError  # noqa: PLC0415
    from engines.spec.gpu import gpu_named  # noqa: PLC0415
    from engines.spec.model import model_named  # noqa: PLC0415
    from engines.spec.placed_model import PlacedModel  # noqa: PLC0415
    from engines.steptime.roofline import Roofline  # noqa: PLC0415

    step_time = Roofline(PlacedModel(model_named("llama-3-8b"), gpu_named("a100-sxm-80gb"), "int8_sq", "int8"))
    draw, lines = random.Random(20261130), []
    for case in range(cases):
        draft_tokens, acceptance = draw.choice(DRAFTS)
        limits = BatcherSettings(
            max_batch_size=draw.randint(1, 12),
            max_num_tokens=draw.randint(320, 700),
            max_seq_len=300,
            tokens_per_block=BLOCK,
            kv_blocks=40,
            host_blocks=draw.choice((0, 0, 12)),
            kv_reuse=draw.random() < 0.6,
            chunked_context=draw.random() < 0.5,
            policy=draw.choice(("guaranteed_no_evict", "max_utilization", "static_batch")),
            new_token_ratio=draw.choice((None, 0.7)),
            prompts_apart=draw.random() < 0.3,
            chunking=draw.choice(("first_come", "equal_progress")),
            max_queue_size=draw.choice((0, 0, 6)),
            draft_tokens=draft_tokens,
            acceptance=acceptance,
            acceptance_seed=case,
        )
        batcher, now_s, coming = Batcher(limits, step_time), 0.0, deque[tuple[float, Request]]()
        for number in range(draw.randint(1, 40)):
            now_s += draw.choice((0.0, draw.expovariate(20.0)))
            prompt, family = draw.randint(1, 200), draw.randrange(4)
            hashes = tuple(family * 1000 + place for place in range(prompt // BLOCK))
            most, ends = draw.randint(1, 120), draw.choice((None, draw.randint(1, 60)))
            coming.append((now_s, Request(number, prompt, most, now_s, hashes, ends)))
        now_s = 0.0
        while coming or batcher.snapshot().queued + batcher.snapshot().active:
            while coming and coming[0][0] <= now_s:
                request = coming.popleft()[1]
                try:
                    batcher.submit(request, now_s)
                except RequestError as error:
                    lines.append(f"{request.request_id}: {error}")
                if draw.random() < 0.05:
                    lines.append(f"cancelled: {batcher.cancel(request.request_id)}")
            if draw.random() < 0.2 and (one := batcher.begin(now_s)) is not None:
                now_s += one.seconds
                lines += [repr(tuple(event)) for event in batcher.finish(one)]
                continue
            run = batcher.begin_run(now_s, coming[0][0] if coming else math.inf)
            if run is None:
                now_s = coming[0][0]
                continue
            now_s = run.ends_s[-1]
            lines.append(f"{run.first_index} {run.repeats} {tuple(run.shape)} {now_s!r}")
            lines += [f"{each.request.request_id} {each.spans} {each.counts}" for each in batcher.advance(run)]
        lines.append(f"case {case}: {batcher.snapshot()}")
    return lines


def command_lines() -> list[str]:
    """Return what whole commands print and write."""
    from loadtest.cli.calibrate_engine import calibrate_engine  # noqa: PLC0415 (after the choice of what to import)
    from loadtest.cli.plan_capacity import plan_capacity  # noqa: PLC0415
    from loadtest.cli.predict_load import predict_load  # noqa: PLC0415

    for name, text in SCENARIOS.items():
        Path(f"{name}.yaml").write_text(text, encoding="utf-8")
    Path("demand.yaml").write_text(DEMAND, encoding="utf-8")
    Path("measured.csv").write_text(MEASURED, encoding="utf-8")
    predict = (*ENGINE, "--json")
    loads = (
        ("--concurrency", "1,16", "--isl", "300", "--osl", "lognormal(mean=90, cv=0.6, max=500)", "--requests", "60"),
        ("--rate", "8", "--isl", "lognormal(mean=800, cv=1, max=4000)", "--osl", "100", "--duration", "20"),
        ("--scenario", "shared.yaml"),
        ("--scenario", "shared.yaml", "--step-time", "roofline", "--engine-profile", "sglang"),
        ("--scenario", "talks.yaml", "--engine-profile", "vllm-v1"),
        ("--scenario", "talks.yaml", "--engine-profile", "trtllm-serve", "--max-batch-size", "4"),
        ("--concurrency", "40", "--at-once", "--isl", "500", "--osl", "80"),
        ("--concurrency", "8", "--isl", "400", "--osl", "120", "--requests", "30", "--speculative", "eagle3",
         "--draft-model", "nvidia/Llama-3.1-8B-Eagle3", "--max-draft-len", "3", "--acceptance", "0.7,0.5,0.3"),
    )  # fmt: skip
    calls = [(predict_load, (*predict, *load)) for load in loads]
    calls.append((calibrate_engine, ("--measurements", "measured.csv", "--model", "llama-3-8b", "--gpu",
                                     "h100-sxm-80gb", "--precision", "fp8", "--out", "calibration.json")))  # fmt: skip
    calls.append((plan_capacity, ("demand.yaml", "--out", "plan", "--fresh", "--workers", "1")))
    lines = []
    for command, arguments in calls:
        done = CliRunner().invoke(command, arguments)
        lines.append(f"{command.name} {' '.join(arguments)}: {done.exit_code}")
        if done.exit_code:
            raise RuntimeError(f"{lines[-1]}: {done.output}")
        lines += done.output.splitlines() if "--json" in arguments else []
    for path in (Path("calibration.json"), Path("plan/capacity.json"), Path("plan/autoscaling.json")):
        lines += [str(path), *path.read_text(encoding="utf-8").splitlines()]
    return lines


def main() -> None:
    """Choose what to import, then print, from an empty folder."""
    if sys.argv.pop() == "compiled":
        from engines.compiled import use_compiled_modules  # noqa: PLC0415

        use_compiled_modules()
    import engines.emulator.engine  # noqa: PLC0415 (after the choice)

    print(f"from {Path(engines.emulator.engine.__file__).suffix}", file=sys.stderr)
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        print("\n".join([*batcher_lines(150), *command_lines()]))


if __name__ == "__main__":
    main()
