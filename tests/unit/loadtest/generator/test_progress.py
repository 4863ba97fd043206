"""What a person watching is shown."""

from __future__ import annotations

import io

import numpy as np
import pytest

from loadtest.generator.progress import MAX_POINTS, WINDOW_S, History, LiveStats, Progress
from loadtest.results.histogram import LogHistogram
from loadtest.run.terminal import PLAIN_EVERY_S, Terminal, progress_text
from tests.unit.loadtest.generator.test_journal import record


def test_a_histogram_knows_any_quantile_to_one_percent() -> None:
    """Against numpy's own quantiles of the same durations, over six decades."""
    durations_s = np.exp(np.random.default_rng(3).normal(-4, 1.5, 20_000))
    histogram = LogHistogram()
    histogram.add(durations_s)
    for share in (0.01, 0.5, 0.9, 0.99, 0.999):
        assert histogram.quantile(share) == pytest.approx(np.quantile(durations_s, share), rel=0.0125)
    histogram.add(np.array([0.0, 1e9]))  # beyond both ends is counted at the ends
    assert histogram.counts.sum() == 20_002
    assert LogHistogram().quantile(0.5) is None


def _reply(number: int, done_s: float, **changed: object) -> object:
    """Return a record of 11 tokens, 30 ms to the first and 10 ms between them, that ended at a time."""
    sent_s = done_s - 0.13
    times_s = tuple(sent_s + 0.03 + 0.01 * place for place in range(11))
    values = {"sent_s": sent_s, "scheduled_s": sent_s, "token_times_s": times_s, "output_tokens": 11, "done_s": done_s}
    return record(number, **(values | changed))


def test_rates_and_latencies_are_those_of_the_last_seconds() -> None:
    """Steady traffic shows its own rates; what was slow long ago is forgotten."""
    watch = LiveStats(1.0)
    watch.begin("concurrency 2", 0.0)
    for number in range(300):
        slow = {"token_times_s": (5.0, 9.0), "sent_s": 0.0} if number == 10 else {}
        watch.note(_reply(number, number / 10, **slow))  # type: ignore[arg-type]
    look = watch.statistics(30.0, 2, measuring=True)
    assert look.requests_per_s == pytest.approx(10, rel=0.1)
    assert look.tokens_per_s == pytest.approx(110, rel=0.1)
    assert look.ttft_p50_s == pytest.approx(0.03, rel=0.011)
    assert look.itl_p99_s == pytest.approx(0.01, rel=0.011)
    assert (look.done, look.failed, look.in_flight) == (300, 0, 2)


def test_a_slowed_engine_is_shown_in_engine_time() -> None:
    """At time scale 2 a second of the engine takes two: latencies are halved and rates doubled, as in reports."""
    looks = []
    for scale in (1.0, 2.0):
        watch = LiveStats(scale)
        for number in range(100):
            watch.note(_reply(number, number / 10))  # type: ignore[arg-type]
        looks.append(watch.statistics(10.0, 0))
    one, two = looks
    assert two.tokens_per_s == pytest.approx(2 * one.tokens_per_s, rel=1e-3)
    assert (two.ttft_p50_s or 0) == pytest.approx((one.ttft_p50_s or 0) / 2, rel=0.02)


def test_failures_are_counted_and_a_new_level_begins_anew() -> None:
    """A failed request is no request per second; the next level does not inherit it."""
    watch = LiveStats(1.0)
    watch.note(record(0, outcome="error", token_times_s=(), output_tokens=0))
    look = watch.statistics(2.0, 0)
    assert (look.done, look.failed, look.requests_per_s) == (0, 1, 0)
    assert "| 1 failed |" in progress_text(look)
    watch.begin("concurrency 8", 2.0)
    assert watch.statistics(2.0, 0).failed == 0


def test_memory_does_not_grow_with_the_run() -> None:
    """Only so many seconds are held, and only so many points of a chart, which still span the whole run."""
    watch, history = LiveStats(1.0), History()
    for second in range(5000):
        watch.note(_reply(second, float(second)))  # type: ignore[arg-type]
        history.add(watch.statistics(float(second), 1))
    assert len(watch._seconds) <= WINDOW_S + 1
    assert MAX_POINTS / 2 <= len(history.points) <= MAX_POINTS + 1
    assert history.points[0].t_s == 0
    assert history.points[-1].t_s > 4990
    gaps = {round(b.t_s - a.t_s) for a, b in zip(history.points, history.points[1:], strict=False)}
    assert gaps == {4}


def test_a_line_keeps_its_labels_within_eighty_columns() -> None:
    """A narrow terminal leaves out whole parts, the rates first; no label is cut from its figures."""
    watch = LiveStats(1.0)
    watch.begin("concurrency 16", 0.0)
    for number in range(100):
        watch.note(_reply(number, number / 10))  # type: ignore[arg-type]
    look = watch.statistics(10.0, 16, measuring=True)
    text = progress_text(look, left_s=31.6, columns=79)
    assert text == "concurrency 16 | 10 s, 32 s left | TTFT 30.1/30.1 ITL 9.93/9.93 ms p50/p99"
    whole = progress_text(look, level="2/7")
    assert whole.startswith("2/7 concurrency 16 | 10 s | TTFT ")
    assert whole.endswith("ms p50/p99 | 100 done | 16 in flight | 110 tokens/s | 10 req/s")
    assert progress_text(look, columns=40) == "concurrency 16 | 10 s | 100 done"
    assert "| warm-up 10 s |" in progress_text(watch.statistics(10.0, 16))
    slow = watch.statistics(10.0, 1).model_copy(update={"ttft_p50_s": 4.25, "ttft_p99_s": 60.0})
    assert "TTFT 4250/60000" in progress_text(slow)


def _look(done: int) -> Progress:
    said = {"t_s": 1.0, "load": "concurrency 4", "elapsed_s": done, "done": done, "failed": 0, "in_flight": 4}
    return Progress.model_validate({**said, "measuring": True, "requests_per_s": 2, "tokens_per_s": 64})


def test_a_terminal_has_one_line_that_changes() -> None:
    """Each look takes the place of the one before, cut to the width; a line that stays takes it away."""
    stream = io.StringIO()
    terminal = Terminal(stream, columns=40, clock=lambda: 0.0)
    terminal.show_progress(_look(1))
    terminal.show_progress(_look(2))
    terminal.line("concurrency 4: measured 3.0 s")
    lines = stream.getvalue().split("\r\033[K")
    assert [line[:30] for line in lines[1:3]] == ["concurrency 4 | 1 s | 1 done |", "concurrency 4 | 2 s | 2 done |"]
    assert all(len(line) < 40 for line in lines[1:3])
    assert lines[3] == "concurrency 4: measured 3.0 s\n"
    terminal.clear()
    assert stream.getvalue().endswith("3.0 s\n")  # nothing there to take away


def test_a_log_has_a_line_now_and_then() -> None:
    """Where nobody watches, no control characters, and a line every few seconds."""
    stream, now = io.StringIO(), [0.0]
    terminal = Terminal(stream, columns=None, clock=lambda: now[0])
    for second in range(12):
        now[0] = float(second)
        terminal.show_progress(_look(second))
    assert PLAIN_EVERY_S == 5.0
    assert [line.split(" | ")[2] for line in stream.getvalue().splitlines()] == ["5 done", "10 done"]
    assert "\r" not in stream.getvalue()
