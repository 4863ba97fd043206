"""`commands.sh` and `recipe.yaml` of an engine's folder: run as written, they make that engine."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner

from engines.cli.build_engine import build_engine

STAND_IN = """#!/bin/bash
printf '%s\\n' "$(basename "$0") $*" >> "$CALLS"
[[ $(basename "$0") != build-engine ]] || mkdir -p quantized/checkpoint
"""


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    """Emulate an engine whose limits are its own."""
    out = tmp_path / "engine"
    flags = ["--emulate", "--precision", "int8_wo", "--kv-cache", "16bit", "--max-batch-size", "24", "--out", str(out)]
    done = CliRunner().invoke(build_engine, flags)
    assert done.exit_code == 0, done.output
    return out


def test_the_recipe_plans_the_same_engine_again(engine: Path) -> None:
    """`recipe.yaml` alone gives the plan that stands beside it."""
    done = CliRunner().invoke(build_engine, ["--recipe", str(engine / "recipe.yaml"), "--dry-run", "--json"])
    assert done.exit_code == 0, done.output
    plan, again = json.loads((engine / "plan.json").read_text()), json.loads(done.stdout)
    assert again["sizing"] == plan["sizing"]
    assert (again["precision"], again["kv_format"], again["gpu"]) == (plan["precision"], "16bit", plan["gpu"])


def test_the_script_runs_what_it_says_in_order(engine: Path, tmp_path: Path) -> None:
    """With stand-ins for the programs: quantize by build-engine, compile, ask; no converter of TensorRT-LLM's."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("build-engine", "trtllm-build", "python3"):
        (programs / name).write_text(STAND_IN)
        (programs / name).chmod(0o755)
    env = {**os.environ, "PATH": f"{programs}:{os.environ['PATH']}", "CALLS": str(tmp_path / "calls")}
    script = ["bash", str(engine / "commands.sh")]
    refused = subprocess.run(script, env=env, capture_output=True, text=True, timeout=30, check=False)
    assert refused.returncode != 0
    assert "CHECKPOINT: set it to the folder" in refused.stderr
    subprocess.run(script, env={**env, "CHECKPOINT": "/models/ours"}, timeout=30, check=True)
    calls = (tmp_path / "calls").read_text().splitlines()
    assert [call.split()[0] for call in calls] == ["build-engine", "trtllm-build", "python3"]
    assert calls[0].endswith("--recipe recipe.yaml --checkpoint /models/ours --until checkpoint --out quantized")
    assert "--checkpoint_dir checkpoint --output_dir engine --max_batch_size 24" in calls[1]
    assert "/app/examples/run.py --engine_dir engine --tokenizer_dir tokenizer" in calls[2]
