"""Stages of a build, each cached under the hash of its inputs.

A stage's folder is named by its key: the SHA-256 of the stage's name, the content of its inputs, its parameters, the
versions of the tools, and the source of the code that does the work. A changed input changes only the keys of stages
that depend on it. A folder appears complete or not at all: a killed stage is repeated, a finished one is not.
"""

from __future__ import annotations

import ctypes
import errno
import gc
import hashlib
import json
import os
import resource
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engines.errors import ToolError
from engines.files import MadeBy, Strict, read_json, write_json
from engines.manifest import StageRecord
from engines.outputs import whole_folder
from engines.spec import gib

STAGE_NAME = "stage.json"
KEY_CHARACTERS = 16
_KIBIBYTE = 1024
_NO_ROOM = {errno.ENOSPC, errno.EFBIG, errno.EDQUOT}
# How libraries in other languages word the same errors, in exceptions other than OSError.
_NO_ROOM_TEXTS = ("os error 28", "os error 27", "os error 122", "No space left", "File too large", "quota exceeded")

Progress = Callable[[str], None]


class StageInputs(Strict):
    """Everything that a stage's result depends on.

    Attributes:
        stage: The stage's name.
        content: SHA-256 by name: files, keys of earlier stages, source modules.
        parameters: Parameters of the stage.
        versions: Versions of the tools.
    """

    stage: str
    content: dict[str, str]
    parameters: dict[str, Any]
    versions: dict[str, str]

    @property
    def key(self) -> str:
        """The name of the stage's folder: the stage and a prefix of the inputs' SHA-256."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True)
        return f"{self.stage}-{hashlib.sha256(text.encode()).hexdigest()[:KEY_CHARACTERS]}"


class _Finished(Strict):
    """`stage.json` of a finished stage."""

    inputs: StageInputs
    seconds: float
    peak_memory_bytes: int | None


@dataclass(slots=True)
class Stages:
    """The stages of one command.

    Args:
        store: Folder of finished stages, shared by all builds beside it.
        progress: Called with one line when a stage starts and ends.
        made_by: The command that runs them.
    """

    store: Path
    progress: Progress
    made_by: MadeBy
    records: list[StageRecord] = field(default_factory=list)

    def run(self, inputs: StageInputs, work: Callable[[Path], None]) -> Path:
        """Return the folder of a stage; its work is done only if it is not cached.

        Args:
            work: Fills the empty folder it is given; if it raises, the stage has failed and nothing is kept.

        Raises:
            UserError: Another command is running the same stage.
            ToolError: The disk is full.
        """
        folder = self.store / inputs.key
        finished = folder / STAGE_NAME
        if finished.is_file():
            done = read_json(finished, _Finished)
            self._note(inputs, done, reused=True)
            self.progress(f"{inputs.stage}: cached ({inputs.key})")
            return folder
        self.progress(f"{inputs.stage} ...")
        begin = time.monotonic()
        with disk_full_as_tool_error(self.store), whole_folder(folder, made_by=self.made_by, force=True) as part:
            with measured_memory() as memory:
                work(part)
            done = _Finished(
                inputs=inputs, seconds=round(time.monotonic() - begin, 3), peak_memory_bytes=memory.peak_bytes
            )
            write_json(part / STAGE_NAME, done)
        self._note(inputs, done, reused=False)
        peak = "" if done.peak_memory_bytes is None else f", peak memory {gib(done.peak_memory_bytes)}"
        self.progress(f"{inputs.stage}: {done.seconds:.1f} s{peak}")
        return folder

    def _note(self, inputs: StageInputs, done: _Finished, *, reused: bool) -> None:
        self.records.append(
            StageRecord(
                name=inputs.stage,
                key=inputs.key,
                seconds=done.seconds,
                peak_memory_bytes=done.peak_memory_bytes,
                reused=reused,
            )
        )


@dataclass(slots=True)
class Memory:
    """Peak resident memory of a block, of this process or its largest child; None if the system does not report it."""

    peak_bytes: int | None = None


@contextmanager
def measured_memory() -> Iterator[Memory]:
    """Measure the peak resident memory of a block, from Linux's high-water mark, reset at its start."""
    gc.collect()  # the previous stage may have left a model in reference cycles: gigabytes
    ctypes.CDLL(None).malloc_trim(0)  # return freed memory to the system
    memory = Memory()
    children_before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        yield memory
        return
    try:
        yield memory
    finally:
        children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
        grown = children if children > children_before else 0
        memory.peak_bytes = max(_high_water_kib(), grown) * _KIBIBYTE


@contextmanager
def disk_full_as_tool_error(folder: Path) -> Iterator[None]:
    """Turn a full disk within the block into one clear error.

    Raises:
        ToolError: The disk is full, or the quota or the largest file size is exceeded.
    """
    try:
        yield
    except Exception as error:
        if not _says_full(error):
            raise
        free = gib(shutil.disk_usage(_existing(folder)).free)
        raise ToolError(
            f"no space left to write in {folder} ({free} free): {error}",
            hint=(
                "free some disk space or choose --out on a larger disk, and repeat the command: it reuses "
                "finished stages"
            ),
        ) from error


def link_tree(source: Path, target: Path) -> None:
    """Copy a stage's files to `target`: hard links if the file system allows, copies otherwise."""
    shutil.copytree(
        source, target, copy_function=_link_or_copy, dirs_exist_ok=True, ignore=shutil.ignore_patterns(STAGE_NAME)
    )


def code_sha256(*modules: str) -> str:
    """Return the SHA-256 of the source of modules of `engines.checkpoint`: a stage is repeated after a code change."""
    folder = Path(__file__).parent.parent / "checkpoint"
    digest = hashlib.sha256()
    for module in sorted(modules):
        digest.update((folder / f"{module}.py").read_bytes())
    return digest.hexdigest()


def available_memory_bytes() -> int:
    """Return the memory available without swapping, in bytes, as estimated by Linux."""
    for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * _KIBIBYTE
    return 0


def _link_or_copy(source: str, target: str) -> str:
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in {errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP}:
            raise
        shutil.copy2(source, target)
    return target


def _high_water_kib() -> int:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1])
    return 0


def _says_full(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, OSError) and error.errno in _NO_ROOM:
            return True
        if any(text in str(error) for text in _NO_ROOM_TEXTS):
            return True
        error = error.__cause__ or error.__context__
    return False


def _existing(folder: Path) -> Path:
    return folder if folder.exists() else _existing(folder.parent)
