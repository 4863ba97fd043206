"""The compiled modules of a simulation against their own source, which Python runs: the same to the last digit."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from engines.compiled import FOLDER, MADE_OF, SUFFIX, CompiledModules, sha256_of

ROOT = Path(__file__).parents[2]
WORK = Path(__file__).parent / "simulated_work.py"
NAME = "engines.emulator.engine"
compiled = pytest.mark.skipif(not FOLDER.is_dir(), reason="no C compiler at the build")


def _said(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, check=True)


@compiled
def test_what_is_compiled_gives_what_python_gives() -> None:
    """Batchers with every setting, commands, a plan and a calibration: each line that is printed or written."""
    by_python, by_compiled = (_said(str(WORK), way) for way in ("python", "compiled"))
    assert ("from .py" in by_python.stderr, "from .so" in by_compiled.stderr) == (True, True)
    lines = by_python.stdout.splitlines()
    assert len(lines) > 10_000
    assert by_compiled.stdout.splitlines() == lines


@compiled
def test_commands_run_what_is_compiled() -> None:
    """Or each simulation costs twice the time, and nobody notices. Tests in this process run the Python."""
    code = f"from loadtest.cli.start import predict_load as c; c.loaded(); import {NAME} as m; print(m.__file__)"
    assert _said("-c", code).stdout.strip() == str(FOLDER / f"{NAME}{SUFFIX}")
    assert _said("-c", f"import {NAME} as m; print(m.__file__)").stdout.strip().endswith("engine.py")


@compiled
@pytest.mark.parametrize("first", [NAME, "loadtest.traffic"])
def test_a_program_that_imported_the_python_keeps_it(first: str) -> None:
    """Half of a simulation compiled, half not, had ended the process with a segmentation fault."""
    argv = "'predict-load', '--isl', '64', '--osl', '8', '--rate', '1', '--duration', '5', '--json'"
    code = f"""
import sys, {first}
from loadtest.cli.start import predict_load
sys.argv = [{argv}]
try:
    predict_load()
except SystemExit as ended:
    files = [str(getattr(module, "__file__", "")) for module in sys.modules.values()]
    print(ended.code, [file for file in files if file.startswith("{FOLDER}")])
"""
    assert _said("-c", code).stdout.splitlines()[-1] == "0 []"


def test_a_source_that_changed_is_run_itself(tmp_path: Path) -> None:
    """Its module is not found among the compiled ones, and neither is any other: they call each other."""
    folder = tmp_path / "compiled"
    folder.mkdir()
    for name in ("some.one", "some.other"):
        (folder / f"{name}{SUFFIX}").write_bytes(b"")
    source = tmp_path / "one.py"
    source.write_text("one = 1\n")
    (folder / MADE_OF).write_text(json.dumps({"sources": {"one.py": sha256_of(source)}}))
    for text, is_found in (("one = 1\n", True), ("one = 2\n", False)):
        source.write_text(text)
        finder = CompiledModules(tmp_path, folder)
        assert [finder.find_spec(name) is not None for name in ("some.one", "some.other")] == [is_found] * 2
        assert finder.find_spec("some.third") is None
    (folder / MADE_OF).unlink()
    assert CompiledModules(tmp_path, folder).find_spec("some.one") is None


def test_nothing_compiled_has_what_mypyc_silently_changes() -> None:
    """A cached property would be computed each time it is read, and what is added to its value lost."""
    listed = re.findall(r'"((?:engines|loadtest)/[a-z_/]+\.py)"', (ROOT / "hatch_build.py").read_text())
    assert "engines/emulator/engine.py" in listed
    assert [path for path in listed if re.search("cached_property", (ROOT / path).read_text())] == []
