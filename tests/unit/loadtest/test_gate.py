"""What comes of runs beside the report: exports, repeats, comparisons, and a gate for releases."""

from __future__ import annotations

import csv
import json
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pa_parquet
import pytest

from engines.errors import UserError
from loadtest import cli_report
from loadtest.compare import compare
from loadtest.report import summarize_runs, write_report


def command(*arguments: object) -> int:
    """Run report-load; return its exit status."""
    with pytest.raises(SystemExit) as ended:
        cli_report.report_load.main([str(argument) for argument in arguments])
    assert isinstance(ended.value.code, int)
    return ended.value.code


def gate_file(folder: Path, text: str) -> Path:
    """Write objectives."""
    path = folder / "objectives.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_gate_kept_and_missed(write_run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A kept gate ends well; a missed one with status 3, each verdict told, in XML too."""
    run, junit = write_run("run"), tmp_path / "junit.xml"
    kept = gate_file(tmp_path, "itl_s: {p50: 0.02}\nclasses:\n  chat: {ttft_s: {p50: 0.03}}\n")
    assert command(run, "--gate", kept, "--out", tmp_path / "a", "--no-exports") == 0
    assert "met    load 1: itl_s p50" in capsys.readouterr().out
    missed = gate_file(tmp_path, "itl_s: {p50: 0.005, p99: 0.02}\nclasses:\n  chat: {ttft_s: {p50: 0.001}}\n")
    assert command(run, "--gate", missed, "--junit", junit, "--dry-run") == 3
    assert not junit.exists()
    assert command(run, "--gate", missed, "--junit", junit, "--out", tmp_path / "b", "--no-exports") == 3
    said = capsys.readouterr()
    assert "MISSED load 1: itl_s p50 10" in said.out
    assert "MISSED load 1, class chat: ttft_s p50 20.0 ms, at most 1.00 ms" in said.out
    suite = ET.parse(junit).getroot().find("testsuite")
    assert suite is not None
    failed = {(case.get("classname"), case.get("name")) for case in suite if case.find("failure") is not None}
    assert failed == {("load 1", "itl_s p50"), ("load 1, class chat", "ttft_s p50")}
    assert (suite.get("tests"), suite.get("failures")) == ("6", "2")


def test_gate_refuses_what_it_cannot_judge(write_run: Any, tmp_path: Path) -> None:
    """A run in doubt, no level to judge and a class that was never sent are missed; a doubt can be allowed."""
    run = write_run("run")
    whole = json.loads((run / "run.json").read_text())
    doubts = [{"code": "generator-late", "text": "late", "level": None}]
    (run / "run.json").write_text(json.dumps({**whole, "doubts": doubts}))
    for text, status in (
        ("itl_s: {p50: 1}", 3),
        ("itl_s: {p50: 1}\ndoubts_allowed: [generator-late]", 0),
        ("itl_s: {p50: 1}\ndoubts_allowed: [generator-late]\nup_to: 0.5", 3),
        ("classes: {draw: {itl_s: {p50: 1}}}\ndoubts_allowed: [generator-late]", 3),
        ("errors_ratio: 0", 2),
        ("itl: {p50: 1}", 2),
    ):
        assert command(run, "--dry-run", "--gate", gate_file(tmp_path, text)) == status, text


def test_flags_that_do_not_go_together(write_run: Any, tmp_path: Path) -> None:
    """Each is a question to the user, not a guess."""
    run = write_run("run")
    for flags in (["--junit", "x"], ["--across-kinds"], ["--compare"], ["--compare", "--gate", "x"]):
        assert command(run, "--dry-run", *flags) == 2
    assert not list(tmp_path.glob("x*"))


def test_comparison_sees_a_change_and_no_other(write_run: Any, tmp_path: Path) -> None:
    """Gaps a tenth longer are worse by a tenth, within an interval around it; the same again is the same."""
    base, again, slower = write_run("base"), write_run("again", seed=1), write_run("slower", seed=2, gap_s=0.011)
    found = compare(base, slower, command="report-load", across_kinds=False)
    changes = {change.figure: change for change in found.levels[0].changes}
    itl = changes["itl_s mean"]
    assert itl.outcome == "worse"
    assert itl.change_ratio == pytest.approx(0.10, abs=0.02)
    assert itl.low is not None
    assert itl.high is not None
    assert 0.05 < itl.low < 0.10 < itl.high < 0.15
    assert changes["itl_s p99"].outcome == "unknown", "40 requests of four gaps cannot tell a p99"
    assert changes["ttft_s p50"].outcome == "same"
    alike = {change.figure: change for change in compare(base, again, command="", across_kinds=False).levels[0].changes}
    assert alike["itl_s mean"].outcome in {"same", "unclear"}
    assert command("--compare", base, slower, "--out", tmp_path / "out") == 0
    page = (tmp_path / "out/comparison.html").read_text()
    assert "http" not in page.replace("http://www.w3.org/", "")
    assert json.loads((tmp_path / "out/comparison.json").read_text())["levels"][0]["load"] == "1"


def test_comparison_across_kinds_is_asked_for(write_run: Any) -> None:
    """Measured against emulated is refused, and marked where it is wanted; levels must be shared."""
    base, other = write_run("base"), write_run("other", kind="emulated")
    with pytest.raises(UserError, match="different kinds"):
        compare(base, other, command="", across_kinds=False)
    assert compare(base, other, command="", across_kinds=True).across_kinds
    with pytest.raises(UserError, match="no level in common"):
        compare(base, write_run("two", users=2), command="", across_kinds=False)


def test_repeats_by_hand(write_run: Any) -> None:
    """Three runs of one scenario: the spread between them is that of their own figures; others do not mix in."""
    runs = [write_run(str(number), seed=number, gap_s=gap) for number, gap in enumerate((0.010, 0.012, 0.014))]
    summary = summarize_runs([*runs, write_run("other", requests=50)], command="")
    found = {repeat.quantity: repeat for repeat in summary.repeats}["itl_s p50"]
    values = [level.itl_s.p50 for level in summary.levels[:3] if level.itl_s]
    assert (found.runs, found.load) == (3, "1")
    assert (found.mean, found.min, found.max) == pytest.approx((np.mean(values), min(values), max(values)))
    assert found.sd == pytest.approx(np.std(values, ddof=1))


def test_exports_read_back(write_run: Any, tmp_path: Path) -> None:
    """Every export holds what the summary is of: request by request, gap by gap, level by level."""
    run, out = write_run("run"), tmp_path / "out"
    summary = write_report([run], out, force=False, command="")
    [level] = summary.levels
    assert level.itl_s is not None
    assert level.ttft_s is not None
    requests = pa_parquet.read_table(out / "exports/requests.parquet")
    assert requests.num_rows == 40
    assert np.median(requests["ttft_s"].to_numpy()) == pytest.approx(level.ttft_s.p50)
    assert set(requests["class"].to_pylist()) == {"chat", "code"}
    gaps = pa_parquet.read_table(out / "exports/token_gaps.parquet")
    assert gaps["token"].to_pylist()[:8] == [1, 2, 3, 4] * 2
    assert np.percentile(gaps["gap_s"].to_numpy(), 99) == pytest.approx(level.itl_s.p99, rel=1e-6)
    with (out / "exports/requests.csv").open() as file:
        assert [row["outcome"] for row in csv.DictReader(file)] == ["ok"] * 40
    with (out / "exports/levels.csv").open() as file:
        [row] = csv.DictReader(file)
    assert float(row["itl_p50_s"]) == level.itl_s.p50
    assert (row["kind"], row["concurrency"], row["rate_per_s"]) == ("measured", "1", "")
    [path] = (out / "exports/aiperf").glob("*/profile_export_aiperf.json")
    document = json.loads(path.read_text())
    assert document["inter_chunk_latency"]["p99"] == pytest.approx(level.itl_s.p99 * 1e3)
    assert document["request_count"] == {"unit": "requests", "avg": 40.0}
    assert document["engine_to_capacity"]["kind"] == "measured"
