"""Output folders: which ones a command may write or replace; they appear complete or not at all.

Every folder that a command writes holds `.contents.json`: who made it and the files it wrote. --force replaces a folder
only where that list accounts for every file in it. This module alone decides that.
"""

from __future__ import annotations

import fcntl
import fnmatch
import json
import os
import shutil
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from engines.errors import CommandError, UserError
from engines.files import Document, MadeBy, read_json, write_json
from engines.processes import started_ticks

CONTENTS_NAME = ".contents.json"
_NAMES_SHOWN = 3
_OTHER_OUT = "choose another --out"
_JUNIT_MARK, _JUNIT_HEAD_BYTES = b"<testsuites", 200


class FolderContents(Document):
    """`.contents.json`: the files a command wrote into its folder.

    Attributes:
        files: Their paths, relative to the folder.
        later: Patterns of files that are written there after the folder was made, as a server's log.
    """

    files: tuple[str, ...] = ()
    later: tuple[str, ...] = ()

    def accounts_for(self, name: str) -> bool:
        """Whether a file is the tool's own; Python's bytecode caches are nobody's."""
        path = PurePosixPath(name)
        if name == CONTENTS_NAME or (path.parent.name == "__pycache__" and path.suffix == ".pyc"):
            return True
        return name in self.files or any(_matches(path, pattern) for pattern in self.later)


def refuse_existing(target: Path, *, force: bool, inputs: Collection[Path] = ()) -> None:
    """Refuse a folder that a command may not write to.

    Args:
        force: Whether to replace what is there, if this tool made it.
        inputs: Files and folders that the command reads.

    Raises:
        UserError: `target` is, holds or is in an input; is a symbolic link, a file, the file system's root, or holds
            the home or the current folder; or it holds something, and `force` is not set, this tool did not write all
            of it, or it is a repository that is being served.
    """
    _refuse_place(target, inputs)
    if target.exists() and not target.is_dir():
        raise UserError(f"{target} is a file; expected a folder", hint=_OTHER_OUT)
    if not target.exists() or not any(target.iterdir()):
        return
    if not force:
        raise UserError(f"{target} already exists", hint="choose another --out, or add --force to replace it")
    _refuse_in_use(target)
    foreign = _foreign(target)
    if foreign is not None:
        raise foreign


def refuse_existing_file(target: Path, *, force: bool, inputs: Collection[Path] = ()) -> None:
    """Refuse a file that a command may not write to: only a JSON document of this tool is ever replaced.

    Raises:
        UserError: As `refuse_existing`.
    """
    _refuse_place(target, inputs)
    if target.is_dir():
        raise UserError(f"{target} is a folder; expected a file", hint="name a file in it with --out")
    if not target.exists():
        return
    if not force:
        raise UserError(f"{target} already exists", hint="choose another --out, or add --force to replace it")
    if "made_by" not in _loaded(target):
        raise UserError(f"{target} was not written by this tool: it has no made_by", hint=_OTHER_OUT)


def refuse_foreign_junit(target: Path) -> None:
    """Refuse a file for verdicts that holds something else.

    Raises:
        UserError: It is a folder, a link, or a file that is no JUnit XML.
    """
    _refuse_place(target, ())
    if target.exists() and not (target.is_file() and _JUNIT_MARK in target.read_bytes()[:_JUNIT_HEAD_BYTES]):
        raise UserError(f"{target} exists and is not JUnit XML", hint="choose another file for --junit")


def paths_named(flags: dict[str, Any]) -> list[Path]:
    """Return the files and folders that a command line names to be read: every flag's value that is there.

    A word that may be a name of ours as well (`--recipe latency`) counts where it is a file or is written as a path.
    """
    found: list[Path] = []
    for flag, value in flags.items():
        for each in value if isinstance(value, (tuple, list)) else (value,):
            if flag in {"out", "junit"}:
                continue
            if isinstance(each, Path):
                found.append(each)
            elif isinstance(each, str):
                found += [Path(word) for word in each.split(",") if _is_path(word, flag)]
    return [path for path in found if os.path.lexists(path)]


@contextmanager
def whole_folder(
    target: Path, *, made_by: MadeBy, force: bool = False, inputs: Collection[Path] = (), later: Sequence[str] = ()
) -> Iterator[Path]:
    """Give a folder beside `target` to fill; it becomes `target` only if the block ends without an error.

    What it replaces is removed once the new folder stands. Two writers of one target exclude each other.

    Args:
        later: Patterns of files that other commands write into the folder afterwards.

    Raises:
        UserError: `refuse_existing` refuses the target, before the block or after it; or another process writes it.
    """
    with folder_lock(target):
        _recover(target)
        refuse_existing(target, force=force, inputs=inputs)
        beside = target.with_name(f".{target.name}.part")
        _remove_own(beside)
        beside.mkdir(parents=True)
        contents = FolderContents(made_by=made_by, later=tuple(later))
        try:
            write_json(beside / CONTENTS_NAME, contents)
            yield beside
            write_json(beside / CONTENTS_NAME, contents.model_copy(update={"files": tuple(_written_in(beside))}))
            refuse_existing(target, force=force, inputs=inputs)  # a long build: what came meanwhile is not lost
            _move_aside(target)
            beside.rename(target)
            _remove_own(_old(target))
        finally:
            shutil.rmtree(beside, ignore_errors=True)


@contextmanager
def folder_in_place(
    target: Path,
    *,
    made_by: MadeBy,
    files: Sequence[str],
    main: str | None = None,
    force: bool = False,
    inputs: Collection[Path] = (),
) -> Iterator[Path]:
    """Give the empty folder `target` to fill as the work goes on, for what must survive a killed writer.

    What it replaces is removed once the block has ended and the new folder stands; otherwise it comes back.

    Args:
        files: Patterns of the files that will be written.
        main: The file without which the new folder is worth nothing; None: any file will do.

    Raises:
        UserError: `refuse_existing` refuses the target, or another process writes it.
    """
    with folder_lock(target):
        _recover(target)
        refuse_existing(target, force=force, inputs=inputs)
        _move_aside(target)
        target.mkdir(parents=True)
        write_json(target / CONTENTS_NAME, FolderContents(made_by=made_by, later=tuple(files)))
        try:
            yield target
        finally:
            is_bare = [path.name for path in target.iterdir()] == [CONTENTS_NAME]
            is_worthless = main is not None and not ((target / main).is_file() and (target / main).stat().st_size)
            if is_bare or (is_worthless and _old(target).exists()):
                shutil.rmtree(target)
                _recover(target)
            _remove_own(_old(target))


def add_contents(folder: Path, part: Path) -> None:
    """Note the files below `part`, which a later command wrote into a folder that this tool made."""
    path = folder / CONTENTS_NAME
    if not path.is_file():
        return
    contents = read_json(path, FolderContents)
    added = [(part / name).relative_to(folder).as_posix() for name in _written_in(part)]
    write_json(path, contents.model_copy(update={"files": tuple(dict.fromkeys((*contents.files, *added)))}))


@contextmanager
def folder_lock(target: Path) -> Iterator[None]:
    """Hold the right to write `target`; the lock ends with the process, however it ends.

    Raises:
        UserError: Another process holds it, or no folder can be made there.
    """
    if not target.name:
        raise UserError(f"{target}: the path has no folder name", hint="give the full path of the folder")
    _make_parent(target)
    lock_path = target.with_name(f".{target.name}.lock")
    told = UserError(f"{target}: another command is writing this folder", hint="wait for it, or choose another --out")
    with lock_path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise told from error
        if not (lock_path.exists() and lock_path.stat().st_ino == os.fstat(lock.fileno()).st_ino):
            raise told  # the holder before us removed the file we locked; whoever made the new one goes first
        try:
            yield
        finally:
            lock_path.unlink(missing_ok=True)


def _refuse_place(target: Path, inputs: Collection[Path]) -> None:
    """Refuse by where the target is, whatever it holds."""
    if target.is_symlink():
        raise UserError(f"{target} is a symbolic link to {target.readlink()}", hint="name the folder itself")
    place = _resolved(target)
    home = os.path.expanduser("~")  # noqa: PTH111 (Path.home() fails where an account has none)
    kept = ((Path(home), "the home folder"), (Path.cwd(), "the current folder"))
    for folder, what in kept:
        if _resolved(folder).is_relative_to(place):
            raise UserError(f"{target} is or contains {what}", hint="choose a separate folder with --out")
    for each in inputs:
        read = _resolved(each)
        if place == read or read.is_relative_to(place) or place.is_relative_to(read):
            how = "is" if place == read else "holds" if read.is_relative_to(place) else "is inside"
            raise UserError(f"{target} {how} an input of this command: {each}", hint=_OTHER_OUT)


def _refuse_in_use(target: Path) -> None:
    """Refuse a folder that a process was started on, by the record it left; or one inside such a folder."""
    place = _resolved(target)
    for folder in (place, *place.parents):
        for record in folder.glob("*.json") if folder == place else (folder / "server.json",):
            found = _loaded(record)
            pid, began = found.get("pid"), found.get("started_ticks")
            if not isinstance(pid, int) or started_ticks(pid) is None:
                continue
            if began is None or began == started_ticks(pid):
                raise UserError(
                    f"{folder} is being served: {record.name} names process {pid}, which is running",
                    hint=f"serve-repo {folder} --stop ends it",
                )


def _foreign(target: Path) -> UserError | None:
    """Return why a folder may not be replaced: nothing says that this tool made it, or it holds something else."""
    try:
        contents = read_json(target / CONTENTS_NAME, FolderContents)
    except CommandError:
        names = sorted(path.name for path in target.iterdir())
        text = (
            f"{target} was not written by this tool, or by a version that listed no files: it contains {_some(names)}"
        )
        return UserError(text, hint="choose another --out, or remove it yourself")
    names = [name for name in _files_in(target) if not contents.accounts_for(name)]
    if not names:
        return None
    return UserError(
        f"{target} contains {_some(names)} that this tool did not write", hint="move it away, or choose another --out"
    )


def _some(names: Sequence[str]) -> str:
    """Return a count and the first names.

    >>> _some(["a"]), _some(["a", "b", "c", "d"])
    ('1 file (a)', '4 files (a, b, c, ...)')
    """
    shown = ", ".join(names[:_NAMES_SHOWN]) + (", ..." if len(names) > _NAMES_SHOWN else "")
    return f"{len(names)} file{'s' * (len(names) != 1)} ({shown})"


def _files_in(folder: Path) -> Iterator[str]:
    """Yield the paths of all that is in a folder and is no folder, and of folders that are empty."""
    for root, folders, files in os.walk(folder):
        at = Path(root)
        links = [name for name in folders if (at / name).is_symlink()]
        for name in sorted([*files, *links]):
            yield (at / name).relative_to(folder).as_posix()
        if not files and not folders and at != folder:
            yield f"{at.relative_to(folder).as_posix()}/"


def _written_in(folder: Path) -> list[str]:
    return [name for name in _files_in(folder) if name != CONTENTS_NAME]


def _matches(path: PurePosixPath, pattern: str) -> bool:
    """Whether a path matches a pattern part by part: `*` does not cross a slash."""
    parts = pattern.split("/")
    return len(parts) == len(path.parts) and all(map(fnmatch.fnmatchcase, path.parts, parts))


def _is_path(word: str, flag: str) -> bool:
    if not word or "\0" in word:
        return False
    return flag == "tokenizer" or os.sep in word or Path(word).is_file()


def _loaded(path: Path) -> dict[str, Any]:
    """Return a JSON object; an empty one where the file holds none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _resolved(path: Path) -> Path:
    """Return a path with its links followed, as far as they lead somewhere."""
    return Path(os.path.realpath(path))


def _make_parent(target: Path) -> None:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{target}: cannot be created: {error.strerror}", hint=_OTHER_OUT) from error


def _old(target: Path) -> Path:
    return target.with_name(f".{target.name}.old")


def _recover(target: Path) -> None:
    """Bring back the old folder where a writer was killed after it had moved it aside."""
    if _old(target).exists() and not target.exists():
        _old(target).rename(target)


def _move_aside(target: Path) -> None:
    """Rename what stands at the target; it goes once the new folder stands."""
    _remove_own(_old(target))
    if target.exists():
        target.rename(_old(target))


def _remove_own(folder: Path) -> None:
    """Remove what an earlier writer left beside its target.

    Raises:
        UserError: It is nothing of ours.
    """
    if not folder.exists():
        return
    if any(folder.iterdir()) and not (folder / CONTENTS_NAME).is_file():
        raise UserError(f"{folder} is in the way and was not written by this tool", hint="move it away")
    shutil.rmtree(folder, ignore_errors=True)
