"""The walk without a GPU: fake checks, fake toolchains, and the page that lists the same links."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from engines.build import trtllm
from engines.errors import MissingError, ToolError
from engines.files import MadeBy, read_json
from triton_repo.cli.check_gpu import check_gpu
from triton_repo.gpu_check import CHECKS, Link, Outcome, Report, Session, Settings, links, reasons_against, walk
from triton_repo.gpu_check.checks import unknown_flags
from triton_repo.gpu_check.processes import run_command, running

PAGE = Path(__file__).parents[4] / "docs" / "explanation" / "what-was-verified.md"
MADE_BY = MadeBy(command="check-gpu", version="0")
IDS = [link.id for link in links()]


def _walked(out: Path, failing: dict[str, BaseException]) -> tuple[Report, list[tuple[Link, Outcome]]]:
    """Walk with checks that only pass, but for some."""
    told: list[tuple[Link, Outcome]] = []

    def check(name: str) -> str:
        if name in failing:
            raise failing[name]
        return f"saw {name}"

    found = {name: (lambda _session, name=name: check(name)) for name in CHECKS}
    session = Session(Settings(None, "fp8", out), version="1.2.1")
    return walk(session, made_by=MADE_BY, on_outcome=lambda *each: told.append(each), found=found), told


def test_the_page_the_checks_and_the_report_list_the_same_links(tmp_path: Path) -> None:
    """What was verified, what check-gpu checks and what it reports are one list, in one order."""
    rows = re.findall(r"^\| `([\w-]+)` \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    report, told = _walked(tmp_path, {})
    assert rows == IDS == list(CHECKS) == [outcome.link for outcome in report.outcomes]
    assert [link.id for link, _ in told] == IDS
    printed = CliRunner().invoke(check_gpu, ["--list"]).output
    assert re.findall(r"^([\w-]+): ", printed, re.MULTILINE) == IDS


def test_every_link_of_the_issue_is_there_and_none_is_only_believed() -> None:
    """Each link says by what it was held, and what to look at on a GPU."""
    asked = {"quantize", "export", "convert", "build-flags", "engine-config", "repository", "cpp-parameters"}
    assert asked | {"metrics", "llm-api", "trtllm-serve"} <= set(IDS)
    for link in links():
        assert link.evidence
        assert link.look
        assert "believe" not in f"{link.evidence} {link.look} {link.title}"


def test_a_failed_link_stops_only_what_needs_it(tmp_path: Path) -> None:
    """What hangs on a failed link is not reached, however far down; all else is walked; the report says why."""
    report, _ = _walked(tmp_path, {"compile": ToolError("trtllm-build failed", status=1)})
    statuses = {outcome.link: outcome.status for outcome in report.outcomes}
    assert statuses["compile"] == "failed"
    unreached = {"engine-config", "smoke", "repository", "cpp-parameters", "serving", "metrics", "load"}
    assert {link for link, status in statuses.items() if status == "not reached"} == unreached
    assert statuses["llm-api"] == statuses["export"] == "passed"
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "| `compile` | failed |" in text
    assert "trtllm-build failed; exit status 1" in text
    assert "| `engine-config` | not reached | 0.0 | needs compile |" in text
    assert read_json(tmp_path / "report.json", Report) == report


def test_an_interrupted_walk_leaves_a_report_of_what_it_reached(tmp_path: Path) -> None:
    """Ctrl-C in the middle: the links before it stand in the report, the others as not reached."""
    with pytest.raises(KeyboardInterrupt):
        _walked(tmp_path, {"compile": KeyboardInterrupt()})
    report = read_json(tmp_path / "report.json", Report)
    assert [outcome.link for outcome in report.outcomes] == IDS
    assert report.count("passed") == IDS.index("compile")
    assert report.outcomes[-1].detail == "the walk ended before it"


@pytest.mark.parametrize("error", [KeyError("quality"), ValueError("not JSON"), MissingError("no templates")])
def test_what_an_outside_program_leaves_out_is_a_failed_link(tmp_path: Path, error: Exception) -> None:
    """A key that is not there, no JSON, a missing file: the link fails, the walk goes on."""
    report, _ = _walked(tmp_path, {"metrics": error})
    assert report.count("failed") == 1
    assert report.count("passed") == len(IDS) - 1


def test_a_machine_without_tensorrt_llm_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reason is a sentence; --skip ends well with it, without it the command fails and names the container."""
    monkeypatch.setattr(trtllm, "installed_version", lambda: None)
    assert reasons_against(default_checkpoint=True) == ["no TensorRT-LLM on this machine"]
    skipped = CliRunner().invoke(check_gpu, ["--skip"])
    assert (skipped.exit_code, skipped.output) == (0, "check-gpu: skipped: no TensorRT-LLM on this machine\n")
    refused = CliRunner().invoke(check_gpu, [])
    assert refused.exit_code == 1
    assert "in the container" in refused.output


def test_every_reason_against_a_machine_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """An unknown version and an unknown GPU are both named."""
    monkeypatch.setattr(trtllm, "installed_version", lambda: "9.9.9")
    monkeypatch.setattr(trtllm, "visible_compute_capabilities", lambda: ["6.1"])
    told = "; ".join(reasons_against(default_checkpoint=False))
    assert "TensorRT-LLM 9.9.9 is not among" in told
    assert "a GPU of compute capability 6.1" in told


def test_flags_are_compared_as_whole_words() -> None:
    """A longer flag that begins the same is not the flag."""
    shown = "usage: trtllm-build [-h] [--max_num_tokens N] [--gemm_plugin {auto,disable}]\n  --workers WORKERS"
    assert unknown_flags(["trtllm-build", "--max_num_tokens", "8", "--gemm_plugin", "auto", "--workers"], shown) == []
    assert unknown_flags(["trtllm-build", "--max_num", "8", "--worker"], shown) == ["--max_num", "--worker"]


def test_a_command_s_output_is_in_its_log_and_its_failure_in_the_error(tmp_path: Path) -> None:
    """Stdout is returned, both streams are logged, a failure carries the last lines, a limit ends it."""
    log = tmp_path / "log"
    assert run_command(["sh", "-c", "echo out; echo err >&2"], log=log, limit_s=10) == "out\n"
    assert log.read_text().splitlines()[1:] == ["err", "out"]
    with pytest.raises(ToolError, match="exit status 3") as failed:
        run_command(["sh", "-c", "echo words >&2; exit 3"], log=log, limit_s=10)
    assert str(failed.value).splitlines()[1:] == ["  | words"]
    with pytest.raises(ToolError, match=r"ended after 0\.2 s"):
        run_command(["sleep", "30"], log=log, limit_s=0.2)
    with pytest.raises(MissingError, match="no-such-program is not on PATH"):
        run_command(["no-such-program"], log=log, limit_s=1)


def test_a_server_is_ended_with_all_it_started(tmp_path: Path) -> None:
    """The process group is gone after the block."""
    with running(["sh", "-c", "sleep 60 & sleep 60"], log=tmp_path / "log") as process:
        assert process.poll() is None
    assert process.poll() is not None


def test_the_json_report_is_a_document(tmp_path: Path) -> None:
    """It names its schema, its maker, and the machine."""
    _walked(tmp_path, {})
    document = json.loads((tmp_path / "report.json").read_text())
    assert document["made_by"]["command"] == "check-gpu"
    assert {"GPU", "tensorrt_llm", "torch", "python"} <= set(document["machine"])
