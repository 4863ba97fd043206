"""Claims of accuracy are folders: each has its points, where they are from, and a comparison by the stated command."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import numpy as np
import pytest

from engines.spec import engine_profile_named, power_prior, resolve_gpu, resolve_model
from tests.late import Late
from validation.calibrated import read_rows
from validation.energy.cases import read_cases
from validation.fidelity.cases import QUANTITIES, read_case, read_points
from validation.fidelity.comparison import errors_of, predict_case, read_comparison
from validation.fidelity.page import calibrated_table, missed_text, tables_of
from validation.fidelity.predict import arguments_of

energy, fit = Late("validation.energy.__main__", "load"), Late("validation.energy.fit", "load")  # both import SciPy
ROOT = Path(__file__).parents[2]
CASES = [path.parent for path in sorted((ROOT / "validation").rglob("case.yaml"))]


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
    found = predict_case(folder, None)
    with (folder / "comparison.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    for seen, row in zip(found.predicted, rows, strict=True):
        assert seen.values["ttft"] == pytest.approx(float(row["ttft_predicted"]), rel=1e-3)
        assert seen.command == row["command"]


README = (ROOT / "README.md").read_text("utf-8")
ANY_POINTS = "Calibrated on any 6 points"

# What the README's table calls a row of the page, and whether NVIDIA's simulator is meant.
README_ROWS = {
    "Triton's official open-loop table": ("Open-loop Triton table, uncalibrated", False),
    "the same table, predicted by NVIDIA's aisimulate": ("Open-loop Triton table, uncalibrated", True),
    "MLPerf 5.1 Offline": ("MLPerf 5.1 Offline, a GPU of each system", False),
    "other deployments of vLLM": ("Another deployment of the engine family, no fit", False),
    "vLLM, long reasoning": ("vLLM long reasoning (bf16, KV exhausted)", False),
}


@pytest.mark.parametrize("begin", README_ROWS)
def test_the_readme_states_what_the_files_say(begin: str) -> None:
    """Every error in the README is the mean of its row's comparisons, or the median where that is the goal's."""
    (line,) = (line for line in README.splitlines() if line.startswith(f"| {begin}"))
    row, beside = README_ROWS[begin]
    cases = [found for found in map(read_comparison, CASES) if found.case.row == row]
    cells = [cell.strip() for cell in line.strip("|").split("|")][1:]
    assert len(cells) == len(QUANTITIES)
    for name, cell in zip(QUANTITIES, cells, strict=True):
        errors = np.abs(errors_of(cases, name, beside=beside))
        is_median = name == "ttft" and cases[0].case.ttft_median
        assert cell.split(" %")[0] == (
            f"{np.median(errors) if is_median else errors.mean():.1f}" if len(errors) else "-"
        )


def test_the_readme_states_what_six_points_give() -> None:
    """The three errors are those of the page's row, which is made of calibrated.csv."""
    (row,) = (line for line in calibrated_table(read_rows()).splitlines() if line.startswith(f"| **{ANY_POINTS}**"))
    errors = re.findall(r"([\d.]+) %, [+-]", row)
    stated = re.findall(r"off by ([\d.]+) % \(tokens/s\), ([\d.]+) % \(ITL\) and ([\d.]+) % \(TTFT; median\)", README)
    assert stated == [tuple(errors)]


def test_the_page_is_made_of_the_files() -> None:
    """Both tables of the page are those that the comparisons and calibrated.csv give."""
    page = (ROOT / "docs/measurements/fidelity.md").read_text("utf-8")
    assert tables_of([read_comparison(folder) for folder in CASES]) in page
    assert calibrated_table(read_rows()) in page
    assert missed_text() in page


def test_the_power_prior_is_the_fit_to_its_cases() -> None:
    """The shipped constants and spreads are what the measured watts give, and every comparison is what it says."""
    cases = read_cases()
    best, found, shipped = fit.fitted(cases), fit.compare(cases), power_prior()
    for name in fit.NAMES:
        assert getattr(shipped, name) == pytest.approx(getattr(best, name), rel=5e-3)
    assert shipped.spread("h100-sxm-80gb").log_sd == pytest.approx(energy.rms(found, other_gpu=False), abs=1e-3)
    assert shipped.spread("a100-sxm-80gb").log_sd == pytest.approx(2 * energy.rms(found, other_gpu=True), abs=1e-3)
    for each in found:
        assert each.measured.case.licence
        head, *rows = energy.comparison_rows(each)
        with (each.measured.folder / "comparison.csv").open(encoding="utf-8", newline="") as file:
            kept = list(csv.reader(file))
        assert kept[0] == head
        for row, written in zip(rows, kept[1:], strict=True):
            assert [float(cell or 0) for cell in row] == pytest.approx(
                [float(cell or 0) for cell in written], rel=1e-3, abs=0.01
            )
    assert energy.table(found) in (ROOT / "docs/measurements/energy.md").read_text("utf-8")
