"""The real load generator, alone and as several processes, and what it refuses.

The server is the one with a known timetable: it needs no GPU, no Triton, and starts in milliseconds.
"""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections import Counter
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from running import (
    BIN,
    LIMIT_S,
    LONG,
    SHORT,
    Run,
    free_port,
    load_command,
    manifest_of,
    records_of,
    wait_for_end,
    wait_for_records,
    write_tokenizer,
)
from timetable import Start


def test_two_workers_send_what_one_process_would(start: Start, tmp_path: Path) -> None:
    """An open loop's arrivals and lengths are the same, each sent once, on one clock, whoever sends them.

    The words are not: another run must not find this one's in the server's KV cache.
    """
    server, folders = start(gap_ms=5), (tmp_path / "alone", tmp_path / "shared")
    load = ("--rate", 12, "--duration", 3, "--osl", 10, "--seed", 7, "--keep-text")
    for folder, more in zip(folders, ((), ("--workers", 2)), strict=True):
        done = subprocess.run(
            load_command(server.port, folder, *load, *more),
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            check=False,
        )
        assert done.returncode == 0, done.stderr
    alone, shared = (sorted(records_of(folder), key=lambda each: each["id"]) for folder in folders)
    assert len(alone) > 15
    assert {each["worker"] for each in alone} == {0}
    assert {each["worker"] for each in shared} == {0, 1}
    assert {each["outcome"] for each in shared} == {"ok"}
    begins_s = [manifest_of(folder)["levels"][0]["begin_s"] for folder in folders]
    for one, other in zip(alone, shared, strict=True):
        assert (one["id"], one["phase"], one["prompt_tokens"]) == (other["id"], other["phase"], other["prompt_tokens"])
        assert one["scheduled_s"] - begins_s[0] == pytest.approx(other["scheduled_s"] - begins_s[1], abs=1e-6)
    kept = [[json.loads(line) for line in (folder / "prompts.jsonl").read_text().splitlines()] for folder in folders]
    numbers, others = (sorted((each["id"], each["tokens"]) for each in lines) for lines in kept)
    assert numbers == others
    assert not {each["text"][:20] for each in kept[0]} & {each["text"][:20] for each in kept[1]}
    run = manifest_of(folders[1])
    assert run["workers"] == 2
    assert [clock["worker"] for clock in run["clocks"]] == [0, 1]
    for clock in run["clocks"]:  # one machine has one monotonic clock: what was measured is its own error
        assert abs(clock["offset_s"]) <= clock["uncertainty_s"]


@pytest.mark.quiet
def test_a_closed_loop_is_shared(start: Start, run: Run, tmp_path: Path) -> None:
    """Users and measured requests are split, level after level; every id is its own."""
    process = run(start().port, "--concurrency", "3,5", "--requests", 12, "--osl", 20, "--workers", 2)
    assert wait_for_end(process)[0] == 0
    records = records_of(tmp_path / "run")
    assert len({each["id"] for each in records}) == len(records)
    measured = Counter((each["level"], each["worker"]) for each in records if each["phase"] == "measure")
    assert measured[0, 0] + measured[0, 1] == measured[1, 0] + measured[1, 1] == 12
    assert measured[0, 0] == 8  # two of three users
    levels = manifest_of(tmp_path / "run")["levels"]
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
    port = free_port()
    (tmp_path / "elsewhere").mkdir()
    worker = [str(BIN / "run-load"), "--worker", "--port", str(port)]
    workers = [
        subprocess.Popen(worker, cwd=tmp_path / "elsewhere", stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    tokenizer = write_tokenizer(tmp_path)
    target = ["--url", f"http://127.0.0.1:{start().port}", "--model", "timetable", "--tokenizer", str(tokenizer)]
    master = ["--master", "--expect-workers", "2", "--port", str(port), "--out", str(tmp_path / "run")]
    command = [str(BIN / "run-load"), *target, "--scenario", "mixed.yaml", *master]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    said = [process.communicate(timeout=LIMIT_S) for process in workers]
    assert done.returncode == 0, done.stderr
    assert [process.returncode for process in workers] == [0, 0], said
    records = records_of(tmp_path / "run")
    assert {each["worker"] for each in records} == {0, 1}
    assert {each["outcome"] for each in records} == {"ok"}
    assert len({each["prompt_tokens"] for each in records}) == 2


def test_workers_that_do_not_come_are_not_waited_for(start: Start, run: Run, tmp_path: Path) -> None:
    """After the time stated, the master says how many came."""
    load = ("--master", "--expect-workers", 2, "--port", free_port(), "--within", 2)
    status, errors = wait_for_end(run(start().port, *SHORT, *load))
    assert status == 1
    assert "0 of 2 workers connected within 2 s" in errors
    assert "hint: start one with run-load --worker --master-host HOST --port PORT" in errors
    assert not (tmp_path / "run").exists()  # nothing was recorded: the next run needs no --force


def test_a_master_that_can_be_reached_from_elsewhere_says_so(run: Run) -> None:
    """Beyond loopback, who can reach the master can send it records: a warning, before anything is started."""
    load = ("--master", "--expect-workers", 2, "--port", free_port(), "--dry-run")
    for bind, warned in (("127.0.0.1", False), ("0.0.0.0", True)):
        status, errors = wait_for_end(run(1, *load, "--bind", bind))
        assert status == 0
        assert ("warning: anyone who can reach 0.0.0.0" in errors) == warned


def test_a_second_run_into_the_same_folder_is_refused(start: Start, run: Run, tmp_path: Path) -> None:
    """Even with --force: not one record of the run under way is lost."""
    server = start()
    process = run(server.port, *LONG)
    wait_for_records(tmp_path / "run")
    before = records_of(tmp_path / "run")
    status, errors = wait_for_end(run(server.port, *SHORT, "--force"))
    assert status == 2
    assert "another command is writing this folder" in errors
    process.send_signal(signal.SIGINT)
    assert wait_for_end(process)[0] == 130
    assert records_of(tmp_path / "run")[: len(before)] == before


def test_a_run_that_measures_nothing_leaves_the_old_one(start: Start, run: Run, tmp_path: Path) -> None:
    """--force replaces a run once there is something to replace it with."""
    assert wait_for_end(run(start().port, *SHORT))[0] == 0
    before = (tmp_path / "run" / "requests.jsonl").read_bytes()
    assert wait_for_end(run(free_port(), *SHORT, "--force"))[0] == 1
    assert (tmp_path / "run" / "requests.jsonl").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".run")) == []


@pytest.mark.quiet
def test_the_web_pages_show_the_run_and_go_with_it(start: Start, run: Run, tmp_path: Path) -> None:
    """Live charts and Locust's own figures while it runs, no way to steer it, nothing left afterwards."""
    port = free_port()
    process = run(start().port, "--concurrency", 4, "--requests", 40, "--osl", 30, "--web-ui", "--web-port", port)
    page = f"http://127.0.0.1:{port}"

    def get(path: str) -> str:
        with urllib.request.urlopen(page + path, timeout=10) as answer:
            return str(answer.read().decode())

    wait_for_records(tmp_path / "run", at_least=20)
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
    assert wait_for_end(process)[0] == 0
    assert manifest_of(tmp_path / "run")["levels"][0]["complete"]
    with pytest.raises(urllib.error.URLError):
        get("/live")


def test_repeats_are_runs_of_their_own(start: Start, run: Run, tmp_path: Path) -> None:
    """Each repeat has a folder, and prompts of its own: none finds the last one's in the server's cache."""
    process = run(start().port, *SHORT, "--repeat", 2, "--keep-text")
    output, errors = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 0, errors
    folders = [tmp_path / "run" / str(number) for number in (1, 2)]
    assert f"next: report-load {folders[0]} {folders[1]}" in output
    assert [manifest_of(folder)["scenario"]["seed"] for folder in folders] == [0, 1]
    texts = [set((folder / "prompts.jsonl").read_text().splitlines()) for folder in folders]
    assert not texts[0] & texts[1]


def test_no_prompt_is_written_unless_asked_for(start: Start, run: Run, tmp_path: Path) -> None:
    """What a prompt file holds is in no file of the run; with --keep-text it is."""
    said = "swordfish is the password of the vault"
    (tmp_path / "prompts.jsonl").write_text(json.dumps({"prompt": said}) + "\n")
    for more, kept in (((), False), (("--keep-text", "--force"), True)):
        process = run(start().port, *SHORT, "--prompts", tmp_path / "prompts.jsonl", *more)
        status, errors = wait_for_end(process)
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
            status, errors = wait_for_end(run(1, *arguments))
            assert status == 2, errors
            assert said in errors
    assert not (tmp_path / "run").exists()
