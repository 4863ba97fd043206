"""Progress of a run on the terminal."""

from __future__ import annotations

from collections.abc import Callable
from typing import TextIO

from engines.spec import milliseconds
from loadtest.generator import Progress

PLAIN_EVERY_S = 5.0


def progress_text(look: Progress) -> str:
    """Return a look as one line, what matters most before the eightieth column."""
    parts = [
        look.load,
        f"{look.elapsed_s:.0f} s" + ("" if look.measuring else ", warming up"),
        f"{look.done} done" + (f", {look.failed} failed" if look.failed else ""),
        f"{look.in_flight} in flight",
        _latencies_text(look),
        f"{look.tokens_per_s:.0f} tokens/s",
        f"{look.requests_per_s:.3g} req/s",
    ]
    return " | ".join(part for part in parts if part)


def _latencies_text(look: Progress) -> str:
    pairs = {"TTFT": (look.ttft_p50_s, look.ttft_p99_s), "ITL": (look.itl_p50_s, look.itl_p99_s)}
    parts = [
        f"{name} {milliseconds(p50_s)}/{milliseconds(p99_s)}".replace(",", "")
        for name, (p50_s, p99_s) in pairs.items()
        if p50_s is not None and p99_s is not None
    ]
    return " ".join([*parts, "ms p50/p99"]) if parts else ""


class Terminal:
    """Progress on stderr: one line that changes where a person watches, a line now and then in a log.

    Args:
        columns: Width of the terminal; None where there is none.
        clock: Seconds, for how often a plain line is due.
    """

    def __init__(self, stream: TextIO, *, columns: int | None, clock: Callable[[], float]) -> None:
        self._stream = stream
        self._columns = columns
        self._clock = clock
        self._due_s = clock() + PLAIN_EVERY_S
        self._shown = False

    def look(self, look: Progress) -> None:
        """Show how it stands."""
        if self._columns is not None:
            text = progress_text(look)[: self._columns - 1]
            self._stream.write(f"\r\033[K{text}")
            self._shown = True
        elif self._clock() >= self._due_s:
            self._due_s = self._clock() + PLAIN_EVERY_S
            self._stream.write(progress_text(look) + "\n")
        self._stream.flush()

    def line(self, text: str) -> None:
        """Write a line that stays."""
        self._stream.write(("\r\033[K" if self._shown else "") + text + "\n")
        self._shown = False
        self._stream.flush()

    def clear(self) -> None:
        """Take the changing line away."""
        if self._shown:
            self._stream.write("\r\033[K")
            self._stream.flush()
            self._shown = False
