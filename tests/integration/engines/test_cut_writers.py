"""A writer of a folder that is cut short at every step: killed, interrupted, or without disk space."""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from engines.errors import CommandError
from engines.files import MadeBy
from engines.outputs import folder_in_place, whole_folder

BY = MadeBy(command="build-engine --precision fp8", version="0")
OLD, NEW = {"a": "old", "deep/b": "old"}, {"a": "new", "deep/b": "new"}
STEPS = 100  # more than a writer has
FORWARD = {"open", "os.mkdir", "os.rename"}  # what a full disk refuses
CHANGES = {*FORWARD, "os.remove", "os.rmdir", "fcntl.flock"}
Writer = Callable[[Path], AbstractContextManager[Path]]


def _whole(target: Path) -> AbstractContextManager[Path]:
    return whole_folder(target, made_by=BY, force=True)


def _in_place(target: Path) -> AbstractContextManager[Path]:
    return folder_in_place(target, made_by=BY, files=tuple(NEW), main="a", last="deep/b", force=True)


def _fill(writer: Writer, target: Path, texts: dict[str, str]) -> None:
    with writer(target) as folder:
        for name, text in texts.items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text(text)


def _texts(target: Path) -> dict[str, str]:
    files = (path for path in target.rglob("*") if path.is_file() and path.name != ".contents.json")
    return {path.relative_to(target).as_posix(): path.read_text() for path in files}


def _cut(work: Callable[[], object], step: int, cut: Callable[[], object], events: set[str]) -> int:
    """Do work in a fork that is cut at one of its changes to files; return how it ended, 0 without such a step."""
    pid = os.fork()
    if pid == 0:
        left = step

        def count(event: str, arguments: tuple[Any, ...]) -> None:
            nonlocal left
            is_read = event == "open" and not (
                isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
            )
            if event in events and not is_read:
                left -= 1
                if not left:
                    cut()

        signal.signal(signal.SIGINT, signal.default_int_handler)
        sys.addaudithook(count)
        try:
            work()
        except (KeyboardInterrupt, OSError, CommandError):
            os._exit(1)
        except BaseException:
            os._exit(2)
        os._exit(0 if left > 0 else 1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _full() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


CUTS = {
    "interrupted": (lambda: os.kill(os.getpid(), signal.SIGINT), CHANGES, 1),
    "without space": (_full, FORWARD, 1),
    "killed": (lambda: os.kill(os.getpid(), signal.SIGKILL), CHANGES, -signal.SIGKILL),
}


@pytest.mark.parametrize("how", CUTS)
@pytest.mark.parametrize("writer", [_whole, _in_place])
@pytest.mark.parametrize("has_old", [True, False])
def test_no_step_loses_the_old_folder_or_leaves_half_a_new_one(
    writer: Writer, how: str, has_old: bool, tmp_path: Path
) -> None:
    """The old folder or the whole new one is there, and nothing beside it; after a kill, once the next writer began."""
    cut, events, status = CUTS[how]
    for step in range(1, STEPS):
        target = tmp_path / f"{step}" / "engine"
        target.parent.mkdir()
        if has_old:
            _fill(writer, target, OLD)
        ended = _cut(lambda target=target: _fill(writer, target, NEW), step, cut, events)  # type: ignore[misc]
        if ended == 0:
            break
        assert ended == status, step
        if how == "killed":
            with pytest.raises(ZeroDivisionError), writer(target):  # a next writer, which comes to nothing
                _ = 1 / 0
        there = [path.name for path in target.parent.iterdir()]
        assert there in (["engine"], [] if not has_old else None), step
        found = _texts(target)
        assert found in ((OLD, NEW) if has_old else ({}, NEW, {"a": "new"})), (step, found)
        if found == {"a": "new"}:  # what was written in place is kept, where nothing was before
            assert writer is _in_place
    assert 10 < step < STEPS - 1
