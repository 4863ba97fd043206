"""Estimates the time left of the current level, from its arrival times or its request rate."""

from __future__ import annotations

from dataclasses import dataclass, field

from loadtest.generator import Progress


@dataclass(slots=True)
class TimeLeft:
    """Estimates the wall seconds left of each level of a run.

    Attributes:
        levels: For each level in order: its measured requests (closed loop), or the wall seconds until its last arrival
            (open loop); the other one is None.
    """

    levels: list[tuple[int | None, float | None]]
    _place: int = field(default=-1, init=False)
    _warm: tuple[float, int] | None = field(default=None, init=False)

    def begin(self) -> None:
        """Start the next level."""
        self._place, self._warm = self._place + 1, None

    @property
    def level(self) -> str:
        """The current level's number, of how many; empty if there is only one."""
        return f"{self._place + 1}/{len(self.levels)}" if len(self.levels) > 1 and self._place >= 0 else ""

    def left_s(self, live: Progress) -> float | None:
        """Return the wall seconds left of the level; None while a closed loop warms up or nothing has ended."""
        if not 0 <= self._place < len(self.levels):
            return None
        requests, last_s = self.levels[self._place]
        if last_s is not None:
            return max(0.0, last_s - live.elapsed_s)
        if requests is None or not live.measuring:
            return None
        ended = live.done + live.failed
        if self._warm is None:
            self._warm = (live.elapsed_s, ended)
        measured, took_s = ended - self._warm[1], live.elapsed_s - self._warm[0]
        return max(0.0, requests - measured) * took_s / measured if measured and took_s else None
