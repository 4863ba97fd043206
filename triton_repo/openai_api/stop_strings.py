"""Stop strings in streamed text: text that may become a stop string is held back, so no part of one is output."""

from __future__ import annotations

from collections.abc import Sequence


class StopStrings:
    """Passes text through up to the first stop string, which is not output.

    The match that ends first wins; among those, the longest. The result is therefore independent of how the text was
    cut into pieces.

    Args:
        stops: The strings; empty ones are ignored.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stop for stop in stops if stop)
        self._pending = ""
        self.met: str | None = None

    def push(self, text: str) -> str:
        """Add text; return what certainly precedes any stop string. After a match, nothing more is returned."""
        if not self._stops:
            return text
        if self.met is not None:
            return ""
        pending = self._pending + text
        found = _first_end(pending, self._stops)
        if found is not None:
            begin, self.met = found
            self._pending = ""
            return pending[:begin]
        keep = self._open_suffix(pending)
        self._pending = pending[len(pending) - keep :]
        return pending[: len(pending) - keep]

    def finish(self) -> str:
        """Return the text held back: it did not become a stop string."""
        pending, self._pending = self._pending, ""
        return pending

    def _open_suffix(self, text: str) -> int:
        """Return the length of the longest suffix of `text` that is a prefix of some stop string."""
        return max((longest_open_suffix(text, stop) for stop in self._stops), default=0)


def longest_open_suffix(text: str, wanted: str) -> int:
    """Return the length of the longest suffix of `text` that is a proper prefix of `wanted`.

    >>> longest_open_suffix("so </th", "</think>"), longest_open_suffix("so </thx", "</think>")
    (4, 0)
    """
    begin = max(0, len(text) - len(wanted) + 1)
    while True:
        begin = text.find(wanted[0], begin)
        if begin < 0:
            return 0
        if wanted.startswith(text[begin:]):
            return len(text) - begin
        begin += 1


def _first_end(text: str, stops: Sequence[str]) -> tuple[int, str] | None:
    """Return the position of the stop string that ends first, and the string."""
    found = [(begin + len(stop), begin, stop) for stop in stops if (begin := text.find(stop)) >= 0]
    if not found:
        return None
    _, begin, stop = min(found)
    return begin, stop
