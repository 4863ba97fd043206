"""Tables on a terminal of any width."""

from __future__ import annotations

import errno
import os
import shutil
import sys
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

_WIDEST = 1000  # columns; wider than any table


class TableConsole(Console):
    """A console whose tables fit.

    A table that is wider than the console loses its padding first and then wraps its cells, between words if these fit;
    no figure is cut off. A title may be wider than its table.
    """

    def print(self, *objects: Any, **options: Any) -> None:
        """Print tables, each title on lines of its own, and all else as rich does."""
        for table in objects:
            if not isinstance(table, Table):
                continue
            if isinstance(table.title, str):
                super().print(self.render_str(table.title, style="table.title", highlight=False))
                table.title = None
            if _widest(self, table) > self.width:
                _narrow(self, table)
        super().print(*objects, **options)

    def on_broken_pipe(self) -> None:
        """Leave the error to the command; rich would exit with status 1."""
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))


def table_console() -> TableConsole:
    """Return a console on stdout for tables, as wide as COLUMNS says, or the terminal; to a file, 120 columns."""
    unknown = 80 if sys.stdout.isatty() else 120
    return TableConsole(width=shutil.get_terminal_size((unknown, 0)).columns)


def _widest(console: Console, table: Table) -> int:
    """Return the width of a table without any wrapped cell."""
    return console.measure(table, options=console.options.update(width=_WIDEST)).maximum


def _narrow(console: Console, table: Table) -> None:
    """Drop the padding of a table and wrap its cells: between words, or anywhere if the words do not fit."""
    table.padding = (0, 0)
    wide = console.options.update(width=_WIDEST)
    measured = [
        [console.measure(cell, options=wide) for cell in (column.header, *column.cells)] for column in table.columns
    ]
    least = [max(each.minimum for each in column) for column in measured]
    most = [max(each.maximum for each in column) for column in measured]
    spare = console.width - (_widest(console, table) - sum(most)) - sum(least)
    for column in table.columns:
        column.no_wrap, column.overflow = False, "fold"
    if spare >= 0:
        for column, width in zip(table.columns, _shared(least, most, spare), strict=True):
            column.width = width


def _shared(least: Sequence[int], most: Sequence[int], spare: int) -> list[int]:
    """Return the columns' widths: the least, and equal parts of what is spare, up to the most.

    >>> _shared([3, 3, 3], [3, 4, 20], 9)
    [3, 4, 11]
    """
    widths = list(least)
    by_need = sorted(range(len(widths)), key=lambda index: most[index] - least[index])
    for done, index in enumerate(by_need):
        part = min(most[index] - least[index], spare // (len(widths) - done))
        widths[index] += part
        spare -= part
    return widths
