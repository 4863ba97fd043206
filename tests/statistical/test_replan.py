"""A plan made again from measurements: a calibration within a plan, which takes a minute of fitting."""

from __future__ import annotations

from pathlib import Path

import pytest

from engines.calibration import read_calibration
from engines.files import MadeBy, read_json
from loadtest.capacity.schema import CapacityPlan
from loadtest.results import RUN_NAME
from loadtest.scenario.schema import read_scenario
from loadtest.simulate.predict import predict, write_prediction
from tests.statistical.loadtest.cli.test_plan_capacity import run, written


def test_a_plan_is_made_again_from_what_was_measured(tmp_path: Path) -> None:
    """A run of the plan's own scenario for it calibrates the recommended engine, and the new plan rests on that."""
    planned = tmp_path / "plan"
    run(str(written(tmp_path)), "--out", str(planned), "--workers", "1")
    plan = read_json(planned / "capacity.json", CapacityPlan)
    assert plan.engine is not None
    scenario = read_scenario(str(planned / "calibrate.yaml"))
    found = predict(scenario, plan.engine, made_by=MadeBy(command="test", version="0"), made_from=[])
    folder = tmp_path / "run"
    write_prediction(found, folder, force=False)
    text = (folder / RUN_NAME).read_text(encoding="utf-8").replace('"kind": "predicted"', '"kind": "measured"')
    (folder / RUN_NAME).write_text(text, encoding="utf-8")
    arguments = ("--plan", str(planned / "capacity.json"), "--calibrate-from", str(folder), "--workers", "1")
    run(*arguments, "--out", str(tmp_path / "again"))
    known = read_calibration(tmp_path / "again.calibration.json")
    assert known.prior == plan.engine.step_time.profile
    assert known.generator.start == "staggered"
    again = read_json(tmp_path / "again" / "capacity.json", CapacityPlan)
    assert again.chosen is not None
    assert again.chosen.basis == "calibrated"
    assert again.chosen.middle is not None
    assert plan.chosen is not None
    assert plan.chosen.middle is not None
    assert again.chosen.middle.rate_per_s == pytest.approx(plan.chosen.middle.rate_per_s, rel=0.15)
