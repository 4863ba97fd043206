"""Runs made by hand, as folders on disk."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from engines.files import made_by, write_json
from loadtest.records import Kind, Level, RequestRecord, RunManifest, ServerFacts
from loadtest.scenario import Scenario

WriteRun = Callable[..., Path]
TOKENS = 5


@pytest.fixture
def write_run(tmp_path: Path) -> WriteRun:
    """Return what writes a run: one user after another for `requests`, each of five tokens, gaps drawn from a seed."""

    def write(
        name: str, *, gap_s: float = 0.01, requests: int = 40, seed: int = 0, kind: Kind = "measured", users: int = 1
    ) -> Path:
        folder = tmp_path / name
        folder.mkdir(parents=True)
        rng = np.random.default_rng(seed)
        records, at_s = [], 0.0
        for number in range(requests):
            times = at_s + 0.02 + np.cumsum([0.0, *(gap_s * rng.uniform(0.9, 1.1, TOKENS - 1))])
            records.append(
                RequestRecord(
                    id=number,
                    level=0,
                    phase="measure",
                    scheduled_s=at_s,
                    sent_s=at_s,
                    token_times_s=tuple(times.tolist()),
                    done_s=float(times[-1]),
                    prompt_tokens=8,
                    output_tokens=TOKENS,
                    outcome="ok",
                    class_name=("chat", "code")[number % 2],
                )
            )
            at_s = records[-1].done_s
        level = Level(concurrency=users, isl=8, osl=TOKENS, begin_s=0, measure_s=0, end_s=at_s, complete=True)
        server = ServerFacts(
            url="http://127.0.0.1:8000", protocol="triton-http", model="m", triton_version="2.68.0", emulated=False,
            time_scale=1.0, engine="an engine",
        )  # fmt: skip
        run = RunManifest(
            made_by=made_by("run-load"), kind=kind, time_scale=1.0, server=server,
            scenario=Scenario(requests=requests, seed=seed), levels=[level],
        )  # fmt: skip
        write_json(folder / "run.json", run)
        lines = "".join(record.model_dump_json() + "\n" for record in records)
        (folder / "requests.jsonl").write_text(lines, encoding="utf-8")
        return folder

    return write
