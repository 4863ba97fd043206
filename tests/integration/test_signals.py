"""Signals, with real processes: a command ends in one line and leaves nothing behind, whenever the signal comes."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from engines.cli.build_engine import build_engine
from engines.processes import ending_with_parent, started_ticks, stop_group

ROOT = Path(__file__).parents[2]
WITHIN_S = 3.0  # of CPU-bound waiting; a busy machine is given more below
PATIENCE_S = 60.0
# Commands that are still at work some seconds after they began, in an empty folder.
COMMANDS = {
    "predict-load": "--model llama-3-8b --gpu h100-sxm-80gb --precision fp8 --concurrency 64 --requests 200000",
    "find-knee": "engine --objective ttft_s.p95=1 --isl 1000 --osl 1000 --max-requests 100000",
    "build-engine": "--precision fp8 --emulate --gpu h100-sxm-80gb,a100-sxm-80gb,l40s --recipe latency,throughput",
    "run-load --worker": "--port 1 --within 60",
}
_START = "import importlib, sys; m, _, n = sys.argv.pop(1).partition(':'); getattr(importlib.import_module(m), n)()"


def _target(name: str) -> str:
    module = name.split(maxsplit=1)[0].replace("-", "_")
    room = "engines" if module in {"build_engine", "describe_machine"} else "loadtest"
    return f"{room}.cli.start:{module}"


def _start(name: str, arguments: str, folder: Path) -> subprocess.Popen[str]:
    words = [*name.split()[1:], *arguments.split()]
    return subprocess.Popen(
        [sys.executable, "-c", _START, _target(name), *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def _await(condition: Callable[[], bool], what: str) -> None:
    end_s = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end_s, what
        time.sleep(0.01)


def _has_handlers(pid: int) -> bool:
    """Whether a process catches SIGTERM: Python itself does not, our commands do from their first line on."""
    status = Path(f"/proc/{pid}/status").read_text()
    caught = next(int(line.split()[1], 16) for line in status.splitlines() if line.startswith("SigCgt"))
    return bool(caught >> (signal.SIGTERM - 1) & 1)


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _group(pgid: int) -> list[int]:
    """Return the living processes of a group."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and started_ticks(int(entry.name)) is not None:
            try:
                if os.getpgid(int(entry.name)) == pgid:
                    found.append(int(entry.name))
            except ProcessLookupError:
                continue
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with an engine to predict with."""
    made = tmp_path_factory.mktemp("work")
    with pytest.raises(SystemExit) as ended:
        build_engine.main(["--precision", "fp8", "--emulate", "--out", str(made / "engine")])
    assert ended.value.code == 0
    return made


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("name", COMMANDS)
def test_a_signal_at_any_moment_is_one_line_and_status_130(name: str, number: signal.Signals, folder: Path) -> None:
    """From the first line of ours on: while modules load, in the middle of the work; no traceback, nothing left."""
    rng = random.Random(f"{name} {number}")
    for moment in range(5):
        shutil.rmtree(folder / "artifacts", ignore_errors=True)  # of a round that ended by itself
        process = _start(name, COMMANDS[name], folder)
        try:
            _await(lambda pid=process.pid: _has_handlers(pid), "no handlers")  # type: ignore[misc]
            time.sleep(rng.uniform(0, 0.4 * moment))
            process.send_signal(number)
            out, err = process.communicate(timeout=PATIENCE_S)
        finally:
            process.kill()
            process.communicate()
        assert "Traceback" not in err, err
        if process.returncode != 0:  # it had ended by itself before
            assert process.returncode == 130, (moment, out, err)
            errors = [line for line in err.splitlines() if "error:" in line]
            assert len(errors) == 1, err
            assert errors[0].startswith(f"{name.split(maxsplit=1)[0]}: error: "), err
        assert not _group(process.pid)


_DROPPED = """
import signal, sys, time
sys.path.insert(0, sys.argv.pop(1))
import click
from engines.console import Command

class Dropped:
    def __del__(self):
        signal.raise_signal(signal.Signals.SIGINT)

@click.command("busy", cls=Command)
def busy():
    kept = Dropped()
    del kept  # the KeyboardInterrupt is raised in here, where Python drops it
    time.sleep(50)

busy()
"""


def test_an_interrupt_that_python_drops_is_raised_again() -> None:
    """In a destructor or an import's callback an exception goes nowhere: the command must not go on for that."""
    begin_s = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", _DROPPED, str(ROOT)], capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )
    assert (done.returncode, done.stderr) == (130, "busy: error: interrupted\n")
    assert time.monotonic() - begin_s < 40


_EARLY = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in what a shell starts in the background
sys.path.insert(0, {root!r})
sys.addaudithook(lambda event, what: (event, what[:1]) == ("import", ({module!r},)) and os.kill(os.getpid(), 2))
from loadtest.cli.start import predict_load
predict_load()
"""


@pytest.mark.parametrize("module", ["importlib.util", "engines.compiled", "click"])
def test_ctrl_c_while_a_script_imports_is_one_line(module: str, tmp_path: Path) -> None:
    """From its first lines on, before the command itself is known."""
    script = tmp_path / "predict-load"
    script.write_text(_EARLY.format(root=str(ROOT), module=module))
    done = subprocess.run(
        [sys.executable, str(script), "--help"], capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )
    assert (done.returncode, done.stderr) == (130, "predict-load: error: interrupted\n")


_BETWEEN = """
import os, signal, sys
sys.path.insert(0, sys.argv.pop(1))
import click
from engines.console import Command

def interrupted_once(number, handler, install=signal.signal):
    before = install(number, handler)
    if number == signal.SIGTERM:
        signal.signal = install
        os.kill(os.getpid(), signal.SIGINT)
    return before

@click.command("busy", cls=Command)
def busy():
    pass

signal.signal = interrupted_once
busy()
"""


def test_ctrl_c_while_handlers_are_installed_is_one_line() -> None:
    """The first handler stands before the command is inside what catches its exception."""
    done = subprocess.run(
        [sys.executable, "-c", _BETWEEN, str(ROOT)], capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )
    assert (done.returncode, done.stderr) == (130, "busy: error: interrupted\n")


@pytest.mark.quiet
def test_a_command_ends_within_three_seconds(folder: Path) -> None:
    """Counted in the machine's time, where the command had all the time it wanted to get to its work."""
    process = _start("predict-load", COMMANDS["predict-load"], folder)
    try:
        _await(lambda: _cpu_s(process.pid) > 1.5, "it never came to its work")
        begin_s = time.monotonic()
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=PATIENCE_S)
        assert time.monotonic() - begin_s < WITHIN_S
        assert process.returncode == 130
    finally:
        process.kill()
        process.communicate()


_DEMAND = """
name: busy
model: deepseek-r1-0528-qwen3-8b
traffic:
  process: described
  rate_by_hour_per_s: [200]
  classes:
    - {name: chat, lengths: {isl: "lognormal(mean=1000, cv=0.8, max=8192)", osl: 500}}
    - {name: code, lengths: {isl: 4000, osl: 200}}
objectives: {ttft_s: {p99: 2.0}, itl_s: {p99: 0.1}}
"""


_POINTS = "concurrency_or_batch,isl,osl,ttft_ms,itl_ms,throughput_out_tok_s\n" + "".join(
    f"{users},{isl},200,{20 + users * isl / 100:g},{6 + users / 10:g},\n"
    for users in (1, 4, 16, 64)
    for isl in (200, 500, 1000, 2000, 4000)
)
# Commands with worker processes, and how many processes have work for half a second.
_WITH_WORKERS = {
    "plan-capacity demand.yaml --workers 2 --fresh": 3,
    "calibrate-engine --measurements points.csv --model llama-3-8b --gpu h100-sxm-80gb --precision fp8": 2,
    "describe-machine --device cpu --out host.yaml": 1,
}


@pytest.mark.quiet
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize(("line", "at_work"), _WITH_WORKERS.items(), ids=[line.split()[0] for line in _WITH_WORKERS])
def test_a_command_takes_its_workers_along(tmp_path: Path, line: str, at_work: int, number: signal.Signals) -> None:
    """Ctrl-C reaches the whole group, as in a terminal; killed, the command can end nobody: its workers end anyway."""
    (tmp_path / "demand.yaml").write_text(_DEMAND)
    (tmp_path / "points.csv").write_text(_POINTS)
    process = _start(*line.split(maxsplit=1), tmp_path)
    try:
        _await(lambda: sum(_cpu_s(pid) > 0.5 for pid in _group(process.pid)) >= at_work, "no workers at work")
        begin_s = time.monotonic()
        os.killpg(process.pid, number) if number == signal.SIGINT else process.send_signal(number)
        _, err = process.communicate(timeout=PATIENCE_S)
        took_s = time.monotonic() - begin_s
        _await(lambda: not _group(process.pid), "workers live on")
    finally:
        for pid in _group(process.pid):
            os.kill(pid, signal.SIGKILL)
    assert "Traceback" not in err, err
    if number == signal.SIGKILL:
        assert process.returncode == -signal.SIGKILL
    else:
        assert (process.returncode, took_s < WITHIN_S) == (130, True), (took_s, err)


_PARENT = """
import signal, subprocess, sys
sys.path.insert(0, sys.argv[1])
from engines.cli.build_engine import build_engine
from engines.processes import ending_with_parent
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"],
                         start_new_session=True, preexec_fn=ending_with_parent(signal.Signals(int(sys.argv[2]))))
print(child.pid, flush=True)
child.wait()
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_children_end_with_a_killed_parent(number: signal.Signals) -> None:
    """A parent that gets SIGKILL can end nobody: the kernel ends its child."""
    parent = subprocess.Popen(
        [sys.executable, "-c", _PARENT, str(ROOT), str(int(number))], stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    assert started_ticks(child) is not None
    parent.kill()
    parent.communicate()
    _await(lambda: started_ticks(child) is None, "the child lives on")


def test_a_child_whose_parent_has_gone_already_does_not_begin() -> None:
    """Between fork and the call to the kernel the parent may end: the child then ends by itself."""
    begin = ending_with_parent()
    pid = os.fork()
    if pid == 0:
        if os.fork() == 0:  # a grandchild: its parent is not the process that `begin` was made in
            begin()
            os._exit(0)
        _, status = os.wait()
        os._exit(os.waitstatus_to_exitcode(status))
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 1


def test_a_group_that_ignores_sigterm_is_killed(tmp_path: Path) -> None:
    """Asked first, then forced: the leader and what it started."""
    ready = tmp_path / "ready"
    script = f"trap '' TERM; sleep 60 & touch {ready}; wait"
    process = subprocess.Popen(["bash", "-c", script], start_new_session=True)
    _await(ready.exists, "bash never began")
    began = started_ticks(process.pid)
    stop_group(process.pid, lambda: started_ticks(process.pid) == began, grace_s=0.3)
    _await(lambda: not _group(process.pid), "the group lives on")
    process.wait(timeout=0) if process.poll() is None else None
