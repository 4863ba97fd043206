"""Lengths from files: a log, JSON Lines, a trace; prompt and reply lengths stay paired."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from engines.errors import UserError
from engines.files import MAX_TOKENS, Strict, require_file
from loadtest.scenario.traces import PATHS_HINT

# Common column names of prompt and reply lengths, including those of the trace formats.
PAIR_COLUMNS = (
    ("isl", "osl"),
    ("input_length", "output_length"),
    ("prompt_tokens", "completion_tokens"),
    ("prompt_tokens", "output_tokens"),
    ("ContextTokens", "GeneratedTokens"),
    ("Request tokens", "Response tokens"),
)


@lru_cache(maxsize=16)
def read_column(path: str, column: str) -> tuple[float, ...]:
    """Return one column's numbers, ascending, of a CSV with a header or of JSON Lines; by default the only column.

    Raises:
        MissingError: The file does not exist.
        UserError: The column does not exist, or a value is out of range; states the line.
    """
    found = []
    for number, row in _rows(path):
        if not column and len(row) != 1:
            raise UserError(
                f"{path}: {len(row)} columns", hint=f"name one: empirical({path}, {next(iter(row), 'isl')})"
            )
        name = column or next(iter(row))
        if name not in row:
            raise UserError(f"{path}: line {number}: no '{name}'", hint=f"available: {', '.join(row)}")
        found.append(_positive(row[name], name, path, number, lower=0.0))
    return tuple(sorted(found))


class Pairs(Strict):
    """Pairs of prompt and reply lengths from a file: a log, a trace, or another tool's output.

    Attributes:
        path: A CSV with a header, or JSON Lines, with columns such as isl and osl, or a known trace's.
        max_isl: Pairs with longer prompts are skipped.
        max_osl: Pairs with longer replies are skipped.
    """

    path: Annotated[str, Field(min_length=1)]
    max_isl: Annotated[int, Field(ge=1)] | None = None
    max_osl: Annotated[int, Field(ge=1)] | None = None

    @property
    def rows(self) -> tuple[tuple[int, int], ...]:
        """The pairs within the bounds, in the file's order. Raises as `read_pairs` does."""
        max_isl, max_osl = self.max_isl or math.inf, self.max_osl or math.inf
        return _pairs_within(self.path, max_isl, max_osl)

    def at(self, even_number: float) -> tuple[int, int]:
        """Return the pair at a number between 0 and 1."""
        rows = self.rows
        return rows[min(len(rows) - 1, int(even_number * len(rows)))]


@lru_cache(maxsize=16)
def _pairs_within(path: str, max_isl: float, max_osl: float) -> tuple[tuple[int, int], ...]:
    found = tuple(pair for pair in read_pairs(path) if pair[0] <= max_isl and pair[1] <= max_osl)
    if not found:
        raise UserError(f"{path}: no pair within max_isl and max_osl", hint="raise the bounds")
    return found


@lru_cache(maxsize=16)
def read_pairs(path: str) -> tuple[tuple[int, int], ...]:
    """Return a file's prompt and reply lengths; rows without a prompt or a reply are skipped.

    Raises:
        MissingError: The file does not exist.
        UserError: There are no known columns, no rows, or a value that is not a count.
    """
    pairs: list[tuple[int, int]] = []
    names: tuple[str, str] | None = None
    for number, row in _rows(path):
        names = names or next((known for known in PAIR_COLUMNS if set(known) <= set(row)), None)
        if names is None:
            known = "; ".join(f"{isl} and {osl}" for isl, osl in PAIR_COLUMNS)
            raise UserError(f"{path}: line {number}: no known length columns", hint=f"columns: {known}")
        isl, osl = (int(_positive(row.get(name), name, path, number, lower=0.0)) for name in names)
        if isl and osl:
            pairs.append((isl, osl))
    if not pairs:
        raise UserError(f"{path}: contains no pair of lengths", hint="give one row per request: isl, osl")
    return tuple(pairs)


def _positive(value: object, name: str, path: str, number: int, *, lower: float) -> float:
    try:
        found = float(str(value))
    except ValueError:
        found = math.nan
    if not lower <= found <= MAX_TOKENS:
        raise UserError(
            f"{path}: line {number}: '{name}' is {value!r:.60}, not a number from {lower:g} to {MAX_TOKENS:,}"
        )
    return found


def _rows(path: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield line numbers and rows of a CSV with a header, or of JSON Lines."""
    require_file(Path(path), hint=PATHS_HINT)
    with Path(path).open(encoding="utf-8-sig", errors="backslashreplace", newline="") as file:
        head = file.readline()
        if head.lstrip().startswith("{"):
            for number, line in enumerate(chain([head], file), start=1):
                if line.strip():
                    yield number, _json_row(line, path, number)
            return
        names = [name.strip() for name in next(csv.reader([head]), [])]
        reader = csv.reader(file)
        try:
            for row in reader:
                if row:
                    yield reader.line_num + 1, dict(zip(names, row, strict=False))
        except csv.Error as error:
            raise UserError(f"{path}: line {reader.line_num + 1}: not CSV: {error}") from error


def _json_row(line: str, path: str, number: int) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: line {number} is not JSON: {error}") from error
    if not isinstance(row, dict):
        raise UserError(f"{path}: line {number} is not a JSON object")
    return row
