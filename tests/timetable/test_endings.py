"""Everything that can end a run of the real load generator before its time, and what is left of it then.

The server is the one with a known timetable: it needs no GPU, no Triton, and starts in milliseconds.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from engines.outputs import is_being_written

sys.path.insert(0, str(Path(__file__).parent))
from running import (
    BIN,
    LIMIT_S,
    LONG,
    SHORT,
    Run,
    children_of,
    free_port,
    is_gone,
    manifest_of,
    records_of,
    wait_for_end,
    wait_for_records,
)
from timetable import Start


@pytest.mark.parametrize(("number", "workers"), [(signal.SIGINT, ()), (signal.SIGTERM, ("--workers", 2))])
def test_an_interrupted_run_is_complete_up_to_there(
    start: Start, run: Run, tmp_path: Path, number: int, workers: tuple[object, ...]
) -> None:
    """Interrupted or terminated, what was under way is recorded as cancelled, and no process stays."""
    process = run(start().port, *LONG, *workers)
    wait_for_records(tmp_path / "run")
    children = children_of(process)
    assert len(children) == (3 if workers else 1)
    process.send_signal(number)
    status, errors = wait_for_end(process)
    assert status == 130, errors
    records, manifest = records_of(tmp_path / "run"), manifest_of(tmp_path / "run")
    outcomes = Counter(each["outcome"] for each in records)
    assert set(outcomes) == {"ok", "cancelled"}
    assert 1 <= outcomes["cancelled"] <= 4
    assert len({each["id"] for each in records}) == len(records) == max(each["id"] for each in records) + 1 or workers
    assert manifest["interrupted"] == {2: "interrupted by the user", 15: "terminated by the system"}[number]
    assert [level["complete"] for level in manifest["levels"]] == [False]
    assert [issue["code"] for issue in manifest["validity_issues"] if not issue["code"].endswith("-late")] == [
        "incomplete"
    ]
    assert all(is_gone(pid) for pid in children)


@pytest.mark.parametrize("workers", [(), ("--workers", 2)])
def test_a_killed_generator_is_an_error_and_its_requests_are_recorded_as_lost(
    start: Start, run: Run, tmp_path: Path, workers: tuple[object, ...]
) -> None:
    """SIGKILL leaves the generator, or the master, no last word; the records are completed from its notes."""
    process = run(start().port, *LONG, *workers)
    wait_for_records(tmp_path / "run")
    os.kill(children_of(process)[0], signal.SIGKILL)
    status, errors = wait_for_end(process)
    assert status == 1
    assert "the load generator failed; ended by SIGKILL" in errors
    assert "hint: report what was measured with report-load" in errors
    records, manifest = records_of(tmp_path / "run"), manifest_of(tmp_path / "run")
    outcomes = Counter(each["outcome"] for each in records)
    assert outcomes["lost"] >= 4  # of each user one; more where the last records were not on disk yet
    assert len({each["id"] for each in records}) == len(records)
    assert [level["complete"] for level in manifest["levels"]] == [False]
    assert {"incomplete", "requests-lost"} <= {issue["code"] for issue in manifest["validity_issues"]}


def test_a_killed_worker_ends_the_run_and_is_named(start: Start, run: Run, tmp_path: Path) -> None:
    """The other worker's requests are cancelled, the lost one's recorded as lost; the run does not hang."""
    process = run(start().port, *LONG, "--workers", 2)
    for worker in (0, 1):
        wait_for_records(tmp_path / "run", worker=worker)
    os.kill(children_of(process)[2], signal.SIGKILL)
    killed_s = time.monotonic()
    status, errors = wait_for_end(process)
    assert status == 1
    assert "was lost\n  | a worker process; ended by SIGKILL\nhint: report what was measured" in errors
    assert time.monotonic() - killed_s < 30
    records, manifest = records_of(tmp_path / "run"), manifest_of(tmp_path / "run")
    lost = {each["worker"] for each in records if each["outcome"] == "lost"}
    assert len(lost) == 1
    assert f"worker {lost.pop()} on" in manifest["interrupted"]
    assert {each["worker"] for each in records if each["outcome"] == "ok"} == {0, 1}
    assert {"worker-lost", "requests-lost", "incomplete"} <= {issue["code"] for issue in manifest["validity_issues"]}
    assert len({each["id"] for each in records}) == len(records)


def test_a_worker_without_a_master_gives_up(tmp_path: Path) -> None:
    """Nobody there within the time stated: one clear error."""
    command = [str(BIN / "run-load"), "--worker", "--port", str(free_port()), "--within", "2"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    assert done.returncode == 1
    assert "no master answered at 127.0.0.1" in done.stderr
    assert "Traceback" not in done.stderr


def test_no_generator_outlives_a_killed_command(start: Start, run: Run, tmp_path: Path) -> None:
    """SIGKILL of run-load itself: master and workers end by themselves."""
    process = run(start().port, *LONG, "--workers", 2)
    wait_for_records(tmp_path / "run")
    children = children_of(process)
    assert len(children) == 3
    process.kill()
    deadline_s = time.monotonic() + LIMIT_S
    while not all(is_gone(pid) for pid in children) and time.monotonic() < deadline_s:
        time.sleep(0.1)
    assert all(is_gone(pid) for pid in children)


def _read_by(folder: Path, command: str, *flags: str) -> subprocess.CompletedProcess[str]:
    """Return what a command that reads the run in a folder says."""
    line = [str(BIN / command), *flags]
    return subprocess.run(line, cwd=folder, capture_output=True, text=True, timeout=LIMIT_S, check=False)


@pytest.mark.quiet
def test_a_run_in_progress_is_not_read_and_a_killed_one_is_reported_as_cut_short(
    start: Start, run: Run, tmp_path: Path
) -> None:
    """run.json is there from the start: report-load recovers what a killed run-load left, and marks it."""
    process = run(start().port, *LONG[:4], "--osl", 20)
    wait_for_records(tmp_path / "run", at_least=24)
    assert manifest_of(tmp_path / "run")["unfinished"]
    for command in (
        ("report-load", "run", "--out", "report"),
        ("calibrate-engine", "--measurements", "run", "--out", "c.json"),
    ):
        done = _read_by(tmp_path, *command)
        assert done.returncode == 2
        assert f"{command[0]}: error: run: the run is still in progress\nhint: wait for its end" in done.stderr
    assert not (tmp_path / "report").exists()
    process.kill()
    process.communicate(timeout=LIMIT_S)
    deadline_s = time.monotonic() + LIMIT_S
    while is_being_written(tmp_path / "run") and time.monotonic() < deadline_s:  # its generator ends after it
        time.sleep(0.05)
    done = _read_by(tmp_path, "report-load", "run", "--out", "report", "--no-exports", "--json")
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert not summary["valid"]
    assert "interrupted" in {issue["code"] for issue in summary["validity_issues"]}
    assert "cut short" in summary["runs"][0]["interrupted"]
    (level,) = summary["levels"]
    measured = sum(each["phase"] == "measure" for each in records_of(tmp_path / "run"))
    assert level["complete"] is False
    assert level["requests"] + level["incomplete"] == measured  # its generator cancels what is in flight, or dies first
    assert level["errors"] == 0
    assert measured >= 8
    assert level["window_s"] > 0
    assert level["ttft_s"]["p50"] == pytest.approx(0.050, abs=0.02)


@pytest.mark.quiet
@pytest.mark.parametrize("workers", [(), ("--workers", 2)])
def test_ctrl_c_ends_a_run_within_three_seconds(
    start: Start, run: Run, tmp_path: Path, workers: tuple[object, ...]
) -> None:
    """A server that says nothing for a minute holds nobody back."""
    process = run(start(first_ms=60_000).port, *LONG, *workers)
    deadline_s = time.monotonic() + LIMIT_S
    while not (tmp_path / "run" / "run.json").is_file() or not manifest_of(tmp_path / "run")["levels"]:
        assert time.monotonic() < deadline_s
        time.sleep(0.05)
    time.sleep(0.5)
    begin_s = time.monotonic()
    process.send_signal(signal.SIGINT)
    status, errors = wait_for_end(process)
    assert status == 130, errors
    assert time.monotonic() - begin_s < 3.0


@pytest.mark.parametrize("workers", [(), ("--workers", 2)])
def test_a_full_disk_ends_the_run_with_the_systems_words(
    start: Start, run: Run, tmp_path: Path, workers: tuple[object, ...]
) -> None:
    """Where no more can be written, the run ends and says so; what is there is whole lines."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (120_000, 120_000))

    load = ("--concurrency", 32, "--requests", 4000, "--osl", 60)
    status, errors = wait_for_end(run(start(first_ms=10, gap_ms=2).port, *load, *workers, preexec_fn=limit))
    assert status == 1
    assert "requests.jsonl: File too large" in errors
    text = (tmp_path / "run" / "requests.jsonl").read_text()
    assert 100_000 < len(text) <= 120_000
    assert text.endswith("\n")
    assert "requests.jsonl" in manifest_of(tmp_path / "run")["interrupted"]


def test_a_disk_that_is_full_from_the_start_is_one_clear_error(start: Start, run: Run) -> None:
    """What a run needs before its first request cannot be written either: said as plainly."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000, 1_000))

    status, errors = wait_for_end(run(start().port, *SHORT, preexec_fn=limit))
    assert status == 1
    assert "File too large" in errors


@pytest.mark.quiet
def test_a_server_that_dies_and_returns_is_waited_for(start: Start, run: Run, tmp_path: Path) -> None:
    """Requests under way fail and are recorded, users wait, the run goes on, and is marked."""
    server = start()
    process = run(server.port, *LONG[:2], "--requests", 40, "--osl", 20)
    wait_for_records(tmp_path / "run")
    server.stop()
    time.sleep(1.0)
    start(port=server.port)
    status, errors = wait_for_end(process)
    assert status == 0, errors
    assert "server-away" in errors
    records, manifest = records_of(tmp_path / "run"), manifest_of(tmp_path / "run")
    failed = [each for each in records if each["outcome"] != "ok"]
    assert 4 <= len(failed) <= 16  # nobody hammers an address where nothing listens
    assert all(each["error"] for each in failed)
    last_failed_s = max(each["done_s"] for each in failed)
    assert any(each["outcome"] == "ok" and each["sent_s"] > last_failed_s for each in records)
    assert 0.5 < manifest["levels"][0]["away_s"] < 5
    assert manifest["levels"][0]["complete"]


@pytest.mark.parametrize("load", [LONG, ("--rate", 10, "--duration", 60, "--osl", 60)])
def test_a_server_that_stays_away_ends_the_run(
    start: Start, run: Run, tmp_path: Path, load: tuple[object, ...]
) -> None:
    """After the grace of five seconds the run ends with what it has."""
    server = start()
    process = run(server.port, *load)
    wait_for_records(tmp_path / "run", at_least=4)
    server.stop()
    stopped_s = time.monotonic()
    status, errors = wait_for_end(process)
    assert status == 1
    assert "the run ended early: no server at 127.0.0.1" in errors
    assert 4 < time.monotonic() - stopped_s < 30
    records = records_of(tmp_path / "run")
    assert {each["outcome"] for each in records} <= {"ok", "error", "cut", "cancelled"}
    assert manifest_of(tmp_path / "run")["levels"][0]["complete"] is False


@pytest.mark.parametrize("workers", [(), ("--workers", 2)])
def test_a_level_ends_at_its_limit(start: Start, run: Run, tmp_path: Path, workers: tuple[object, ...]) -> None:
    """Streams that never end do not hold a run: each request fails at its own limit, each level ends at its own."""
    scenario = tmp_path / "limits.yaml"
    scenario.write_text("concurrency: [2, 2]\nlevel_timeout_s: 2\nrequest_timeout_s: 1\nreply_timeout_s: 20\n")
    load = ("--scenario", scenario, "--model", "endless", "--osl", 5, "--requests", 50)
    status, errors = wait_for_end(run(start().port, *load, *workers))
    assert status == 1
    assert "no request was measured: nothing for 1 s" in errors or "measured requests succeeded" in errors
    manifest = manifest_of(tmp_path / "run")
    assert [level["complete"] for level in manifest["levels"]] == [False, False]
    assert all(level["end_s"] - level["begin_s"] < 10 for level in manifest["levels"])
    outcomes = Counter(each["outcome"] for each in records_of(tmp_path / "run"))
    assert outcomes["timeout"] >= 4
    assert set(outcomes) <= {"timeout", "cancelled"}


@pytest.mark.parametrize("workers", [(), ("--workers", 2)])
def test_more_connections_than_files_may_be_open_end_the_run(
    start: Start, run: Run, tmp_path: Path, workers: tuple[object, ...]
) -> None:
    """Requests that could not be sent are no failures of the server: the run says what to raise, and is no success."""
    few = (48, 48)
    process = run(
        start().port,
        *("--concurrency", 120, "--requests", 240, "--osl", 20, *workers),
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, few),
    )
    status, errors = wait_for_end(process)
    assert status == 1, errors
    assert "no more connections can be opened: raise the limit of open files (ulimit -n)" in errors
    assert not manifest_of(tmp_path / "run")["levels"][0]["complete"]
