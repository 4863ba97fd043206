"""Compiles what is run for every token and every simulated step, where there is a C compiler; else Python runs it.

`python hatch_build.py` compiles into the source tree, as an editable installation does.
"""

from __future__ import annotations

import contextlib
import io
import json
import runpy
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

RECEIVER = Path("loadtest/client/_receiver.c")
RECEIVER_FLAGS = ("-O2", "-Wall", "-Wextra")
# What a simulation runs for each step or request. mypyc compiles the Python itself; results are the same to a digit.
SIMULATION = (
    *("engines/emulator/acceptance.py", "engines/emulator/admission.py", "engines/emulator/apart.py"),
    *("engines/emulator/blocks.py", "engines/emulator/engine.py", "engines/emulator/growth.py"),
    *("engines/emulator/lines.py", "engines/emulator/request.py", "engines/emulator/scheduler.py"),
    *("engines/steptime/calibrated.py", "engines/steptime/roofline.py", "engines/steptime/scaled.py"),
    *("engines/steptime/shape.py", "engines/steptime/silicon.py", "engines/steptime/speculative.py"),
    *("loadtest/capacity/autoscaling/fluid.py", "loadtest/capacity/autoscaling/hpa.py"),
    *("loadtest/capacity/simulation/fleet.py", "loadtest/capacity/simulation/replica.py"),
    *("loadtest/simulate/energy.py", "loadtest/simulate/requests.py", "loadtest/simulate/virtual_server.py"),
    *("loadtest/traffic/closed_loop.py", "loadtest/traffic/conversations.py"),
    *("loadtest/traffic/levels.py", "loadtest/traffic/open_loop.py"),
)
# Most time passes in Python's own objects: -O3 needs twice the compiler's time and makes no command faster.
SIMULATION_FLAGS = ("-O1", "-w", "-fno-strict-overflow")
MYPYC = ("mypy~=2.4", "setuptools>=70", "numpy")  # the last for its types
# Of other packages, those alone whose types decide what is compiled: PyTorch's or Ray's take minutes to read.
MYPY_SETTINGS = """
[mypy]
follow_imports = skip
ignore_missing_imports = True
[mypy-engines.*,loadtest.*,numpy.*]
follow_imports = silent
"""
NOT_COMPILED = "nothing is compiled, so loads and simulations take more CPU time"


class CannotCompileError(Exception):
    """Why a module is not compiled here."""


def _compiler() -> tuple[str, ...]:
    """Return the command that compiles a Python module, without its source and target."""
    compiler = shutil.which("cc")
    headers = Path(sysconfig.get_path("include"))
    if compiler is None or not (headers / "Python.h").is_file():
        raise CannotCompileError("no C compiler (cc)" if compiler is None else f"no {headers / 'Python.h'}")
    return (compiler, "-fPIC", "-shared", f"-I{headers}")


def _run(command: list[Any]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise CannotCompileError((done.stderr.strip() or done.stdout.strip()).splitlines()[0])


def _found_by(root: Path) -> dict[str, Any]:
    """Return the names of the module that finds what is compiled; no package can be imported while it is built."""
    return runpy.run_path(str(root / "engines" / "compiled.py"))


def compile_receiver(root: Path) -> Path:
    """Compile the module beside its source; return its path.

    Raises:
        CannotCompileError: It cannot be compiled here.
    """
    module = root / RECEIVER.with_suffix(sysconfig.get_config_var("EXT_SUFFIX"))
    known = f'-DSOURCE_SHA256="{_found_by(root)["sha256_of"](root / RECEIVER)}"'  # receiver.py looks at it
    with tempfile.TemporaryDirectory(dir=module.parent) as folder:  # a running command may be using the old module
        made = Path(folder) / module.name
        _run([*_compiler(), *RECEIVER_FLAGS, known, "-o", made, root / RECEIVER])
        made.replace(module)
    return module


def compile_simulation(root: Path) -> list[Path]:
    """Compile what a simulation runs, for engines/compiled.py to find, unless it is there; return the files.

    Raises:
        CannotCompileError: It cannot be compiled here.
    """
    compiler = _compiler()
    found = _found_by(root)
    target, suffix, sha256_of = (found[name] for name in ("FOLDER", "SUFFIX", "sha256_of"))
    listing, sources = target / found["MADE_OF"], {path: sha256_of(root / path) for path in SIMULATION}
    built = {"by": sha256_of(root / "hatch_build.py"), "suffix": suffix, "sources": sources}
    made_of = json.dumps(built, indent=1) + "\n"
    if listing.is_file() and listing.read_text() == made_of:
        return sorted(target.iterdir())
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch, contextlib.chdir(root):
        made = Path(scratch) / "made"
        made.mkdir()
        for extension in _generated(Path(scratch) / "c"):
            includes = [f"-I{folder}" for folder in extension.include_dirs]
            module = made / f"{extension.name}{suffix}"
            _run([*compiler, *SIMULATION_FLAGS, *includes, "-o", module, *extension.sources])
        (made / listing.name).write_text(made_of)
        if target.exists():
            target.rename(Path(scratch) / "before")
        made.rename(target)
    return sorted(target.iterdir())


def _generated(scratch: Path) -> list[Any]:
    """Return the extension modules whose C code mypyc has written to a folder."""
    try:
        from mypyc.build import mypycify  # noqa: PLC0415 (a wheel without a compiler is built without mypy)
    except ImportError as error:
        raise CannotCompileError(str(error)) from None
    said = io.StringIO()
    settings = scratch / "mypy.ini"
    scratch.mkdir()
    settings.write_text(MYPY_SETTINGS)
    options = [f"--config-file={settings}", f"--cache-dir={scratch / 'cache'}"]
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            extensions: list[Any] = mypycify([*options, *SIMULATION], target_dir=str(scratch), group_name="simulation")
    except SystemExit as error:
        raise CannotCompileError(f"mypyc: {error.code} {said.getvalue()}".strip()) from None
    if said.getvalue():  # "Treating generator comprehension as list": what is compiled would not do what Python does
        raise CannotCompileError(f"mypyc: {said.getvalue().strip()}")
    return extensions


class CompilingHook(BuildHookInterface[Any]):
    """Adds the compiled modules to the wheel; an editable installation finds them in the source tree."""

    PLUGIN_NAME = "custom"

    def dependencies(self) -> list[str]:
        """Return what compiling needs, where it is possible."""
        try:
            _compiler()
        except CannotCompileError:
            return []
        return list(MYPYC)

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile; a wheel with compiled modules is for this Python and machine."""
        root = Path(self.root)
        try:
            made = [compile_receiver(root), *compile_simulation(root)]
        except CannotCompileError as error:
            self.app.display_warning(f"{NOT_COMPILED}: {error}")
            return
        if version != "editable":
            build_data |= {"pure_python": False, "infer_tag": True}
            build_data["force_include"] |= {str(file): str(file.relative_to(root)) for file in made}


if __name__ == "__main__":
    try:
        compile_receiver(Path())
        compile_simulation(Path())
    except CannotCompileError as error:
        print(f"setup: {NOT_COMPILED}: {error}", file=sys.stderr)
