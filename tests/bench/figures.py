"""What figures cost: a million requests of 64 tokens, from the file to a summary with confidence intervals.

`python tests/bench/figures.py [REQUESTS]` writes a run to a temporary folder, reads it back in one pass and prints
seconds and peak memory of each part.
"""

from __future__ import annotations

import json
import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from engines.files import made_by, write_json
from loadtest.metrics.loaded_run import load_runs
from loadtest.results.records import Level, RunManifest, ServerFacts
from loadtest.scenario.schema import Scenario

TOKENS = 64


def write_run(folder: Path, requests: int) -> None:
    """Write a run of one open-loop level."""
    rng = np.random.default_rng(1)
    facts = ServerFacts(url="-", protocol="-", model="m", triton_version="-", emulated=False, time_scale=1.0)
    end_s = requests / 1000
    level = Level(
        concurrency=None, rate_per_s=1000, isl=8, osl=TOKENS, begin_s=0, measure_s=0, end_s=end_s, complete=True
    )
    head = made_by("bench")
    scenario = Scenario(requests=1, rate_per_s=(1000,))
    write_json(
        folder / "run.json",
        RunManifest(made_by=head, kind="predicted", time_scale=1.0, server=facts, scenario=scenario, levels=[level]),
    )
    with (folder / "requests.jsonl").open("w") as file:
        for number in range(requests):
            sent_s = number / 1000
            times = (sent_s + 0.05 + np.cumsum(rng.normal(0.01, 0.001, TOKENS))).round(6).tolist()
            record = {
                "id": number, "level": 0, "phase": "measure", "scheduled_s": sent_s, "sent_s": sent_s,
                "token_times_s": times, "done_s": times[-1], "prompt_tokens": 8, "output_tokens": TOKENS,
                "outcome": "ok",
            }  # fmt: skip
            file.write(json.dumps(record) + "\n")


def main(requests: int) -> None:
    """Measure, and print a line for each part."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_run(folder, requests)
        begun = time.perf_counter()
        for part in ("read", "summary", "detail"):
            if part == "read":
                [run] = load_runs([folder])
            elif part == "summary":
                found = run.summary()
            else:
                run.detail()
            peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            sys.stdout.write(f"{part}: {time.perf_counter() - begun:.1f} s, peak {peak_mb:,.0f} MB\n")
            begun = time.perf_counter()
        itl = found.levels[0].itl_s
        sys.stdout.write(f"{requests:,} requests, {itl.count if itl else 0:,} gaps\n")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000)
