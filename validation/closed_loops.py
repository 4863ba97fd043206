"""Predicts a published table of closed loops that is not part of this repository, and prints the errors.

`python -m validation.closed_loops perf_points.csv [PROFILE]`, with `derived/csv/perf_points.csv` of the repository
tgarg01/silybench-data (CC BY 4.0): Qwen3-8B in BF16 and FP8 on one H100 SXM behind vLLM 0.30, asynchronous scheduling,
`vllm bench serve` with five shapes and 1 to 512 users. Nothing in this project was fitted to it. With AISIMULATE=PYTHON
the predictions are those of NVIDIA's simulator, from that environment.

A row is left out where most of its prompts were already in the prefix cache: the same seed made the prompts of every
number of users, so the first ones repeat those of the level before, if the cache still held all three of its repeats.
"""

from __future__ import annotations

import csv
import json
import math
import os
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from click.testing import CliRunner

from loadtest.cli.predict_load import predict_load
from loadtest.results import read_records
from validation.fidelity.aisimulate import simulated

MODEL, MAX_SEQUENCES, MAX_TOKENS = "qwen3-8b", 1024, 8192  # of an iteration: vLLM's defaults on this GPU
ENGINE = ("--model", MODEL, "--gpu", "h100-sxm-80gb", "--kv-cache", "16bit")
LIMITS = ("--max-batch-size", str(MAX_SEQUENCES), "--max-num-tokens", str(MAX_TOKENS))
CACHE_TOKENS = {"fp8": 430_272, "bf16": 377_024}  # as the servers reported
REPEATS = 3
DEFAULT_PROFILE = "vllm-v1-async"
TTFT_P99_MS, ITL_MEDIAN_MS = 2000.0, 50.0  # the table's objectives
COLUMNS = {
    "tokens/s": "output_throughput",
    "ITL p50": "itl_median_ms",
    "TTFT p95": "ttft_p95_ms",
    "TTFT p99": "ttft_p99_ms",
    "request p95": "e2el_p95_ms",
    "watts": "avg_power_w",
}


class Row:
    """A published row: its load, and its figures by this page's names."""

    def __init__(self, fields: dict[str, str]) -> None:
        self.precision = fields["run_id"].rsplit("_", 1)[-1]
        self.isl, self.osl, self.users, self.prompts = (
            int(fields[name]) for name in ("input_len", "output_len", "concurrency", "num_prompts")
        )
        self.published = {name: float(fields[column]) for name, column in COLUMNS.items()}

    @property
    def shape(self) -> str:
        """Precision, prompt and reply length."""
        return f"{self.precision} {self.isl}/{self.osl}"


def read_rows(path: Path) -> list[Row]:
    """Return the rows whose prompts the server had not cached, by shape and users."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = sorted((Row(fields) for fields in csv.DictReader(file)), key=lambda row: (row.shape, row.users))
    kept: list[Row] = []
    before: Row | None = None
    for row in rows:
        if before is None or before.shape != row.shape:
            held = 0
        else:
            used = REPEATS * before.prompts * (before.isl + before.osl)
            held = before.prompts if used <= CACHE_TOKENS[before.precision] else 0
        if 2 * held < row.prompts:
            kept.append(row)
        before = row
    return kept


def predicted(row: Row, profile: str) -> tuple[dict[str, float], bool]:
    """Return a row as `predict-load` has it, and whether the published tokens/s lie in its interval.

    All users start together and none warms up, as `vllm bench serve` does, whose users share one list of prompts. So as
    many requests as it has prompts are counted, in the order of sending; ours go on until the last of them has ended.

    Raises:
        RuntimeError: The command failed.
    """
    scenario = {
        "name": "closed-loop",
        "concurrency": [row.users],
        "start": "together",
        "warmup_requests": 0,
        "requests": 1,
        "requests_per_user": -(-row.prompts // row.users) + 1,
    }
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "scenario.yaml").write_text(yaml.safe_dump(scenario), encoding="utf-8")
        load = ("--scenario", str(folder / "scenario.yaml"), "--isl", str(row.isl), "--osl", str(row.osl))
        engine = (*ENGINE, *LIMITS, "--precision", row.precision, "--engine-profile", profile)
        result = CliRunner().invoke(predict_load, [*engine, *load, "--json", "--out", str(folder / "run")])
        if result.exit_code:
            raise RuntimeError(result.output) from result.exception
        level: dict[str, Any] = json.loads(result.stdout)["levels"][0]
        records = sorted(read_records(folder / "run"), key=lambda record: record.sent_s)[: row.prompts]
    begin_s = min(record.sent_s for record in records)
    tokens_per_s = sum(record.output_tokens for record in records) / (max(each.done_s for each in records) - begin_s)
    ttft_ms = [1e3 * (record.token_times_s[0] - record.sent_s) for record in records]
    gaps_ms = 1e3 * np.concatenate([np.diff(record.token_times_s) for record in records])
    requests_ms = [1e3 * (record.token_times_s[-1] - record.sent_s) for record in records]
    found = {
        "tokens/s": tokens_per_s,
        "ITL p50": float(np.median(gaps_ms)),
        "TTFT p95": float(np.percentile(ttft_ms, 95)),
        "TTFT p99": float(np.percentile(ttft_ms, 99)),
        "request p95": float(np.percentile(requests_ms, 95)),
        "watts": level["energy"]["power_w"],
    }
    ends = level["intervals"]["tokens_per_s"]
    ratio = row.published["tokens/s"] / tokens_per_s
    return found, ends["low"] <= ratio * ends["mean"] <= ends["high"]


def predicted_by_aisimulate(row: Row, python: str) -> tuple[dict[str, float], bool] | None:
    """Return a row as NVIDIA's simulator has it with its defaults, which states no interval; None without an answer."""
    worker: dict[str, Any] = {"scheduler": {"max_batched_tokens": MAX_TOKENS, "max_sequences": MAX_SEQUENCES}}
    if row.precision == "fp8":
        worker["timing"] = {"gemm_quant_mode": "fp8", "kvcache_quant_mode": "bfloat16"}
    traffic = {
        "source": {"type": "synthetic", "input_tokens": row.isl, "output_tokens": row.osl},
        "load": {"type": "concurrency", "concurrency": row.users},
        "stop": {"requests": row.prompts},
    }
    engine = {"hardware": "h100_sxm", "backend": "vllm", "workers": {"aggregated": worker}}
    found = simulated(python, MODEL, traffic, engine)
    if found is None:
        return None
    names = {
        "tokens/s": "output_throughput_tok_s",
        "ITL p50": "median_itl_ms",
        "TTFT p95": "p95_ttft_ms",
        "TTFT p99": "p99_ttft_ms",
        "request p95": "p95_e2e_latency_ms",
        "watts": "power_w",
    }
    return {figure: float(found[name] or math.nan) for figure, name in names.items()}, False


def meets(figures: dict[str, float]) -> bool:
    """Return whether figures meet the table's objectives."""
    return figures["TTFT p99"] <= TTFT_P99_MS and figures["ITL p50"] <= ITL_MEDIAN_MS


def summary(name: str, judged: Iterable[tuple[Row, dict[str, float], bool]]) -> str:
    """Return a line of mean absolute errors and of means with their sign, in percent, with the verdicts that agree."""
    found = list(judged)
    cells = [name, str(len(found))]
    for figure in COLUMNS:
        errors = [100 * (values[figure] / row.published[figure] - 1) for row, values, _ in found]
        cells.append(f"{np.mean(np.abs(errors)):.1f}, {np.mean(errors):+.1f}")
    agree = sum(meets(values) == meets(row.published) for row, values, _ in found)
    inside = sum(is_inside for *_, is_inside in found)
    return f"| {' | '.join(cells)} | {agree} | {inside} |"


def show(text: str) -> None:
    """Print a line at once."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def main() -> int:
    """Print the table, a line for each shape."""
    path, profile = (*sys.argv[1:], DEFAULT_PROFILE)[:2]
    simulator = os.environ.get("AISIMULATE")
    judged = []
    for row in read_rows(Path(path)):
        found = predicted(row, profile) if simulator is None else predicted_by_aisimulate(row, simulator)
        if found is not None:
            judged.append((row, *found))
    names = ("load", "rows", *COLUMNS, "verdicts that agree", "tokens/s in the interval")
    show(f"| {' | '.join(names)} |\n|{' --- |' * len(names)}")
    for shape in dict.fromkeys(row.shape for row, *_ in judged):
        show(summary(shape, (each for each in judged if each[0].shape == shape)))
    for precision in CACHE_TOKENS:
        show(summary(f"**{precision}**", (each for each in judged if each[0].precision == precision)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
