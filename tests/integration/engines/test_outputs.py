"""What a command may write to and replace, and that nothing half-written is ever seen."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
from pathlib import Path

import pytest

from engines.errors import UserError
from engines.files import Document, MadeBy, read_json, write_json
from engines.outputs import (
    CONTENTS_NAME,
    FolderContents,
    add_contents,
    folder_in_place,
    folder_lock,
    is_being_written,
    paths_named,
    refuse_existing,
    refuse_existing_file,
    refuse_foreign_junit,
    whole_folder,
)
from engines.processes import started_ticks
from loadtest.report import write_junit

BY = MadeBy(command="build-engine --precision fp8", version="0")


def _make(target: Path, *names: str, later: tuple[str, ...] = ()) -> Path:
    with whole_folder(target, made_by=BY, later=later) as folder:
        for name in names:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(name)
    return target


def _refused(target: Path, *inputs: Path) -> str:
    with pytest.raises(UserError) as caught:
        refuse_existing(target, force=True, inputs=inputs)
    assert caught.value.hint
    return caught.value.message


def _fill_and_fail(target: Path) -> None:
    with whole_folder(target, made_by=BY, force=True) as folder:
        half = folder / "new"
        half.write_text("half")
        (half / "below").write_text("a file is no folder")


def test_failed_folder_leaves_the_old_one_and_no_remains(tmp_path: Path) -> None:
    """A failure while a folder is filled leaves the old folder as it was, and nothing beside it."""
    target = tmp_path / "engine"
    with whole_folder(target, made_by=BY) as folder:
        (folder / "old").write_text("old")
    with pytest.raises(NotADirectoryError):
        _fill_and_fail(target)
    assert [path.name for path in tmp_path.iterdir()] == ["engine"]
    assert (target / "old").read_text() == "old"


def test_a_command_replaces_folders_of_its_own_kind_only(tmp_path: Path) -> None:
    """A run never replaces an engine, whatever --force says; a prediction replaces a run."""
    engine = _make(tmp_path / "engine", "plan.json")
    refuse_existing(engine, force=True, command="build-engine")
    with pytest.raises(UserError, match="is an engine folder: run-load does not replace it"):
        refuse_existing(engine, force=True, command="run-load")
    with whole_folder(tmp_path / "run", made_by=MadeBy(command="run-load --url h", version="0")) as run:
        (run / "run.json").touch()
    refuse_existing(tmp_path / "run", force=True, command="predict-load")
    for line in ("unpack-checkpoint smollm2", "check-gpu", "install-triton"):  # none checks before it writes
        by = MadeBy(command=line, version="0")
        said = f"is an engine folder: {line.split()[0]} does not replace it"
        with pytest.raises(UserError, match=said), whole_folder(engine, made_by=by, force=True):
            pass
        with pytest.raises(UserError, match=said), folder_in_place(engine, made_by=by, files=(), force=True):
            pass
    assert (engine / "plan.json").is_file()


def test_existing_folder_needs_force(tmp_path: Path) -> None:
    """A folder that holds something is replaced only with force; an empty one is free."""
    target = tmp_path / "engine"
    target.mkdir()
    with whole_folder(target, made_by=BY) as folder:
        (folder / "a").write_text("1")
    with pytest.raises(UserError, match="already exists"), whole_folder(target, made_by=BY):
        pass
    with whole_folder(target, made_by=BY, force=True) as folder:
        (folder / "b").write_text("2")
    assert sorted(path.name for path in target.iterdir()) == [CONTENTS_NAME, "b"]


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


def test_writer_killed_between_renames_loses_nothing(tmp_path: Path) -> None:
    """Where a writer died after moving the old folder away, the next writer finds it again."""
    target = tmp_path / "engine"
    old = tmp_path / ".engine.old"
    old.mkdir()
    (old / "kept").write_text("1")
    with pytest.raises(UserError, match="already exists"), whole_folder(target, made_by=BY):
        pass
    assert (target / "kept").read_text() == "1"


def test_contents_list_every_file_and_who_wrote_them(tmp_path: Path) -> None:
    """`.contents.json` names the files, whatever their depth, and the command."""
    target = _make(tmp_path / "engine", "manifest.json", "engine/rank0.engine")
    contents = read_json(target / CONTENTS_NAME, FolderContents)
    assert sorted(contents.files) == ["engine/rank0.engine", "manifest.json"]
    assert contents.made_by == BY


@pytest.mark.parametrize("name", ["mine.txt", "engine/mine.txt", "new/deep/mine", ".hidden", "engine/__pycache__/a.py"])
def test_one_foreign_file_anywhere_saves_the_folder(tmp_path: Path, name: str) -> None:
    """A folder of ours with a file that is not ours is refused, and the file is named."""
    target = _make(tmp_path / "engine", "manifest.json", "engine/rank0.engine")
    (target / name).parent.mkdir(parents=True, exist_ok=True)
    (target / name).write_text("mine")
    assert f"contains 1 file ({name}) that this tool did not write" in _refused(target)


def test_links_and_empty_folders_count_as_content(tmp_path: Path) -> None:
    """A symbolic link to a folder, and an empty folder somebody made, are not passed over."""
    target = _make(tmp_path / "engine", "manifest.json")
    (target / "link").symlink_to(tmp_path)
    (target / "plans").mkdir()
    assert "2 files (link, plans/)" in _refused(target)


def test_bytecode_and_what_later_commands_write_do_not_count(tmp_path: Path) -> None:
    """Python's caches, a server's log and a rolled engine's version are no foreign files."""
    target = _make(tmp_path / "repository", "manifest.json", "model/1/model.py", later=("server.log",))
    for name in ("server.log", "model/1/__pycache__/model.cpython-311.pyc", "model/2/model.py"):
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        (target / name).write_text("x")
    assert "model/2/model.py" in _refused(target)
    add_contents(target, target / "model" / "2")
    refuse_existing(target, force=True)


def test_files_that_users_add_move_to_the_new_folder(tmp_path: Path) -> None:
    """Passwords in `.env` stay, with their permissions, when the deployment that reads them is written again."""
    target = tmp_path / "deployment"
    for text in ("old", "new"):
        with whole_folder(target, made_by=BY, force=True, users=(".env", ".other")) as folder:
            (folder / "compose.yaml").write_text(text)
        if text == "old":
            (target / ".env").write_text("PASSWORD=1")
            (target / ".env").chmod(0o600)
    assert (target / "compose.yaml").read_text() == "new"
    assert (target / ".env").read_text() == "PASSWORD=1"
    assert (target / ".env").stat().st_mode & 0o777 == 0o600
    assert not (target / ".other").exists()
    refuse_existing(target, force=True)


def test_foreign_folder_is_refused_with_what_it_holds(tmp_path: Path) -> None:
    """A folder without our list is refused with a count and the first names; a manifest of another is no list."""
    for number in range(39):
        (tmp_path / "mine" / f"{number:02d}.txt").parent.mkdir(exist_ok=True)
        (tmp_path / "mine" / f"{number:02d}.txt").write_text("x")
    said = _refused(tmp_path / "mine")
    assert "39 files (00.txt, 01.txt, 02.txt, ...)" in said
    (tmp_path / "mine" / CONTENTS_NAME).write_text('{"files": ["00.txt"]}')
    assert "was not written by this tool" in _refused(tmp_path / "mine")


def test_inputs_are_never_written_over(tmp_path: Path) -> None:
    """An output equal to, inside or around an input is refused, through links too, whether it exists or not."""
    run = _make(tmp_path / "runs" / "a", "run.json")
    (tmp_path / "link").symlink_to(run)
    for target in (run, run / "report", tmp_path / "runs", tmp_path / "link" / "report"):
        assert "an input of this command" in _refused(target, run)
        assert "an input of this command" in _refused(target, tmp_path / "link") or target == tmp_path / "runs"
    refuse_existing(tmp_path / "runs" / "b", force=True, inputs=(run,))


def test_home_root_and_the_current_folder_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither they nor what holds them is replaced."""
    (tmp_path / "home").mkdir()
    (tmp_path / "here" / "deep").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "here" / "deep")
    for target in ("/", tmp_path / "home", tmp_path, ".", "..", tmp_path / "here"):
        assert "is or contains the" in _refused(Path(target))


def test_links_are_refused_at_either_end(tmp_path: Path) -> None:
    """A symbolic link is not followed to what it leads to, nor replaced; one that leads nowhere neither."""
    made = _make(tmp_path / "engine", "a")
    for name, end in (("link", made), ("dangling", tmp_path / "none"), ("loop", tmp_path / "loop")):
        (tmp_path / name).symlink_to(end)
        assert "is a symbolic link" in _refused(tmp_path / name)


def test_served_folder_is_kept_until_its_server_ends(tmp_path: Path) -> None:
    """A record of a running process keeps a folder and what is below it; one of a process that has gone does not."""
    target = _make(tmp_path / "repository", "manifest.json", "part/.contents.json", later=("server.json",))
    record = '{"pid": %d, "started_ticks": %d}'
    began = started_ticks(os.getpid())
    assert began is not None
    (target / "server.json").write_text(record % (os.getpid(), began))
    assert f"names process {os.getpid()}, which is running" in _refused(target)
    (target / "server.json").write_text(record % (os.getpid(), began - 1))
    refuse_existing(target, force=True)


def test_what_comes_while_a_folder_is_made_is_kept(tmp_path: Path) -> None:
    """A file put into the target during a long build, or a folder made there, is not lost."""
    target = _make(tmp_path / "engine", "old")
    with pytest.raises(UserError, match="mine"), whole_folder(target, made_by=BY, force=True):
        (target / "mine").write_text("kept")
    assert sorted(path.name for path in target.iterdir()) == [CONTENTS_NAME, "mine", "old"]
    with pytest.raises(UserError, match="already exists"), whole_folder(tmp_path / "new", made_by=BY):
        _make(tmp_path / "new" / "mine", "kept")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["engine", "new"]


@pytest.mark.parametrize("suffix", ["part", "old"])
def test_foreign_folders_beside_the_target_are_kept(tmp_path: Path, suffix: str) -> None:
    """A folder that has one of our working names, and is not ours, is in the way and stays."""
    target = _make(tmp_path / "engine", "a")
    beside = tmp_path / f".engine.{suffix}"
    beside.mkdir()
    (beside / "mine").write_text("kept")
    with pytest.raises(UserError, match="in the way"), whole_folder(target, made_by=BY, force=True):
        pass
    assert (beside / "mine").read_text() == "kept"
    assert (target / "a").is_file()


def test_a_new_folder_without_its_main_file_is_removed(tmp_path: Path) -> None:
    """A run that was interrupted before its first record leaves nothing that would need --force next time."""
    target = tmp_path / "run"
    for text, kept in ((None, False), ("", False), ("{}\n", True)):
        run = folder_in_place(target, made_by=BY, files=("*.json*",), main="requests.jsonl")
        with contextlib.suppress(KeyboardInterrupt), run:
            (target / "run.json").write_text("{}")
            if text is not None:
                (target / "requests.jsonl").write_text(text)
            raise KeyboardInterrupt
        assert target.exists() is kept


def test_folder_in_place_replaces_once_something_is_written(tmp_path: Path) -> None:
    """What stood there comes back where nothing was written, and goes where something was, even if it then failed."""
    target = tmp_path / "run"
    with folder_in_place(target, made_by=BY, files=("run.json",)):
        (target / "run.json").write_text("first")
    with contextlib.suppress(KeyError), folder_in_place(target, made_by=BY, files=("run.json",), force=True):
        raise KeyError
    assert (target / "run.json").read_text() == "first"
    with contextlib.suppress(KeyError), folder_in_place(target, made_by=BY, files=("run.json",), force=True):
        (target / "run.json").write_text("second")
        raise KeyError
    assert (target / "run.json").read_text() == "second"
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    refuse_existing(target, force=True)


@pytest.mark.parametrize(
    ("name", "is_kept"), [(None, False), ("run.json", False), ("requests.jsonl", True), ("x", True)]
)
def test_what_a_killed_writer_left_without_a_result_needs_no_force(
    tmp_path: Path, name: str | None, is_kept: bool
) -> None:
    """A run's folder before its first record holds nothing worth keeping; a record, or a file of the user's, does."""
    target = tmp_path / "run"
    target.mkdir()
    left = FolderContents(made_by=BY, later=("run.json", "requests.jsonl"), main="requests.jsonl")
    write_json(target / CONTENTS_NAME, left)
    if name is not None:
        (target / name).write_text("{}")
    if is_kept:
        with pytest.raises(UserError, match="already exists"):
            refuse_existing(target, force=False)
    else:
        refuse_existing(target, force=False)
    with pytest.raises(UserError, match="already exists"):
        refuse_existing(_make(tmp_path / "engine", "plan.json", later=("server.log",)), force=False)


def test_only_a_document_of_ours_is_replaced_by_a_file(tmp_path: Path) -> None:
    """A JSON document with `made_by` is replaced with --force; any other file, and a folder, never."""
    ours, notes = tmp_path / "calibration.json", tmp_path / "notes.txt"
    write_json(ours, Document(made_by=BY))
    notes.write_text("mine")
    refuse_existing_file(ours, force=True)
    for target, force, inputs in ((ours, False, ()), (notes, True, ()), (tmp_path, True, ()), (ours, True, (ours,))):
        with pytest.raises(UserError):
            refuse_existing_file(target, force=force, inputs=inputs)


def test_what_a_killed_writer_of_a_file_left_is_removed(tmp_path: Path) -> None:
    """By the next writer of that file; a living one's, and files of others, stay."""
    ended, living = 2**22 + 1, os.getpid()
    names = [f".a.json.{ended}.part", f".a.json.{living}.part", f".a.json.b.{ended}.part", ".a.json.mine.part"]
    for name in names:
        (tmp_path / name).touch()
    refuse_existing_file(tmp_path / "a.json", force=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names[1:])


def test_a_file_of_a_written_folder_is_no_target_of_a_single_file(tmp_path: Path) -> None:
    """An engine's plan.json has `made_by`, too, but another document in its place would destroy the engine."""
    engine = _make(tmp_path / "engine", "a", later=("*.log",))
    write_json(engine / "a", Document(made_by=BY))
    for name in ("a", "server.log", CONTENTS_NAME):
        with pytest.raises(UserError, match="is part of"):
            refuse_existing_file(engine / name, force=True)
    refuse_existing_file(engine / "mine.json", force=True)


def test_a_folder_that_may_not_be_written_is_refused_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before a long fit or search, not after it; root may write anywhere, so the system's answer is replaced."""
    monkeypatch.setattr(os, "access", lambda path, mode: path == tmp_path and mode == os.F_OK)
    for refuse in (refuse_existing, refuse_existing_file):
        with pytest.raises(UserError, match=f"{tmp_path} is not writable"):
            refuse(tmp_path / "folder", force=True)


def test_a_command_may_judge_its_own_files(tmp_path: Path) -> None:
    """`is_ours` decides about files that are no JSON documents."""
    machine = tmp_path / "machine.yaml"
    machine.write_text("kind: measured\n")
    refuse_existing_file(machine, force=True, is_ours=lambda path: path == machine)
    with pytest.raises(UserError, match="not written by this command"):
        refuse_existing_file(machine, force=True, is_ours=lambda _: False)


def test_verdicts_replace_verdicts_alone(tmp_path: Path) -> None:
    """The verdicts of an earlier run are written over; any other file, pytest's JUnit XML too, and a folder, is not."""
    verdicts, notes, pytests = tmp_path / "verdicts.xml", tmp_path / "notes.xml", tmp_path / "pytest.xml"
    write_junit(verdicts, "report-load run", [])
    notes.write_text("<notes/>")
    pytests.write_text('<?xml version="1.0" encoding="utf-8"?><testsuites name="pytest tests"></testsuites>\n')
    refuse_foreign_junit(verdicts)
    refuse_foreign_junit(tmp_path / "new.xml")
    for target in (notes, pytests, tmp_path):
        with pytest.raises(UserError):
            refuse_foreign_junit(target)
    with pytest.raises(UserError, match="inside an input"):
        refuse_foreign_junit(tmp_path / "new.xml", inputs=[tmp_path])


def test_flags_name_what_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Paths that exist count; a library's name does, too, only where it is a file or is written as a path."""
    monkeypatch.chdir(tmp_path)
    for folder in ("latency", "tok", "run"):
        Path(folder).mkdir()
    Path("mine.yaml").write_text("")
    flags = {
        "out": Path("run"), "force": True, "recipe_name": "latency,mine.yaml", "tokenizer": "tok",
        "runs": (Path("run"),), "checkpoint": Path("none"), "scenario_name": "./latency", "isl": 5, "gpu": None,
    }  # fmt: skip
    assert [str(path) for path in paths_named(flags)] == ["mine.yaml", "tok", "run", "latency"]


def test_a_folder_is_being_written_while_it_is_locked(tmp_path: Path) -> None:
    """By whatever name it is called; to ask neither makes a lock nor needs the folder."""
    target, link = tmp_path / "run", tmp_path / "link"
    target.mkdir()
    link.symlink_to(target)
    assert not is_being_written(target)
    assert not is_being_written(tmp_path / "missing" / "run")
    with folder_lock(target):
        assert is_being_written(target)
        assert is_being_written(link / ".")
    assert not is_being_written(target)
    assert sorted(tmp_path.iterdir()) == [link, target]
