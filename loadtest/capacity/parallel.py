"""Runs independent tasks in this process, in a pool of processes, or on Ray; caches results by their inputs."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import as_completed
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
from engines.worker_pool import WorkerPool

TaskT = TypeVar("TaskT")
FoundT = TypeVar("FoundT", bound=BaseModel)


class ResultCache(NamedTuple):
    """Cache of results on disk.

    Attributes:
        folder: None: nothing is cached.
    """

    folder: Path | None


class Work(NamedTuple, Generic[TaskT, FoundT]):
    """A pure function with a cache key and the type of its result.

    Attributes:
        key: Everything that a task's result depends on, as text; the package's version and sources are added.
        name: Name of a task, for progress.
    """

    function: Callable[[TaskT], FoundT]
    returns: type[FoundT]
    key: Callable[[TaskT], str]
    name: Callable[[TaskT], str]


class Workers:
    """A pool of processes that lasts for the whole plan; empty if one process is enough, or if Ray does the work.

    Attributes:
        done: Tasks completed so far, over all batches of the plan.
    """

    def __init__(self, count: int, *, on_ray: bool = False) -> None:
        self.count = count
        self.done = 0
        self.on_ray = on_ray
        self._pool: WorkerPool | None = None

    def run(
        self, function: Callable[[TaskT], FoundT], tasks: Sequence[tuple[int, TaskT]]
    ) -> Iterator[tuple[int, FoundT]]:
        """Yield the index and the result of each task as it completes.

        Raises:
            MissingError: Ray was requested but is not installed.
        """
        if self.on_ray and tasks:
            yield from _on_ray(function, tasks)
        elif self.count <= 1 or (self._pool is None and len(tasks) <= 1):
            yield from ((place, function(task)) for place, task in tasks)
        else:
            if self._pool is None:
                self._pool = WorkerPool(self.count, method="spawn")  # a fork would copy locks held by other threads
            waiting = {self._pool.submit(function, task): place for place, task in tasks}
            for each in as_completed(waiting):
                yield waiting[each], each.result()

    def close(self) -> None:
        """End the processes at once."""
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.close()


@contextmanager
def workers_of(count: int, *, on_ray: bool = False) -> Iterator[Workers]:
    """Provide workers and end them with the block."""
    workers = Workers(count, on_ray=on_ray)
    try:
        yield workers
    finally:
        workers.close()


def do(
    work: Work[TaskT, FoundT],
    tasks: Sequence[TaskT],
    *,
    cache: ResultCache,
    workers: Workers,
    progress: Callable[[str], None],
) -> list[FoundT]:
    """Return the function's result for each task, in order; cached results are read from disk.

    Raises:
        MissingError: Ray was requested but is not installed.
    """
    paths = [_path(cache, work.key(task)) for task in tasks]
    found: dict[int, FoundT] = {}
    for place, path in enumerate(paths):
        known = _read(path, work.returns)
        if known is not None:
            found[place] = known
    if found:
        progress(f"{len(found)} of {len(tasks)} found in the cache {cache.folder}")
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
    """Run each task as a Ray task, on the cluster of RAY_ADDRESS or a local one."""
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
    """Return the hash of the code that computes results, so that changed code does not read old results."""
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
    except ValidationError:  # written by another version
        return None
