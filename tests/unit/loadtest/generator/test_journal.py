"""What a load generator writes down while it runs, and what is made of it when it is lost."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from loadtest.generator import journal
from loadtest.generator.journal import Appender, RecordJournal, add_lost, cut_to_whole_lines
from loadtest.results.records import REQUESTS_NAME, RequestRecord, read_records


def record(number: int, **changed: object) -> RequestRecord:
    """Return a record that ended well."""
    values = {
        "id": number,
        "level": 0,
        "phase": "measure",
        "scheduled_s": 1.0,
        "sent_s": 1.0,
        "token_times_s": (1.1, 1.2),
        "done_s": 1.2,
        "prompt_tokens": 5,
        "output_tokens": 2,
        "outcome": "ok",
    }
    return RequestRecord.model_validate(values | changed)


def under_way(number: int) -> RequestRecord:
    """Return the record a request has if its generator is lost."""
    return record(number, outcome="lost", token_times_s=(), output_tokens=0, done_s=1.0)


def test_a_slow_run_is_on_disk_at_once_and_a_fast_one_within_a_quarter_second(tmp_path: Path) -> None:
    """A line is written where the last write was long ago; those that follow closely wait for the next flush."""
    file = Appender(tmp_path / "lines")
    file.add("first")
    assert (tmp_path / "lines").read_text() == "first\n"
    file.add("second")
    assert (tmp_path / "lines").read_text() in ("first\n", "first\nsecond\n")  # by how busy the machine is
    file.flush()
    assert (tmp_path / "lines").read_text() == "first\nsecond\n"
    file.close()


def test_a_full_disk_is_told_once_and_nothing_is_written_after_it(tmp_path: Path) -> None:
    """The system's words are kept, in place of a traceback, and the run can be ended by them."""
    link = tmp_path / "requests.jsonl"
    link.symlink_to("/dev/full")
    book = RecordJournal(link, tmp_path / "under-way")
    book.note_sent(1, under_way(1).model_dump_json())
    book.note_end(record(1))
    book.flush()
    assert book.failed is not None
    assert "No space left on device" in book.failed
    book.note_end(record(2))
    book.close()


def test_every_request_has_a_record_when_its_generator_is_lost(tmp_path: Path) -> None:
    """What was under way is recorded as lost at the moment that was noticed; what had ended is not touched."""
    book = RecordJournal(tmp_path / REQUESTS_NAME, tmp_path / "under-way")
    for number in range(5):
        book.note_sent(number, under_way(number).model_dump_json())
    assert book.in_flight == 5
    book.note_end(record(3))
    book.note_end(record(0))
    book.flush()
    assert book.in_flight == 3
    with (tmp_path / REQUESTS_NAME).open("a") as file:
        file.write('{"id":4,"lev')  # the generator died in the middle of a line
    assert add_lost(tmp_path / REQUESTS_NAME, tmp_path / "under-way", now_s=9.0) == 3
    found = {each.id: (each.outcome, each.done_s) for each in read_records(tmp_path)}
    assert found == {0: ("ok", 1.2), 3: ("ok", 1.2), 1: ("lost", 9.0), 2: ("lost", 9.0), 4: ("lost", 9.0)}
    assert add_lost(tmp_path / REQUESTS_NAME, tmp_path / "under-way", now_s=9.0) == 0
    book.close()


def test_notes_of_what_has_ended_are_dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file of what is under way stays as small as what is under way, however long the run."""
    monkeypatch.setattr(journal, "COMPACT_LINES", 50)
    book = RecordJournal(tmp_path / REQUESTS_NAME, tmp_path / "under-way")
    for number in range(1000):
        book.note_sent(number, under_way(number).model_dump_json())
        if number >= 3:
            book.note_end(record(number - 3))
    book.flush()
    lines = (tmp_path / "under-way").read_text().splitlines()
    assert len(lines) < 70
    assert {json.loads(line)["id"] for line in lines} >= {997, 998, 999}
    assert add_lost(tmp_path / REQUESTS_NAME, tmp_path / "under-way", now_s=2.0) == 3
    book.close()


@pytest.mark.parametrize(("text", "kept"), [("a\nb\nc", "a\nb\n"), ("a\n", "a\n"), ("abc", ""), ("", "")])
def test_a_file_of_lines_ends_with_a_whole_one(tmp_path: Path, text: str, kept: str) -> None:
    """What a failed write left of a line is cut off."""
    (tmp_path / "lines").write_text(text)
    cut_to_whole_lines(tmp_path / "lines")
    assert (tmp_path / "lines").read_text() == kept


def test_a_long_last_line_is_cut_too(tmp_path: Path) -> None:
    """The last whole line is found however far back it ends."""
    (tmp_path / "lines").write_text("whole\n" + "x" * 200_000)
    cut_to_whole_lines(tmp_path / "lines")
    assert (tmp_path / "lines").read_text() == "whole\n"


def test_prompts_are_written_where_asked_only(tmp_path: Path) -> None:
    """Without a file for them, prompts go nowhere."""
    for texts in (None, tmp_path / "prompts"):
        book = RecordJournal(tmp_path / REQUESTS_NAME, tmp_path / "under-way", texts)
        book.note_text("a secret")
        book.close()
        assert (tmp_path / "prompts").exists() == (texts is not None)
