"""Cases of the real server: what is predicted is what is sent."""

from __future__ import annotations

import csv
import json
from datetime import date
from itertools import pairwise
from pathlib import Path

import pytest

from engines.machine import yaml_of
from engines.spec import Accelerator, Sourced
from tests.smollm2 import SMOLLM2
from validation.fidelity.cases import read_case, read_points
from validation.fidelity.comparison import compare
from validation.fidelity.predict import arguments_of
from validation.real.evaluate import outcome_of, table_of, verdicts_of
from validation.real.loads import load_flags, write_case, write_points
from validation.real.settings import BURST_SECONDS, CALIBRATION_RUNS, UNSEEN_LOADS

CONFIG = SMOLLM2 | {"num_hidden_layers": 4}


def _figure(value: float) -> Sourced:
    return Sourced(value=value, source="a test")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Return a folder as the chain makes it, without a calibration."""
    folder = tmp_path / "cut"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    machine = Accelerator(
        name="a-core",
        device="cpu",
        kind="measured",
        threads=1,
        memory_bytes=_figure(8e9),
        bandwidth_bytes_per_s=_figure(1e10),
        dense_flops={"fp32": _figure(1e11)},
        measured_on=date(2026, 11, 28),
        command="a test",
    )
    (folder / "machine.yaml").write_text(yaml_of(machine))
    return folder


@pytest.mark.parametrize("load", UNSEEN_LOADS, ids=lambda load: load.name)
def test_a_case_is_predicted_before_it_is_measured(model: Path, load: object) -> None:
    """Predictions stand before any figure is measured, and stay when the figures come; the load sends the same."""
    folder = model / load.name  # type: ignore[attr-defined]
    write_case(load, folder, capacity=200.0, model="..", gpu="../machine.yaml", calibration=None)  # type: ignore[arg-type]
    before = compare(folder, None)
    assert all(point.values["ttft"] is None for point in before.points)
    flags = load_flags(arguments_of(read_case(folder), before.points[0]))
    assert set(flags[::2]) & {"--concurrency", "--rate", "--scenario"}
    figures = [seen.values for seen in before.predicted]
    write_points(folder, [p._replace(values=dict(v)) for p, v in zip(read_points(folder), figures, strict=True)])
    after = compare(folder, None)
    assert [seen.values for seen in after.predicted] == figures
    outcome = outcome_of([after])
    assert outcome.inside == outcome.intervals
    assert max(outcome.errors_percent.values()) < 0.1
    assert table_of([after]).count("\n") == 2 + len(before.points)


def test_the_trace_comes_in_bursts(model: Path) -> None:
    """Gaps between its requests vary at least twice as much as a Poisson process's; it lasts as long as stated."""
    load = next(load for load in UNSEEN_LOADS if load.load == "trace")
    write_case(load, model / "bursts", capacity=400.0, model="..", gpu="../machine.yaml", calibration=None)
    with (model / "bursts" / "bursts.csv").open() as file:
        at_s = [float(row["at_s"]) for row in csv.DictReader(file)]
    gaps = [after - before for before, after in pairwise(at_s)]
    mean = sum(gaps) / len(gaps)
    assert (sum((gap - mean) ** 2 for gap in gaps) / len(gaps)) ** 0.5 / mean > 1.5
    assert at_s[-1] <= BURST_SECONDS


def test_no_unseen_shape_was_calibrated_on() -> None:
    """Goals are about loads that the calibration has not seen."""
    seen = {run.shape for run in CALIBRATION_RUNS}
    assert not seen & {shape for load in UNSEEN_LOADS for _, shape in load.points}
    points = 2 * len(CALIBRATION_RUNS)
    assert points - 2 >= 6  # what a fit needs without one shape


def test_verdicts_say_met_and_missed(model: Path) -> None:
    """A prediction 10 % off misses tokens a second's 5 %, and meets TTFT's 15 %."""
    load = UNSEEN_LOADS[0]
    folder = model / load.name
    write_case(load, folder, capacity=200.0, model="..", gpu="../machine.yaml", calibration=None)
    found = compare(folder, None)
    points = [
        point._replace(values={name: value / 1.1 for name, value in seen.values.items()})
        for point, seen in zip(found.points, found.predicted, strict=True)
    ]
    lines = list(verdicts_of(outcome_of([found._replace(points=points)])))
    assert lines[0] == "tokens/s: 10.0 % (goal 5 %: missed)"
    assert lines[2] == "TTFT p50: 10.0 % (goal 15 %: met)"
