"""Progress of a run on the terminal."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TextIO

from engines.units import milliseconds
from loadtest.generator import Progress
from loadtest.run.time_left import TimeLeft

PLAIN_EVERY_S = 5.0
_SEPARATOR = " | "


def progress_text(live: Progress, *, level: str = "", left_s: float | None = None, columns: int | None = None) -> str:
    """Return the progress of a level as one line.

    Args:
        level: Which level of how many, as in `2/7`; empty: not shown.
        left_s: Wall seconds left of the level; None: unknown.
        columns: Maximum length; parts that do not fit are omitted, the least important first.
    """
    elapsed = f"{live.elapsed_s:.0f} s"
    left = "" if left_s is None else f", {left_s:.0f} s left"
    parts = [  # by importance
        f"{level} {live.load}".strip(),
        (elapsed if live.measuring else f"warm-up {elapsed}") + left,
        f"{live.failed} failed" if live.failed else "",
        _latencies_text(live),
        f"{live.done} done",
        f"{live.in_flight} in flight",
        # Tokens count when their reply ends: while none does, no rate is known.
        f"{live.tokens_per_s:.0f} tokens/s" if live.tokens_per_s else "",
        f"{live.requests_per_s:.3g} req/s" if live.requests_per_s else "",
    ]
    line = ""
    for part in filter(None, parts):
        longer = f"{line}{_SEPARATOR}{part}" if line else part
        if columns is None or len(longer) <= columns:
            line = longer
    return line if columns is None else line[:columns]


def _latencies_text(live: Progress) -> str:
    pairs = {"TTFT": (live.ttft_p50_s, live.ttft_p99_s), "ITL": (live.itl_p50_s, live.itl_p99_s)}
    parts = [
        f"{name} {milliseconds(p50_s)}/{milliseconds(p99_s)}".replace(",", "")
        for name, (p50_s, p99_s) in pairs.items()
        if p50_s is not None and p99_s is not None
    ]
    return " ".join([*parts, "ms p50/p99"]) if parts else ""


class Terminal:
    """Progress on stderr: one updating line on a terminal, periodic lines in a log.

    Args:
        columns: Width of the terminal; None without one.
        clock: Seconds, for the interval of log lines.
    """

    def __init__(self, stream: TextIO, *, columns: int | None, clock: Callable[[], float]) -> None:
        self._stream = stream
        self._columns = columns
        self._clock = clock
        self._due_s = clock() + PLAIN_EVERY_S
        self._shown = False
        self._time_left = TimeLeft([])

    def expect(self, time_left: TimeLeft) -> None:
        """Show the time left of each level from now on."""
        self._time_left = time_left

    def begin(self) -> None:
        """Note the start of a level."""
        self._time_left.begin()

    def show_progress(self, live: Progress) -> None:
        """Show the progress of the current level."""
        text = partial(progress_text, live, level=self._time_left.level, left_s=self._time_left.left_s(live))
        if self._columns is not None:
            self._stream.write(f"\r\033[K{text(columns=self._columns - 1)}")
            self._shown = True
        elif self._clock() >= self._due_s:
            self._due_s = self._clock() + PLAIN_EVERY_S
            self._stream.write(text() + "\n")
        self._stream.flush()

    def line(self, text: str) -> None:
        """Write a permanent line."""
        self._stream.write(("\r\033[K" if self._shown else "") + text + "\n")
        self._shown = False
        self._stream.flush()

    def clear(self) -> None:
        """Remove the updating line."""
        if self._shown:
            self._stream.write("\r\033[K")
            self._stream.flush()
            self._shown = False
