"""A real vLLM on this CPU, where its environment is: evaluated by its API, as its checkpoint is offline."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from click.testing import CliRunner

from engines.checkpoint import unpack
from engines.cli.evaluate_engine import evaluate_engine
from engines.files import MadeBy
from tests.accuracy_tasks import write_tasks
from tests.e2e.test_real_server import vllm  # noqa: F401 (a fixture)
from tests.late import Late
from validation.real.settings import Limits
from validation.real.vllm import serving

Late("lm_eval", "evaluate")
pytestmark = pytest.mark.e2e


def test_a_served_model_is_judged_by_its_own_probabilities_and_replies(vllm: Path, tmp_path: Path) -> None:  # noqa: F811
    """SmolLM2 behind vLLM names the capitals it names offline, and its perplexity is that of the checkpoint."""
    write_tasks(tmp_path)
    checkpoint = unpack("smollm2", tmp_path / "smollm2", made_by=MadeBy(command="test", version="0"))
    limits = Limits(max_batch_size=4, max_num_tokens=512, max_seq_len=512)
    core, log = max(os.sched_getaffinity(0)), tmp_path / "vllm.log"
    with serving(vllm / "bin" / "python", checkpoint, "smollm2", core=core, limits=limits, log=log) as server:
        flags = ["--tasks", "capitals,completions", "--data", str(tmp_path), "--task-folder", str(tmp_path / "tasks")]
        words = ["--url", server.url, "--tokenizer", str(checkpoint), *flags, "--concurrency", "4", "--json"]
        done = CliRunner().invoke(evaluate_engine, words)
    assert done.exit_code == 0, done.output
    found = {(each["task"], each["metric"]): each for each in json.loads(done.stdout)["accuracy"]}
    assert {each["measured_on"] for each in found.values()} == {"server"}
    assert found["capitals", "acc"]["value"] >= 0.75
    assert found["completions", "exact_match"]["value"] >= 0.5
    perplexity = found["held_out_text", "perplexity"]["value"]
    assert perplexity == pytest.approx(11.779, rel=1e-3)  # of the same text by `verify`'s forward pass of this source
