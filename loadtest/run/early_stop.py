"""Stops a level early once its results are conclusive."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from loadtest.results import RequestRecord

Enough: TypeAlias = Callable[[Sequence[RequestRecord], float], bool]  # of records so far, and their time scale

FIRST_LOOK = 32
GROWTH = 1.25  # between checks: each can be wrong, and takes time that grows with the records


@dataclass(slots=True)
class EarlyStop:
    """Reads new records of a level and checks whether its results are conclusive.

    Args:
        path: The growing file; its last line may be incomplete.
    """

    path: Path
    enough: Enough
    time_scale: float
    _offset: int = 0
    _records: list[RequestRecord] = field(default_factory=list)
    _next_look: int = FIRST_LOOK

    def is_satisfied(self) -> bool:
        """Whether the measured requests so far are conclusive; checks only if there are many more than last time."""
        self._read()
        if len(self._records) < self._next_look:
            return False
        self._next_look = int(len(self._records) * GROWTH) + 1
        return self.enough(self._records, self.time_scale)

    def _read(self) -> None:
        if not self.path.is_file():
            return
        with self.path.open("rb") as file:
            file.seek(self._offset)
            lines = file.read()
        whole = lines[: lines.rfind(b"\n") + 1]
        self._offset += len(whole)
        records = (RequestRecord.model_validate_json(line) for line in whole.splitlines())
        self._records += [record for record in records if record.phase == "measure"]
