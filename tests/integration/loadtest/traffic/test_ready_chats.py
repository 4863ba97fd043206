"""Chats tokenized at setup: what a run sends is the same to a byte as with the tokenizer, or they are not used."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from engines.errors import UserError
from engines.files import sha256_of
from loadtest.scenario.schema import Conversations, Lengths, Prefixes, Scenario
from loadtest.traffic import ready_chats
from loadtest.traffic.levels import plans_of
from loadtest.traffic.prepare import prepare
from loadtest.traffic.ready_chats import MADE_OF, copy_ready_chats, write_ready_chats

CHATS = {
    "single": Scenario(lengths=Lengths(isl="uniform(1, 400)", osl=8)),
    "prefixes": Scenario(prefixes=Prefixes(count=2, tokens=70, share=0.7), lengths=Lengths(isl=90, osl=8), seed=3),
    "conversations": Scenario(
        lengths=Lengths(isl=30, osl=10), conversation=Conversations(turns=4, history="replies"), requests=100
    ),
}
NOT_READY = {
    "random": (Scenario(prompts="random", lengths=Lengths(isl=8, osl=1)), True),
    "long": (Scenario(lengths=Lengths(isl=8_000, osl=1)), True),
    "many": (Scenario(lengths=Lengths(isl=8, osl=1), requests=5_000), True),
    "an end token": (Scenario(lengths=Lengths(isl=8, osl=1), replies="free"), False),
}


@pytest.fixture(scope="module")
def ready(bytes_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the chats of a tokenizer."""
    folder = tmp_path_factory.mktemp("ready")
    write_ready_chats(bytes_path, folder)
    return folder


def _copied(scenario: Scenario, tokenizer: Path, folder: Path, ready: Path, *, as_text: bool = True) -> bool:
    folder.mkdir(exist_ok=True)
    plans, sha256 = plans_of(scenario), sha256_of(tokenizer)
    return copy_ready_chats(scenario, plans, sha256, folder, as_text=as_text, salt=7, ready=ready)


@pytest.mark.parametrize("as_text", [False, True], ids=["ids", "text"])
@pytest.mark.parametrize("name", list(CHATS))
def test_a_run_gets_what_the_tokenizer_would_give(
    name: str, as_text: bool, bytes_path: Path, ready: Path, tmp_path: Path
) -> None:
    """Every file of a run's prompts has the same bytes; the salt is the run's own."""
    scenario, own, copied = CHATS[name], tmp_path / "own", tmp_path / "copied"
    own.mkdir()
    prepare(scenario, plans_of(scenario), bytes_path, own, as_text=as_text, salt=7)
    assert _copied(scenario, bytes_path, copied, ready, as_text=as_text)
    assert {path.name: path.read_bytes() for path in copied.iterdir()} == {
        path.name: path.read_bytes() for path in own.iterdir()
    }


@pytest.mark.parametrize("name", list(NOT_READY))
def test_other_runs_tokenize(name: str, bytes_path: Path, ready: Path, tmp_path: Path) -> None:
    """Random words, more text, or an end token are the tokenizer's to give; nothing is written."""
    scenario, as_text = NOT_READY[name]
    assert not _copied(scenario, bytes_path, tmp_path / "run", ready, as_text=as_text)
    assert not list((tmp_path / "run").iterdir())


def test_another_tokenizer_has_none(pieces_path: Path, ready: Path, tmp_path: Path) -> None:
    """Chats belong to a tokenizer by its hash, not by its name; none are written where parts do not add up."""
    assert not _copied(CHATS["single"], pieces_path, tmp_path / "run", ready)
    with pytest.raises(UserError, match="other tokens than within it"):
        write_ready_chats(pieces_path, tmp_path / "none")
    assert not list((tmp_path / "none").iterdir())


@pytest.mark.parametrize("damage", ["a changed file", "a missing file", "no stamp", "half a stamp", "other code"])
def test_what_is_damaged_or_old_is_not_used(
    damage: str, bytes_path: Path, ready: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then the run tokenizes, as without them."""
    shutil.copytree(ready, tmp_path / "ready")
    folder = tmp_path / "ready" / sha256_of(bytes_path)
    ids, stamp = folder / "text-0.ids.npy", folder / MADE_OF
    match damage:
        case "a changed file":
            ids.write_bytes(ids.read_bytes()[:-1] + b"\1")
        case "a missing file":
            ids.unlink()
        case "no stamp":
            stamp.unlink()
        case "half a stamp":
            stamp.write_bytes(stamp.read_bytes()[:100])
        case _:
            code = tmp_path / "code.py"
            code.write_text("another")
            monkeypatch.setattr(ready_chats, "_SOURCES", (code,))
    assert not _copied(CHATS["single"], bytes_path, tmp_path / "run", tmp_path / "ready")
    assert not list((tmp_path / "run").iterdir())


def test_a_folder_that_cannot_be_written_serves(bytes_path: Path, ready: Path, tmp_path: Path) -> None:
    """Runs only read it, and what they copy is theirs to write."""
    shutil.copytree(ready, tmp_path / "ready")
    folder = tmp_path / "ready" / sha256_of(bytes_path)
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    for path in (*before, folder, folder.parent):
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        assert _copied(CHATS["single"], bytes_path, tmp_path / "run", tmp_path / "ready")
        assert json.loads((tmp_path / "run" / "prompts.json").read_text())["salt"] == 7
        assert before == {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    finally:
        folder.parent.chmod(0o755)
        folder.chmod(0o755)
