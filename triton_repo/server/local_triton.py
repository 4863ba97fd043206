"""The local Triton: the server from the nvidia-pytriton wheel, and a Python environment for its models.

The wheel's server is a plain Triton 2.51 (24.10) with the Python backend; PyTriton's Python code is not used. Three
conditions must hold; if one does not, the server hangs or returns garbage:

* the models' Python is 3.11 or 3.12 with numpy 1: the wheel's stubs were built against numpy's first ABI;
* the stub's loader finds `libpython` of that same build;
* the backend folder contains the stub of that minor version and no other.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from engines.errors import LAST_LINES, MissingError, ToolError, UserError
from engines.files import Document, Strict, made_by, read_json, write_json
from engines.outputs import whole_folder

WHEEL = "nvidia-pytriton==0.7.0"
TRITON_VERSION = "2.51.0"
MODEL_PACKAGES = ("numpy==1.26.4", "tokenizers>=0.21,<0.24", "pydantic>=2.7,<3", "pyyaml>=6.0,<7", "packaging>=23")
# Tables of measured kernels for emulated engines planned with --step-time silicon; without its dependencies.
TABLES = ("aiconfigurator-core==0.12.0",)
PYTHON_VERSIONS = ((3, 12), (3, 11))
GLIBC_NEEDED = (2, 35)
RUNTIME_NAME = "runtime.json"
SERVER_FOLDER = Path("wheel/pytriton/tritonserver")

_PROBE = """
import json, sys, sysconfig
v = sysconfig.get_config_var
print(json.dumps({"executable": getattr(sys, "_base_executable", sys.executable) or sys.executable,
 "version": list(sys.version_info[:2]), "libdir": v("LIBDIR") or "", "base_prefix": sys.base_prefix}))
"""


class PythonFound(Strict):
    """A Python interpreter that can run models.

    Attributes:
        executable: The interpreter itself, not a virtual environment's link to it.
        version: Major and minor version.
        libpython: Its shared library.
    """

    executable: str
    version: tuple[int, int]
    libpython: str


class RuntimeRecord(Document):
    """`runtime.json`: the folder's content and its external dependencies."""

    triton_version: str
    wheel: str
    python: PythonFound
    packages: list[str]


@dataclass(frozen=True, slots=True)
class Runtime:
    """A server that can be started.

    Attributes:
        server: The `tritonserver` program.
        version: Triton's version, or "unknown" for a server that was already installed.
        backends: Folder for `--backend-directory`; None: the server's default.
        python_bin: Folder to put first on PATH, so that models use that Python; None: PATH unchanged.
        libraries: Folder in which the loader finds libpython; None: the system's.
        local: Whether this is our own installation from the wheel.
    """

    server: Path
    version: str
    backends: Path | None = None
    python_bin: Path | None = None
    libraries: Path | None = None
    local: bool = False


def default_folder() -> Path:
    """Return the folder of the local Triton: inside the environment in which the commands run."""
    return Path(sys.prefix) / "opt" / "triton"


def install(target: Path, *, force: bool, command: str, progress: Callable[[str], None]) -> bool:
    """Install the local Triton into `target`, completely or not at all.

    Returns:
        Whether anything was installed: False if this version is already complete.

    Raises:
        MissingError: This machine lacks something the server needs.
        ToolError: pip or venv failed.
    """
    if not force and _is_current(target):
        return False
    _refuse_platform()
    python = find_python()
    head = made_by(command)
    with whole_folder(target, made_by=head, force=force or _is_leftover(target)) as folder:
        progress(f"server: {WHEEL} (55 MB)")
        _pip("install", "--no-deps", "--no-compile", "--target", str(folder / "wheel"), WHEEL)
        progress(f"models' Python: {'.'.join(map(str, python.version))} with {', '.join(MODEL_PACKAGES)}")
        _make_environment(folder / "py", python)
        _link_backend(folder, python)
        record = RuntimeRecord(
            made_by=head,
            triton_version=TRITON_VERSION,
            wheel=WHEEL,
            python=python,
            packages=[*MODEL_PACKAGES, *TABLES],
        )
        write_json(folder / RUNTIME_NAME, record)
    return True


def local_runtime(folder: Path) -> Runtime:
    """Return the local Triton in `folder`.

    Raises:
        MissingError: It is not installed, or its Python is missing.
    """
    record_path = folder / RUNTIME_NAME
    if not record_path.exists():
        raise MissingError(f"{folder}: contains no local Triton", hint="install it with install-triton (about 360 MB)")
    record = read_json(record_path, RuntimeRecord)
    if not Path(record.python.libpython).exists() or not Path(record.python.executable).exists():
        raise MissingError(
            f"{folder}: the Python that it was installed with is missing: {record.python.executable}",
            hint="reinstall it with install-triton --force",
        )
    return Runtime(
        server=folder / SERVER_FOLDER / "bin" / "tritonserver",
        version=record.triton_version,
        backends=folder / "backends",
        python_bin=folder / "py" / "bin",
        libraries=folder / "libpython",
        local=True,
    )


def find_runtime(choice: str, folder: Path) -> Runtime:
    """Return the server to start.

    Args:
        choice: `auto` (an installed `tritonserver`, else the local one), `local`, or the path of a `tritonserver`.
        folder: Folder of the local one.

    Raises:
        MissingError: There is none.
    """
    if choice == "local":
        return local_runtime(folder)
    if choice != "auto":
        if not os.access(choice, os.X_OK) or Path(choice).is_dir():
            raise UserError(
                f"--tritonserver {choice}: not an executable file", hint=("give the path to a tritonserver, or 'auto'")
            )
        return Runtime(server=Path(choice).resolve(), version="unknown")
    installed = shutil.which("tritonserver") or shutil.which("/opt/tritonserver/bin/tritonserver")
    return Runtime(server=Path(installed), version="unknown") if installed else local_runtime(folder)


def find_python(candidates: Sequence[str] | None = None) -> PythonFound:
    """Return the first Python that can run models: this one, then python3.12 and python3.11 on PATH.

    Raises:
        MissingError: None is suitable; the message states each one's problem.
    """
    names = [sys.executable, "python3.12", "python3.11"] if candidates is None else list(candidates)
    reasons = []
    for name in names:
        found = _try_python(name)
        if isinstance(found, PythonFound):
            return found
        reasons.append(f"{name}: {found}")
    raise MissingError(
        "the local Triton's models need Python 3.11 or 3.12 with its shared library; " + "; ".join(reasons),
        hint="on Debian or Ubuntu: apt install python3.11 libpython3.11",
    )


def find_libpython(version: tuple[int, int], places: Sequence[Path]) -> Path | None:
    """Return the shared library of a Python from the first folder that has it."""
    name = f"libpython{version[0]}.{version[1]}.so.1.0"
    return next((place / name for place in places if (place / name).exists()), None)


def _try_python(name: str) -> PythonFound | str:
    """Return a Python's description, or the reason why it is unsuitable."""
    program = shutil.which(name)
    if program is None:
        return "not on PATH"
    done = subprocess.run([program, "-I", "-c", _PROBE], capture_output=True, text=True, timeout=30, check=False)
    if done.returncode != 0:
        return "does not start"
    facts = json.loads(done.stdout)
    version = (facts["version"][0], facts["version"][1])
    if version not in PYTHON_VERSIONS:
        return f"is {version[0]}.{version[1]}"
    base = Path(facts["base_prefix"])
    places = [Path(facts["libdir"]), base / "lib", Path("/usr/lib/x86_64-linux-gnu"), Path("/usr/local/lib")]
    library = find_libpython(version, places)
    if library is None:
        return f"has no libpython{version[0]}.{version[1]}.so.1.0"
    return PythonFound(executable=facts["executable"], version=version, libpython=str(library))


def _refuse_platform() -> None:
    if sys.platform != "linux" or platform.machine() != "x86_64":
        raise MissingError(
            f"the local Triton needs Linux on x86_64; this is {sys.platform} on {platform.machine()}",
            hint="use another server with serve-repo --tritonserver PATH, or a container",
        )
    glibc = platform.libc_ver()[1]
    if tuple(int(part) for part in glibc.split(".")[:2] if part.isdigit()) < GLIBC_NEEDED:
        raise MissingError(
            f"the local Triton needs glibc 2.35 or newer; this machine has {glibc or 'another C library'}",
            hint="Debian 12, Ubuntu 22.04 and newer have it",
        )


def _is_current(target: Path) -> bool:
    """Whether `target` contains this version, and its Python still exists."""
    try:
        record = read_json(target / RUNTIME_NAME, RuntimeRecord)
        local_runtime(target)
    except (MissingError, UserError):
        return False
    return record.wheel == WHEEL and record.packages == [*MODEL_PACKAGES, *TABLES]


def _is_leftover(target: Path) -> bool:
    """Whether `target` is an outdated installation by this tool, which may be replaced without --force."""
    return (target / RUNTIME_NAME).exists() and not _is_current(target)


def _make_environment(folder: Path, python: PythonFound) -> None:
    """Create the models' environment without pip; the pip of the commands' environment installs into it."""
    _run([python.executable, "-I", "-m", "venv", "--without-pip", str(folder)], "make the models' environment")
    _pip("--python", str(folder / "bin" / "python"), "install", *MODEL_PACKAGES)
    _pip("--python", str(folder / "bin" / "python"), "install", "--no-deps", *TABLES)


def _link_backend(folder: Path, python: PythonFound) -> None:
    """Create the backend folder and the loader's folder with relative links, so that the whole can be renamed."""
    server = folder / SERVER_FOLDER
    (server / "bin" / "tritonserver").chmod(0o755)
    stub = server / "python_backend_stubs" / f"{python.version[0]}.{python.version[1]}" / "triton_python_backend_stub"
    stub.chmod(0o755)
    backend = folder / "backends" / "python"
    backend.mkdir(parents=True)
    for file in [*sorted((server / "backends" / "python").iterdir()), stub]:
        (backend / file.name).symlink_to(os.path.relpath(file, backend))
    (folder / "libpython").mkdir()
    library = Path(python.libpython)
    (folder / "libpython" / library.name).symlink_to(library)


def _pip(*arguments: str) -> None:
    _run(
        [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", "--no-input", *arguments],
        "install packages for the local Triton",
    )


def _run(command: list[str], purpose: str) -> None:
    """Run a program to completion.

    Raises:
        ToolError: It failed; the message contains its last lines.
    """
    with _log_file() as log:
        with log.open("wb") as output:
            done = subprocess.run(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, check=False
            )
        if done.returncode != 0:
            lines = log.read_text(errors="replace").splitlines()[-LAST_LINES:]
            raise ToolError(
                f"could not {purpose}: {' '.join(command[:4])} ...",
                status=done.returncode,
                last_lines=lines,
                hint="check that the package index is reachable; pip config list shows which one is used",
            )


@contextmanager
def _log_file() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="install-triton-") as folder:
        yield Path(folder) / "log"
