"""Files of the first schema are still read."""

from __future__ import annotations

from loadtest.results import RunManifest
from loadtest.scenario import Scenario
from tests.unit.loadtest.made import level, manifest


def test_issues_of_an_old_run_are_read() -> None:
    """`doubts`, as run.json was written up to schema 1, are the run's validity issues."""
    text = manifest(level(1, 0.0, 1.0)).model_dump_json(by_alias=True)
    issue = '[{"code":"client-late","text":"sent 61 ms late","level":0}]'
    old = text.replace('"validity_issues":[]', f'"doubts":{issue}')
    assert old != text
    assert [each.code for each in RunManifest.model_validate_json(old).validity_issues] == ["client-late"]


def test_limits_of_an_old_scenario_are_read() -> None:
    """`trust`, as scenarios were written, are the validity limits."""
    assert Scenario.model_validate({"trust": {"arrivals_late_s": 0.5}}).validity_limits.arrivals_late_s == 0.5
