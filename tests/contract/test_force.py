"""--force, held against every command that writes: nothing that the tool did not make is ever lost."""

from __future__ import annotations

import contextlib
import os
import shutil
import string
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import click
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engines.cli.build_engine import build_engine
from engines.cli.unpack_checkpoint import unpack_checkpoint
from engines.files import MadeBy
from engines.outputs import whole_folder
from engines.processes import started_ticks
from loadtest.cli.calibrate_engine import calibrate_engine
from loadtest.cli.find_knee import find_knee
from loadtest.cli.plan_capacity import plan_capacity
from loadtest.cli.predict_load import predict_load
from loadtest.cli.report_load import report_load
from loadtest.cli.run_load import run_load
from tests.tiny_checkpoints import write_tokenizer
from triton_repo.cli.build_deployment import build_deployment
from triton_repo.cli.build_repo import build_repo
from triton_repo.cli.install_triton import install_triton
from triton_repo.settings import SERVED_FILES

BY = MadeBy(command="some-command", version="0")
DEMAND = """
name: tiny
model: deepseek-r1-0528-qwen3-8b
traffic: {process: described, rate_per_s: 0.1, classes: [{name: chat, lengths: {isl: 500, osl: 200}}]}
objectives: {ttft_s: {p95: 2.0}}
candidates: {engines: [engine]}
"""
# Each command that writes, and which of the inputs below it reads.
COMMANDS: dict[str, tuple[click.Command, list[str], tuple[str, ...]]] = {
    "build-engine": (build_engine, ["--precision", "fp8", "--emulate", "--recipe", "recipe.yaml"], ("recipe.yaml",)),
    "unpack-checkpoint": (unpack_checkpoint, ["model.gguf"], ("model.gguf",)),
    "build-repo": (
        build_repo,
        ["engine", "--serving", "serving.yaml", "--tokenizer", "tokenizer"],
        ("engine", "serving.yaml", "tokenizer"),
    ),
    "build-deployment": (build_deployment, ["repository"], ("repository",)),
    "install-triton": (install_triton, [], ()),
    "run-load": (run_load, ["--url", "http://127.0.0.1:1", "--scenario", "scenario.yaml"], ("scenario.yaml",)),
    "run-load --repeat": (run_load, ["--url", "http://127.0.0.1:1", "--isl", "8", "--repeat", "2"], ()),
    "predict-load": (predict_load, ["engine", "--scenario", "scenario.yaml"], ("engine", "scenario.yaml")),
    "report-load": (report_load, ["run"], ("run",)),
    "report-load --compare": (report_load, ["--compare", "run", "run"], ("run",)),
    "plan-capacity": (plan_capacity, ["demand.yaml"], ("demand.yaml", "engine")),
    "find-knee": (
        find_knee,
        ["engine", "--objective", "ttft_s.p95=1", "--isl", "8", "--osl", "8", "--max-requests", "300"],
        ("engine",),
    ),
    "calibrate-engine": (
        calibrate_engine,
        ["--measurements", "run", "--model", "llama-3-8b", "--gpu", "h100-sxm-80gb", "--precision", "fp8"],
        ("run",),
    ),
}
NAME = st.text(string.ascii_letters + string.digits + "._- ", min_size=1, max_size=8).filter(
    lambda name: name.strip(".") != "" and name not in {"target", ".contents.json"}
)
PATH = st.lists(NAME, min_size=1, max_size=3).map("/".join)


def _run(command: click.Command, *arguments: object) -> tuple[int, str]:
    """Run a command in this process; return its status and what it said on stderr."""
    said: list[str] = []
    words = [str(argument) for argument in arguments]
    with (
        mock.patch.object(sys, "argv", [command.name or "", *words]),
        mock.patch("engines.console.fail", lambda *parts: said.append(" ".join(map(str, parts)))),
        mock.patch("signal.signal"),
        pytest.raises(SystemExit) as ended,
    ):
        command.main(words)
    return int(ended.value.code or 0), "\n".join(said)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with one of each input."""
    folder = tmp_path_factory.mktemp("inputs")
    engine, run = folder / "engine", folder / "run"
    assert _run(build_engine, "--precision", "fp8", "--emulate", "--out", engine) == (0, "")
    (folder / "tokenizer").mkdir()
    write_tokenizer(folder / "tokenizer")
    assert _run(build_repo, engine, "--tokenizer", folder / "tokenizer", "--out", folder / "repository") == (0, "")
    flags = ("--isl", 8, "--osl", 8, "--concurrency", 1, "--requests", 2)
    assert _run(predict_load, engine, *flags, "--out", run) == (0, "")
    (folder / "recipe.yaml").write_text("precision: fp8\n")
    (folder / "serving.yaml").write_text("{}\n")
    (folder / "scenario.yaml").write_text("lengths: {isl: 8, osl: 8}\nconcurrency: [1]\n")
    (folder / "demand.yaml").write_text(DEMAND)
    (folder / "model.gguf").write_bytes(b"GGUF")
    return folder


@contextlib.contextmanager
def _workplace(inputs: Path, base: Path, read: tuple[str, ...]) -> Iterator[Path]:
    """Give a folder with a copy of the inputs a command reads, to stand in, home beside it; gone afterwards."""
    shutil.rmtree(base, ignore_errors=True)
    (base / "home").mkdir(parents=True)
    place = base / "place"
    place.mkdir()
    for name in read:
        if (inputs / name).is_dir():
            shutil.copytree(inputs / name, place / name, copy_function=os.link)
        else:
            shutil.copy(inputs / name, place / name)
    there = {"HOME": str(base / "home"), "MPLCONFIGDIR": str(inputs / "matplotlib")}
    with contextlib.chdir(place), mock.patch.dict(os.environ, there):
        yield place
    shutil.rmtree(base)


def _snapshot(base: Path) -> dict[str, object]:
    """Return every path with what it holds; links by where they lead."""
    found: dict[str, object] = {}
    for root, folders, files in os.walk(base):
        for name in (*folders, *files):
            path = Path(root, name)
            held = str(path.readlink()) if path.is_symlink() else None if path.is_dir() else path.read_bytes()
            found[str(path.relative_to(base))] = held
    return found


def _made(target: Path, *names: str) -> Path:
    with whole_folder(target, made_by=BY, later=SERVED_FILES) as folder:
        for name in names:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(name)
    return target


def _foreign(place: Path, data: st.DataObject, _: tuple[str, ...]) -> Path:
    """A folder of somebody else's files, of any names."""
    for name in data.draw(st.lists(PATH, min_size=1, max_size=5)):
        with contextlib.suppress(FileExistsError, NotADirectoryError, IsADirectoryError):
            (place / "target" / name).parent.mkdir(parents=True, exist_ok=True)
            (place / "target" / name).write_text("mine")
    return place / "target"


def _made_and_foreign(place: Path, data: st.DataObject, _: tuple[str, ...]) -> Path:
    """A folder of ours with one file that is not ours, wherever it lies."""
    target = _made(place / "target", "manifest.json", "charts/a.svg")
    where = target / data.draw(st.sampled_from(["", "charts", "new/folder"])) / data.draw(NAME)
    where.parent.mkdir(parents=True, exist_ok=True)
    where.write_text("mine")
    return target


def _own_input(place: Path, data: st.DataObject, read: tuple[str, ...]) -> Path:
    """An input, a folder in it, or the folder that holds it."""
    if not read:
        return place
    path = place / data.draw(st.sampled_from(read))
    return data.draw(st.sampled_from([path, path / "below", place]))


def _link(place: Path, data: st.DataObject, _: tuple[str, ...]) -> Path:
    """A symbolic link to a folder of ours, a foreign one, an empty one, or nowhere."""
    end = _made(place / "end", "a") if data.draw(st.booleans()) else place / "end"
    if not end.exists() and data.draw(st.booleans()):
        end.mkdir()
        if data.draw(st.booleans()):
            (end / "mine").write_text("mine")
    (place / "target").symlink_to(end, target_is_directory=True)
    return place / "target"


def _great(place: Path, data: st.DataObject, _: tuple[str, ...]) -> Path:
    """The file system's root, the home folder, the current folder, or what holds them."""
    return data.draw(st.sampled_from([Path("/"), place.parent / "home", place, place.parent, Path(), Path("..")]))


def _served(place: Path, _: st.DataObject, __: tuple[str, ...]) -> Path:
    """A repository of ours that a running process serves."""
    target = _made(place / "target", "manifest.json")
    (target / "server.json").write_text(f'{{"pid": {os.getpid()}, "started_ticks": {started_ticks(os.getpid())}}}')
    return target


def _file(place: Path, data: st.DataObject, _: tuple[str, ...]) -> Path:
    """A file, which is not even JSON."""
    (place / "target").write_text(data.draw(st.text(max_size=20)))
    return place / "target"


TARGETS: tuple[Callable[[Path, st.DataObject, tuple[str, ...]], Path], ...] = (
    _foreign, _made_and_foreign, _own_input, _link, _great, _served, _file,
)  # fmt: skip


@pytest.mark.parametrize("name", COMMANDS)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_force_never_loses_what_the_tool_did_not_make(
    name: str, data: st.DataObject, inputs: Path, tmp_path: Path
) -> None:
    """Whatever --out leads to, a command with --force refuses it in one line, status 2, and nothing has changed."""
    command, arguments, read = COMMANDS[name]
    with _workplace(inputs, tmp_path / "base", read) as place:
        target = data.draw(st.sampled_from(TARGETS))(place, data, read)
        before = _snapshot(tmp_path / "base")
        status, said = _run(command, *arguments, "--out", target, "--force")
        assert _snapshot(tmp_path / "base") == before
        assert (status, said.count("\n")) == (2, 0), said


@pytest.mark.parametrize("name", ["build-engine", "build-repo", "build-deployment", "predict-load", "find-knee"])
def test_force_replaces_what_the_tool_made(name: str, inputs: Path, tmp_path: Path) -> None:
    """A second time with --force the folder is new, and nothing is left beside it."""
    command, arguments, read = COMMANDS[name]
    with _workplace(inputs, tmp_path / "base", read) as place:
        assert _run(command, *arguments, "--out", place / "target") == (0, "")
        before = _snapshot(tmp_path / "base")
        for path in (place / "target").glob("*.json"):
            path.write_text("{}") if path.name != ".contents.json" else None
        assert _run(command, *arguments, "--out", place / "target")[0] == 2
        assert _run(command, *arguments, "--out", place / "target", "--force") == (0, "")
        assert _snapshot(tmp_path / "base").keys() == before.keys()
        assert all(path.stat().st_size > 2 for path in (place / "target").glob("*.json"))
