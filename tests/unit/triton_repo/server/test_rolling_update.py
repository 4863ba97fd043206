"""What is left of a roll that fails half-way: the old engine's files, whole."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from engines.errors import ToolError, UserError
from engines.files import MadeBy, to_json
from engines.outputs import whole_folder
from tests.deployments import engine_of_kind
from triton_repo.server.control import ENGINE_MODEL, Control, ControlError
from triton_repo.server.rolling_update import GROWING, _refuse, roll_engine, swap
from triton_repo.settings import read_repository


class Loader:
    """A server's control of which loading one model fails; from then on it is gone, if so told."""

    def __init__(self, fails_at: str, error: BaseException, *, dies: bool = False) -> None:
        self.fails_at, self.error, self.dies = fails_at, error, dies
        self.failed = False
        self.loaded: list[str] = []

    def load(self, model: str) -> None:
        """Load a model, or fail."""
        if self.failed and self.dies:
            raise ControlError("Connection refused")
        if model == self.fails_at and not self.failed:
            self.failed = True
            raise self.error
        self.loaded.append(model)

    def probe(self) -> None:
        """Answer."""


def _tree(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def _repository(folder: Path, text: str) -> Path:
    for model in GROWING:
        (folder / model / "1").mkdir(parents=True)
        (folder / model / "config.pbtxt").write_text(f"{model}: {text}")
        (folder / model / "1" / "model.py").write_text(text)
    return folder


@pytest.mark.parametrize(
    ("loader", "raised", "said"),
    [
        (Loader("tensorrt_llm_bls", ControlError("no memory")), ToolError, "the old one keeps serving: no memory"),
        (
            Loader("ensemble", ControlError("reset"), dies=True),
            ToolError,
            "the server does not answer; the old engine's",
        ),
        (
            Loader("ensemble", KeyboardInterrupt()),
            KeyboardInterrupt,
            "interrupted; the old engine's files are restored",
        ),
    ],
    ids=["not loaded", "server died", "interrupted"],
)
def test_a_roll_that_fails_restores_the_files(
    tmp_path: Path, loader: Loader, raised: type[BaseException], said: str
) -> None:
    """Whether the engine does not load, the server dies or the user interrupts: every file is the old one's."""
    repository, beside = _repository(tmp_path / "r", "old"), _repository(tmp_path / "b", "new")
    before = _tree(repository)
    with pytest.raises(raised, match=said):
        swap(repository, beside, 2, cast(Control, loader), GROWING)
    assert _tree(repository) == before
    assert not (repository / ENGINE_MODEL / "2").exists()


def test_folders_given_in_the_wrong_order_are_told_apart(tmp_path: Path) -> None:
    """An engine in the repository's place is named as one; no server is asked for."""
    (tmp_path / "manifest.json").write_text(to_json(engine_of_kind("emulated")))
    with pytest.raises(UserError, match="an engine folder, not a model repository"):
        roll_engine(tmp_path, tmp_path, made_by=MadeBy(command="test", version="0"), progress=print)


def test_a_run_is_no_repository(tmp_path: Path) -> None:
    """It is named as what it is, not by the file that it lacks; a folder of nobody's by that file."""
    with whole_folder(tmp_path / "run", made_by=MadeBy(command="run-load --url h", version="0")) as run:
        (run / "run.json").touch()
    with pytest.raises(UserError, match="run: a run folder, not a model repository"):
        read_repository(tmp_path / "run")
    with pytest.raises(UserError, match=r"not a model repository: it has no manifest\.json"):
        read_repository(tmp_path)


def test_an_engine_with_another_vocabulary_is_refused(tmp_path: Path) -> None:
    """Before anything is rendered, and without advice for a flag that roll-engine lacks."""
    engine = engine_of_kind("emulated")
    other = engine.model_copy(update={"model": engine.model.model_copy(update={"vocab_size": 1000, "name": "other"})})
    (tmp_path / "manifest.json").write_text(to_json(other))
    with pytest.raises(UserError, match=r"other has a vocabulary of 1,000 tokens") as caught:
        _refuse(tmp_path, SimpleNamespace(kind="emulated", engine=engine), tmp_path)  # type: ignore[arg-type]
    assert caught.value.hint == "create a separate repository with build-repo"
