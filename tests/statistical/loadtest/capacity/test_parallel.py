"""The same results in this process, in others and on Ray; kept ones are not worked out again."""

from __future__ import annotations

import importlib.util
import multiprocessing
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from engines.files import Strict
from engines.processes import started_ticks
from loadtest.capacity.parallel import ResultCache, Work, do, workers_of


class Square(Strict):
    """A number squared."""

    value: int


def squared(number: int) -> Square:
    """Square a number."""
    return Square(value=number * number)


WORK = Work(squared, Square, str, str)


def _all(kept: ResultCache = ResultCache(None), *, count: int = 1, on_ray: bool = False, **how: Any) -> list[int]:  # noqa: B008 (a tuple)
    how = {"progress": lambda _: None, **how}
    with workers_of(count, on_ray=on_ray) as workers:
        return [each.value for each in do(WORK, [1, 2, 3, 4], cache=kept, workers=workers, **how)]


def test_processes_bring_what_one_process_brings() -> None:
    """Results come in the order of their tasks, wherever each was worked out."""
    assert _all() == _all(count=2) == [1, 4, 9, 16]


def test_what_is_kept_is_not_worked_out_again(tmp_path: Path) -> None:
    """A second time everything is found; a file that is damaged is worked out again."""
    _all(ResultCache(tmp_path))
    said: list[str] = []
    assert _all(ResultCache(tmp_path), progress=said.append) == [1, 4, 9, 16]
    assert said == [f"4 of 4 found in the cache {tmp_path}"]
    next(tmp_path.glob("*.json")).write_text("{", encoding="utf-8")
    assert _all(ResultCache(tmp_path)) == [1, 4, 9, 16]


def test_the_count_of_what_was_done_runs_once() -> None:
    """A second batch goes on counting; what is left of each is said, with its time."""
    said: list[str] = []
    with workers_of(1) as workers:
        for batch in ([1, 2], [3]):
            do(WORK, batch, cache=ResultCache(None), workers=workers, progress=said.append)
    assert said == ["1 simulated, 1 more in this step, about 0 s left: 1", "2 simulated: 2", "3 simulated: 3"]


_LONG = """
import sys, time
from loadtest.capacity.parallel import Workers
if __name__ == "__main__":
    workers = Workers(2)
    tasks = workers.run(time.sleep, [(0, 0.01), (1, 600.0), (2, 600.0)])
    next(tasks)
    import multiprocessing
    print(*(child.pid for child in multiprocessing.active_children()), flush=True)
    for _ in tasks: pass
"""


@pytest.mark.skipif(sys.platform != "linux", reason="a worker's end with its parent is Linux's")
@pytest.mark.quiet
def test_workers_end_with_a_killed_parent(tmp_path: Path) -> None:
    """A parent killed outright leaves no worker behind, though one sleeps for ten minutes."""
    script = tmp_path / "long.py"
    script.write_text(_LONG, encoding="utf-8")
    parent = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True, cwd=tmp_path)
    assert parent.stdout is not None
    with parent, parent.stdout:
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(pids) == 2
        parent.kill()
        parent.wait()
    until_s = time.monotonic() + 3.0
    while any(started_ticks(pid) is not None for pid in pids):
        assert time.monotonic() < until_s, "a worker outlived its parent by three seconds"
        time.sleep(0.02)


_ON_RAY = """
import ray
from tests.statistical.loadtest.capacity.test_parallel import _all
ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False, configure_logging=False)
print("started", flush=True)
print(_all(on_ray=True))
ray.shutdown()
"""


def test_nothing_of_a_stopped_pool_is_left_to_the_interpreters_exit() -> None:
    """Neither its processes nor its thread: Python 3.11 may wake that by a pipe that it has just closed."""
    threads, processes = set(threading.enumerate()), set(multiprocessing.active_children())  # of other tests
    with pytest.raises(KeyboardInterrupt):
        _stopped_at_its_first_result()
    assert not set(threading.enumerate()) - threads
    assert not set(multiprocessing.active_children()) - processes


def _stopped_at_its_first_result() -> None:
    with workers_of(2) as workers:
        for _ in workers.run(squared, [(place, place) for place in range(4)]):
            assert multiprocessing.active_children()
            raise KeyboardInterrupt


def test_ray_brings_the_same() -> None:
    """On a local Ray the same function brings the same results; its own process holds what a failed start leaves."""
    if importlib.util.find_spec("ray") is None:
        pytest.skip("Ray is not installed")
    root = str(Path(__file__).parents[4])
    done = subprocess.run(
        [sys.executable, "-c", _ON_RAY],
        capture_output=True,
        text=True,
        cwd=root,
        env=os.environ | {"PYTHONPATH": root},
        timeout=300,
        check=False,
    )
    if "started" not in done.stdout:
        pytest.skip(f"a local Ray cannot start here: {done.stderr.strip().splitlines()[-1:]}")
    assert "[1, 4, 9, 16]" in done.stdout, done.stderr
