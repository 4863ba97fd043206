"""Records are read only where they can have happened."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engines.errors import MissingError, UserError
from engines.files import MadeBy, write_json
from engines.outputs import whole_folder
from loadtest.results.records import RequestRecord, _contradiction, read_records, read_run, read_samples
from tests.unit.loadtest.made import level, manifest, record

GOOD = [record(number, number * 1.0, [number + 0.1, number + 0.2, number + 0.2]) for number in range(4)]


def _write(folder: Path, records: list[RequestRecord], *, tail: str = "") -> Path:
    text = "".join(each.model_dump_json() + "\n" for each in records)
    (folder / "requests.jsonl").write_text(text + tail)
    return folder


def test_records_come_back_as_they_were_written(tmp_path: Path) -> None:
    """Equal times are in order; a last line that was cut is left out."""
    assert list(read_records(_write(tmp_path, GOOD, tail='{"id": 9, "le'))) == GOOD


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"id": 0}, "line 3: id 0 is repeated"),
        ({"done_s": float("nan")}, "line 3: done_s: must be a finite number"),
        ({"sent_s": float("-inf")}, "finite"),
        ({"token_times_s": (2.1, float("nan"), 2.2)}, "finite"),
        ({"queue_s": float("inf")}, "finite"),
        ({"token_times_s": (2.2, 2.1)}, "line 3: the times of request 2 are out of order"),
        ({"sent_s": 2.15}, "out of order"),
        ({"scheduled_s": 102.0}, "out of order"),
        ({"done_s": 1e300}, "line 3: request 2 has a time of more than 1,000,000,000 s"),
        ({"done_s": 2.15}, "out of order"),
        ({"token_times_s": (), "done_s": 1.0}, "out of order"),
        ({"cached_tokens": 9}, "line 3: request 2 has 9 cached tokens of 8 prompt tokens"),
    ],
)
def test_a_record_that_cannot_have_happened_is_refused(
    tmp_path: Path, change: dict[str, object], complaint: str
) -> None:
    """A time that is no number or out of order, an id that comes twice, more cached than sent: the line is named."""
    lines = [each.model_dump_json() for each in GOOD]
    broken = GOOD[2].model_copy(update=change)
    lines[2] = json.dumps(broken.model_dump(mode="python"))
    (tmp_path / "requests.jsonl").write_text("\n".join(lines) + "\n")
    with pytest.raises(UserError, match=complaint):
        list(read_records(tmp_path))


def test_a_page_s_number_beyond_64_bits_is_refused(tmp_path: Path) -> None:
    """A whole number that no column holds is named with its line."""
    (tmp_path / "samples.jsonl").write_text(f'{{"t_s": 0.0, "values": {{}}, "page": {"9" * 400}}}\n')
    with pytest.raises(UserError, match="line 1: page: must be less than"):
        list(read_samples(tmp_path))


@given(
    sent_s=st.floats(0, 1e6),
    waits_s=st.lists(st.floats(0, 1e3), max_size=50),
    end_s=st.floats(0, 10),
)
def test_what_can_have_happened_is_never_refused(sent_s: float, waits_s: list[float], end_s: float) -> None:
    """Times that only grow, however large or close together they are."""
    times = []
    now_s = sent_s
    for wait_s in waits_s:
        now_s += wait_s
        times.append(now_s)
    made = record(0, sent_s, times).model_copy(update={"done_s": now_s + end_s})
    assert _contradiction(made) is None


def test_a_run_that_was_cut_short_is_measured_from_its_records(tmp_path: Path) -> None:
    """Its last level lasts from the first measured request to the end of the last; the levels before are as written."""
    whole, begun = level(2, 0.0, 2.0), level(4, 2.0, 2.0, complete=False)
    records = [each.model_copy(update={"level": each.id // 2}) for each in GOOD]
    write_json(tmp_path / "run.json", manifest(whole, begun).model_copy(update={"unfinished": True}))
    with pytest.raises(UserError, match="interrupted before any request ended"):
        read_run(tmp_path)
    found = read_run(_write(tmp_path, records))
    assert found.levels[0] == whole
    assert (found.levels[1].measure_s, found.levels[1].end_s) == (2.0, 3.2)
    assert found.interrupted is not None
    assert found.interrupted.startswith("cut short")


def test_a_folder_of_another_kind_is_named_as_such(tmp_path: Path) -> None:
    """An engine folder given for a run, and one that is not there."""
    with pytest.raises(UserError, match=r"not a run folder: it has no run\.json"):
        read_run(tmp_path)
    with pytest.raises(MissingError, match="nowhere: no such folder"):
        read_run(tmp_path / "nowhere")
    with whole_folder(tmp_path / "made", made_by=MadeBy(command="build-engine --precision fp8", version="0")) as engine:
        (engine / "manifest.json").touch()
    with pytest.raises(UserError, match="made: an engine folder, not a run folder"):
        read_run(tmp_path / "made")
    with whole_folder(tmp_path / "run", made_by=MadeBy(command="run-load --url h", version="0")):
        pass  # a run's own folder that lost its file had been "a run folder, not a run folder"
    with pytest.raises(UserError, match=r"run: not a run folder: it has no run\.json"):
        read_run(tmp_path / "run")


def test_a_folder_of_runs_is_met_with_one_of_them(tmp_path: Path) -> None:
    """As `run-load --repeat` and `find-knee` write them."""
    for name in ("2", "1"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.json").touch()
    with pytest.raises(UserError, match="not a run folder") as caught:
        read_run(tmp_path)
    assert caught.value.hint == f"it contains runs: {tmp_path / '1'}, ..."
    with pytest.raises(MissingError, match="no such folder") as missing:
        read_run(tmp_path / "none")
    assert missing.value.hint == "give the output folder of run-load or predict-load --out"
