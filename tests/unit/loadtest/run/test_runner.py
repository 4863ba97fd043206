"""A run as it is followed from outside the generator."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest

from loadtest.generator.progress import Progress
from loadtest.results.records import REQUESTS_NAME, Level
from loadtest.run.runner import RunProgress, own_records
from loadtest.run.terminal import Terminal
from tests.unit.loadtest.generator.test_journal import record

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


@pytest.mark.parametrize(("ids", "is_possible"), [((0, 1), True), ((0, 0), False)])
def test_a_run_keeps_its_own_records_and_says_if_they_are_impossible(
    ids: tuple[int, ...], is_possible: bool, tmp_path: Path
) -> None:
    """A repeated id, which a report refuses, does not keep a run from being completed."""
    (tmp_path / REQUESTS_NAME).write_text("".join(record(number).model_dump_json() + "\n" for number in ids))
    columns, found = own_records(tmp_path)
    assert (columns.id.tolist(), found) == (list(ids), is_possible)
