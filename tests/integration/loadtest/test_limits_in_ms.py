"""Limits that were thought of in milliseconds, in every command that takes objectives."""

from __future__ import annotations

from pathlib import Path

import click
import pytest
import yaml
from click.testing import CliRunner

from loadtest.cli.find_knee import find_knee
from loadtest.cli.plan_capacity import plan_capacity
from loadtest.cli.predict_load import predict_load
from loadtest.cli.report_load import report_load
from loadtest.cli.run_load import run_load

NOTICE = "notice: ttft_s p95: 500 s; limits are in seconds, and 500 ms is 0.5\n"
LIMIT = {"ttft_s": {"p95": 500}}
LENGTHS = {"lengths": {"isl": 8, "osl": 4}}
LOAD = {"concurrency": [1], "requests": 2}
FILES = {
    "objectives.yaml": LIMIT,
    "gate.yaml": LIMIT,
    "scenario.yaml": {"name": "s", **LOAD, **LENGTHS, "objectives": LIMIT},
    "classes.yaml": {"name": "c", **LOAD, "classes": [{"name": "chat", **LENGTHS, "objectives": LIMIT}]},
    "demand.yaml": {
        "name": "d",
        "model": "llama-3-8b",
        "traffic": {"process": "described", "rate_per_s": 0.1, "classes": [{"name": "chat", **LENGTHS}]},
        "objectives": LIMIT,
    },
}
PREDICT = "--model llama-3-8b --gpu h100-sxm-80gb --precision fp8"
ASKED: dict[str, tuple[click.Command, str]] = {
    "find-knee": (find_knee, "--objective ttft_s.p95=500 --dry-run"),
    "find-knee, of a file": (find_knee, "--objectives objectives.yaml --dry-run"),
    "find-knee, of a scenario": (find_knee, "--scenario scenario.yaml --dry-run"),
    "run-load": (run_load, "--scenario scenario.yaml --dry-run"),
    "run-load, of a class": (run_load, "--scenario classes.yaml --dry-run"),
    "predict-load": (predict_load, f"--scenario scenario.yaml {PREDICT}"),
    "plan-capacity": (plan_capacity, "demand.yaml --dry-run"),
    "report-load": (report_load, "run --gate gate.yaml --dry-run"),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the files, and a run without objectives."""
    folder = tmp_path_factory.mktemp("limits")
    for name, document in FILES.items():
        (folder / name).write_text(yaml.safe_dump(document))
    words = f"--concurrency 1 --requests 2 --isl 8 --osl 4 {PREDICT} --out {folder / 'run'}"
    said = CliRunner().invoke(predict_load, words.split())
    assert (said.exit_code, "notice" in said.stderr) == (0, False), said.output
    return folder


@pytest.mark.parametrize("name", ASKED)
def test_a_limit_of_minutes_is_said_once(name: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """500 as a time to first token was meant in ms: a notice, and the command goes on."""
    monkeypatch.chdir(place)
    command, words = ASKED[name]
    said = CliRunner().invoke(command, words.split())
    assert said.exit_code == 0, said.output
    assert said.stderr.count(NOTICE) == 1, said.stderr


def test_a_prediction_names_every_objective_that_it_counts(tmp_path: Path) -> None:
    """One limit is stated; that no request may fail is counted too."""
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(FILES["scenario.yaml"] | {"objectives": {"ttft_s": {"p95": 5}}}))
    said = CliRunner().invoke(predict_load, f"--scenario {tmp_path / 's.yaml'} {PREDICT}".split())
    assert "objectives at 1 (predicted): all met: ttft_s p95, errors_ratio\n" in said.stdout, said.output
