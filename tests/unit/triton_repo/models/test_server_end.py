"""A model's process ends with its server, whatever Triton's own part of it waits for."""

from __future__ import annotations

import subprocess
import sys

_MODEL = """
import sys, time
from triton_repo.models.server_end import end_with_server
end_with_server()
end_with_server()
print("serving", flush=True)
time.sleep(60)
"""
_SERVER = """
import subprocess, sys
model = subprocess.Popen([sys.executable, "-c", sys.argv[1]], stdout=subprocess.PIPE, text=True)
model.stdout.readline()
print("ready", flush=True)
sys.stdin.read()
"""


def test_a_model_ends_with_its_server() -> None:
    """The model's process keeps the server's errors open: they end when both have."""
    server = subprocess.Popen(
        [sys.executable, "-c", _SERVER, _MODEL], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert server.stdout is not None
    assert server.stdout.readline() == b"ready\n"
    server.kill()
    server.communicate(timeout=30)
