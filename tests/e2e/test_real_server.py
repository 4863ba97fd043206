"""A real vLLM on this CPU, where its environment is: the chain up to the calibration's first loads."""

from __future__ import annotations

import os
import urllib.request
from pathlib import Path

import pytest

from engines.console import progress
from loadtest.results import read_records, read_run
from validation.real.chain import Chain, Settings
from validation.real.loads import levels_of, run_once
from validation.real.settings import CUT_NAME, ROOT, VLLM_FOLDER
from validation.real.vllm import require_vllm

pytestmark = pytest.mark.e2e
FOLDER = Path(os.environ.get("VLLM_ENVIRONMENT", ROOT / VLLM_FOLDER))


@pytest.fixture(scope="module")
def vllm() -> Path:
    """Return an environment with vLLM; without one, what makes it."""
    if not (FOLDER / "bin" / "python").is_file():
        pytest.skip(f"no vLLM in {FOLDER}: make real installs it; VLLM_ENVIRONMENT names another environment")
    require_vllm(FOLDER, may_install=False)
    return FOLDER


def test_a_real_vllm_is_loaded_by_tokens(vllm: Path, tmp_path: Path) -> None:
    """Every reply has the tokens asked for by the client's count and by the server's own; the run is measured."""
    cores = sorted(os.sched_getaffinity(0))
    with Chain(Settings(tmp_path / "real", vllm, False, cores[-1], cores[0])) as chain:
        chain.do("checkpoint")
        target = chain.target
        run = tmp_path / "run"
        asked = ("--isl", 64, "--osl", 16, "--concurrency", 4, "--requests", 12)
        run_once(target, run, *asked)
        with urllib.request.urlopen(f"{target.server.url}/metrics") as page:
            counted = page.read().decode()
    (level,) = levels_of(run)
    assert read_run(run).kind == "measured"
    assert level.errors == 0
    assert level.requests >= 12
    records = list(read_records(run))  # those that warm up are shorter: users start spread over a reply
    assert all(len(record.token_times_s) == record.asked_tokens for record in records)
    assert {record.asked_tokens for record in records if record.phase == "measure"} == {16}
    generated = [line for line in counted.splitlines() if line.startswith("vllm:generation_tokens_total{")]
    assert float(generated[0].split()[-1]) == sum(len(record.token_times_s) for record in records)
    prompts = [line for line in counted.splitlines() if line.startswith("vllm:prompt_tokens_total{")]
    assert float(prompts[0].split()[-1]) == pytest.approx(64 * len(records), rel=0.02)
    progress(f"{CUT_NAME}: {level.output_tokens_per_s:.0f} tokens/s, measured")
