"""A published table of closed loops is read without rows of cached prompts, and predicted as it was measured."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

import pytest

from validation.closed_loops import COLUMNS, REPEATS, Row, meets, predicted, read_rows, summary

ROOT = Path(__file__).parents[3]


def written(path: Path, *rows: tuple[str, int, int, int, int]) -> Path:
    """Write rows of precision, lengths, users and prompts, all with the same figures."""
    names = ["run_id", "input_len", "output_len", "concurrency", "num_prompts", *COLUMNS.values()]
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(names)
        table.writerows(
            (f"2026_h100_qwen3-8b_{precision}", *load, *([10.0] * len(COLUMNS))) for precision, *load in rows
        )
    return path


def test_rows_of_cached_prompts_are_left_out(tmp_path: Path) -> None:
    """The first 50 of 80 prompts repeat those of the level before, unless the cache no longer held them."""
    loads = [(1, 50), (4, 50), (16, 80), (32, 170), (64, 320)]
    shapes = [("fp8", 1024, 128), ("fp8", 2048, 2048), ("bf16", 8192, 512)]
    path = written(tmp_path / "points.csv", *((*shape, *load) for shape in shapes for load in loads))
    kept = {row.shape: [] for row in read_rows(path)}
    for row in read_rows(path):
        kept[row.shape].append(row.users)
    assert kept == {
        "fp8 1024/128": [1, 32, 64],
        "fp8 2048/2048": [1, 4, 16, 32, 64],  # 3 x 50 x 4,096 tokens are more than its cache of 430,272
        "bf16 8192/512": [1, 4, 16, 32, 64],
    }
    assert REPEATS * 50 * (2048 + 2048) > 430_272


def test_a_row_is_predicted_as_it_was_measured(tmp_path: Path) -> None:
    """One user alone: each reply takes what its tokens take, and the rate follows from both."""
    (row,) = read_rows(written(tmp_path / "points.csv", ("bf16", 128, 32, 1, 4)))
    figures, is_inside = predicted(row, "vllm-v1-async")
    assert figures["request p95"] == pytest.approx(figures["TTFT p99"] + 31 * figures["ITL p50"], rel=0.01)
    assert figures["tokens/s"] == pytest.approx(32e3 / figures["request p95"], rel=0.01)
    assert not is_inside  # of 10 tokens/s
    assert figures["watts"] > 100
    with pytest.raises(RuntimeError, match="unknown engine profile"):
        predicted(row, "no-such-engine")


def test_a_summary_counts_errors_verdicts_and_intervals() -> None:
    """Errors are in percent of what was published; a verdict agrees if both or neither meet the objectives."""
    fields = dict.fromkeys(("input_len", "output_len", "concurrency", "num_prompts"), "1") | {"run_id": "a_fp8"}
    row = Row(fields | dict.fromkeys(COLUMNS.values(), "100"))
    assert not meets(row.published)  # its median gap of 100 ms
    good = dict.fromkeys(COLUMNS, 40.0)
    line = summary("all", [(row, dict.fromkeys(COLUMNS, 110.0), True), (row, good, False)])
    assert line == "| all | 2 |" + " 35.0, -25.0 |" * len(COLUMNS) + " 1 | 1 |"


def test_the_command_prints_a_line_for_each_shape_and_precision(tmp_path: Path) -> None:
    """As the documents name it."""
    path = written(tmp_path / "points.csv", ("bf16", 64, 8, 1, 2), ("fp8", 64, 8, 2, 4))
    command = [sys.executable, "-m", "validation.closed_loops", str(path)]
    lines = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout.splitlines()
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| bf16 64/8", "| fp8 64/8", "| **fp8**", "| **bf16**"]
