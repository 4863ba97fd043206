"""Starting a server, and what a damaged or stale `server.json` can do: nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from engines.errors import ToolError, UserError
from engines.files import MadeBy, read_json, write_json
from engines.ports import free_ports
from engines.processes import started_ticks
from triton_repo.server.launch import (
    KEY_NAME,
    LOCK_FAULT,
    SERVER_NAME,
    STARTS,
    Ports,
    ServerRecord,
    drain_server,
    start_server,
    stop_server,
)
from triton_repo.server.local_triton import Runtime


def _record(pid: int, ticks: int) -> ServerRecord:
    return ServerRecord(
        made_by=MadeBy(command="serve-repo", version="0"),
        pid=pid,
        started_ticks=ticks,
        address="127.0.0.1",
        http_port=8000,
        grpc_port=8001,
        metrics_port=8002,
        triton_version="2.51.0",
        log="server.log",
        shared_memory_prefix="triton_1_1_",
    )


@pytest.mark.parametrize("prefix", ["", "t", "../", "triton_", "triton_*_1_", "*"])
def test_a_damaged_prefix_is_refused(prefix: str, tmp_path: Path) -> None:
    """An empty prefix would name the shared memory of every process on the machine."""
    write_json(tmp_path / SERVER_NAME, _record(2**22 + 1, 1).model_copy(update={"shared_memory_prefix": prefix}))
    with pytest.raises(UserError, match="shared_memory_prefix"):  # read only: --stop would remove what it names
        read_json(tmp_path / SERVER_NAME, ServerRecord)


def test_a_reused_pid_is_not_signalled(tmp_path: Path) -> None:
    """Another process, the leader of its group, now has the server's pid: it lives on, and the record is removed."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, start_new_session=True) as other:
        ticks = started_ticks(other.pid)
        assert ticks is not None
        write_json(tmp_path / SERVER_NAME, _record(other.pid, ticks - 1))
        assert not stop_server(tmp_path)
        assert os.getpgid(other.pid) == other.pid
        assert other.poll() is None
        other.communicate(b"\n", timeout=30)
    assert other.returncode == 0
    assert not (tmp_path / SERVER_NAME).exists()


@pytest.mark.parametrize(("lives_s", "ends"), [(0.5, True), (60.0, False)])
def test_a_server_that_is_ending_has_nothing_to_drain(lives_s: float, ends: bool, tmp_path: Path) -> None:
    """It answers no more before its process is gone; one that lives on without an answer is an error."""
    with subprocess.Popen([sys.executable, "-c", f"import time; time.sleep({lives_s})"]) as server:
        ticks = started_ticks(server.pid)
        assert ticks is not None
        (tmp_path / KEY_NAME).write_text("key")
        [port] = free_ports(1)
        record = _record(server.pid, ticks).model_copy(update={"http_port": port})
        if ends:
            drain_server(tmp_path, record, 1.0)
        else:
            with pytest.raises(ToolError, match="could not be drained"):
                drain_server(tmp_path, record, 1.0)
            server.kill()


_ORPHANED = """
import subprocess, sys
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)", sys.argv[1]])
"""


def test_what_a_killed_server_left_is_ended_with_its_record(tmp_path: Path) -> None:
    """A model's process may wait for ever for a lock that Triton held; one of another server lives on."""
    wait = [sys.executable, "-c", "import time; time.sleep(60)"]
    with subprocess.Popen([*wait, "triton_1_1_other"], start_new_session=True) as other:
        command = [sys.executable, "-c", _ORPHANED, "triton_1_1_of_a_model"]
        leader = subprocess.Popen(command, start_new_session=True)
        leader.wait(30)
        assert _in_session(leader.pid)
        write_json(tmp_path / SERVER_NAME, _record(leader.pid, 1))
        assert not stop_server(tmp_path)
        assert not _in_session(leader.pid)
        assert other.poll() is None
        other.kill()


def _in_session(leader: int) -> list[int]:
    """Return the living processes of a session."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(ProcessLookupError):
            if os.getsid(int(path.name)) == leader and started_ticks(int(path.name)) is not None:
                found.append(int(path.name))
    return found


_INTERRUPTED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from engines.files import MadeBy
from engines.ports import free_ports
from triton_repo.server.launch import Ports, start_server
from triton_repo.server.local_triton import Runtime

signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in what a shell starts in the background
place, event = Path(sys.argv[2]), sys.argv[3]
sys.addaudithook(lambda each, what: each == event and os.kill(os.getpid(), signal.SIGINT))
try:
    start_server(
        place / "repository", Runtime(server=place / "tritonserver", version="2.51.0"), Ports(*free_ports(3)),
        deadline_s=10, stop_after_s=None, detached=True, made_by=MadeBy(command="serve-repo", version="0"),
        progress=print,
    )
except KeyboardInterrupt:
    print("interrupted")
"""


@pytest.mark.parametrize("event", ["subprocess.Popen", "the server's own first line"])
def test_ctrl_c_as_the_server_starts_leaves_no_server_and_no_key(event: str, tmp_path: Path) -> None:
    """A detached server would live on, and nothing would name it."""
    server = tmp_path / "tritonserver"
    interrupt = "true" if event == "subprocess.Popen" else "kill -INT $PPID"
    server.write_text(f"#!/bin/sh\necho $$ >> {tmp_path}/pids\n{interrupt}\nexec sleep 60\n")
    server.chmod(0o755)
    (tmp_path / "repository").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", _INTERRUPTED, str(Path(__file__).parents[4]), str(tmp_path), event],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.stdout, done.returncode) == ("interrupted\n", 0), done.stderr
    assert [path.name for path in (tmp_path / "repository").iterdir()] == ["server.log"]
    pids = (tmp_path / "pids").read_text().split() if (tmp_path / "pids").exists() else []
    assert all(started_ticks(int(pid)) is None for pid in pids)


@pytest.mark.parametrize(("fault", "starts"), [(LOCK_FAULT, STARTS), ("std::bad_alloc", 1)])
def test_only_tritons_known_fault_is_answered_by_another_start(fault: str, starts: int, tmp_path: Path) -> None:
    """A server that aborts on its lock is started again, but not for ever; any other end is reported at once."""
    server = tmp_path / "tritonserver"
    server.write_text(f"#!/bin/sh\necho start >> {tmp_path}/starts\necho 'terminate: {fault}'\nkill -ABRT $$\n")
    server.chmod(0o755)
    repository = tmp_path / "repository"
    repository.mkdir()
    said: list[str] = []
    with pytest.raises(ToolError, match="ended by SIGABRT"):
        start_server(
            repository,
            Runtime(server=server, version="2.51.0"),
            Ports(*free_ports(3)),
            deadline_s=10,
            stop_after_s=None,
            detached=False,
            made_by=MadeBy(command="serve-repo", version="0"),
            progress=said.append,
        )
    assert (tmp_path / "starts").read_text().count("start") == starts
    assert len(said) == starts - 1
