"""Tables on a terminal of any width: nothing is cut off, and words stay whole where they fit."""

from __future__ import annotations

import re

import pytest
from rich.table import Table
from rich.text import Text

from engines.terminal_tables import table_console


def _printed(table: Table, columns: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", str(columns))
    table_console().print(table)
    return Text.from_ansi(capsys.readouterr().out).plain


@pytest.mark.parametrize("no_wrap", [False, True])
@pytest.mark.parametrize("columns", [120, 80, 40])
def test_no_figure_of_a_table_is_cut_off(
    columns: int, no_wrap: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A table of eleven columns loses its padding at 80 columns, and wraps at 40; every digit is printed."""
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", str(columns))
    table = Table("load", "requests", "errors", "batch", "ITL p50", "p95", "p99", "TTFT p50", "p95", "p99", "tokens/s")
    values = ["1", "16", "0", "0.8", "5.16", "5.54", "14.9?", "8.34", "22.9?", "42.2?", "184"]
    table.add_row(*values)
    for column in table.columns:
        column.no_wrap = no_wrap
    table_console().print(table)
    said = Text.from_ansi(capsys.readouterr().out).plain
    assert max(map(len, said.splitlines())) <= columns
    assert "…" not in said
    cells = zip(*(line.split("│") for line in said.splitlines() if line.startswith("│")), strict=True)
    assert ["".join(map(str.strip, cell)) for cell in cells][1:-1] == values
    assert columns == 40 or all(word in said for word in ("requests", "tokens/s", "14.9?", "22.9?", "42.2?"))


@pytest.mark.parametrize(("columns", "width"), [("80", 80), ("0", 120), ("wide", 120), (None, 120)])
def test_a_pipe_is_as_wide_as_columns_says(columns: str | None, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As for `plan-capacity ... | less` with COLUMNS exported; without it, lines of 120 columns stay whole."""
    if columns is not None:
        monkeypatch.setenv("COLUMNS", columns)
    assert table_console().width == width


def test_words_stay_whole_where_they_fit(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A long column is wrapped between words; a short one beside it, such as `predicted`, is not cut in two."""
    table = Table("candidate", "based on", "req/s", "TTFT p95", "ITL p99", "replicas", "$/month", "$/Mtok")
    table.add_row("h100-sxm-80gb fp8 b768 t8192", "predicted", "23.9 (28.6)", "1,292", "133", "5", "11,680", "0.772")
    said = _printed(table, 80, monkeypatch, capsys)
    assert max(map(len, said.splitlines())) <= 80
    words = re.split(r"[\s│┃]+", said)
    assert {"h100-sxm-80gb", "predicted", "23.9", "(28.6)", "11,680", "replicas"} <= set(words)


def test_a_title_may_be_wider_than_its_table(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It takes one line of the terminal, not two of the table."""
    table = Table("a", title="USD per million tokens, every replica up, at the mean load")
    table.add_row("1")
    first = _printed(table, 80, monkeypatch, capsys).splitlines()[0]
    assert first == "USD per million tokens, every replica up, at the mean load"
