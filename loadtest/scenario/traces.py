"""Traces: recorded arrivals with lengths, in Azure's, BurstGPT's or Mooncake's format, or as CSV."""

from __future__ import annotations

import codecs
import csv
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Literal, NamedTuple, Self

from pydantic import Field, model_validator

from engines.errors import UserError
from engines.files import MAX_TOKENS, Strict, require_file

MAX_ARRIVALS = 5_000_000  # at about 200 bytes each, these fit into a load generator's memory
PATHS_HINT = "check the path; in a YAML file it starts at that file's folder"
SLACK_S = 60.0  # maximum disorder of a trace's rows within which a slice is still found
LATEST_S = 1e11  # 3,000 years: dates in seconds are below it; also the limit of numbers that count ms, 3 years
_NEAR_BYTES = 1 << 16  # a slice's start is searched to within this distance
HASH_BLOCK_TOKENS = 512  # tokens per Mooncake hash
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
TraceFormat = Literal["azure", "burstgpt", "mooncake", "csv"]
# Close to the traces' dates, so that a float of seconds since then resolves a microsecond.
_EPOCH = datetime(2020, 1, 1, tzinfo=UTC)


class Trace(Strict):
    """Recorded arrivals with their lengths.

    Attributes:
        path: The trace; relative paths start at the scenario's folder.
        format: Names of its columns; `auto` detects them from the first line.
        speed_up: Trace seconds per second of the run.
        from_s: Start of the slice to replay, in trace seconds; it becomes the start of the run. Azure and
            BurstGPT traces count from their first row, the others as stated. Only the slice's part of the file is read:
            rows must be in order, up to `SLACK_S`.
        to_s: End of the slice, exclusive.
        max_tokens: Maximum reply tokens of each request whose row does not state it (column `max_tokens` of a CSV or of
            JSON Lines). None: the length of its reply.
    """

    process: Literal["trace"] = "trace"
    path: Annotated[str, Field(min_length=1)]
    format: TraceFormat | Literal["auto"] = "auto"
    speed_up: Positive = 1.0
    from_s: NotNegative = 0.0
    to_s: Positive | Literal["end"] = "end"
    max_tokens: Annotated[int, Field(ge=1)] | None = None

    @property
    def end_s(self) -> float:
        """End of the slice as a number."""
        return math.inf if self.to_s == "end" else self.to_s

    @property
    def is_slice(self) -> bool:
        """Whether a part of the trace is replayed."""
        return self.from_s > 0 or self.end_s < math.inf

    @model_validator(mode="after")
    def _some_slice(self) -> Self:
        if self.from_s >= self.end_s:
            raise ValueError(f"to_s must be greater than from_s, which is {self.from_s:g}")
        return self


class Arrival(NamedTuple):
    """One request to be sent.

    Attributes:
        at_s: Send time, in seconds from the start of the run.
        isl: Prompt tokens; None if the process does not define lengths.
        osl: Reply tokens; None likewise.
        prefix_hashes: One per `HASH_BLOCK_TOKENS` of the prompt; requests that start with equal hashes start with equal
            tokens.
        max_tokens: Maximum reply tokens; None: the length of its reply.
    """

    at_s: float
    isl: int | None = None
    osl: int | None = None
    prefix_hashes: tuple[int, ...] = ()
    max_tokens: int | None = None


class Schedule(NamedTuple):
    """All arrivals of a run.

    Attributes:
        arrivals: By time.
        failed_rows: Rows of a trace's slice skipped because they have no prompt or no reply.
    """

    arrivals: tuple[Arrival, ...]
    failed_rows: int = 0


def read_trace(trace: Trace, *, folder: Path) -> Schedule:
    """Return a trace's slice as arrivals; rows far outside the slice are not read.

    Raises:
        MissingError: The trace does not exist.
        UserError: It is not a file, a row is damaged, the slice is empty, or it has more than `MAX_ARRIVALS`.
    """
    path = folder / trace.path
    chosen: list[Arrival] = []
    failed_rows = 0
    for at_s, isl, osl, prefix_hashes, own_max in _requests(path, trace):
        if not trace.from_s <= at_s < trace.end_s:
            continue
        if not isl or not osl:
            failed_rows += 1
            continue
        if len(chosen) == MAX_ARRIVALS:
            raise UserError(f"{path}: more than {MAX_ARRIVALS:,} requests", hint="replay a slice with from_s and to_s")
        largest = trace.max_tokens if own_max is None else own_max
        chosen.append(Arrival((at_s - trace.from_s) / trace.speed_up, isl, osl, prefix_hashes, largest))
    if not chosen:
        raise _no_request(path, trace, failed_rows)
    return Schedule(tuple(sorted(chosen, key=lambda arrival: arrival.at_s)), failed_rows)


def _no_request(path: Path, trace: Trace, failed_rows: int) -> UserError:
    if trace.is_slice:
        end = "the end" if trace.end_s == math.inf else f"{trace.end_s:g} s"
        return UserError(
            f"{path}: no request from {trace.from_s:g} s to {end}, and {failed_rows} failed ones",
            hint="check the slice: from_s and to_s count from the start of the trace",
        )
    if failed_rows:
        return UserError(
            f"{path}: none of its rows ({failed_rows:,}) has both a prompt and a reply",
            hint="check its columns of lengths",
        )
    return UserError(f"{path}: no row below its header", hint="check that the file is complete")


class _Layout(NamedTuple):
    """Columns of a trace format.

    Attributes:
        from_first: Whether its times count from some date, so that the trace starts at its first row.
    """

    at: str
    isl: str
    osl: str
    seconds: Callable[[Any], float]
    wanted: str
    from_first: bool


def _seconds(value: Any) -> float:
    number_s = float(str(value))
    if not 0 <= number_s <= LATEST_S:
        raise ValueError
    return number_s


def _milliseconds(value: Any) -> float:
    return _seconds(value) / 1000


def _date(value: Any) -> float:
    moment = datetime.fromisoformat(str(value))
    return ((moment if moment.tzinfo else moment.replace(tzinfo=UTC)) - _EPOCH).total_seconds()


def _tokens(value: Any) -> int:
    number = int(str(value))
    if not 0 <= number <= MAX_TOKENS:
        raise ValueError
    return number


def _hashes(value: Any) -> tuple[int, ...]:
    if not isinstance(value, list) or not all(type(hash_id) is int for hash_id in value):
        raise ValueError
    return tuple(value)


# Sources: https://github.com/Azure/AzurePublicDataset (AzureLLMInferenceDataset2023.md and 2024.md; a date has up to
# seven decimals, the seventh is dropped), https://github.com/HPMLL/BurstGPT (a reply of 0 tokens is a failure),
# https://github.com/kvcache-ai/Mooncake (FAST25-release/README.md).
_LAYOUTS = {
    "azure": _Layout("TIMESTAMP", "ContextTokens", "GeneratedTokens", _date, "a date and time", True),
    "burstgpt": _Layout("Timestamp", "Request tokens", "Response tokens", _seconds, "seconds from zero up", True),
    "mooncake": _Layout("timestamp", "input_length", "output_length", _milliseconds, "ms from zero up", False),
    "csv": _Layout("at_s", "isl", "osl", _seconds, "seconds from zero up", False),
}


@dataclass(slots=True)
class _Table:
    """An open trace whose header has been read.

    Attributes:
        begin_s: Time of the start of the trace: of its first row if the layout is `from_first`, else 0.
        body_at: Byte at which its rows start.
    """

    path: Path
    file: BinaryIO
    columns: list[str] | None
    layout: _Layout
    body_at: int
    begin_s: float = -math.inf

    def __post_init__(self) -> None:
        """Find the start of the trace."""
        if self.layout.from_first:
            first = next(self.rows(self.body_at), None)
            self.begin_s = 0.0 if first is None else first.at_s
        else:
            self.begin_s = 0.0

    def rows(self, at: int, *, whole: bool = True) -> Iterator[Arrival]:
        """Yield the rows from a byte on, with unmodified times.

        Args:
            whole: A line starts at that byte; if not, reading starts at the next line.

        Raises:
            UserError: A row is damaged, or earlier than the first.
        """
        self.file.seek(at)
        number = 1 if self.columns is None else 2
        if not whole:
            at += len(self.file.readline())
        for line in self.file:
            try:
                if line.strip():
                    yield self._row(line)
            except (ValueError, csv.Error) as error:
                where = f"line {number}" if whole else f"the line at byte {at:,}"
                raise UserError(f"{self.path}: {where}: {error}", hint="fix or remove that line") from error
            number += 1
            at += len(line)

    def near(self, wanted_s: float) -> Iterator[Arrival]:
        """Yield the rows from a place shortly before a time. Raises as `rows` does."""
        low, high = self.body_at, self.file.seek(0, 2)
        while high - low > _NEAR_BYTES:
            middle = (low + high) // 2
            found = next(self.rows(middle, whole=False), None)
            if found is not None and found.at_s < wanted_s:
                low = middle
            else:
                high = middle
        return self.rows(low, whole=low == self.body_at)

    def _row(self, line: bytes) -> Arrival:
        # A byte that is not UTF-8 appears as \xff in the value, which is refused with its line where it matters.
        text = line.decode("utf-8", "backslashreplace")
        arrival = _arrival(_row(text, self.columns), self.layout)
        if arrival.at_s < self.begin_s:
            raise ValueError(f"{text.rstrip()!r:.60} is earlier than the first row")
        return arrival


def _requests(path: Path, trace: Trace) -> Iterator[Arrival]:
    """Yield the rows of a trace's slice, and some around it, in the file's order."""
    require_file(path, hint=PATHS_HINT)
    with path.open("rb") as file:
        first = file.readline()
        head = first.decode("utf-8-sig", "backslashreplace")
        columns = None if head.lstrip().startswith("{") else [name.strip('" \r\n') for name in head.split(",")]
        layout = _layout_of(path, trace.format, head, columns)
        mark = len(codecs.BOM_UTF8) if first.startswith(codecs.BOM_UTF8) else 0
        table = _Table(path, file, columns, layout, mark if columns is None else file.tell())
        is_slice = trace.is_slice
        latest_s = 0.0
        found = table.near(table.begin_s + trace.from_s - SLACK_S) if is_slice else table.rows(table.body_at)
        for row in found:
            arrival = row._replace(at_s=row.at_s - table.begin_s)
            if is_slice and arrival.at_s >= trace.end_s + SLACK_S:
                return
            if is_slice and arrival.at_s < latest_s - SLACK_S:
                raise UserError(
                    f"{path}: a row at {arrival.at_s:g} s follows one at {latest_s:g} s, so a slice cannot be cut",
                    hint="sort the file by time",
                )
            latest_s = max(latest_s, arrival.at_s)
            yield arrival


def _layout_of(path: Path, requested: str, head: str, columns: list[str] | None) -> _Layout:
    tables = (name for name, layout in _LAYOUTS.items() if set(layout[:3]) <= set(columns or ()))
    found = "mooncake" if columns is None else next(tables, "none")
    if found == "none" or requested not in ("auto", found):
        wanted = "any trace known" if requested == "auto" else f"a trace of format {requested}"
        known = "known: " + "; ".join(f"{name}: {', '.join(layout[:3])}" for name, layout in _LAYOUTS.items())
        raise UserError(
            f"{path}: line 1 is {head.rstrip()!r:.60}, not the header of {wanted}", hint=_reformatted(head) or known
        )
    return _LAYOUTS[found]


def _reformatted(head: str) -> str | None:
    """Return how to save a table that a spreadsheet wrote in another way; None if it is not that."""
    if head.startswith(("\\xff\\xfe", "\\xfe\\xff")):
        return "it is UTF-16: save it as UTF-8"
    for mark, name in ((";", "semicolons"), ("\t", "tabs")):
        columns = {column.strip('" \r\n') for column in head.split(mark)}
        if any(set(layout[:3]) <= columns for layout in _LAYOUTS.values()):
            return f"its columns are separated by {name}: save it with commas, and with decimal points"
    return None


def _row(line: str, columns: list[str] | None) -> dict[str, Any]:
    """Return one line's values by column; without a header, by JSON key."""
    if columns is None:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{line.rstrip()!r:.60} is not JSON") from error
        if not isinstance(row, dict):
            raise ValueError(f"{row!r:.60} is not a JSON object")
        return row
    values = next(csv.reader([line]))
    if len(values) != len(columns):
        raise ValueError(f"{line.rstrip()!r:.60} has {len(values)} values for {len(columns)} columns")
    return dict(zip(columns, values, strict=True))


def _arrival(row: dict[str, Any], layout: _Layout) -> Arrival:
    return Arrival(
        _cell(row, layout.at, layout.seconds, layout.wanted),
        _cell(row, layout.isl, _tokens, "a whole number of tokens"),
        _cell(row, layout.osl, _tokens, "a whole number of tokens"),
        _cell(row, "hash_ids", _hashes, "a list of whole numbers") if "hash_ids" in row else (),
        _cell(row, "max_tokens", _tokens, "a whole number of tokens") if row.get("max_tokens") else None,
    )


def _cell(row: dict[str, Any], column: str, read: Callable[[Any], Any], wanted: str) -> Any:
    if column not in row:
        raise ValueError(f"no '{column}'")
    try:
        return read(row[column])
    except ValueError as error:
        raise ValueError(f"'{column}' is {row[column]!r:.60}, not {wanted}") from error
