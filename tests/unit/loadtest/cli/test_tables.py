"""The tables of a run on the terminal, and what is said beside them."""

from __future__ import annotations

import pytest

from loadtest.cli.tables import show_energy, show_summary
from loadtest.metrics.summarize import summarize
from loadtest.results.records import ValidityIssue
from tests.unit.loadtest.made import level, manifest, record


def test_what_is_wrong_with_a_level_is_said_with_its_load(capsys: pytest.CaptureFixture[str]) -> None:
    """Of two levels, the one at 16 users is late, and its energy is unknown for a reason of its own."""
    issue = ValidityIssue(code="emulator-late", text="late by 184% of a step", level=1)
    run = manifest(level(8, 0.0, 2.0), level(16, 2.0, 4.0)).model_copy(update={"validity_issues": [issue]})
    found = summarize(run, [record(0, 0.0, [1.0, 2.0]), record(1, 2.0, [3.0, 4.0], level=1)], [])
    first, second = (
        each.model_copy(update={"energy": None, "energy_unknown": why})
        for each, why in zip(found.levels, ("2 readings", "3 readings"), strict=True)
    )
    found = found.model_copy(update={"levels": [first, second]})
    show_summary(found)
    show_energy(found)
    said = capsys.readouterr().err
    assert "not valid: emulator-late at load 16: late by 184% of a step" in said
    assert "energy unknown at load 8: 2 readings" in said
    assert "energy unknown at load 16: 3 readings" in said
    same = found.model_copy(update={"levels": [first, second.model_copy(update={"energy_unknown": "2 readings"})]})
    show_energy(same)
    assert capsys.readouterr().err == "energy unknown: 2 readings\n"


def test_the_question_mark_is_explained_where_there_is_one(capsys: pytest.CaptureFixture[str]) -> None:
    """Below the table, on stdout; not for a percentile that the table does not show."""
    for count in (3, 2000):
        records = [
            record(number, 0.001 * number, [0.001 * number + 0.01 * (1 + t) for t in range(3)])
            for number in range(count)
        ]
        show_summary(summarize(manifest(level(1, 0.0, 3.0)), records, []))
        said = capsys.readouterr().out
        table, legend, _ = said.partition("?: the sample is too small for this percentile")
        assert bool(legend) == ("?" in table) == (count == 3)
        assert "~" in table
        assert "~: counted by the client" in said
