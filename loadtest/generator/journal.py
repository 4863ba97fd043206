"""Append-only files of a load generator: finished requests and requests in flight.

A request in flight is noted as the record it would have if the generator were lost; the surviving process completes the
records from these notes.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Protocol

from loadtest.generator.plan import GeneratorPlan
from loadtest.results import RequestRecord

FLUSH_S = 0.25  # a line added sooner after a write waits for the next write; a crash loses it
COMPACT_LINES = 10_000  # notes of finished requests are dropped once the file of notes has about this many lines


class Journal(Protocol):
    """The journal of a generator's requests."""

    @property
    def in_flight(self) -> int:
        """Requests sent and not ended."""

    @property
    def failed(self) -> str | None:
        """Why nothing can be written any more; None if it can."""

    def note_sent(self, number: int, if_lost: str) -> None:
        """Record a request as in flight, with the record, as a line, that it gets if its end is never reported."""

    def note_end(self, record: RequestRecord) -> None:
        """Record the end of a request."""

    def note_text(self, line: str) -> None:
        """Record a prompt that was sent, if prompts are kept."""

    def flush(self) -> None:
        """Write what is pending."""


class Appender:
    """Appends whole lines to a file: immediately if there are few, in batches if there are many.

    Attributes:
        failed: The system's message when a write failed; nothing is written after that, and the file ends with a whole
            line.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.failed: str | None = None
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        self._lines: list[str | RequestRecord] = []
        self._written_s = 0.0

    def add(self, line: str | RequestRecord) -> None:
        """Append a line, given without its line end or as a record."""
        self._lines.append(line)
        if time.monotonic() - self._written_s > FLUSH_S:
            self.flush()

    def flush(self) -> None:
        """Write pending lines."""
        self._written_s = time.monotonic()
        if not self._lines or self.failed:
            return
        lines = [line if isinstance(line, str) else line.model_dump_json() for line in self._lines]
        self._lines = []
        self._write("\n".join([*lines, ""]))

    def write(self, line: str) -> None:
        """Append a line at once; none may be pending."""
        if not self.failed:
            self._write(line + "\n")

    def _write(self, text: str) -> None:
        data = memoryview(text.encode())
        try:
            while data:
                data = data[os.write(self._file, data) :]
        except OSError as error:
            self.failed = f"{self.path}: {error.strerror}"
            cut_to_whole_lines(self.path)

    def replace(self, lines: Iterable[str]) -> None:
        """Replace the file's content with these lines."""
        os.ftruncate(self._file, 0)
        self._lines = list(lines)
        self.flush()

    def close(self) -> None:
        """Write pending lines and close the file."""
        self.flush()
        os.close(self._file)


class RecordJournal:
    """A generator's records and its list of requests in flight.

    Args:
        records: File to append records to.
        under_way: File of the notes, used only until the run has ended.
        texts: File of prompts; None: prompts are not kept.
    """

    def __init__(self, records: Path, under_way: Path, texts: Path | None = None) -> None:
        self._records = Appender(records)
        self._under_way = Appender(under_way)
        self._texts = None if texts is None else Appender(texts)
        self._notes: dict[int, str] = {}
        self._lines = 0

    @classmethod
    def of(cls, plan: GeneratorPlan) -> RecordJournal:
        """Return the journal of a plan."""
        return cls(Path(plan.records), Path(plan.under_way), None if plan.texts is None else Path(plan.texts))

    @property
    def in_flight(self) -> int:
        """Requests sent and not ended."""
        return len(self._notes)

    @property
    def failed(self) -> str | None:
        """Why nothing can be written any more; None if it can."""
        return next((file.failed for file in self._files() if file.failed), None)

    def note_sent(self, number: int, if_lost: str) -> None:
        """Record a request as in flight, with the record, as a line, that it gets if its end is never reported."""
        self._notes[number] = if_lost
        self._lines += 1
        self._under_way.write(if_lost)  # at once: requests in flight are what a crash would lose

    def note_end(self, record: RequestRecord) -> None:
        """Record the end of a request."""
        self.note_end_line(record.id, record)

    def note_end_line(self, number: int, line: str | RequestRecord) -> None:
        """Record the end of a request, given its record, or that as a line."""
        self._notes.pop(number, None)
        self._records.add(line)
        if self._lines > COMPACT_LINES + 2 * len(self._notes):
            self._records.flush()
            self._under_way.replace(self._notes.values())
            self._lines = len(self._notes)

    def note_text(self, line: str) -> None:
        """Record a prompt that was sent, if prompts are kept."""
        if self._texts is not None:
            self._texts.add(line)

    def flush(self) -> None:
        """Write pending lines."""
        for file in self._files():
            file.flush()

    def close(self) -> None:
        """Write pending lines and close the files."""
        for file in self._files():
            file.close()

    def _files(self) -> list[Appender]:
        return [self._records, self._under_way, *([self._texts] if self._texts is not None else [])]


def add_lost(records: Path, under_way: Path, *, now_s: float) -> int:
    """Write a record for each request that was in flight in a lost generator; return their number.

    Args:
        now_s: When the loss was noticed, on the records' clock.

    Raises:
        OSError: The records cannot be written.
    """
    if not under_way.is_file():
        return 0
    cut_to_whole_lines(records)
    known = {_number(line) for line in _whole_lines(records)}
    lost = [line for line in _whole_lines(under_way) if _number(line) not in known]
    try:
        with records.open("a", encoding="utf-8") as file:
            for line in lost:
                record = RequestRecord.model_validate_json(line)
                file.write(record.model_copy(update={"done_s": max(now_s, record.sent_s)}).model_dump_json() + "\n")
    finally:
        cut_to_whole_lines(records)
    return len(lost)


def cut_to_whole_lines(path: Path) -> None:
    """Remove an incomplete last line, left by a failed write."""
    if not path.is_file():
        return
    with path.open("rb+") as file:
        place = file.seek(0, os.SEEK_END)
        while place > 0:
            begin = max(0, place - 65_536)
            file.seek(begin)
            found = file.read(place - begin).rfind(b"\n")
            if found >= 0:
                place = begin + found + 1
                break
            place = begin
        file.truncate(place)


def _whole_lines(path: Path) -> Iterator[str]:
    """Yield the complete lines of a file."""
    if path.is_file():
        with path.open(encoding="utf-8") as file:
            yield from (line for line in file if line.endswith("\n"))


def _number(line: str) -> int:
    """Return a record's id, which is the first value of a line."""
    return int(line.partition('"id":')[2].partition(",")[0])
