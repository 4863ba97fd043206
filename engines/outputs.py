"""Output folders: which ones a command may write or replace. Folders appear complete or not at all.

Every folder that a command writes contains `.contents.json`: the command and the files it wrote. --force replaces a
folder only if that list covers every file in it. Only this module makes that decision.
"""

from __future__ import annotations

import fcntl
import fnmatch
import glob
import json
import os
import shutil
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import IO, Any

from engines.errors import CommandError, UserError
from engines.files import (
    CONTENTS_NAME,
    Document,
    MadeBy,
    kind_made_by,
    kind_of_folder,
    read_json,
    write_json,
    written_as,
)
from engines.processes import started_ticks
from engines.signals import interrupts_deferred

LOCKS = ".*.lock"  # pattern of the locks of folders that are written within another, as killed writers leave them
_NAMES_SHOWN = 3
_OTHER_OUT = "choose another --out"
_JUNIT_MARK, _JUNIT_HEAD_BYTES = b'<testsuites name="report-load ', 200


class FolderContents(Document):
    """`.contents.json`: the files that a command wrote into its folder.

    Attributes:
        files: Their paths, relative to the folder.
        later: Patterns of files that are written later, such as a server's log.
        main: The file without which, or with which empty, the folder is useless, such as a run's records.
        last: The file that completes the folder; without it, the folder does not replace an earlier one.
    """

    files: tuple[str, ...] = ()
    later: tuple[str, ...] = ()
    main: str | None = None
    last: str | None = None

    def accounts_for(self, name: str) -> bool:
        """Whether a file was written by the tool; Python's bytecode caches are ignored."""
        path = PurePosixPath(name)
        if written_as(path.name) != path.name:  # its writer was killed
            return self.accounts_for(path.with_name(written_as(path.name)).as_posix())
        if name == CONTENTS_NAME or (path.parent.name == "__pycache__" and path.suffix == ".pyc"):
            return True
        is_folder = name.endswith("/")
        return name in self.files or any(_matches(path, pattern, is_folder=is_folder) for pattern in self.later)


def refuse_existing(target: Path, *, force: bool, inputs: Collection[Path] = (), command: str | None = None) -> None:
    """Refuse a folder that a command may not write to.

    Args:
        force: Whether to replace an existing folder if this tool made it.
        inputs: Files and folders that the command reads.
        command: The command, or its command line. It replaces only folders of its own kind: a run never replaces an
            engine. None: any.

    Raises:
        UserError: `target` equals, contains or is inside an input; is a symbolic link, a file or the file system's
            root, or contains the home or the current folder; is in a folder that is not writable; or it is not
            empty, and `force` is not set, or not all of it was written by this tool, or it is a repository that is
            being served. What a killed command left before its first result needs no `force`.
    """
    _refuse_place(target, inputs)
    if target.exists() and not target.is_dir():
        raise UserError(f"{target} is a file; expected a folder", hint=_OTHER_OUT)
    if not target.exists() or not any(target.iterdir()) or _is_begun(target):
        return
    if not force and not _holds_no_result(target):
        raise UserError(f"{target} already exists", hint="choose another --out, or add --force to replace it")
    _refuse_in_use(target)
    foreign = _foreign(target)
    if foreign is not None:
        raise foreign
    theirs = kind_of_folder(target)
    if command is not None and theirs is not None and theirs != kind_made_by(command):
        raise UserError(
            f"{target} is {theirs}: {command.partition(' ')[0]} does not replace it",
            hint="choose another --out, or remove it yourself",
        )


def refuse_existing_file(
    target: Path, *, force: bool, inputs: Collection[Path] = (), is_ours: Callable[[Path], bool] | None = None
) -> None:
    """Refuse a file that a command may not write to: only what this tool wrote on its own may be replaced.

    Args:
        is_ours: Whether an existing file is one of this tool's; None: it is a JSON document with `made_by`.

    Raises:
        UserError: `target` is in a place that `refuse_existing` refuses, is a folder, or is part of a folder that a
            command wrote; or it exists, and `force` is not set or the file is not this tool's.
    """
    _refuse_place(target, inputs)
    if target.is_dir():
        raise UserError(f"{target} is a folder; expected a file", hint="name a file in it with --out")
    _refuse_part(target)
    _remove_parts(target)
    if not target.exists():
        return
    if not force:
        raise UserError(f"{target} already exists", hint="choose another --out, or add --force to replace it")
    if is_ours is None and "made_by" not in _loaded(target):
        raise UserError(f"{target} was not written by this tool: it has no made_by", hint=_OTHER_OUT)
    if is_ours is not None and not is_ours(target):
        raise UserError(f"{target} was not written by this command", hint=_OTHER_OUT)


def refuse_foreign_junit(target: Path, *, inputs: Collection[Path] = ()) -> None:
    """Refuse a JUnit output file that is in an input, or has other content than the verdicts of `report-load`.

    Raises:
        UserError: It is in a place that `refuse_existing` refuses, or is a folder, a link, or another file.
    """
    other = "choose another file for --junit"
    _refuse_place(target, inputs, hint=other)
    if target.exists() and not (target.is_file() and _JUNIT_MARK in target.read_bytes()[:_JUNIT_HEAD_BYTES]):
        raise UserError(f"{target} exists and is not JUnit XML of report-load", hint=other)


def paths_named(flags: dict[str, Any]) -> list[Path]:
    """Return the input files and folders named on a command line: every flag value that exists.

    A word that may also be a built-in name (`--recipe latency`) counts if it is a file or is written as a path.
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
    target: Path,
    *,
    made_by: MadeBy,
    force: bool = False,
    inputs: Collection[Path] = (),
    later: Sequence[str] = (),
    users: Sequence[str] = (),
) -> Iterator[Path]:
    """Provide a temporary folder beside `target`, renamed to `target` if the block ends without an error.

    The replaced folder is removed after the rename. Two writers of one target exclude each other.

    Args:
        later: Patterns of files that other commands write into the folder afterwards.
        users: Files that users add, such as `.env`: the new folder gets them from the replaced one.

    Raises:
        UserError: `refuse_existing` refuses the target, before or after the block; or another process is writing it.
    """
    with folder_lock(target):
        _recover(target)
        refuse_existing(target, force=force, inputs=inputs, command=made_by.command)
        _remove_own(_old(target))
        beside = target.with_name(f".{target.name}.part")
        _remove_own(beside)
        contents = FolderContents(made_by=made_by, later=(*later, *users))
        try:
            beside.mkdir(parents=True)
            write_json(beside / CONTENTS_NAME, contents)
            yield beside
            write_json(beside / CONTENTS_NAME, contents.model_copy(update={"files": tuple(_written_in(beside))}))
            # After a long build: files created in the meantime are not lost.
            refuse_existing(target, force=force, inputs=inputs, command=made_by.command)
            for name in users:
                if (target / name).is_file():
                    shutil.copy2(target / name, beside / name, follow_symlinks=False)
            with interrupts_deferred():
                _move_aside(target)
                beside.rename(target)
                _remove_own(_old(target))
        finally:
            with interrupts_deferred():
                _remove(beside)
                _recover(target)


@contextmanager
def folder_in_place(
    target: Path,
    *,
    made_by: MadeBy,
    files: Sequence[str],
    main: str | None = None,
    last: str | None = None,
    force: bool = False,
    inputs: Collection[Path] = (),
) -> Iterator[Path]:
    """Provide the empty folder `target` itself, for output that must survive a killed writer.

    The replaced folder is removed after the block, however that ends. If the new one is useless, it is removed, and the
    replaced one restored.

    Args:
        files: Patterns of the files that will be written.
        main: The file without which, or with which empty, the new folder is useless; None: any file suffices.
        last: The file that completes the new folder: without it, the replaced one is restored too.

    Raises:
        UserError: `refuse_existing` refuses the target, or another process is writing it.
    """
    with folder_lock(target):
        _recover(target)
        refuse_existing(target, force=force, inputs=inputs, command=made_by.command)
        _remove_own(_old(target))
        contents = FolderContents(made_by=made_by, later=tuple(files), main=main, last=last)
        try:
            with interrupts_deferred():
                _move_aside(target)
                target.mkdir(parents=True)
                write_json(target / CONTENTS_NAME, contents)
            yield target
        finally:
            with interrupts_deferred():
                if target.is_dir() and _is_without_result(target, main):
                    _remove(target)
                _recover(target)
                _remove_own(_old(target))


def add_contents(folder: Path, part: Path) -> None:
    """Record files below `part` that a later command wrote into a folder made by this tool."""
    path = folder / CONTENTS_NAME
    if not path.is_file():
        return
    contents = read_json(path, FolderContents)
    added = [(part / name).relative_to(folder).as_posix() for name in _written_in(part)]
    write_json(path, contents.model_copy(update={"files": tuple(dict.fromkeys((*contents.files, *added)))}))


@contextmanager
def folder_lock(target: Path) -> Iterator[None]:
    """Lock `target` for writing; the lock ends with the process in every case.

    Raises:
        UserError: Another process holds it, or its parent folder cannot be created or written to.
    """
    if not target.name:
        raise UserError(f"{target}: the path has no folder name", hint="give the full path of the folder")
    _make_parent(target)
    lock_path = _lock_path(target)
    lock: IO[str] | None = None
    try:
        with interrupts_deferred():
            lock = _taken_lock(target, lock_path)
        yield
    finally:
        if lock is not None:
            with interrupts_deferred():
                lock_path.unlink(missing_ok=True)
                lock.close()


def _taken_lock(target: Path, lock_path: Path) -> IO[str]:
    """Return the file whose lock this process now holds."""
    refusal = UserError(
        f"{target}: another command is writing this folder", hint="wait for it, or choose another --out"
    )
    try:
        lock = lock_path.open("w")
    except OSError as error:
        raise UserError(f"{target}: cannot be created: {error.strerror}", hint=_OTHER_OUT) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # If its previous holder removed the locked file, a process that locks a new one comes first.
        if not (lock_path.exists() and lock_path.stat().st_ino == os.fstat(lock.fileno()).st_ino):
            raise refusal
    except BaseException as error:
        lock.close()
        if isinstance(error, BlockingIOError):
            raise refusal from error
        raise
    return lock


def is_being_written(folder: Path) -> bool:
    """Whether a command on this machine, or on one that shares the file system's locks, is writing a folder."""
    try:
        with _lock_path(_resolved(folder)).open() as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _lock_path(target: Path) -> Path:
    return target.with_name(f".{target.name}.lock")


def _remove_parts(target: Path) -> None:
    """Remove what killed writers of a file left beside it."""
    for beside in target.parent.glob(f".{glob.escape(target.name)}.*.part"):
        pid = beside.suffixes[-2][1:]
        if written_as(beside.name) == target.name and started_ticks(int(pid)) is None:
            beside.unlink(missing_ok=True)


def _refuse_place(target: Path, inputs: Collection[Path], *, hint: str = _OTHER_OUT) -> None:
    """Refuse a target by its location, regardless of its content."""
    nearest = next((folder for folder in target.absolute().parents if os.access(folder, os.F_OK)), Path("/"))
    if nearest.is_dir() and not os.access(nearest, os.W_OK | os.X_OK):
        raise UserError(f"{target}: cannot be created: {nearest} is not writable", hint=hint)
    if target.is_symlink():
        raise UserError(f"{target} is a symbolic link to {target.readlink()}", hint="name the folder itself")
    place = _resolved(target)
    home = os.path.expanduser("~")  # noqa: PTH111 (Path.home() fails where an account has none)
    protected = ((Path(home), "the home folder"), (Path.cwd(), "the current folder"))
    for folder, what in protected:
        if _resolved(folder).is_relative_to(place):
            raise UserError(f"{target} is or contains {what}", hint="choose a separate folder with --out")
    for each in inputs:
        read = _resolved(each)
        if place == read or read.is_relative_to(place) or place.is_relative_to(read):
            how = "is" if place == read else "holds" if read.is_relative_to(place) else "is inside"
            raise UserError(f"{target} {how} an input of this command: {each}", hint=hint)


def _refuse_part(target: Path) -> None:
    """Refuse a file that belongs to a folder which a command wrote, such as an engine's plan.json."""
    place = _resolved(target)
    for folder in place.parents:
        if not (folder / CONTENTS_NAME).is_file():
            continue
        try:
            contents = read_json(folder / CONTENTS_NAME, FolderContents)
        except CommandError:
            continue
        name = place.relative_to(folder).as_posix()
        if name == CONTENTS_NAME or contents.accounts_for(name):
            raise UserError(f"{target} is part of {folder}, which this tool wrote as a whole", hint=_OTHER_OUT)


def _refuse_in_use(target: Path) -> None:
    """Refuse a folder that is being served according to the record in it, or a folder inside such a folder."""
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


def _holds_no_result(target: Path) -> bool:
    """Whether a command that was killed left a folder without any result, and nobody put a file into it since."""
    try:
        contents = read_json(target / CONTENTS_NAME, FolderContents)
    except CommandError:
        return False
    if contents.files or not contents.later:
        return False
    return _foreign(target) is None and _is_without_result(target, contents.main)


def _is_less_than_the_old(target: Path) -> bool:
    """Whether a folder that was written in place has no result, or is not complete, and may be removed."""
    if _holds_no_result(target) or not any(target.iterdir()):
        return True
    try:
        contents = read_json(target / CONTENTS_NAME, FolderContents)
    except CommandError:
        return False
    is_open = contents.last is not None and not (target / contents.last).is_file()
    return is_open and _foreign(target) is None


def _is_without_result(folder: Path, main: str | None) -> bool:
    """Whether a folder lacks its main file, or has it empty; without a main file, whether it has no file of its own."""
    if main is None:
        return all(written_as(path.name) == CONTENTS_NAME for path in folder.iterdir())
    return not ((folder / main).is_file() and (folder / main).stat().st_size)


def _is_begun(folder: Path) -> bool:
    """Whether a folder has nothing but the list of its files, which a writer that was killed had not yet written."""
    names = [path.name for path in folder.iterdir()]
    return bool(names) and all(name != CONTENTS_NAME and written_as(name) == CONTENTS_NAME for name in names)


def _foreign(target: Path) -> UserError | None:
    """Return why a folder may not be replaced: there is no proof that this tool made it, or it has other files."""
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
    """Yield the paths of everything in a folder except non-empty folders."""
    for root, folders, files in os.walk(folder):
        at = Path(root)
        links = [name for name in folders if (at / name).is_symlink()]
        for name in sorted([*files, *links]):
            yield (at / name).relative_to(folder).as_posix()
        if not files and not folders and at != folder:
            yield f"{at.relative_to(folder).as_posix()}/"


def _written_in(folder: Path) -> list[str]:
    return [name for name in _files_in(folder) if name != CONTENTS_NAME]


def _matches(path: PurePosixPath, pattern: str, *, is_folder: bool) -> bool:
    """Whether a path matches a pattern component by component: `*` does not match a slash.

    Args:
        is_folder: Whether the path is an empty folder, which matches the folder part of a pattern.
    """
    parts = pattern.split("/")
    if is_folder:
        parts = parts[:-1][: len(path.parts)]
    return len(parts) == len(path.parts) and all(map(fnmatch.fnmatchcase, path.parts, parts))


def _is_path(word: str, flag: str) -> bool:
    if not word or "\0" in word:
        return False
    return flag == "tokenizer" or os.sep in word or Path(word).is_file()


def _loaded(path: Path) -> dict[str, Any]:
    """Return a JSON object; an empty one if the file contains none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _resolved(path: Path) -> Path:
    """Return a path with its links resolved as far as possible."""
    return Path(os.path.realpath(path))


def _make_parent(target: Path) -> None:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{target}: cannot be created: {error.strerror}", hint=_OTHER_OUT) from error


def _old(target: Path) -> Path:
    return target.with_name(f".{target.name}.old")


def _recover(target: Path) -> None:
    """Restore the old folder if the new one, which a writer began in its place, is missing, useless or incomplete."""
    has_old = _old(target).exists()
    if target.is_dir() and (_is_begun(target) or (has_old and _is_less_than_the_old(target))):
        _remove(target)
    if has_old and not target.exists():
        _old(target).rename(target)


def _move_aside(target: Path) -> None:
    """Rename the existing target; it is removed once the new folder is complete."""
    if target.exists():
        target.rename(_old(target))


def _remove_own(folder: Path) -> None:
    """Remove what an earlier writer left beside its target.

    Raises:
        UserError: It was not written by this tool.
    """
    if not folder.exists():
        return
    if any(folder.iterdir()) and not (folder / CONTENTS_NAME).is_file() and not _is_begun(folder):
        raise UserError(f"{folder} is in the way and was not written by this tool", hint="move it away")
    _remove(folder)


def _remove(folder: Path) -> None:
    """Remove a folder, its list of files last: if it is not removed to the end, it is still known as this tool's."""
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        elif path.name != CONTENTS_NAME:
            with suppress(OSError):
                path.unlink()
    if folder.is_dir() and [path.name for path in folder.iterdir()] in ([], [CONTENTS_NAME]):
        shutil.rmtree(folder, ignore_errors=True)
