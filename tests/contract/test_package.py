"""What is shipped: the wheel's files, and every command's --help from the wheel alone."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPTS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel from the source tree."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*command, "--wheel-dir", str(folder), str(ROOT)], check=True, capture_output=True)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def unpacked(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Lay the wheel's files out away from the source tree."""
    folder = tmp_path_factory.mktemp("unpacked")
    zipfile.ZipFile(wheel).extractall(folder)
    return folder


def test_wheel_holds_every_source_and_data_file(wheel: Path) -> None:
    """Every tracked file of the three rooms is in the wheel, and nothing of the tests."""
    tracked = subprocess.run(
        ["git", "ls-files", "engines", "triton_repo", "loadtest"], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout.split()
    held = set(zipfile.ZipFile(wheel).namelist())
    assert set(tracked) <= held
    assert not [name for name in held if name.startswith(("tests/", "docs/", "artifacts/"))]


def test_a_wheel_built_without_a_compiler_is_for_every_machine(tmp_path: Path) -> None:
    """It says that nothing is compiled, and holds nothing that was compiled here before."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("env", "sh"):
        (programs / name).symlink_to(shutil.which(name) or name)
    command = [sys.executable, "-m", "pip", "wheel", "--verbose", "--no-deps", "--no-build-isolation"]
    done = subprocess.run(
        [*command, "--wheel-dir", str(tmp_path), str(ROOT)],
        env={**os.environ, "PATH": str(programs)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert (
        "nothing is compiled, so loads and simulations take more CPU time: no C compiler (cc)"
        in done.stdout + done.stderr
    )
    (built,) = tmp_path.glob("*-py3-none-any.whl")
    assert not [name for name in zipfile.ZipFile(built).namelist() if name.endswith(".so")]


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
def test_where_there_is_a_compiler_the_wheel_has_the_compiled_modules(wheel: Path, unpacked: Path) -> None:
    """It is for this Python and machine alone, and its commands run them: its sources are those compiled."""
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    held = {name for name in zipfile.ZipFile(wheel).namelist() if name.endswith(".so")}
    engine = f"engines/_compiled/engines.emulator.engine{suffix}"
    assert {f"loadtest/client/_receiver{suffix}", engine} <= held
    assert all(name.startswith("engines/_compiled/") for name in held - {f"loadtest/client/_receiver{suffix}"})
    code = "from loadtest.cli.start import predict_load as c; c.loaded(); import engines.emulator.engine as m"
    done = subprocess.run([sys.executable, "-c", f"{code}; print(m.__file__)"], capture_output=True, text=True,
                          check=True, cwd=unpacked, env={**os.environ, "PYTHONPATH": str(unpacked)})  # fmt: skip
    assert done.stdout.strip() == str(unpacked / engine)
    assert not wheel.name.endswith("none-any.whl")


def _run(script: str, flag: str, unpacked: Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run one console script as its entry point would, with the wheel's files before the source tree's."""
    module, function = SCRIPTS[script].split(":")
    from_wheel = f"import {module} as m; assert m.__file__.startswith({str(unpacked)!r}), m.__file__"
    code = f"{from_wheel}; m.{function}(prog_name={script!r})"
    return subprocess.run(
        [sys.executable, "-c", code, flag],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(unpacked), "COLUMNS": "100"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("script", sorted(SCRIPTS))
def test_help_runs_from_the_wheel(script: str, unpacked: Path, tmp_path: Path) -> None:
    """Each console script prints its --help from the wheel alone."""
    done = _run(script, "--help", unpacked, tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"Usage: {script}")


@pytest.mark.parametrize("script", sorted(SCRIPTS))
def test_unknown_flag_is_asked_wrongly(script: str, unpacked: Path, tmp_path: Path) -> None:
    """Each console script refuses an unknown flag with exit status 2 and one error line."""
    done = _run(script, "--no-such-flag", unpacked, tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith(f"{script}: error: ")
    assert done.stdout == ""
