"""Run folders in; summary, charts and a page that needs nothing else out."""

from __future__ import annotations

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest

from engines.errors import UserError
from engines.files import made_by, sha256_of, write_json
from loadtest.cli import report_load
from loadtest.metrics.summarize import Summary
from loadtest.report.charts import latency_against_batch, latency_against_load
from loadtest.report.report import summarize_runs, write_report
from loadtest.results.records import Kind, Level, RequestRecord, RunManifest, Sample, ServerFacts, ValidityIssue
from loadtest.scenario.schema import Scenario

GENERATION = 'nv_trt_llm_inflight_batcher_metrics{inflight_batcher_specific_metric="generation_requests",model="m"}'
USERS = (1, 2, 8)


def make_run(
    folder: Path,
    *,
    kind: Kind = "emulated",
    samples: bool = True,
    fails: bool = False,
    validity_issues: tuple[ValidityIssue, ...] = (),
) -> Path:
    """Write a run of three levels at time scale 4; every user sends three requests of ten tokens, one second apart."""
    folder.mkdir(parents=True)
    scale = 4.0 if kind == "emulated" else 1.0
    server = ServerFacts(
        url="http://127.0.0.1:8000",
        protocol="triton-http",
        model="tensorrt_llm",
        triton_version="2.68.0",
        emulated=kind == "emulated",
        time_scale=scale,
        engine="<engine> & co",
    )
    levels = [
        Level(
            concurrency=users,
            isl=8,
            osl=10,
            begin_s=100.0 * i,
            measure_s=100.0 * i,
            end_s=100.0 * i + 33,
            complete=True,
        )
        for i, users in enumerate(USERS)
    ]
    records = [
        RequestRecord(
            id=1000 * index + 10 * user + turn,
            level=index,
            phase="measure",
            scheduled_s=level.measure_s + 11 * turn,
            sent_s=level.measure_s + 11 * turn,
            token_times_s=tuple(level.measure_s + 11 * turn + step + 1 for step in range(10)),
            done_s=level.measure_s + 11 * turn + 11,
            prompt_tokens=8,
            output_tokens=10,
            outcome="error" if fails else "ok",
        )
        for index, level in enumerate(levels)
        for user in range(level.concurrency)
        for turn in range(3)
    ]
    run = RunManifest(
        made_by=made_by("run-load"),
        kind=kind,
        time_scale=scale,
        server=server,
        scenario=Scenario(requests=3),
        levels=levels,
        validity_issues=list(validity_issues),
    )
    write_json(folder / "run.json", run)
    (folder / "requests.jsonl").write_text("".join(record.model_dump_json() + "\n" for record in records))
    if samples:
        lines = [
            Sample(t_s=level.measure_s + 5, values={GENERATION: float(level.concurrency)}).model_dump_json() + "\n"
            for level in levels
        ]
        (folder / "samples.jsonl").write_text("".join(lines))
    return folder


def report(out: Path, *runs: Path) -> Summary:
    """Write a report of runs."""
    return write_report(list(runs), out, force=False, command="report-load")


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a report of one run, for tests that only read; the run lies beside it."""
    folder = tmp_path_factory.mktemp("report")
    report(folder / "out", make_run(folder / "run"))
    return folder / "out"


def test_summary_keys(written: Path) -> None:
    """`summary.json` has the keys that what comes after it reads."""
    summary = json.loads((written / "summary.json").read_text())
    assert {
        "schema",
        "made_by",
        "made_from",
        "kind",
        "label",
        "time_scale",
        "valid",
        "validity_issues",
        "levels",
    } <= set(summary)
    assert (summary["schema"], summary["kind"], summary["valid"]) == (2, "emulated", True)
    for level, users in zip(summary["levels"], USERS, strict=True):
        assert (level["concurrency"], level["isl"], level["osl"]) == (users, 8, 10)
        assert (level["requests"], level["errors"]) == (3 * users, 0)
        for quantity in ("ttft_s", "itl_s", "tpot_s", "e2e_s"):
            assert {"mean", "p50", "p90", "p95", "p99", "max"} <= set(level[quantity])
        assert level["itl_s"]["p99"] == pytest.approx(0.25)
        assert level["output_tokens_per_s"] == pytest.approx(users * 30 / 33 * 4)
        assert level["requests_per_s"] == pytest.approx(users * 3 / 33 * 4)
        assert {"mean", "p50", "p95"} <= set(level["batch_size"])
        assert level["batch_size"]["mean"] == users


def test_summary_reads_back(written: Path) -> None:
    """The document fits its own schema, and is the summary of the run."""
    found = Summary.model_validate_json((written / "summary.json").read_text())
    assert found == summarize_runs([written.parent / "run"], command="report-load")


def test_chain_of_custody(written: Path) -> None:
    """Summary and page name every file they come from, with its hash."""
    summary = Summary.model_validate_json((written / "summary.json").read_text())
    assert [Path(source.path).name for source in summary.made_from] == ["run.json", "requests.jsonl", "samples.jsonl"]
    html = (written / "report.html").read_text()
    for source in summary.made_from:
        assert source.sha256 == sha256_of(Path(source.path))
        assert source.sha256 in html


class _Page(HTMLParser):
    """Collects what a page would load, and its ids."""

    def __init__(self) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.ids: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in {"src", "href", "xlink:href", "data"}:
                self.loads.append(value or "")
            if name == "id":
                self.ids.append(value or "")
        if tag in {"script", "link", "iframe"}:
            self.loads.append(tag)


def test_page_loads_nothing(written: Path) -> None:
    """The page has its figures inside; every reference points into the page itself, at ids that are there once."""
    text = (written / "report.html").read_text()
    page = _Page()
    page.feed(text)
    assert text.count("<svg") == 6
    assert "@import" not in text
    assert all(reference.startswith("#") for reference in page.loads)
    assert {reference[1:] for reference in page.loads} <= set(page.ids)
    assert len(set(page.ids)) == len(page.ids)
    assert all(found.startswith("#") for found in re.findall(r"url\(([^)]*)\)", text))


def test_names_are_escaped(written: Path) -> None:
    """What a server says of itself cannot become markup."""
    text = (written / "report.html").read_text()
    assert "<engine>" not in text
    assert "&lt;engine&gt; &amp; co" in text


@pytest.mark.parametrize("draw", [latency_against_batch, latency_against_load])
def test_every_figure_carries_the_label(tmp_path: Path, draw: object) -> None:
    """A figure that is passed on alone still says that it is emulated, and how."""
    summary = summarize_runs([make_run(tmp_path / "run")], command="report-load")
    assert callable(draw)
    svg = draw(summary).svg
    assert "emulated, time scale x4" in svg
    assert "not valid" not in svg


def test_figures_are_reproducible(tmp_path: Path) -> None:
    """The same summary gives the same bytes; both formats are what they say."""
    summary = summarize_runs([make_run(tmp_path / "run")], command="report-load")
    assert latency_against_batch(summary) == latency_against_batch(summary)
    assert latency_against_batch(summary).png.startswith(b"\x89PNG")


def test_axis_says_whose_batch_size(tmp_path: Path) -> None:
    """Without server metrics the client's batch size takes its place, and the axis says so."""
    with_samples = summarize_runs([make_run(tmp_path / "a")], command="report-load")
    without = summarize_runs([make_run(tmp_path / "b", samples=False)], command="report-load")
    assert "by the server" in latency_against_batch(with_samples).svg
    assert "as seen by the client" in latency_against_batch(without).svg


def test_several_runs_of_one_kind(tmp_path: Path) -> None:
    """Levels of several runs stand one after another, each with its run; an issue keeps pointing at its level."""
    issue = ValidityIssue(code="client-late", text="sent 61 ms late", level=2)
    first, second = make_run(tmp_path / "first"), make_run(tmp_path / "second", validity_issues=(issue,))
    summary = report(tmp_path / "out", first, second)
    assert [level.run for level in summary.levels] == ["first"] * 3 + ["second"] * 3
    assert summary.label == "emulated, time scale x4"
    assert [(found.level, found.text) for found in summary.validity_issues] == [(5, "second: sent 61 ms late")]
    assert "sent 61 ms late" in (tmp_path / "out/report.html").read_text()
    assert "not valid" in (tmp_path / "out/charts/latency_against_batch.svg").read_text()


def test_mixed_kinds_are_refused(tmp_path: Path) -> None:
    """Measured and emulated figures never share a report, and nothing is written."""
    runs = [make_run(tmp_path / "a"), make_run(tmp_path / "b", kind="measured")]
    with pytest.raises(UserError, match="different kinds") as refused:
        report(tmp_path / "out", *runs)
    assert "separately" in str(refused.value.hint)
    assert not (tmp_path / "out").exists()


def test_run_without_success_is_still_reported(tmp_path: Path) -> None:
    """A run where every request failed gives a page that says so."""
    report(tmp_path / "out", make_run(tmp_path / "run", fails=True))
    text = (tmp_path / "out/report.html").read_text()
    assert "24 error" in text
    assert "33 of 33 requests failed" in text


def test_report_does_not_replace_its_own_run(tmp_path: Path) -> None:
    """--force cannot destroy the run the report is made from."""
    run = make_run(tmp_path / "runs" / "a")
    for out in (run, tmp_path / "runs"):
        with pytest.raises(UserError, match="an input of this command"):
            write_report([run], out, force=True, command="report-load")
    assert (run / "requests.jsonl").is_file()


def test_existing_report_is_kept_without_force(written: Path, tmp_path: Path) -> None:
    """Nothing is overwritten unless asked."""
    run, out = make_run(tmp_path / "run"), tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("kept")
    with pytest.raises(UserError, match="already exists"):
        report(out, run)
    with pytest.raises(UserError, match="was not written by this tool"):
        write_report([run], out, force=True, command="report-load")
    assert [path.name for path in out.iterdir()] == ["mine.txt"]
    shutil.rmtree(out)
    shutil.copytree(written, out)
    with pytest.raises(UserError, match="already exists"):
        report(out, run)
    (out / "report.html").write_text("old")
    write_report([run], out, force=True, command="report-load")
    assert "emulated, time scale x4" in (out / "report.html").read_text()
    assert {path.name for path in out.iterdir()} == {path.name for path in written.iterdir()}


def test_line_that_does_not_fit_is_the_users_to_fix(tmp_path: Path) -> None:
    """A foreign line in the records is named, not a traceback."""
    run = make_run(tmp_path / "run")
    (run / "requests.jsonl").write_text('{"id": 1}\n')
    with pytest.raises(UserError, match="line 1: missing key 'level'"):
        summarize_runs([run], command="report-load")


def _run_command(*arguments: object) -> int:
    with pytest.raises(SystemExit) as ended:
        report_load.report_load.main([str(argument) for argument in arguments])
    assert isinstance(ended.value.code, int)
    return ended.value.code


def test_command_writes_and_says_where(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The command prints the levels under their label, and what it wrote."""
    out = tmp_path / "out"
    assert _run_command(make_run(tmp_path / "run"), "--out", out) == 0
    printed = capsys.readouterr().out
    assert "emulated, time scale x4" in printed
    assert "wrote" in printed
    assert sorted(path.name for path in out.iterdir()) == [
        ".contents.json", "charts", "exports", "report.html", "summary.json",
    ]  # fmt: skip
    assert len(list((out / "charts").iterdir())) == 12


def test_json_prints_the_summary_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """--json prints what summary.json holds and nothing else."""
    out = tmp_path / "out"
    assert _run_command(make_run(tmp_path / "run"), "--out", out, "--json") == 0
    assert json.loads(capsys.readouterr().out) == json.loads((out / "summary.json").read_text())


def test_dry_run_touches_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """--dry-run shows the figures and writes no file."""
    assert _run_command(make_run(tmp_path / "run"), "--out", tmp_path / "out", "--dry-run") == 0
    assert "would write" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


def test_bad_input_is_status_two(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """No folder, a folder that is no run, and one run twice are asked wrongly."""
    run = make_run(tmp_path / "run")
    (tmp_path / "empty").mkdir()
    assert _run_command() == 2
    assert _run_command(tmp_path / "nowhere") == 1
    assert _run_command(tmp_path / "empty") == 2
    assert _run_command(run, run, "--out", tmp_path / "out") == 2
    assert "not a run folder" in capsys.readouterr().err
