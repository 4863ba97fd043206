"""Loads of run-load on other servers, and their records."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from loadtest.results import RequestRecord, read_records, read_run
from tests.servers.endpoint import Endpoint

RUN_LOAD = Path(sys.executable).parent / "run-load"


def load(endpoint: Endpoint, out: Path, *words: object, protocol: str, tokenizer: Path) -> list[RequestRecord]:
    """Run a load, which must succeed and be measured; return the records of its requests."""
    target = ("--url", endpoint.url, "--protocol", protocol, "--model", endpoint.model, "--tokenizer", tokenizer)
    done = subprocess.run(
        [RUN_LOAD, *map(str, (*target, *words, "--out", out))],
        env={**os.environ, "OPENAI_API_KEY": endpoint.key},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert read_run(out).kind == "measured"
    return list(read_records(out))
