"""The attack: every command's whole argument list, and every file that a command reads, damaged.

`ATTACK_EXAMPLES` is how many cases each command and each file gets; `make attack` takes many more than CI.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from tests.attack.conftest import COUNTED
from tests.attack.examples import CLOSED
from tests.attack.hostile import argument_lists, damaged
from tests.attack.victim import SCRIPTS, Ended, Victims, command_of

EXAMPLES = int(os.environ.get("ATTACK_EXAMPLES", "12"))
SMALL = ["--isl", "8", "--osl", "4", "--concurrency", "1", "--requests", "2"]
OF_SERVER = ["--url", CLOSED, "--tokenizer", "tokenizer/tokenizer.json"]
BEGIN: dict[str, list[str]] = {
    "build-engine": ["--precision", "fp8", "--emulate", "--out", "out"],
    "describe-machine": ["--device", "cpu", "--out", "out.yaml", "--dry-run"],
    "unpack-checkpoint": ["model.gguf", "--out", "out"],
    "evaluate-engine": ["engine", "--tasks", "gsm8k"],
    "compare-models": [],
    "e2c": ["compare-models"],
    "build-repo": ["engine", "--tokenizer", "tokenizer", "--out", "out"],
    "check-repo": ["repository"],
    "serve-repo": ["repository", "--tritonserver", "nothing"],
    "check-gpu": ["--out", "out"],
    "install-triton": ["--out", "trace.csv/x"],
    "build-deployment": ["repository", "--out", "out"],
    "roll-engine": ["repository", "engine"],
    "run-load": ["--out", "out", *OF_SERVER, *SMALL],
    "report-load": ["run", "--out", "out", "--dry-run"],
    "find-knee": ["--out", "out", "--objective", "ttft_s.p95=1", *OF_SERVER, "--isl", "8", "--osl", "4"],
    "plan-capacity": ["demand.yaml", "--out", "out", "--dry-run"],
    "predict-load": ["engine", "--out", "out", *SMALL],
    "calibrate-engine": ["--measurements", "points.csv", "--dry-run"],
}
QUANTIZE = ["--precision", "fp8", "--checkpoint", "checkpoint", "--until", "checkpoint", "--out", "out"]
# Other beginnings of the same commands.
MORE: dict[str, list[list[str]]] = {
    "build-engine": [[*QUANTIZE, "--calibration-text", path] for path in ("pipe", "/dev/zero", "loop", "folder")],
    "evaluate-engine": [["--url", CLOSED, "--model", "x", "--tokenizer", "tokenizer", "--tasks", "gsm8k"]],
    "run-load": [["--worker", "--port", "9"], ["--master", "--expect-workers", "1", "--out", "out", *SMALL]],
    "build-repo": [["engine", "--engine-url", CLOSED, "--tokenizer", "tokenizer", "--out", "out"]],
    "predict-load": [["--precision", "fp8", "--out", "out", *SMALL]],
    "serve-repo": [["repository", "--stop"]],
}
# What would start servers, ask for the network, or wait as long as it is told to.
NEVER = {
    "serve-repo": {"--tritonserver", "--detach"},
    "check-gpu": {"--checkpoint"},
    "install-triton": {"--out"},
    "plan-capacity": {"--ray"},
}
# A measurement takes a minute, and so does the wait for workers and masters; what is drawn comes later, and wins.
ALWAYS = {"describe-machine": ["--dry-run"], "run-load": ["--within", "0.2"]}
# Each file that is read, and a command that reads it.
READ: dict[str, tuple[str, list[str]]] = {
    "recipe.yaml": ("build-engine", ["--recipe", "recipe.yaml", "--emulate", "--out", "out"]),
    "checkpoint/config.json": ("build-engine", ["--precision", "bf16", "--checkpoint", "checkpoint", "--dry-run"]),
    "checkpoint/model.safetensors": (
        "build-engine",
        ["--precision", "bf16", "--checkpoint", "checkpoint", "--dry-run"],
    ),
    "checkpoint/tokenizer.json": ("build-engine", ["--precision", "bf16", "--checkpoint", "checkpoint", "--dry-run"]),
    "model.gguf": ("unpack-checkpoint", ["model.gguf", "--out", "out"]),
    "serving.yaml": ("build-repo", ["engine", "--serving", "serving.yaml", "--tokenizer", "tokenizer", "--out", "out"]),
    "engine/manifest.json": ("build-repo", ["engine", "--tokenizer", "tokenizer", "--out", "out"]),
    "engine/.contents.json": ("build-engine", ["--precision", "fp8", "--emulate", "--out", "engine", "--force"]),
    "tokenizer/tokenizer.json": ("build-repo", ["engine", "--tokenizer", "tokenizer", "--out", "out"]),
    "tokenizer/tokenizer_config.json": ("build-repo", ["engine", "--tokenizer", "tokenizer", "--out", "out"]),
    "repository/manifest.json": ("build-deployment", ["repository", "--out", "out"]),
    "autoscaling.json": (
        "build-deployment",
        ["repository", "--autoscaling", "autoscaling.json", "--out", "out", "--dry-run"],
    ),
    "repository/tensorrt_llm/config.pbtxt": ("check-repo", ["repository"]),
    "repository/ensemble/config.pbtxt": ("serve-repo", ["repository", "--tritonserver", "nothing"]),
    "stopped/server.json": ("serve-repo", ["stopped", "--stop"]),
    "stopped-front/front.json": ("serve-repo", ["stopped-front", "--stop"]),
    "engine/plan.json": ("build-repo", ["engine", "--tokenizer", "tokenizer", "--out", "out"]),
    "repository-pytorch/tensorrt_llm/1/model.yaml": ("check-repo", ["repository-pytorch"]),
    "calibration.json": ("predict-load", ["engine", *SMALL, "--calibration", "calibration.json"]),
    "prices.yaml": ("plan-capacity", ["demand.yaml", "--dry-run"]),
    "keys.txt": ("serve-repo", ["repository", "--tritonserver", "nothing", "--openai", "--api-key-file", "keys.txt"]),
    "scenario.yaml": ("predict-load", ["engine", "--scenario", "scenario.yaml"]),
    "traced.yaml": ("predict-load", ["engine", "--scenario", "traced.yaml"]),
    "trace.csv": ("predict-load", ["engine", "--scenario", "traced.yaml"]),
    "prompts.jsonl": (
        "predict-load",
        ["engine", "--scenario", "prompted.yaml", "--tokenizer", "tokenizer/tokenizer.json"],
    ),
    "run/run.json": ("report-load", ["run", "--out", "out", "--dry-run"]),
    "run/requests.jsonl": ("report-load", ["run", "--out", "out", "--dry-run"]),
    "run/samples.jsonl": ("report-load", ["run", "--out", "out", "--dry-run"]),
    "gate.yaml": ("report-load", ["run", "--out", "out", "--gate", "gate.yaml", "--dry-run"]),
    "objectives.yaml": ("find-knee", ["--objectives", "objectives.yaml", "--dry-run", "--isl", "8", "--osl", "8"]),
    "demand.yaml": ("plan-capacity", ["demand.yaml", "--dry-run"]),
    "points.csv": ("calibrate-engine", ["--measurements", "points.csv", "--dry-run"]),
}


class Findings:
    """The cases that broke a promise, one of each kind."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._found: dict[str, str] = {}

    def add(self, ended: Ended, case: object) -> None:
        """Count a case, and keep it if a promise was broken."""
        COUNTED["cases"] += 1
        why = ended.broken(self._name)
        COUNTED["tracebacks"] += why == "a traceback"
        COUNTED["leftovers"] += bool(ended.left)
        if why is not None:
            end = "\n    ".join(ended.said.strip().splitlines()[-3:])
            self._found.setdefault(f"{why}: {end[-700:]}", repr(case)[:600])

    def require_none(self) -> None:
        """Fail with all that was found."""
        text = "\n".join(f"* {why}\n  by {case}" for why, case in self._found.items())
        assert not self._found, f"{self._name}: {len(self._found)} kinds of failure\n{text}"


CASES = settings(
    max_examples=EXAMPLES,
    deadline=None,
    database=None,
    derandomize=EXAMPLES <= 100,  # CI sees the same cases each time; a long attack sees new ones
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)


@pytest.mark.parametrize("name", SCRIPTS)
def test_arguments(name: str, victims: Victims, examples: Path) -> None:
    """No argument list breaks the promise of one error line, a known status, nothing left behind, at most 10 s."""
    findings = Findings(name)

    @CASES
    @given(argument_lists(command_of(name), [BEGIN[name], *MORE.get(name, [])], never=frozenset(NEVER.get(name, ()))))
    def attack(words: list[str]) -> None:
        words = [*ALWAYS.get(name, ()), *words]
        findings.add(_run(victims, name, words, examples), words)

    attack()
    findings.require_none()


@pytest.mark.parametrize("path", READ)
def test_files(path: str, victims: Victims, examples: Path) -> None:
    """No damaged file breaks it either."""
    name, words = READ[path]
    findings = Findings(name)
    target = examples / path
    whole = target.read_bytes()
    valid = _run(victims, name, words, examples)
    assert valid.broken(name) is None, valid

    @CASES
    @given(damaged(whole, lines=target.suffix == ".jsonl"))
    def attack(text: bytes) -> None:
        target.unlink(missing_ok=True)  # `--stop` removes it
        target.write_bytes(text)
        findings.add(_run(victims, name, words, examples), text)

    try:
        attack()
    finally:
        target.write_bytes(whole)
    findings.require_none()


def _run(victims: Victims, name: str, words: list[str], place: Path) -> Ended:
    """Run a command on the examples, and remove what it rightly wrote."""
    ended = victims.run(name, words, place)
    for made in ("out", "artifacts"):
        shutil.rmtree(place / made, ignore_errors=True)
    return ended
