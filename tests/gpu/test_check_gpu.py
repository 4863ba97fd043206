"""The whole road with nothing emulated, where there is a GPU and TensorRT-LLM; elsewhere skipped, with the reason."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from triton_repo.gpu_check import reasons_against


@pytest.mark.gpu
def test_every_link_of_the_road_holds(tmp_path: Path) -> None:
    """check-gpu passes every link on this machine."""
    reasons = reasons_against(default_checkpoint=True)
    if reasons:
        pytest.skip("; ".join(reasons))
    out = tmp_path / "gpu-check"
    done = subprocess.run(
        [sys.executable, "-m", "triton_repo.cli.check_gpu", "--out", str(out)],
        capture_output=True,
        text=True,
        check=False,
        timeout=7200,
    )
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    assert {each["link"]: each["detail"] for each in report["outcomes"] if each["status"] != "passed"} == {}
    assert done.returncode == 0, done.stderr
