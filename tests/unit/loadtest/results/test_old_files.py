"""Files of the first schema are still read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from loadtest.results import RunManifest, read_records
from loadtest.scenario import Scenario
from tests.unit.loadtest.made import level, manifest

# A line of requests.jsonl, with every key, as version 0.3.0 wrote it.
RECORD = (
    '{"id":1,"level":0,"phase":"measure","scheduled_s":1.0,"sent_s":1.0,"token_times_s":[1.1,1.2],"done_s":1.2,'
    '"prompt_tokens":8,"output_tokens":2,"outcome":"ok","error":null,"asked_tokens":2,"bundled_tokens":0,'
    '"queue_s":null,"cached_tokens":null,"class_name":null,"conversation":null,"turn":0,"worker":0,'
    '"finish_reason":null}'
)


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


def test_records_of_an_earlier_version_are_read_and_written_alike(tmp_path: Path) -> None:
    """A key that is renamed would leave people's runs unreadable, and an older version those of this one."""
    (tmp_path / "requests.jsonl").write_text(RECORD + "\n", encoding="utf-8")
    [found] = read_records(tmp_path)
    assert found.asked_tokens == 2
    assert found.model_dump_json() == RECORD


@pytest.mark.parametrize(
    ("protocol", "exact"),
    [("triton-http", True), ("triton-grpc", True), ("-", True), ("openai-chat", False), ("openai-completions", False)],
)
def test_an_old_run_counted_tokens_as_its_protocol_did(protocol: str, *, exact: bool) -> None:
    """It does not state whether its counts are exact; a run that does is believed, whatever its protocol is called."""
    old = json.loads(manifest(level(1, 0.0, 1.0)).model_dump_json(by_alias=True))
    assert old["server"].pop("counts_are_exact") is True
    old["server"]["protocol"] = protocol
    assert RunManifest.model_validate(old).server.counts_are_exact is exact
    for stated in (True, False):
        old["server"]["counts_are_exact"] = stated
        assert RunManifest.model_validate(old).server.counts_are_exact is stated
