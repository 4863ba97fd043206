"""What the setup derives is there as a whole, and is used only as it was written."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from engines.derived_copy import MADE_OF, derived_folder, is_intact

OF = {"library": "1.0"}


def _write(target: Path, text: str = "one") -> None:
    with derived_folder(target, OF) as made:
        (made / "a").mkdir()
        (made / "a" / "b").write_text(text)


@pytest.mark.parametrize("before", ["nothing", "an older one", "a file"])
def test_a_folder_appears_as_a_whole(tmp_path: Path, before: str) -> None:
    """In place of whatever was there, and without a trace of it beside."""
    target = tmp_path / "share" / "copy"
    if before == "an older one":
        _write(target, "older")
    if before == "a file":
        target.parent.mkdir()
        target.write_text("in the way")
    _write(target)
    assert (target / "a" / "b").read_text() == "one"
    assert is_intact(target, OF)
    assert list(target.parent.iterdir()) == [target]


def test_a_writer_that_fails_changes_nothing(tmp_path: Path) -> None:
    """The older folder stays, and is as it was."""
    target = tmp_path / "copy"
    _write(target)
    with pytest.raises(IsADirectoryError), derived_folder(target, OF) as made:
        made.write_text("a folder takes no text")
    assert is_intact(target, OF)
    assert list(tmp_path.iterdir()) == [target]


def test_of_two_writers_one_folder_stays(tmp_path: Path) -> None:
    """Whichever ends last, within the other or after it: no error, and nothing is mixed."""
    target = tmp_path / "copy"
    with derived_folder(target, OF) as first:
        _write(target, "second")
        (first / "c").write_text("first")
    assert is_intact(target, OF)
    assert sorted(path.name for path in target.iterdir()) == ["c", MADE_OF]
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("name", [MADE_OF, "a/b"])
@pytest.mark.parametrize("damage", ["cut", "changed", "empty", "absent", "folder", "link", "not text"])
def test_a_damaged_file_is_found(tmp_path: Path, name: str, damage: str) -> None:
    """The list of files too; one that is not to be read does not count."""
    _write(tmp_path / "copy")
    damaged = tmp_path / "copy" / name
    data = damaged.read_bytes()
    damaged.unlink()
    if damage == "folder":
        damaged.mkdir()
    elif damage == "link":
        damaged.symlink_to("nowhere")
    elif damage != "absent":
        changed = {"cut": data[:-1], "changed": b"9" + data[1:], "empty": b"", "not text": b"\xff" * len(data)}
        damaged.write_bytes(changed[damage])
    assert not is_intact(tmp_path / "copy", OF)
    assert is_intact(tmp_path / "copy", OF, lambda name: name != "a/b") == (name != MADE_OF)


def test_what_is_made_of_something_else_is_not_used(tmp_path: Path) -> None:
    """Of another release, or of none; moved, it is the same."""
    _write(tmp_path / "copy")
    assert not is_intact(tmp_path / "copy", {"library": "2.0"})
    assert not is_intact(tmp_path / "none", OF)
    shutil.move(tmp_path / "copy", tmp_path / "moved")
    assert is_intact(tmp_path / "moved", OF)
