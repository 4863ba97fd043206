"""Two runs side by side, and gates that say yes or no."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest

from engines.errors import UserError
from engines.files import made_by, write_json
from loadtest.cli import report_load
from loadtest.metrics.loaded_run import load_runs, summary_of_runs
from loadtest.metrics.repeats import _spread
from loadtest.report.charts.distributions import _tail_panel
from loadtest.report.comparison import compare
from loadtest.report.comparison_schema import Change
from loadtest.report.gate import Gate, cases_of
from loadtest.report.report import summarize_runs
from loadtest.results.records import REQUESTS_NAME, Kind, RequestRecord, ValidityIssue
from tests.late import Late
from tests.unit.loadtest.made import level, manifest

matplotlib = Late("matplotlib.figure", "load")


def run(
    folder: Path,
    *,
    gap_s: float = 0.02,
    seed: int = 0,
    kind: Kind = "emulated",
    issue: bool = False,
    mixed: bool = False,
    isl: int = 8,
) -> Path:
    """Write a run of 400 requests, ten at a time, whose gaps are spread by a tenth around a mean."""
    rng = np.random.default_rng(seed)
    records, free_s = [], np.zeros(10)
    for number in range(400):
        user = number % 10
        sent_s = float(free_s[user])
        times = sent_s + 0.1 + np.cumsum(rng.normal(gap_s, gap_s / 10, 20))
        free_s[user] = times[-1]
        records.append(
            RequestRecord(
                id=number,
                level=0,
                phase="measure",
                scheduled_s=sent_s,
                sent_s=sent_s,
                token_times_s=tuple(times.tolist()),
                done_s=float(times[-1]),
                prompt_tokens=8,
                output_tokens=20,
                outcome="ok",
                class_name=("chat", "code")[number % 2] if mixed else None,
            )
        )
    validity_issues = (ValidityIssue(code="generator-late", text="late", level=0),) if issue else ()
    made = manifest(level(10, 0.0, float(free_s.max())).model_copy(update={"isl": isl}))
    folder.mkdir(parents=True)
    write_json(folder / "run.json", made.model_copy(update={"kind": kind, "validity_issues": validity_issues}))
    (folder / "requests.jsonl").write_text("".join(each.model_dump_json() + "\n" for each in records))
    return folder


def changes(found: object) -> dict[str, Change]:
    """Return the changes of the only level by their figure."""
    [only] = found.levels  # type: ignore[attr-defined]
    return {change.figure: change for change in only.changes}


def test_a_known_change_is_found_and_covered(tmp_path: Path) -> None:
    """Gaps that are 10 % longer come out as 10 % worse, with an interval around it; throughput as worse too."""
    pair = run(tmp_path / "a", seed=1), run(tmp_path / "b", seed=2, gap_s=0.022)
    found = changes(compare(*pair, command="test", across_kinds=False))
    itl = found["itl_s mean"]
    assert itl.change_ratio == pytest.approx(0.10, abs=0.01)
    assert itl.low is not None
    assert itl.high is not None
    assert itl.low < itl.change_ratio < itl.high  # type: ignore[operator]
    assert itl.high - itl.low < 0.03
    assert (itl.outcome, found["output_tokens_per_s"].outcome) == ("worse", "worse")


def test_two_runs_of_the_same_are_not_called_different(tmp_path: Path) -> None:
    """Another seed of the same process is within 2 %, or unclear; in no figure surely worse by much."""
    pair = run(tmp_path / "a", seed=1), run(tmp_path / "b", seed=2)
    found = compare(*pair, command="test", across_kinds=False)
    outcomes = [change.outcome for change in changes(found).values()]
    assert outcomes.count("worse") + outcomes.count("better") <= 2
    assert "would differ by chance alone" in found.verdict


def test_kinds_are_compared_only_when_asked(tmp_path: Path) -> None:
    """Predicted against emulated is refused, and done with --across-kinds, each side under its own kind."""
    pair = run(tmp_path / "a"), run(tmp_path / "b", kind="predicted")
    with pytest.raises(UserError, match="different kinds"):
        compare(*pair, command="test", across_kinds=False)
    found = compare(*pair, command="test", across_kinds=True)
    assert (found.baseline.kind, found.candidate.kind) == ("emulated", "predicted")


def _command(*arguments: object) -> int:
    with pytest.raises(SystemExit) as ended:
        report_load.report_load.main([str(argument) for argument in arguments])
    assert isinstance(ended.value.code, int)
    return ended.value.code


def test_compare_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """--compare writes page, document and chart; --max-regression turns a slower candidate into status 3."""
    base, slow = run(tmp_path / "a", seed=1), run(tmp_path / "slow", seed=2, gap_s=0.03)
    out = tmp_path / "out"
    assert _command("--compare", base, slow, "--out", out) == 0
    assert "worse" in capsys.readouterr().out
    page = (out / "comparison.html").read_text()
    assert page.count("emulated") > 2
    assert "<script" not in page
    assert json.loads((out / "comparison.json").read_text())["candidate"]["name"] == "slow"
    junit = tmp_path / "verdicts.xml"
    flags = ("--dry-run", "--max-regression", 0.05)
    capsys.readouterr()
    assert _command("--compare", base, slow, *flags) == 3
    printed = capsys.readouterr().out
    assert "missed  load 10: itl_s p50" in printed
    assert "\nmet " not in printed  # the table says it
    assert " checks met\n" in printed
    assert _command("--compare", base, slow, "--out", tmp_path / "o2", *flags[1:], "--junit", junit) == 3
    assert int(ET.parse(junit).getroot().attrib["failures"]) > 3


def test_a_gate_names_what_is_missed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An objective that is kept and one that is missed: status 3, both printed, and a JUnit file that says the same."""
    objectives = tmp_path / "objectives.yaml"
    objectives.write_text("ttft_s: {p50: 0.2}\nitl_s: {p95: 0.001}\nloads: [10]\n")
    junit = tmp_path / "verdicts.xml"
    made = run(tmp_path / "a")
    assert _command(made, "--gate", objectives, "--junit", junit, "--out", tmp_path / "out", "--no-exports") == 3
    printed = capsys.readouterr()
    assert "met     a, load 10: ttft_s p50" in printed.out
    assert "missed  a, load 10: itl_s p95" in printed.out
    assert "1 of 4 checks failed" in printed.err
    suites = ET.parse(junit).getroot()
    assert suites.attrib["failures"] == "1"
    [failure] = suites.iter("failure")
    assert "objective: at most 1.00 ms" in failure.attrib["message"]
    objectives.write_text("ttft_s: {p50: 0.2}\n")
    assert _command(made, "--gate", objectives, "--dry-run") == 0


def test_a_gate_of_another_run_s_loads_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is a wrong input, refused like every other before anything is written."""
    objectives = tmp_path / "objectives.yaml"
    objectives.write_text("ttft_s: {p50: 0.2}\nloads: [10, 11]\n")
    assert _command(run(tmp_path / "a"), "--gate", objectives, "--out", tmp_path / "out") == 2
    printed = capsys.readouterr()
    assert "error: no level has load 11\nhint: the run's loads: 10\n" in printed.err
    assert not printed.out
    assert not (tmp_path / "out").exists()


def test_a_gate_does_not_pass_figures_that_are_not_valid(tmp_path: Path) -> None:
    """A run that is not valid keeps no promise, whatever its figures."""
    summary = summarize_runs([run(tmp_path / "a", issue=True)], command="test")
    cases = cases_of(summary, Gate.model_validate({"ttft_s": {"p50": 10}}))
    assert [(case.name, case.met) for case in cases[:2]] == [("valid", False), ("ttft_s p50", True)]


def test_a_percentile_that_cannot_be_known_is_said(tmp_path: Path) -> None:
    """p99.9 of 400 requests is judged by what there is, and said to be more than they can tell."""
    summary = summarize_runs([run(tmp_path / "a")], command="test")
    assert summary.levels[0].ttft_s is not None
    assert "p999" in summary.levels[0].ttft_s.unsupported
    assert "p999" not in (summary.levels[0].ttft_s.ci or {})
    cases = cases_of(summary, Gate.model_validate({"ttft_s": {"p999": 10}}))
    assert "too small to decide" in cases[1].says


def test_flags_that_do_not_go_together(tmp_path: Path) -> None:
    """Each wrong combination is asked wrongly."""
    a, b = run(tmp_path / "a"), run(tmp_path / "b")
    assert _command(a, "--compare", a, b) == 2
    assert _command(a, "--across-kinds") == 2
    assert _command(a, "--junit", tmp_path / "x.xml") == 2
    assert _command("--compare", a, b, "--gate", tmp_path / "x.yaml") == 2
    assert made_by("x").command == "x"


def test_repeats_show_the_spread_between_runs(tmp_path: Path) -> None:
    """Runs of one scenario give mean, least, most and standard deviation of each figure; a single run none."""
    runs = [run(tmp_path / name, seed=seed, gap_s=gap) for name, seed, gap in (("a", 1, 0.02), ("b", 2, 0.022))]
    summary = summarize_runs(runs, command="test")
    [itl] = [each for each in summary.repeats if each.quantity == "itl_s p50"]
    assert itl.runs == 2
    assert (itl.min, itl.max) == pytest.approx((0.02, 0.022), rel=0.02)
    assert itl.sd == pytest.approx(0.002 / 2**0.5, rel=0.1)
    assert not summarize_runs(runs[:1], command="test").repeats


def test_loads_that_are_shown_alike_are_not_repeats_of_each_other(tmp_path: Path) -> None:
    """24.41 and 24.44 requests/s are both 24.4/s in a table."""
    summary = summarize_runs([run(tmp_path / "a")], command="test")
    loads = [summary.levels[0].model_copy(update={"concurrency": None, "rate_per_s": rate}) for rate in (24.41, 24.44)]
    found = _spread([summary.model_copy(update={"levels": loads})] * 2)
    assert {(each.load, each.runs) for each in found} == {("24.4/s", 2)}


def test_drawn_lengths_are_the_same_load(tmp_path: Path) -> None:
    """Two runs that draw from one distribution differ in mean length by their seed; load and question are the same."""
    runs = [run(tmp_path / name, seed=seed, isl=isl) for name, seed, isl in (("a", 1, 598), ("b", 2, 617))]
    assert len(compare(*runs, command="test", across_kinds=False).levels) == 1
    assert {each.runs for each in summarize_runs(runs, command="test").repeats} == {2}
    other = run(tmp_path / "c", isl=2048)
    whole = json.loads((other / "run.json").read_text())
    whole["scenario"]["lengths"]["isl"] = 2048
    (other / "run.json").write_text(json.dumps(whole))
    with pytest.raises(UserError, match="no level in common"):
        compare(runs[0], other, command="test", across_kinds=False)


def test_a_gate_holds_each_class_to_its_own(tmp_path: Path) -> None:
    """A class is judged by its own requests; one that was never sent keeps nothing; its goodput is not guessed."""
    summary = summarize_runs([run(tmp_path / "run", mixed=True)], command="test")
    gate = Gate.model_validate(
        {"itl_s": {"p50": 1}, "classes": {"chat": {"itl_s": {"p50": 0.01}}, "draw": {"itl_s": {"p50": 1}}}}
    )
    missed = [(case.group.partition("load ")[2], case.name) for case in cases_of(summary, gate) if not case.met]
    assert missed == [("10, class chat", "itl_s p50"), ("10, class draw", "requests")]
    alone = Gate.model_validate({"classes": {"chat": {"itl_s": {"p50": 0.01}}}})
    judged = [(case.group.partition("load ")[2], case.name, case.met) for case in cases_of(summary, alone)[1:]]
    assert alone.objectives is None
    assert judged == [
        ("10", "errors_ratio", True),
        ("10, class chat", "itl_s p50", False),
        ("10, class chat", "errors_ratio", True),
    ]
    with pytest.raises(ValueError, match="goodput or classes"):
        Gate.model_validate({"loads": [10]})
    with pytest.raises(ValueError, match="goodput covers all requests"):
        Gate.model_validate({"itl_s": {"p50": 1}, "classes": {"chat": {"goodput": {"ttft_s": 1}}}})


def test_tails_end_where_the_sample_does(tmp_path: Path) -> None:
    """Of 400 requests none tells what one in a thousand meets: the curve of what is rare ends at one in 400."""
    [detail] = [each.detail() for each in load_runs([run(tmp_path / "run")])]
    ttft = detail.levels[0].ttft
    assert ttft is not None
    assert ttft.size <= 400
    figure = matplotlib.Figure()
    panel = figure.subplots()
    _tail_panel(panel, [("10", "#000000", ttft)], "tail")
    assert min(panel.lines[0].get_ydata()) >= 1 / ttft.size


def test_records_that_were_read_are_not_read_again(tmp_path: Path) -> None:
    """A run's summary at its end is the same from what its validity was decided on."""
    folders = [run(tmp_path / "one"), run(tmp_path / "two", seed=1)]
    first, second = load_runs(folders)
    read = summary_of_runs(folders, [None, None])
    (folders[0] / REQUESTS_NAME).unlink()
    assert summary_of_runs(folders, [first.columns, None]) == read
    assert [level.requests for level in read.levels] == [400, len(second.columns)]
