"""Which files `describe-machine --force` may replace."""

from __future__ import annotations

from pathlib import Path

import pytest

from engines.cli.actions.describe_machine import run
from engines.errors import UserError

MACHINE = """\
name: core
device: cpu
kind: {kind}
threads: 1
memory_bytes: {{value: 1e10, source: a test}}
bandwidth_bytes_per_s: {{value: 1e10, source: a test}}
dense_flops: {{fp32: {{value: 1e11, source: a test}}}}
"""


@pytest.mark.parametrize("text", [MACHINE.format(kind="stated"), "mine: kept\n", "{}", "\0"])
def test_a_file_written_by_hand_stays(text: str, tmp_path: Path) -> None:
    """Data sheets typed by the user, and any other YAML, are refused before anything is measured."""
    target = tmp_path / "machine.yaml"
    target.write_text(text)
    with pytest.raises(UserError, match="was not written by this command"):
        _describe(target)
    assert target.read_text() == text


def test_a_measured_file_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own file of an earlier day is measured anew."""
    target = tmp_path / "machine.yaml"
    target.write_text(MACHINE.format(kind="measured") + "measured_on: 2026-11-28\ncommand: describe-machine\n")
    monkeypatch.setattr("engines.cli.actions.describe_machine._measured", _stop)
    with pytest.raises(InterruptedError):
        _describe(target)


def _describe(target: Path) -> None:
    flags = {"device": "cpu", "cores": None, "threads": 1, "vllm": None, "model_name": None, "name": None}
    run(target, force=True, dry_run=False, as_json=False, **flags)


def _stop(*_: object) -> None:
    raise InterruptedError
