"""The same results in this process, in others and on Ray; kept ones are not worked out again."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from engines.files import Strict
from loadtest.capacity.parallel import ResultCache, Work, do


class Square(Strict):
    """A number squared."""

    value: int


def squared(number: int) -> Square:
    """Square a number."""
    return Square(value=number * number)


WORK = Work(squared, Square, str, str)


def _all(kept: ResultCache = ResultCache(None), **how: Any) -> list[int]:  # noqa: B008 (a tuple)
    how = {"workers": 1, "progress": lambda _: None, **how}
    return [each.value for each in do(WORK, [1, 2, 3, 4], kept=kept, **how)]


def test_processes_bring_what_one_process_brings() -> None:
    """Results come in the order of their tasks, wherever each was worked out."""
    assert _all() == _all(workers=2) == [1, 4, 9, 16]


def test_what_is_kept_is_not_worked_out_again(tmp_path: Path) -> None:
    """A second time everything is found; a file that is damaged is worked out again."""
    _all(ResultCache(tmp_path))
    said: list[str] = []
    assert _all(ResultCache(tmp_path), progress=said.append) == [1, 4, 9, 16]
    assert said == [f"4 of 4 found in {tmp_path}"]
    next(tmp_path.glob("*.json")).write_text("{", encoding="utf-8")
    assert _all(ResultCache(tmp_path)) == [1, 4, 9, 16]


@pytest.mark.filterwarnings("ignore")  # Ray's own
def test_ray_brings_the_same() -> None:
    """On a local Ray the same function brings the same results."""
    if importlib.util.find_spec("ray") is None:
        pytest.skip("Ray is not installed")
    import ray  # noqa: PLC0415

    try:
        ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False, configure_logging=False)
    except Exception as error:
        pytest.skip(f"a local Ray cannot start here: {error!r:.200}")
    try:
        assert _all(on_ray=True) == [1, 4, 9, 16]
    finally:
        ray.shutdown()
