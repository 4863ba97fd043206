"""A run as it is followed from outside the generator."""

from __future__ import annotations

import io
from typing import Any

import pytest

from loadtest.generator.progress import Progress
from loadtest.results.records import Level
from loadtest.run.runner import RunProgress
from loadtest.run.terminal import Terminal

LEVEL: dict[str, Any] = {
    "concurrency": 4,
    "isl": 5,
    "osl": 2,
    "begin_s": 1.0,
    "measure_s": 2.0,
    "end_s": 5.0,
    "complete": True,
}
LOOK = Progress(
    t_s=3.5, load="concurrency 4", elapsed_s=2.5, done=1, failed=0, in_flight=4, requests_per_s=2, tokens_per_s=64
)


@pytest.fixture
def terminal() -> Terminal:
    """Return a terminal that writes into memory."""
    return Terminal(io.StringIO(), columns=80, clock=lambda: 0.0)


def _follow(terminal: Terminal, *said: dict[str, Any]) -> RunProgress:
    happened = RunProgress()
    for each in said:
        happened.note(each, terminal)
    return happened


def test_levels_are_kept_in_the_order_they_end(terminal: Terminal) -> None:
    """A level that ended of itself is taken as it was told."""
    happened = _follow(terminal, {"began": LEVEL}, {"progress": LOOK.model_dump()}, {"level": LEVEL})
    happened.end(9.0)
    assert happened.levels == [Level.model_validate(LEVEL)]
    assert happened.now_s == 3.5
    assert happened.interrupted is None


def test_a_level_nothing_more_was_heard_of_is_kept_as_incomplete(terminal: Terminal) -> None:
    """When the generator dies in the middle, its records still belong to a level: the one that had begun."""
    begun = LEVEL | {"complete": False, "measure_s": 1.0, "end_s": 1.0}
    happened = _follow(terminal, {"level": LEVEL}, {"began": begun}, {"progress": LOOK.model_dump()})
    happened.end(9.0)
    assert [(level.complete, level.end_s) for level in happened.levels] == [(True, 5.0), (False, 9.0)]


def test_why_a_run_ended_early_is_kept(terminal: Terminal) -> None:
    """The generator's own words, and which worker was lost."""
    happened = _follow(terminal, {"lost": "worker 1 on b was lost"}, {"ended": "worker 1 on b was lost"})
    assert (happened.lost, happened.interrupted) == ("worker 1 on b was lost",) * 2
