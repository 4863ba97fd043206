"""Claims of accuracy are folders: each has its points, where they are from, and a comparison by the stated command."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from engines.spec import engine_profile_named, resolve_gpu, resolve_model
from validation.validate import arguments_of, compare, read_case, read_points

ROOT = Path(__file__).parents[2]
CASES = sorted(path.parent for path in (ROOT / "validation").rglob("case.yaml"))


@pytest.mark.parametrize("folder", CASES, ids=[str(each.relative_to(ROOT / "validation")) for each in CASES])
def test_a_case_is_complete(folder: Path) -> None:
    """Source and licence, known names, as many compared points as published ones, and the command of each."""
    case, points = read_case(folder), read_points(folder)
    assert case.source
    assert case.licence
    profile = engine_profile_named(case.engine_profile)
    assert folder.relative_to(ROOT / "validation").parts[:3] == (
        profile.name,
        resolve_gpu(case.gpu).name,
        resolve_model(case.model).name,
    )
    with (folder / "comparison.csv").open(encoding="utf-8", newline="") as file:
        compared = list(csv.DictReader(file))
    assert len(compared) == len(points) > 0
    for point, row in zip(points, compared, strict=True):
        assert " ".join(arguments_of(case, point)[:4]) in row["command"]
        assert point.where


def test_a_comparison_is_what_the_command_says() -> None:
    """The quickest case, worked out again, is what stands in its file."""
    folder = ROOT / "validation/trtllm-1.x-triton/h200-sxm-141gb/llama-3.1-8b/at-once-bf16"
    found = compare(folder, None)
    with (folder / "comparison.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    for seen, row in zip(found.predicted, rows, strict=True):
        assert seen.values["ttft"] == pytest.approx(float(row["ttft_predicted"]), rel=1e-3)
        assert seen.command == row["command"]
