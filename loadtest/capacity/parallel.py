"""The same work on one core, on all of them, or on a Ray cluster; results kept by what went into them."""

from __future__ import annotations

import hashlib
import multiprocessing
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from functools import cache
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

from pydantic import BaseModel, ValidationError

from engines.console import time_left_text
from engines.errors import DISTRIBUTION, MissingError
from engines.files import write_json
from engines.processes import ending_with_parent

TaskT = TypeVar("TaskT")
FoundT = TypeVar("FoundT", bound=BaseModel)


class ResultCache(NamedTuple):
    """Where results are kept.

    Attributes:
        folder: None keeps none.
    """

    folder: Path | None


class Work(NamedTuple, Generic[TaskT, FoundT]):
    """A pure function, what to call it on, and what it returns.

    Attributes:
        key: All that its result depends on, as text, but for the package's version and sources, which are added.
        name: Of one task, for progress.
    """

    function: Callable[[TaskT], FoundT]
    returns: type[FoundT]
    key: Callable[[TaskT], str]
    name: Callable[[TaskT], str]


class Workers:
    """Processes that stay for all work of a plan; none where one is enough, or where Ray does the work.

    They end with this process, however it ends, and ignore Ctrl-C: it is the parent's to take.

    Attributes:
        done: Tasks done since they came, over all batches: one count for the whole plan.
    """

    def __init__(self, count: int, *, on_ray: bool = False) -> None:
        self.count = count
        self.done = 0
        self.on_ray = on_ray
        self._pool: ProcessPoolExecutor | None = None

    def run(
        self, function: Callable[[TaskT], FoundT], tasks: Sequence[tuple[int, TaskT]]
    ) -> Iterator[tuple[int, FoundT]]:
        """Yield the place and the result of each task, as they are done.

        Raises:
            MissingError: Ray is asked for and is not here.
        """
        if self.on_ray and tasks:
            yield from _on_ray(function, tasks)
        elif self.count <= 1 or (self._pool is None and len(tasks) <= 1):
            yield from ((place, function(task)) for place, task in tasks)
        else:
            pool = self._started()
            with _without_ctrl_c():  # processes that are started now inherit it: they end by their parent
                waiting = {pool.submit(function, task): place for place, task in tasks}
            for each in as_completed(waiting):
                yield waiting[each], each.result()

    def _started(self) -> ProcessPoolExecutor:
        if self._pool is None:
            context = multiprocessing.get_context("spawn")  # a fork would copy the parent's threads' locks
            self._pool = ProcessPoolExecutor(self.count, context, _begin_worker, (ending_with_parent(),))
        return self._pool

    def close(self, *, at_once: bool = False) -> None:
        """End the processes; `at_once` leaves what they are doing undone."""
        pool, self._pool = self._pool, None
        if pool is None:
            return
        children = multiprocessing.active_children() if at_once else []
        pool.shutdown(wait=False, cancel_futures=True)
        for child in children:
            child.terminate()


@contextmanager
def _without_ctrl_c() -> Iterator[None]:
    """Hold Ctrl-C back within the block; it is not lost."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def workers_of(count: int, *, on_ray: bool = False) -> Iterator[Workers]:
    """Give workers, and end them with the block: at once where it ends in an error or by Ctrl-C."""
    workers = Workers(count, on_ray=on_ray)
    try:
        yield workers
    except BaseException:
        workers.close(at_once=True)
        raise
    workers.close()


def _begin_worker(end_with_parent: Callable[[], None]) -> None:
    """Let a worker end with its parent, and leave Ctrl-C to it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent()


def do(
    work: Work[TaskT, FoundT],
    tasks: Sequence[TaskT],
    *,
    cache: ResultCache,
    workers: Workers,
    progress: Callable[[str], None],
) -> list[FoundT]:
    """Return the function's result for each task, in their order; those already kept are read.

    Raises:
        MissingError: Ray is asked for and is not here.
    """
    paths = [_path(cache, work.key(task)) for task in tasks]
    found: dict[int, FoundT] = {}
    for place, path in enumerate(paths):
        known = _read(path, work.returns)
        if known is not None:
            found[place] = known
    if found:
        progress(f"{len(found)} of {len(tasks)} found in {cache.folder}")
    open_places = [place for place in range(len(tasks)) if place not in found]
    begin_s = time.monotonic()
    for done, (place, result) in enumerate(
        workers.run(work.function, [(place, tasks[place]) for place in open_places]), start=1
    ):
        found[place] = result
        workers.done += 1
        path = paths[place]
        if path is not None:
            write_json(path, result)
        left = len(open_places) - done
        step = f", {left} more in this step" if left else ""
        step += time_left_text(done, len(open_places), time.monotonic() - begin_s)
        progress(f"{workers.done} simulated{step}: {work.name(tasks[place])}")
    return [found[place] for place in range(len(tasks))]


def _on_ray(function: Callable[[TaskT], FoundT], tasks: Sequence[tuple[int, TaskT]]) -> Iterator[tuple[int, FoundT]]:
    """Run each task as a Ray task: on the cluster of RAY_ADDRESS, or a local one."""
    try:
        import ray  # noqa: PLC0415 (optional, and slow to import)
    except ImportError as error:
        raise MissingError("--ray: Ray is not installed", hint="pip install ray, or omit --ray") from error
    mine = not ray.is_initialized()
    if mine:
        ray.init(include_dashboard=False, log_to_driver=False, configure_logging=False)
    try:
        remote = ray.remote(function)
        waiting: dict[Any, int] = {remote.remote(task): place for place, task in tasks}
        while waiting:
            (ready, *_), _ = ray.wait(list(waiting), num_returns=1)
            yield waiting.pop(ready), ray.get(ready)
    finally:
        if mine:
            ray.shutdown()


def _path(cache: ResultCache, key: str) -> Path | None:
    if cache.folder is None:
        return None
    digest = hashlib.sha256(f"{version(DISTRIBUTION)}\n{_sources_sha256()}\n{key}".encode()).hexdigest()
    return cache.folder / f"{digest[:32]}.json"


@cache
def _sources_sha256() -> str:
    """Return the hash of the code that results come from: other code, other results."""
    digest = hashlib.sha256()
    for room in ("engines", "loadtest"):
        for path in sorted(Path(str(files(room))).rglob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()


def _read(path: Path | None, returns: type[FoundT]) -> FoundT | None:
    if path is None or not path.is_file():
        return None
    try:
        return returns.model_validate_json(path.read_text(encoding="utf-8"))
    except ValidationError:  # of another version's making
        return None
