"""Compiles loadtest/client/_receiver.c where there is a C compiler; without one, Python does its work."""

from __future__ import annotations

import shutil
import subprocess
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SOURCE = Path("loadtest/client/_receiver.c")
FLAGS = ("-O2", "-Wall", "-Wextra", "-fPIC", "-shared")


def compile_receiver(root: Path) -> Path:
    """Compile the module beside its source; return its path.

    Raises:
        OSError: It cannot be compiled here.
    """
    compiler = shutil.which("cc")
    headers = Path(sysconfig.get_path("include"))
    if compiler is None or not (headers / "Python.h").is_file():
        raise OSError("no C compiler (cc)" if compiler is None else f"no {headers / 'Python.h'}")
    module = root / SOURCE.with_suffix(sysconfig.get_config_var("EXT_SUFFIX"))
    with tempfile.TemporaryDirectory(dir=module.parent) as folder:  # a running command may be using the old module
        made = Path(folder) / module.name
        command = [compiler, *FLAGS, f"-I{headers}", "-o", made, root / SOURCE]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise OSError(done.stderr.strip().splitlines()[0])
        made.replace(module)
    return module


class ReceiverHook(BuildHookInterface[Any]):
    """Adds the module to the wheel that is built; an editable installation finds it in the source tree."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile; a wheel with the module is for this Python and machine."""
        try:
            module = compile_receiver(Path(self.root))
        except OSError as error:
            self.app.display_warning(f"{SOURCE} is not compiled: {error}; run-load takes more CPU time per token")
            return
        if version != "editable":
            build_data |= {"pure_python": False, "infer_tag": True}
            build_data["force_include"][str(module)] = str(SOURCE.with_name(module.name))
