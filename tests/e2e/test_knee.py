"""The knee of the emulated engine, found on the wall clock, beside the predicted one."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from conftest import Server, succeed, timely

pytestmark = [pytest.mark.e2e, pytest.mark.quiet]


def test_the_knee_lies_where_it_is_predicted(server: Server, engine: Path, tmp_path: Path) -> None:
    """Real probes of a real server and virtual ones of its engine bracket the same load; probes end early."""
    asked = ["--isl", 64, "--osl", 16, "--by", "concurrency", "--objective", "itl_s.p50=0.0062", "--tolerance", 0.4]
    predicted = json.loads(succeed("find-knee", engine, *asked, "--to", 64, "--out", tmp_path / "predicted", "--json"))
    limits = ["--to", 64, "--max-requests", 150]

    def found_in(folder: Path) -> dict[str, Any]:
        out = folder / "wall"
        found = json.loads(succeed("find-knee", "--url", server.url, *asked, *limits, "--out", out, "--json"))
        return found | {"validity_issues": [issue for each in found["tried"] for issue in each["validity_issues"]]}

    found = timely(found_in, tmp_path)
    *_, out = sorted(tmp_path.glob("attempt-*/wall"))
    assert (predicted["kind"], found["kind"]) == ("predicted", "emulated")
    assert predicted["binding"] == found["binding"] == ["itl_s p50"]
    assert predicted["load"] / 1.5 <= found["load"] <= predicted["load"] * 1.5
    probes = sorted((out / "probes").iterdir())
    assert len(probes) == len(found["tried"]) + 1  # the lone requests' run comes first
    levels = [json.loads((probe / "run.json").read_text())["levels"][0] for probe in probes[1:]]
    assert any(level["sufficed"] for level in levels)
    assert all(each["level"]["errors"] == 0 for each in found["tried"])
    succeed("report-load", *probes[1:], "--out", tmp_path / "report", "--no-exports")
