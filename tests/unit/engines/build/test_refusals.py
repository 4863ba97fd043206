"""In which order a build refuses what cannot succeed."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from click.testing import CliRunner

from engines.build import pipeline
from engines.cli.build_engine import build_engine
from engines.errors import MissingError
from tests.unit.engines.checkpoint.test_inspection import SHAPES, write_checkpoint


class _Usage(NamedTuple):
    """What `shutil.disk_usage` returns."""

    total: int
    used: int
    free: int


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Note that ModelOpt was asked for, and refuse it."""
    found: list[str] = []

    def refuse(precision: str) -> None:
        found.append(precision)
        raise MissingError("no ModelOpt")

    monkeypatch.setattr(pipeline, "require_modelopt", refuse)
    return found


def _build(folder: Path) -> Any:
    checkpoint = write_checkpoint(folder / "checkpoint", shapes=SHAPES)
    words = f"--checkpoint {checkpoint} --precision bf16 --gpu h100-sxm-80gb --isl 8 --osl 4 --until checkpoint"
    return CliRunner().invoke(build_engine, [*words.split(), "--out", str(folder / "out")])


def test_a_full_disk_is_seen_before_modelopt_is_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: list[str]
) -> None:
    """The import takes seconds; the look at the disk does not."""
    monkeypatch.setattr(shutil, "disk_usage", lambda _: _Usage(10, 10, 0))
    said = _build(tmp_path)
    assert (said.exit_code, asked) == (1, []), said.output
    assert "0.00 GiB are free" in said.stderr
    assert not (tmp_path / "out").exists()


def test_with_room_modelopt_is_required(tmp_path: Path, asked: list[str]) -> None:
    """Before anything is built."""
    said = _build(tmp_path)
    assert (said.exit_code, asked) == (1, ["bf16"]), said.output
    assert not (tmp_path / "out").exists()
