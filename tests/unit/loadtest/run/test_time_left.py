"""How long the level under way still takes."""

from __future__ import annotations

from loadtest.generator.progress import Progress
from loadtest.run.time_left import TimeLeft


def _look(elapsed_s: float, done: int, *, measuring: bool = True) -> Progress:
    return Progress(
        t_s=elapsed_s,
        load="concurrency 4",
        elapsed_s=elapsed_s,
        done=done,
        failed=0,
        in_flight=4,
        measuring=measuring,
        requests_per_s=1.0,
        tokens_per_s=1.0,
    )


def test_a_closed_loop_takes_as_long_as_its_rate_says() -> None:
    """20 of 100 measured in 10 s leave 40 s; what warm-up took does not count."""
    left = TimeLeft([(100, None)])
    left.begin()
    assert left.left_s(_look(30.0, 7, measuring=False)) is None
    assert left.left_s(_look(31.0, 8)) is None
    assert left.left_s(_look(41.0, 28)) == 40.0
    assert left.left_s(_look(99.0, 200)) == 0.0


def test_an_open_loop_takes_as_long_as_its_arrivals() -> None:
    """The timetable is known, warm-up included."""
    left = TimeLeft([(8, None), (None, 60.0)])
    left.begin()
    left.begin()
    assert left.level == "2/2"
    assert left.left_s(_look(12.5, 3, measuring=False)) == 47.5


def test_one_level_has_no_number() -> None:
    """Nor is anything left of a level that has not begun."""
    left = TimeLeft([(8, None)])
    assert left.left_s(_look(1.0, 1)) is None
    left.begin()
    assert left.level == ""
