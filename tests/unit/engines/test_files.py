"""Strict files: what is refused, and that nothing half-written is ever seen."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import pytest

from engines.errors import MissingError, UserError
from engines.files import Strict, folder_lock, read_json, read_yaml, validate, whole_folder, write_text


class Inner(Strict):
    """A schema inside a schema."""

    max_batch_size: int = 1


class Outer(Strict):
    """A schema like a recipe's."""

    precision: str = "fp8"
    limits: Inner = Inner()
    classes: tuple[Inner, ...] = ()


def test_misspelled_key_names_file_key_and_nearest(tmp_path: Path) -> None:
    """A misspelled key is refused with the file, the key and the key that was meant."""
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("precison: fp8\n")
    with pytest.raises(UserError) as caught:
        read_yaml(recipe, Outer)
    assert caught.value.message == f"{recipe}: unknown key 'precison'"
    assert caught.value.hint == "did you mean 'precision'?"


@pytest.mark.parametrize(
    ("value", "key"),
    [
        ({"limits": {"max_batchsize": 2}}, "limits.max_batchsize"),
        ({"classes": [{"max_batch": 2}]}, "classes.0.max_batch"),
    ],
)
def test_misspelled_key_inside_is_matched_at_its_own_level(value: dict[str, object], key: str) -> None:
    """The suggestion for a nested key comes from the nested schema, through lists as well."""
    with pytest.raises(UserError) as caught:
        validate(value, Outer, where="x")
    assert key in caught.value.message
    assert caught.value.hint == "did you mean 'max_batch_size'?"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("precision: a\nprecision: b\n", "key 'precision' is given twice"),
        ("a: &x [1, 2]\nb: *x\n", "aliases are not allowed"),
        ("- 1\n", "expected keys and values"),
        ("a: [\n", "not valid YAML"),
        ("limits: {max_batch_size: many}\n", "limits.max_batch_size"),
        ("a: 2001-99-99\n", "not valid YAML"),
        ("a: " + "9" * 5000 + "\n", "not valid YAML"),
        ("? [a]\n: b\n", "a key is a list or a mapping"),
        ("a: " + "[" * 5000 + "]" * 5000 + "\n", "nested too deep"),
        ("a: &a [x]\nb: &b [*a, *a]\nc: [*b, *b]\n", "aliases are not allowed"),
        ("a: !!python/object/apply:os.system [ls]\n", "not valid YAML"),
        ("#" * (1 << 20) + "\n", "bytes of YAML; at most 1048576"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_bad_yaml_is_one_clear_error(tmp_path: Path, text: str, complaint: str) -> None:
    """Repeated keys, aliases, wrong shapes and wrong types each end in one error that names the file."""
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        read_yaml(path, Outer)
    assert complaint in caught.value.message
    assert str(path) in caught.value.message


def test_missing_and_truncated_json(tmp_path: Path) -> None:
    """A missing file and a file cut short are told apart."""
    with pytest.raises(MissingError, match="no such file"):
        read_json(tmp_path / "none.json", Outer)
    cut = tmp_path / "cut.json"
    cut.write_text('{"precision": "f')
    with pytest.raises(UserError, match="not valid JSON"):
        read_json(cut, Outer)


def _fill_and_fail(target: Path) -> None:
    with whole_folder(target, force=True) as folder:
        half = folder / "new"
        half.write_text("half")
        (half / "below").write_text("a file is no folder")


def test_failed_folder_leaves_the_old_one_and_no_remains(tmp_path: Path) -> None:
    """A failure while a folder is filled leaves the old folder as it was, and nothing beside it."""
    target = tmp_path / "engine"
    with whole_folder(target) as folder:
        (folder / "old").write_text("old")
    with pytest.raises(NotADirectoryError):
        _fill_and_fail(target)
    assert [path.name for path in tmp_path.iterdir()] == ["engine"]
    assert (target / "old").read_text() == "old"


def test_existing_folder_needs_force(tmp_path: Path) -> None:
    """A folder that holds something is replaced only with force; an empty one is free."""
    target = tmp_path / "engine"
    target.mkdir()
    with whole_folder(target) as folder:
        (folder / "a").write_text("1")
    with pytest.raises(UserError, match="already exists"), whole_folder(target):
        pass
    with whole_folder(target, force=True) as folder:
        (folder / "b").write_text("2")
    assert [path.name for path in target.iterdir()] == ["b"]


def _hold(target: Path, held: object, release: object) -> None:
    with folder_lock(target):
        held.set()  # type: ignore[attr-defined]
        release.wait(30)  # type: ignore[attr-defined]


def test_second_writer_is_told_and_a_killed_writer_frees_the_folder(tmp_path: Path) -> None:
    """The second writer of a folder is told at once; a writer killed with SIGKILL holds nothing."""
    target = tmp_path / "engine"
    context = multiprocessing.get_context("spawn")
    held, release = context.Event(), context.Event()
    writer = context.Process(target=_hold, args=(target, held, release))
    writer.start()
    assert held.wait(30)
    with pytest.raises(UserError, match="another command is writing"), folder_lock(target):
        pass
    writer.kill()
    writer.join(30)
    with folder_lock(target):
        assert writer.exitcode == -9


def test_text_appears_whole(tmp_path: Path) -> None:
    """A written file leaves no temporary file beside it."""
    write_text(tmp_path / "deep" / "a.txt", "x")
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["a.txt"]


def test_writer_killed_between_renames_loses_nothing(tmp_path: Path) -> None:
    """Where a writer died after moving the old folder away, the next writer finds it again."""
    target = tmp_path / "engine"
    old = tmp_path / ".engine.old"
    old.mkdir()
    (old / "kept").write_text("1")
    with pytest.raises(UserError, match="already exists"), whole_folder(target):
        pass
    assert (target / "kept").read_text() == "1"
