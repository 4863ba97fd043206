"""Traces are read as published: their rows, slices, failures and damage."""

from __future__ import annotations

import math
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engines.errors import MissingError, UserError
from loadtest.scenario import traces
from loadtest.scenario.arrivals import (
    arrivals_of,
    with_duration,
)
from loadtest.scenario.schema import Scenario
from loadtest.scenario.traces import HASH_BLOCK_TOKENS, Arrival, Schedule, Trace, read_trace
from loadtest.traffic.levels import plans_of

# The head of AzureLLMInferenceTrace_conv.csv (Microsoft, CC-BY), as published: CRLF, no newline at the end.
AZURE_2023 = (
    "TIMESTAMP,ContextTokens,GeneratedTokens\r\n"
    "2023-11-16 18:15:46.6805900,374,44\r\n"
    "2023-11-16 18:15:50.9951690,396,109"
)
AZURE_2024 = (
    "TIMESTAMP,ContextTokens,GeneratedTokens\n"
    "2024-05-10 00:00:00.009930+00:00,2162,5\n"
    "2024-05-10 00:00:10+00:00,200,20\n"
)
# The head of BurstGPT_1.csv, and of BurstGPT_3.csv, which has two columns more; each with a failed request after it.
BURSTGPT_1 = (
    "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
    "5,ChatGPT,472,18,490,Conversation log\n"
    "45,ChatGPT,1087,230,1317,Conversation log\n"
    "50,ChatGPT,0,0,0,Conversation log\n"
    "118,GPT-4,417,276,693,Conversation log\n"
)
BURSTGPT_3 = (
    "Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
    "19440110.0,1722ac82,43,GPT-4,906,446,1352,Conversation log\n"
    "19440150.0,,2,ChatGPT,30,0,30,API log\n"
    "19440161.0,d5983bf9,2,ChatGPT,36,29,65,Conversation log\n"
)
# The two requests in the README of Mooncake's traces.
MOONCAKE = (
    '{"timestamp": 27482, "input_length": 6955, "output_length": 52, '
    '"hash_ids": [46, 47, 48, 49, 50, 51, 52, 53, 54, 55, 56, 57, 2353, 2354]}\n'
    '{"timestamp": 30535, "input_length": 6472, "output_length": 26, '
    '"hash_ids": [46, 47, 48, 49, 50, 51, 52, 53, 54, 55, 56, 57, 2366]}\n'
)
PLAIN = "at_s,isl,osl\n0,10,1\n1.5,20,2\n3,30,3\n4,40,4\n"


def _read(tmp_path: Path, text: str | bytes, **keys: object) -> Schedule:
    (tmp_path / "trace").write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_trace(Trace.model_validate({"path": "trace", **keys}), folder=tmp_path)


def _times_s(schedule: Schedule) -> list[float]:
    return [arrival.at_s for arrival in schedule.arrivals]


@pytest.mark.parametrize("asked", ["auto", "azure"])
def test_azure_traces_count_from_their_first_row(tmp_path: Path, asked: str) -> None:
    """Azure's two years of traces state times of day, with seven decimals, or with six or none and an offset."""
    first, second = _read(tmp_path, AZURE_2023, format=asked).arrivals
    assert first == Arrival(0.0, 374, 44)
    assert second == (pytest.approx(50.995169 - 46.680590, abs=1e-6), 396, 109, (), None)
    assert _times_s(_read(tmp_path, AZURE_2024, format=asked)) == pytest.approx([0.0, 9.990070], abs=1e-6)


@pytest.mark.parametrize("asked", ["auto", "burstgpt"])
def test_burstgpt_failures_are_left_out_and_counted(tmp_path: Path, asked: str) -> None:
    """A BurstGPT row with no reply is a request that failed; the older and the newer columns are both read."""
    assert _read(tmp_path, BURSTGPT_1, format=asked) == (
        (Arrival(0, 472, 18), Arrival(40, 1087, 230), Arrival(113, 417, 276)),
        1,
    )
    assert _read(tmp_path, BURSTGPT_3, format=asked) == ((Arrival(0, 906, 446), Arrival(51, 36, 29)), 1)


@pytest.mark.parametrize("asked", ["auto", "mooncake"])
def test_mooncake_states_what_prompts_share(tmp_path: Path, asked: str) -> None:
    """Mooncake's milliseconds become seconds, and its two published requests share 12 blocks, 6,144 tokens."""
    first, second = _read(tmp_path, MOONCAKE, format=asked).arrivals
    assert first[:3] == (27.482, 6955, 52)
    assert second[:3] == (30.535, 6472, 26)
    shared = [one for one, other in zip(first.prefix_hashes, second.prefix_hashes, strict=False) if one == other]
    assert len(shared) * HASH_BLOCK_TOKENS == 6144
    assert len(first.prefix_hashes) == math.ceil(first.isl / HASH_BLOCK_TOKENS)


def test_mooncake_may_leave_hashes_out(tmp_path: Path) -> None:
    """A line without hashes shares nothing, and blank lines are nothing."""
    schedule = _read(tmp_path, '{"timestamp": 1.5, "input_length": 7, "output_length": 3}\n\n')
    assert schedule.arrivals == (Arrival(0.0015, 7, 3),)


@pytest.mark.parametrize(
    "text", [PLAIN, "\ufeff" + PLAIN.replace("\n", "\r\n"), PLAIN.replace("at_s,isl", '"at_s","isl"')]
)
def test_plain_csv_counts_from_its_own_zero(tmp_path: Path, text: str) -> None:
    """A plain table's times are kept as they stand, as spreadsheets write them too."""
    schedule = _read(tmp_path, text)
    assert schedule.arrivals == (Arrival(0, 10, 1), Arrival(1.5, 20, 2), Arrival(3, 30, 3), Arrival(4, 40, 4))


def test_rows_are_put_in_order(tmp_path: Path) -> None:
    """Rows out of order are sent in order, and equal times keep theirs."""
    schedule = _read(tmp_path, "osl,note,at_s,isl\n1,x,2,10\n2,x,1,20\n3,x,1,30\n")
    assert schedule.arrivals == (Arrival(1, 20, 2), Arrival(1, 30, 3), Arrival(2, 10, 1))


def test_a_slice_begins_the_run_and_speed_up_divides_time(tmp_path: Path) -> None:
    """From 1.5 s to 4 s at double speed, the slice's start is zero and its end is not in it."""
    assert _times_s(_read(tmp_path, PLAIN, from_s=1.5, to_s=4, speed_up=2)) == [0.0, 0.75]
    assert _times_s(_read(tmp_path, PLAIN, from_s=1.0)) == [0.5, 2.0, 3.0]
    assert _times_s(_read(tmp_path, PLAIN, speed_up=0.5)) == [0.0, 3.0, 6.0, 8.0]


def test_failures_outside_the_slice_are_not_counted(tmp_path: Path) -> None:
    """Of a slice, only its own failed rows are counted."""
    assert _read(tmp_path, BURSTGPT_1, to_s=45).failed_rows == 0
    assert _read(tmp_path, BURSTGPT_1, to_s=46).failed_rows == 1


@given(from_s=st.floats(0, 90), length_s=st.floats(2, 50), speed_up=st.floats(0.1, 100))
@settings(max_examples=30, deadline=None)
def test_a_slice_holds_its_seconds_whatever_the_speed(
    tmp_path_factory: pytest.TempPathFactory, from_s: float, length_s: float, speed_up: float
) -> None:
    """A trace of one request each second has as many in a slice as the slice has whole seconds' marks."""
    text = "at_s,isl,osl\n" + "".join(f"{second},5,5\n" for second in range(200))
    folder = tmp_path_factory.getbasetemp()
    times_s = _times_s(_read(folder, text, from_s=from_s, to_s=from_s + length_s, speed_up=speed_up))
    assert len(times_s) == math.ceil(from_s + length_s) - math.ceil(from_s)
    assert times_s == sorted(times_s)
    assert all(0 <= at_s <= length_s / speed_up * (1 + 1e-9) for at_s in times_s)


def test_a_traces_path_begins_at_the_folder(tmp_path: Path) -> None:
    """A relative path is the folder's, an absolute one its own, and chance has no part in either."""
    (tmp_path / "trace.csv").write_text(PLAIN)
    relative = arrivals_of(Trace(path="trace.csv"), rng=np.random.default_rng(0), folder=tmp_path)
    absolute = arrivals_of(
        Trace(path=str(tmp_path / "trace.csv")), rng=np.random.default_rng(1), folder=Path("nowhere")
    )
    assert relative == absolute


def test_rows_outside_the_slice_are_not_held(tmp_path: Path) -> None:
    """A slice of a 20,000-row trace is read in less than a quarter of the file's size."""
    text = "at_s,isl,osl\n" + "".join(f"{row},{'0' * 80}5,5\n" for row in range(20_000))
    (tmp_path / "trace.csv").write_text(text)
    trace = Trace(path="trace.csv", to_s=10)
    tracemalloc.start()
    schedule = read_trace(trace, folder=tmp_path)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(schedule.arrivals) == 10
    assert peak_bytes < len(text) / 4


def test_a_trace_too_long_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A trace with more requests than can be held is not cut unasked; a slice of it is played."""
    monkeypatch.setattr(traces, "MAX_ARRIVALS", 3)
    with pytest.raises(UserError, match="more than 3 requests") as caught:
        _read(tmp_path, PLAIN)
    assert "from_s" in str(caught.value.hint)
    assert len(_read(tmp_path, PLAIN, to_s=4).arrivals) == 3


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("at_s,isl,osl\n0,10,1\nsoon,10,1\n", "line 3: 'at_s' is 'soon', not seconds from zero up"),
        ("at_s,isl,osl\n-1,10,1\n", "line 2: 'at_s' is '-1', not seconds from zero up"),
        ("at_s,isl,osl\nnan,10,1\n", "line 2: 'at_s' is 'nan', not seconds from zero up"),
        ("at_s,isl,osl\n0,1.5,1\n", "line 2: 'isl' is '1.5', not a whole number of tokens"),
        ("at_s,isl,osl\n0,10,-2\n", "line 2: 'osl' is '-2', not a whole number of tokens"),
        ("at_s,isl,osl\n0,10,\n", "line 2: 'osl' is '', not a whole number of tokens"),
        ("at_s,isl,osl\n0,10,1\n\n1,10\n", "line 4: '1,10' has 2 values for 3 columns"),
        ("at_s,isl,osl\n0,1,024,1\n", "line 2: '0,1,024,1' has 4 values for 3 columns"),
        (b"at_s,isl,osl\n0,10,1\xff\n", "line 2: 'osl' is '1\\\\\\\\xff'"),
        ("at_s,isl,osl\n0,10," + "9" * 200_000 + "\n", "line 2: field larger than"),
        (
            AZURE_2023.replace("18:15:50", "18:15:60"),
            "line 3: 'TIMESTAMP' is '2023-11-16 18:15:60.*not a date and time",
        ),
        (AZURE_2023.replace("18:15:50", "18:15:40"), "line 3: '2023-11-16 18:15:40.*earlier than the first row"),
        (BURSTGPT_1.replace("\n45,", "\n4,"), "line 3: '4,ChatGPT.*earlier than the first row"),
        (BURSTGPT_1.replace("\n45,", "\nx,"), "line 3: 'Timestamp' is 'x', not seconds"),
        (MOONCAKE + '{"timestamp": 4', "line 3: '{\"timestamp\": 4' is not JSON"),
        (MOONCAKE + "[1]\n", "line 3: \\[1\\] is not a JSON object"),
        (MOONCAKE + "[" * 50_000 + "\n", "line 3: '\\[.* is not JSON"),
        (MOONCAKE.replace("30535", "NaN"), "line 2: 'timestamp' is nan, not ms from zero up"),
        (MOONCAKE.replace("30535", "true"), "line 2: 'timestamp' is True, not ms from zero up"),
        (MOONCAKE.replace("6472", "6472.5"), "line 2: 'input_length' is 6472.5, not a whole number"),
        (MOONCAKE.replace('"output_length": 26, ', ""), "line 2: no 'output_length'"),
        (MOONCAKE.replace("2366", '"2366"'), "line 2: 'hash_ids' is \\[46, .*, not a list of whole numbers"),
    ],
    ids=range(22),
)
def test_a_damaged_line_is_named(tmp_path: Path, text: str | bytes, told: str) -> None:
    """A damaged line is refused with the file, its number, its value and what to try."""
    with pytest.raises(UserError, match=told) as caught:
        _read(tmp_path, text)
    assert str(caught.value).startswith(f"{tmp_path / 'trace'}: line ")
    assert len(str(caught.value)) < len(str(tmp_path)) + 160
    assert caught.value.hint == "fix or remove that line"


@pytest.mark.parametrize(
    ("text", "asked", "told"),
    [
        ("", "auto", "line 1 is '', not the header of any trace known"),
        ("when,isl,osl\n0,1,1\n", "auto", "line 1 is 'when,isl,osl', not the header of any trace known"),
        (PLAIN, "burstgpt", "line 1 is 'at_s,isl,osl', not the header of a trace of format burstgpt"),
        (MOONCAKE, "csv", "not the header of a trace of format csv"),
        (b"\x89PNG\x00" + b"\x00" * 500_000, "auto", "not the header of any trace known"),
    ],
    ids=["empty", "unknown", "another table", "json", "binary"],
)
def test_an_unknown_head_is_refused(tmp_path: Path, text: str | bytes, asked: str, told: str) -> None:
    """A file that is no trace, or not of the format asked for, is refused with the heads that are known."""
    with pytest.raises(UserError, match=told) as caught:
        _read(tmp_path, text, format=asked)
    assert "burstgpt: Timestamp, Request tokens, Response tokens" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        (PLAIN.replace(",", ";"), "separated by semicolons: save it with commas"),
        (PLAIN.replace(",", "\t"), "separated by tabs: save it with commas"),
        (PLAIN.encode("utf-16"), "UTF-16: save it as UTF-8"),
    ],
)
def test_what_a_spreadsheet_saved_is_told_how_to_save_it(tmp_path: Path, text: str | bytes, hint: str) -> None:
    """The right columns behind another separator or in another encoding are recognized."""
    with pytest.raises(UserError, match="not the header of any trace known") as caught:
        _read(tmp_path, text)
    assert hint in str(caught.value.hint)


def test_a_byte_order_mark_is_not_part_of_a_trace(tmp_path: Path) -> None:
    """A spreadsheet's or an editor's mark at the start changes nothing, before a header or before JSON."""
    for text in (PLAIN, MOONCAKE):
        assert _read(tmp_path, b"\xef\xbb\xbf" + text.encode()) == _read(tmp_path, text)


@pytest.mark.parametrize(
    ("text", "keys", "told"),
    [
        ("at_s,isl,osl\n", {}, "no row below its header"),
        ("at_s,isl,osl\n1,0,0\n", {}, r"none of its rows \(1\) has both a prompt and a reply"),
        (PLAIN, {"from_s": 10, "to_s": 20}, "no request from 10 s to 20 s, and 0 failed ones"),
        (PLAIN, {"from_s": 10}, "no request from 10 s to the end, and 0 failed ones"),
    ],
)
def test_a_trace_without_a_request_is_refused(tmp_path: Path, text: str, keys: dict[str, float], told: str) -> None:
    """An empty slice, a table of failures and an empty table are told apart."""
    with pytest.raises(UserError, match=told):
        _read(tmp_path, text, **keys)


def test_a_trace_that_is_not_there_is_missing(tmp_path: Path) -> None:
    """A path to nothing and one to a folder are told apart."""
    with pytest.raises(MissingError, match="no such file") as caught:
        read_trace(Trace(path="nothing.csv"), folder=tmp_path)
    assert caught.value.hint == "check the path; in a YAML file it starts at that file's folder"
    with pytest.raises(UserError, match="is a folder; expected a file"):
        read_trace(Trace(path="."), folder=tmp_path)


def test_requests_at_one_point_in_time_are_not_an_open_loop(tmp_path: Path) -> None:
    """The error names the trace; a drawn process is told to be longer."""
    (tmp_path / "one.csv").write_text("at_s,isl,osl\n1,10,1\n1,20,2\n")
    with pytest.raises(UserError, match=r"one\.csv: all its requests are at one point in time"):
        plans_of(Scenario(arrivals=Trace(path=str(tmp_path / "one.csv"))))


def _long_trace(tmp_path: Path, rows: int) -> Path:
    path = tmp_path / "long.csv"
    path.write_text("at_s,isl,osl\n" + "".join(f"{number / 10},{number % 900 + 1},5\n" for number in range(rows)))
    return path


def test_of_a_slice_only_its_part_of_the_file_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A minute out of five hours parses a few thousand rows of 180,000, and finds the very same arrivals."""
    path = _long_trace(tmp_path, 180_000)
    whole = read_trace(Trace(path=str(path)), folder=Path()).arrivals
    parsed = 0
    real = traces._row

    def counting(line: str, columns: list[str] | None) -> dict[str, object]:
        nonlocal parsed
        parsed += 1
        return real(line, columns)

    monkeypatch.setattr(traces, "_row", counting)
    for from_s in (0.0, 59.0, 9_000.0, 17_950.0):
        parsed = 0
        found = read_trace(Trace(path=str(path), from_s=from_s, to_s=from_s + 60), folder=Path()).arrivals
        wanted = [each for each in whole if from_s <= each.at_s < from_s + 60]
        assert [(each.isl, round(each.at_s + from_s, 6)) for each in found] == [
            (each.isl, round(each.at_s, 6)) for each in wanted
        ]
        assert parsed < 9_000


def test_a_slice_of_an_unsorted_trace_is_refused(tmp_path: Path) -> None:
    """Where rows are more than a minute out of order, a slice cannot be found without reading everything."""
    path = tmp_path / "wild.csv"
    path.write_text("at_s,isl,osl\n" + "".join(f"{at_s},10,5\n" for at_s in (0, 500, 100, 700)))
    with pytest.raises(UserError, match="follows one at 500 s"):
        read_trace(Trace(path=str(path), to_s=1000), folder=Path())
    assert len(read_trace(Trace(path=str(path)), folder=Path()).arrivals) == 4


def test_damage_in_a_slice_is_named_by_its_place(tmp_path: Path) -> None:
    """A broken row far into the file is refused with the byte at which its line begins."""
    path = _long_trace(tmp_path, 50_000)
    text = path.read_text()
    at = text.index("\n4500.0,") + 1
    path.write_text(text[:at] + "x" + text[at:])
    with pytest.raises(UserError, match=f"the line at byte {at:,}: 'at_s' is 'x4500.0'"):
        read_trace(Trace(path=str(path), from_s=4490, to_s=4510), folder=Path())


def test_a_trace_in_less_time_is_its_beginning(tmp_path: Path) -> None:
    """A trace keeps its pace: twenty seconds of it, at double speed, are its first forty."""
    path = _long_trace(tmp_path, 2_000)
    short = with_duration(Trace(path=str(path), from_s=10, speed_up=2), 20.0)
    assert isinstance(short, Trace)
    assert len(read_trace(short, folder=Path()).arrivals) == 400
