"""A real Prometheus on a deployment's own files, and the server that the deployment's own script starts."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from conftest import LOCAL_TRITON, free_ports, succeed

LIMIT_S = 60


def wait_until(true: Callable[[], Any], within_s: float = LIMIT_S) -> Any:
    """Return the first thing that is true; fail where none is in time."""
    end = time.monotonic() + within_s
    while time.monotonic() < end:
        found = true()
        if found:
            return found
        time.sleep(0.2)
    raise AssertionError(f"not within {within_s:g} s: {true.__name__}")


def small_engine(folder: Path) -> None:
    """Emulate an engine of eight slots whose KV cache holds five requests, and which takes blocks back."""
    limits = ["--max-batch-size", 8, "--max-seq-len", 512, "--isl", 256, "--osl", 256]
    succeed("build-engine", "--precision", "fp8", "--emulate", *limits, "--out", folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["kv_cache"]["blocks"] = 40
    manifest["runtime"]["scheduler_policy"] = "max_utilization"
    (folder / "manifest.json").write_text(json.dumps(manifest))


def gone(pid: int) -> bool:
    """Whether a process has ended, reaped or not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


class Deployed:
    """The server of a deployment, started as a container would: by `serve.sh`."""

    def __init__(self, deployment: Path, folder: Path) -> None:
        self.http, self.grpc, self.metrics = free_ports()
        self.url = f"http://127.0.0.1:{self.http}"
        self._control = deployment / "server" / "control.py"
        self._key = folder / "admin.key"
        self.log = folder / "serve.log"
        server = LOCAL_TRITON / "wheel" / "pytriton" / "tritonserver" / "bin"
        environment = {
            **{key: value for key, value in os.environ.items() if not key.startswith("PYTHON")},
            "PATH": os.pathsep.join([str(LOCAL_TRITON / "py" / "bin"), str(server), os.environ["PATH"]]),
            "LD_LIBRARY_PATH": str(LOCAL_TRITON / "libpython"),
            "PYTHONDONTWRITEBYTECODE": "1",
            "TMPDIR": str(folder),
            "HTTP_PORT": str(self.http),
            "GRPC_PORT": str(self.grpc),
            "METRICS_PORT": str(self.metrics),
        }
        prefix = f"deployed_{os.getpid()}_{self.http}_"
        addresses = [f"--{name}-address=127.0.0.1" for name in ("http", "grpc", "metrics")]
        with self.log.open("wb") as output:
            self.process = subprocess.Popen(
                ["timeout", "--kill-after=10", "300", "sh", str(deployment / "server" / "serve.sh"),
                 *addresses, f"--backend-directory={LOCAL_TRITON / 'backends'}",
                 f"--backend-config=python,shm-region-prefix-name={prefix}"],
                stdout=output, stderr=subprocess.STDOUT, env=environment, cwd=folder, start_new_session=True,
            )  # fmt: skip

    def control(self, do: str, *more: str) -> int:
        """Run control.py as a probe or hook would; return its status."""
        urls = ["--url", self.url, "--metrics-url", f"http://127.0.0.1:{self.metrics}/metrics"]
        command = [sys.executable, "-I", str(self._control), do, *urls, "--key-file", str(self._key), *more]
        return subprocess.run(command, check=False, timeout=90, stderr=subprocess.DEVNULL).returncode

    def terminate(self) -> None:
        """Send what a container gets: SIGTERM, to the script alone."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        os.kill(int(children[0]), signal.SIGTERM)

    def end(self) -> None:
        """Leave nothing behind: outside a container a killed server's models outlive it."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(timeout=10)
        for left in Path("/dev/shm").glob(f"deployed_{os.getpid()}_{self.http}_*"):
            left.unlink(missing_ok=True)


class Prometheus:
    """Prometheus on a deployment's configuration, asking every second for five."""

    def __init__(self, deployment: Path, folder: Path, metrics_port: int) -> None:
        shutil.copytree(deployment / "prometheus", folder / "config")
        config = folder / "config" / "prometheus.yml"
        text = re.sub(r"targets: \[.*\]", f'targets: ["127.0.0.1:{metrics_port}"]', config.read_text()).replace(
            ": 5s", ": 1s"
        )
        config.write_text(text)
        self.port = free_ports()[0]
        with (folder / "prometheus.log").open("wb") as output:
            self.process = subprocess.Popen(
                ["timeout", "300", "prometheus", f"--config.file={config}", f"--storage.tsdb.path={folder / 'data'}",
                 f"--web.listen-address=127.0.0.1:{self.port}", "--log.level=warn"],
                stdout=output, stderr=subprocess.STDOUT,
            )  # fmt: skip

    def ask(self, path: str, **parameters: str) -> Any:
        """Return the `data` of one API call; None while it does not answer."""
        query = urllib.parse.urlencode(parameters)
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/api/v1/{path}?{query}", timeout=10) as reply:
                return json.load(reply)["data"]
        except OSError:
            return None

    def query(self, expression: str) -> list[dict[str, Any]]:
        """Return what an expression is now."""
        data = self.ask("query", query=expression)
        return list(data["result"]) if data else []

    def alerts(self) -> set[str]:
        """Return the alerts whose expression holds, whether they have for long enough or not."""
        data = self.ask("alerts")
        return {alert["labels"]["alertname"] for alert in data["alerts"]} if data else set()

    def end(self) -> None:
        """Stop it."""
        self.process.terminate()
        self.process.wait(timeout=20)
