"""Points from a run: which levels are used, and what is said of the others."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from engines.errors import UserError
from engines.files import MadeBy
from loadtest.calibration.measured_points import Deployment, read_points
from loadtest.results import REQUESTS_NAME, RUN_NAME
from loadtest.scenario.schema import Lengths, Scenario
from loadtest.simulate.predict import predict, write_prediction
from tests.unit.loadtest.capacity.made import engine

LLAMA = Deployment("llama-3-8b", "h100-sxm-80gb", "fp8")


def _run(folder: Path, *, failed_levels: set[int]) -> Path:
    """Write a run of two levels as if measured, with every tenth request of some levels failed."""
    scenario = Scenario(concurrency=(2, 4), lengths=Lengths(isl=64, osl=8), warmup_requests=1, requests=20)
    found = predict(scenario, engine(), made_by=MadeBy(command="test", version="0"), made_from=[])
    write_prediction(found, folder, force=False)
    path = folder / RUN_NAME
    text = path.read_text(encoding="utf-8").replace('"kind": "predicted"', '"kind": "measured"')
    path.write_text(text, encoding="utf-8")
    lines = [json.loads(line) for line in (folder / REQUESTS_NAME).read_text(encoding="utf-8").splitlines()]
    for number, record in enumerate(lines):
        if record["level"] in failed_levels and number % 10 == 9:
            record |= {"outcome": "error", "error": "503"}
    (folder / REQUESTS_NAME).write_text("".join(json.dumps(each) + "\n" for each in lines), encoding="utf-8")
    return folder


def test_a_level_with_failures_is_left_out_and_counted(tmp_path: Path) -> None:
    """The latencies of a level in which requests failed are those of a smaller load than was sent."""
    points, others = read_points(_run(tmp_path / "run", failed_levels={1}), LLAMA)
    assert [point.concurrency for point in points] == [2]
    ((why, count),) = others.items()
    assert count == 1
    assert "requests failed" in why


@pytest.mark.parametrize("other", [{"model": "qwen3-8b"}, {"precision": "bf16"}, {"gpu": "a100-sxm-80gb"}])
def test_a_run_of_another_engine_is_refused(tmp_path: Path, other: dict[str, str]) -> None:
    """A server that names its engine is not taken for another one; the error names both."""
    folder = _run(tmp_path / "run", failed_levels=set())
    with pytest.raises(UserError, match=r"the run measured llama-3-8b fp8 on h100-sxm-80gb, not ") as error:
        read_points(folder, LLAMA._replace(**other))
    assert "--model, --precision, --gpu" in (error.value.hint or "")


def test_a_run_without_a_usable_level_says_why(tmp_path: Path) -> None:
    """The error counts what failed and names the command that shows it; it asks for no other kind of run."""
    folder = _run(tmp_path / "run", failed_levels={0, 1})
    with pytest.raises(UserError, match=r"no level can be used: a level with \d+ of \d+ requests failed") as error:
        read_points(folder, LLAMA)
    assert error.value.hint == f"report-load {folder} shows what failed"
