"""The real load generator, alone and as several, and everything that can end a run before its time.

The server is the one with a known timetable: it needs no GPU, no Triton, and starts in milliseconds.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from timetable import Start

from engines.checkpoint.tokenizer import TOKENIZER_FILE, installed_tokenizers

BIN = Path(sys.executable).parent
LIMIT_S = 90
LONG = ("--concurrency", 4, "--requests", 400, "--osl", 60)  # more than any test waits for
SHORT = ("--concurrency", 4, "--requests", 8, "--osl", 20)

Run = Callable[..., "subprocess.Popen[str]"]


def _command(port: int, out: Path, *arguments: object) -> list[str]:
    tokenizer = installed_tokenizers() / "qwen3" / TOKENIZER_FILE
    if not tokenizer.is_file():
        pytest.skip("no tokenizer installed: make setup")
    target = ["--url", f"http://127.0.0.1:{port}", "--model", "timetable", "--tokenizer", tokenizer]
    prompts = ["--prompts", "random", "--isl", 16]
    return [str(each) for each in (BIN / "run-load", *target, *prompts, "--out", out, *arguments)]


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    """Start run-load in the background; whatever a test leaves running ends with it."""
    running: list[subprocess.Popen[str]] = []

    def started(port: int, *arguments: object, **options: Any) -> subprocess.Popen[str]:
        command = _command(port, tmp_path / "run", *arguments)
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True, **options
        )
        running.append(process)
        return process

    yield started
    for process in running:
        if process.poll() is None:
            process.kill()
        process.communicate(timeout=LIMIT_S)


def _end(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Wait for a run's end; return its status and what it said."""
    _, errors = process.communicate(timeout=LIMIT_S)
    assert "Traceback" not in errors
    return process.returncode, errors


def _records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "requests.jsonl").read_text().splitlines()]


def _manifest(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "run.json").read_text())
    return found


def _children(process: subprocess.Popen[str], role: str = "") -> list[int]:
    """Return the generator processes of a run, in the order they were started.

    Each leads a session. A single one is a fork of the command, with the same command line; the others are started.
    """
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, IndexError):
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
            arguments = (entry / "cmdline").read_text().split("\0")
            own_role = arguments[2] if arguments[1].endswith("locustfile.py") else "alone"
            if int(fields[1]) == process.pid and fields[3] == entry.name and own_role.startswith(role):
                found.append(int(entry.name))
    return sorted(found)


def _wait_for_records(folder: Path, at_least: int = 8, worker: int = 0) -> None:
    """Wait until a worker's requests have begun to end."""
    deadline_s = time.monotonic() + LIMIT_S
    while time.monotonic() < deadline_s:
        with contextlib.suppress(FileNotFoundError):
            if (folder / "requests.jsonl").read_text().count(f'"worker":{worker}') >= at_least:
                return
        time.sleep(0.05)
    raise AssertionError(f"fewer than {at_least} records of worker {worker}")


def _gone(pid: int) -> bool:
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    return True


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_two_workers_send_what_one_process_would(start: Start, tmp_path: Path) -> None:
    """An open loop's arrivals and lengths are the same, each sent once, on one clock, whoever sends them.

    The words are not: another run must not find this one's in the server's KV cache.
    """
    server, folders = start(gap_ms=5), (tmp_path / "alone", tmp_path / "shared")
    load = ("--rate", 12, "--duration", 3, "--osl", 10, "--seed", 7, "--keep-text")
    for folder, more in zip(folders, ((), ("--workers", 2)), strict=True):
        done = subprocess.run(
            _command(server.port, folder, *load, *more), capture_output=True, text=True, timeout=LIMIT_S, check=False
        )
        assert done.returncode == 0, done.stderr
    alone, shared = (sorted(_records(folder), key=lambda each: each["id"]) for folder in folders)
    assert len(alone) > 15
    assert {each["worker"] for each in alone} == {0}
    assert {each["worker"] for each in shared} == {0, 1}
    assert {each["outcome"] for each in shared} == {"ok"}
    begins_s = [_manifest(folder)["levels"][0]["begin_s"] for folder in folders]
    for one, other in zip(alone, shared, strict=True):
        assert (one["id"], one["phase"], one["prompt_tokens"]) == (other["id"], other["phase"], other["prompt_tokens"])
        assert one["scheduled_s"] - begins_s[0] == pytest.approx(other["scheduled_s"] - begins_s[1], abs=1e-6)
    kept = [[json.loads(line) for line in (folder / "prompts.jsonl").read_text().splitlines()] for folder in folders]
    numbers, others = (sorted((each["id"], each["tokens"]) for each in lines) for lines in kept)
    assert numbers == others
    assert not {each["text"][:20] for each in kept[0]} & {each["text"][:20] for each in kept[1]}
    run = _manifest(folders[1])
    assert run["workers"] == 2
    assert [clock["worker"] for clock in run["clocks"]] == [0, 1]
    for clock in run["clocks"]:  # one machine has one monotonic clock: what was measured is its own error
        assert abs(clock["offset_s"]) <= clock["uncertainty_s"]


@pytest.mark.quiet
def test_a_closed_loop_is_shared(start: Start, run: Run, tmp_path: Path) -> None:
    """Users and measured requests are split, level after level; every id is its own."""
    process = run(start().port, "--concurrency", "3,5", "--requests", 12, "--osl", 20, "--workers", 2)
    assert _end(process)[0] == 0
    records = _records(tmp_path / "run")
    assert len({each["id"] for each in records}) == len(records)
    measured = Counter((each["level"], each["worker"]) for each in records if each["phase"] == "measure")
    assert measured[0, 0] + measured[0, 1] == measured[1, 0] + measured[1, 1] == 12
    assert measured[0, 0] == 8  # two of three users
    levels = _manifest(tmp_path / "run")["levels"]
    assert [level["complete"] for level in levels] == [True, True]
    for number, level in enumerate(levels):
        first_s = min(each["sent_s"] for each in records if (each["level"], each["phase"]) == (number, "measure"))
        last_s = max(each["done_s"] for each in records if (each["level"], each["phase"]) == (number, "measure"))
        assert level["measure_s"] <= first_s
        assert level["end_s"] == pytest.approx(last_s, abs=0.1)


def test_workers_from_elsewhere_join_a_master(start: Start, tmp_path: Path) -> None:
    """Started by hand, in another folder, they are given all they need, and are let go at the end."""
    (tmp_path / "lengths.csv").write_text("isl\n12\n24\n")
    (tmp_path / "mixed.yaml").write_text(
        'concurrency: [2]\nrequests: 6\nprompts: random\nlengths: {isl: "empirical(lengths.csv)", osl: 8}\n'
    )
    port = _free_port()
    (tmp_path / "elsewhere").mkdir()
    worker = [str(BIN / "run-load"), "--worker", "--port", str(port)]
    workers = [
        subprocess.Popen(worker, cwd=tmp_path / "elsewhere", stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    tokenizer = installed_tokenizers() / "qwen3" / TOKENIZER_FILE
    target = ["--url", f"http://127.0.0.1:{start().port}", "--model", "timetable", "--tokenizer", str(tokenizer)]
    master = ["--master", "--expect-workers", "2", "--port", str(port), "--out", str(tmp_path / "run")]
    command = [str(BIN / "run-load"), *target, "--scenario", "mixed.yaml", *master]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    said = [process.communicate(timeout=LIMIT_S) for process in workers]
    assert done.returncode == 0, done.stderr
    assert [process.returncode for process in workers] == [0, 0], said
    records = _records(tmp_path / "run")
    assert {each["worker"] for each in records} == {0, 1}
    assert {each["outcome"] for each in records} == {"ok"}
    assert len({each["prompt_tokens"] for each in records}) == 2


def test_workers_that_do_not_come_are_not_waited_for(start: Start, run: Run, tmp_path: Path) -> None:
    """After the time stated, the master says how many came."""
    load = ("--master", "--expect-workers", 2, "--port", _free_port(), "--within", 2)
    status, errors = _end(run(start().port, *SHORT, *load))
    assert status == 1
    assert "0 of 2 workers connected within 2 s" in errors
    assert not (tmp_path / "run").exists()  # nothing was recorded: the next run needs no --force


@pytest.mark.parametrize(("number", "workers"), [(signal.SIGINT, ()), (signal.SIGTERM, ("--workers", 2))])
def test_an_interrupted_run_is_complete_up_to_there(
    start: Start, run: Run, tmp_path: Path, number: int, workers: tuple[object, ...]
) -> None:
    """Interrupted or terminated, what was under way is recorded as cancelled, and no process stays."""
    process = run(start().port, *LONG, *workers)
    _wait_for_records(tmp_path / "run")
    children = _children(process)
    assert len(children) == (3 if workers else 1)
    process.send_signal(number)
    status, errors = _end(process)
    assert status == 130, errors
    records, manifest = _records(tmp_path / "run"), _manifest(tmp_path / "run")
    outcomes = Counter(each["outcome"] for each in records)
    assert set(outcomes) == {"ok", "cancelled"}
    assert 1 <= outcomes["cancelled"] <= 4
    assert len({each["id"] for each in records}) == len(records) == max(each["id"] for each in records) + 1 or workers
    assert manifest["interrupted"] == {2: "interrupted by the user", 15: "terminated by the system"}[number]
    assert [level["complete"] for level in manifest["levels"]] == [False]
    assert [issue["code"] for issue in manifest["validity_issues"] if not issue["code"].endswith("-late")] == [
        "incomplete"
    ]
    assert all(_gone(pid) for pid in children)


@pytest.mark.parametrize("workers", [(), ("--workers", 2)])
def test_a_killed_generator_is_an_error_and_its_requests_are_recorded_as_lost(
    start: Start, run: Run, tmp_path: Path, workers: tuple[object, ...]
) -> None:
    """SIGKILL leaves the generator, or the master, no last word; the records are completed from its notes."""
    process = run(start().port, *LONG, *workers)
    _wait_for_records(tmp_path / "run")
    os.kill(_children(process)[0], signal.SIGKILL)
    status, errors = _end(process)
    assert status == 1
    assert "the load generator failed; ended by SIGKILL" in errors
    assert "hint: report what was measured with report-load" in errors
    records, manifest = _records(tmp_path / "run"), _manifest(tmp_path / "run")
    outcomes = Counter(each["outcome"] for each in records)
    assert outcomes["lost"] >= 4  # of each user one; more where the last records were not on disk yet
    assert len({each["id"] for each in records}) == len(records)
    assert [level["complete"] for level in manifest["levels"]] == [False]
    assert {"incomplete", "requests-lost"} <= {issue["code"] for issue in manifest["validity_issues"]}


def test_a_killed_worker_ends_the_run_and_is_named(start: Start, run: Run, tmp_path: Path) -> None:
    """The other worker's requests are cancelled, the lost one's recorded as lost; the run does not hang."""
    process = run(start().port, *LONG, "--workers", 2)
    for worker in (0, 1):
        _wait_for_records(tmp_path / "run", worker=worker)
    os.kill(_children(process, "worker")[1], signal.SIGKILL)
    killed_s = time.monotonic()
    status, errors = _end(process)
    assert status == 1
    assert "was lost\n  | a worker process; ended by SIGKILL\nhint: report what was measured" in errors
    assert time.monotonic() - killed_s < 30
    records, manifest = _records(tmp_path / "run"), _manifest(tmp_path / "run")
    lost = {each["worker"] for each in records if each["outcome"] == "lost"}
    assert len(lost) == 1
    assert f"worker {lost.pop()} on" in manifest["interrupted"]
    assert {each["worker"] for each in records if each["outcome"] == "ok"} == {0, 1}
    assert {"worker-lost", "requests-lost", "incomplete"} <= {issue["code"] for issue in manifest["validity_issues"]}
    assert len({each["id"] for each in records}) == len(records)


def test_a_worker_without_a_master_gives_up(tmp_path: Path) -> None:
    """Nobody there within the time stated: one clear error."""
    command = [str(BIN / "run-load"), "--worker", "--port", str(_free_port()), "--within", "2"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    assert done.returncode == 1
    assert "no master answered at 127.0.0.1" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_master_that_can_be_reached_from_elsewhere_says_so(run: Run) -> None:
    """Beyond loopback, who can reach the master can send it records: a warning, before anything is started."""
    load = ("--master", "--expect-workers", 2, "--port", _free_port(), "--dry-run")
    for bind, warned in (("127.0.0.1", False), ("0.0.0.0", True)):
        status, errors = _end(run(1, *load, "--bind", bind))
        assert status == 0
        assert ("warning: anyone who can reach 0.0.0.0" in errors) == warned


def test_no_generator_outlives_a_killed_command(start: Start, run: Run, tmp_path: Path) -> None:
    """SIGKILL of run-load itself: master and workers end by themselves."""
    process = run(start().port, *LONG, "--workers", 2)
    _wait_for_records(tmp_path / "run")
    children = _children(process)
    assert len(children) == 3
    process.kill()
    deadline_s = time.monotonic() + LIMIT_S
    while not all(_gone(pid) for pid in children) and time.monotonic() < deadline_s:
        time.sleep(0.1)
    assert all(_gone(pid) for pid in children)


@pytest.mark.quiet
def test_a_killed_run_is_reported_as_cut_short(start: Start, run: Run, tmp_path: Path) -> None:
    """run.json is there from the start: report-load recovers what a killed run-load left, and marks it."""
    process = run(start().port, *LONG)
    _wait_for_records(tmp_path / "run", at_least=24)
    assert _manifest(tmp_path / "run")["unfinished"]
    process.kill()
    process.communicate(timeout=LIMIT_S)
    report = [str(BIN / "report-load"), "run", "--out", "report", "--no-exports", "--json"]
    done = subprocess.run(report, cwd=tmp_path, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert not summary["valid"]
    assert "interrupted" in {issue["code"] for issue in summary["validity_issues"]}
    assert "cut short" in summary["runs"][0]["interrupted"]
    (level,) = summary["levels"]
    measured = sum(each["phase"] == "measure" for each in _records(tmp_path / "run"))
    assert level["complete"] is False
    assert level["requests"] + level["incomplete"] == measured  # its generator cancels what is in flight, or dies first
    assert level["errors"] == 0
    assert measured >= 8
    assert level["window_s"] > 0
    assert level["ttft_s"]["p50"] == pytest.approx(0.050, abs=0.02)


def test_a_second_run_into_the_same_folder_is_refused(start: Start, run: Run, tmp_path: Path) -> None:
    """Even with --force: not one record of the run under way is lost."""
    server = start()
    process = run(server.port, *LONG)
    _wait_for_records(tmp_path / "run")
    before = _records(tmp_path / "run")
    status, errors = _end(run(server.port, *SHORT, "--force"))
    assert status == 2
    assert "another command is writing this folder" in errors
    process.send_signal(signal.SIGINT)
    assert _end(process)[0] == 130
    assert _records(tmp_path / "run")[: len(before)] == before


def test_a_run_that_measures_nothing_leaves_the_old_one(start: Start, run: Run, tmp_path: Path) -> None:
    """--force replaces a run once there is something to replace it with."""
    assert _end(run(start().port, *SHORT))[0] == 0
    before = (tmp_path / "run" / "requests.jsonl").read_bytes()
    assert _end(run(_free_port(), *SHORT, "--force"))[0] == 1
    assert (tmp_path / "run" / "requests.jsonl").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".run")) == []


@pytest.mark.quiet
@pytest.mark.parametrize("workers", [(), ("--workers", 2)])
def test_ctrl_c_ends_a_run_within_three_seconds(
    start: Start, run: Run, tmp_path: Path, workers: tuple[object, ...]
) -> None:
    """A server that says nothing for a minute holds nobody back."""
    process = run(start(first_ms=60_000).port, *LONG, *workers)
    deadline_s = time.monotonic() + LIMIT_S
    while not (tmp_path / "run" / "run.json").is_file() or not _manifest(tmp_path / "run")["levels"]:
        assert time.monotonic() < deadline_s
        time.sleep(0.05)
    time.sleep(0.5)
    begin_s = time.monotonic()
    process.send_signal(signal.SIGINT)
    status, errors = _end(process)
    assert status == 130, errors
    assert time.monotonic() - begin_s < 3.0


@pytest.mark.parametrize("workers", [(), ("--workers", 2)])
def test_a_full_disk_ends_the_run_with_the_systems_words(
    start: Start, run: Run, tmp_path: Path, workers: tuple[object, ...]
) -> None:
    """Where no more can be written, the run ends and says so; what is there is whole lines."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))

    load = ("--concurrency", 32, "--requests", 4000, "--osl", 60)
    status, errors = _end(run(start(first_ms=10, gap_ms=2).port, *load, *workers, preexec_fn=limit))
    assert status == 1
    assert "requests.jsonl: File too large" in errors
    text = (tmp_path / "run" / "requests.jsonl").read_text()
    assert 250_000 < len(text) <= 300_000
    assert text.endswith("\n")
    assert "requests.jsonl" in _manifest(tmp_path / "run")["interrupted"]


def test_a_disk_that_is_full_from_the_start_is_one_clear_error(start: Start, run: Run) -> None:
    """What a run needs before its first request cannot be written either: said as plainly."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))

    status, errors = _end(run(start().port, *SHORT, preexec_fn=limit))
    assert status == 1
    assert "File too large" in errors


@pytest.mark.quiet
def test_a_server_that_dies_and_returns_is_waited_for(start: Start, run: Run, tmp_path: Path) -> None:
    """Requests under way fail and are recorded, users wait, the run goes on, and is marked."""
    server = start()
    process = run(server.port, *LONG[:2], "--requests", 40, "--osl", 60)
    _wait_for_records(tmp_path / "run")
    server.stop()
    time.sleep(1.5)
    start(port=server.port)
    status, errors = _end(process)
    assert status == 0, errors
    assert "server-away" in errors
    records, manifest = _records(tmp_path / "run"), _manifest(tmp_path / "run")
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
    _wait_for_records(tmp_path / "run", at_least=4)
    server.stop()
    stopped_s = time.monotonic()
    status, errors = _end(process)
    assert status == 1
    assert "the run ended early: no server at 127.0.0.1" in errors
    assert 4 < time.monotonic() - stopped_s < 30
    records = _records(tmp_path / "run")
    assert {each["outcome"] for each in records} <= {"ok", "error", "cut", "cancelled"}
    assert _manifest(tmp_path / "run")["levels"][0]["complete"] is False


@pytest.mark.parametrize("workers", [(), ("--workers", 2)])
def test_a_level_ends_at_its_limit(start: Start, run: Run, tmp_path: Path, workers: tuple[object, ...]) -> None:
    """Streams that never end do not hold a run: each request fails at its own limit, each level ends at its own."""
    scenario = tmp_path / "limits.yaml"
    scenario.write_text("concurrency: [2, 2]\nlevel_timeout_s: 2\nrequest_timeout_s: 1\nreply_timeout_s: 20\n")
    load = ("--scenario", scenario, "--model", "endless", "--osl", 5, "--requests", 50)
    status, errors = _end(run(start().port, *load, *workers))
    assert status == 1
    assert "measured requests succeeded" in errors
    manifest = _manifest(tmp_path / "run")
    assert [level["complete"] for level in manifest["levels"]] == [False, False]
    assert all(level["end_s"] - level["begin_s"] < 10 for level in manifest["levels"])
    outcomes = Counter(each["outcome"] for each in _records(tmp_path / "run"))
    assert outcomes["timeout"] >= 4
    assert set(outcomes) <= {"timeout", "cancelled"}


@pytest.mark.quiet
def test_the_web_pages_show_the_run_and_go_with_it(start: Start, run: Run, tmp_path: Path) -> None:
    """Live charts and Locust's own figures while it runs, no way to steer it, nothing left afterwards."""
    port = _free_port()
    process = run(start().port, "--concurrency", 4, "--requests", 60, "--osl", 30, "--web-ui", "--web-port", port)
    page = f"http://127.0.0.1:{port}"

    def get(path: str) -> str:
        with urllib.request.urlopen(page + path, timeout=10) as answer:
            return str(answer.read().decode())

    _wait_for_records(tmp_path / "run", at_least=20)
    deadline_s = time.monotonic() + LIMIT_S
    while not (points := json.loads(get("/live/points"))["points"]) and time.monotonic() < deadline_s:
        time.sleep(0.1)
    assert points[-1]["load"] == "concurrency 4"
    assert "measured" in get("/live")
    row = next(each for each in json.loads(get("/stats/requests"))["stats"] if each["name"] == "timetable")
    assert row["num_requests"] >= 20
    assert row["num_failures"] == 0
    assert 200 < row["median_response_time"] < 1000  # 50 ms and 29 gaps of 10 ms
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(urllib.request.Request(page + "/stop", b"", method="POST"), timeout=10)
    assert refused.value.code == 403
    refused.value.close()
    assert _end(process)[0] == 0
    assert _manifest(tmp_path / "run")["levels"][0]["complete"]
    with pytest.raises(urllib.error.URLError):
        get("/live")


def test_repeats_are_runs_of_their_own(start: Start, run: Run, tmp_path: Path) -> None:
    """Each repeat has a folder, and prompts of its own: none finds the last one's in the server's cache."""
    process = run(start().port, *SHORT, "--repeat", 2, "--keep-text")
    output, errors = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 0, errors
    folders = [tmp_path / "run" / str(number) for number in (1, 2)]
    assert f"next: report-load {folders[0]} {folders[1]}" in output
    assert [_manifest(folder)["scenario"]["seed"] for folder in folders] == [0, 1]
    texts = [set((folder / "prompts.jsonl").read_text().splitlines()) for folder in folders]
    assert not texts[0] & texts[1]


def test_no_prompt_is_written_unless_asked_for(start: Start, run: Run, tmp_path: Path) -> None:
    """What a prompt file holds is in no file of the run; with --keep-text it is."""
    said = "the password of the vault is swordfish"
    (tmp_path / "prompts.jsonl").write_text(json.dumps({"prompt": said}) + "\n")
    for more, kept in (((), False), (("--keep-text", "--force"), True)):
        process = run(start().port, *SHORT, "--prompts", tmp_path / "prompts.jsonl", *more)
        status, errors = _end(process)
        assert status == 0, errors
        written = [path for path in (tmp_path / "run").rglob("*") if path.is_file() and "swordfish" in path.read_text()]
        assert [path.name for path in written] == (["prompts.jsonl"] if kept else [])


def test_wrong_requests_for_several_generators_are_refused(run: Run, tmp_path: Path) -> None:
    """Flags that exclude each other, and a port that is taken, are one clear error before anything is started."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        for arguments, said in (
            (("--master",), "--expect-workers N"),
            (("--expect-workers", 2), "--workers N"),
            (("--master", "--expect-workers", 2, "--workers", 2), "exclude each other"),
            (("--master", "--expect-workers", 2, "--port", port), f"127.0.0.1:{port}: Address already in use"),
            (("--web-ui", "--web-port", port), f"127.0.0.1:{port}: Address already in use"),
        ):
            status, errors = _end(run(1, *arguments))
            assert status == 2, errors
            assert said in errors
    assert not (tmp_path / "run").exists()
