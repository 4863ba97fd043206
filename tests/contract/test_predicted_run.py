"""What predict-load writes is a run folder like any other: report-load and --compare read it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from loadtest.cli import predict_load, report_load


def _run(command: Any, *arguments: object) -> None:
    with pytest.raises(SystemExit) as ended:
        command.main([str(argument) for argument in arguments])
    assert ended.value.code == 0


def test_report_load_reads_what_predict_load_wrote(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The figures of the report are those the prediction printed, and its kind is predicted everywhere."""
    asked = ("--model", "qwen3-8b", "--gpu", "h100-sxm-80gb", "--precision", "fp8", "--concurrency", "1,4")
    sizes = ("--isl", 64, "--osl", 16, "--requests", 20)
    _run(predict_load.predict_load, *asked, *sizes, "--out", tmp_path / "run", "--json")
    predicted = json.loads(capsys.readouterr().out)
    _run(report_load.report_load, tmp_path / "run", "--out", tmp_path / "report", "--json")
    reported = json.loads(capsys.readouterr().out)
    assert reported["kind"] == predicted["kind"] == "predicted"
    for found, promised in zip(reported["levels"], predicted["levels"], strict=True):
        for quantity in ("ttft_s", "itl_s", "e2e_s"):
            assert found[quantity]["p50"] == promised[quantity]["p50"]
        assert found["output_tokens_per_s"] == promised["output_tokens_per_s"]
        assert found["batch_curve"]["server"], "a prediction counts its own iterations"
    assert "predicted" in (tmp_path / "report" / "report.html").read_text()
