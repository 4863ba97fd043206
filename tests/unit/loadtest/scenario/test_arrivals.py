"""Open-loop arrivals, held to what probability and the published traces say."""

from __future__ import annotations

import math
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engines.errors import MissingError, UserError
from engines.files import Strict, read_yaml, to_json, validate
from loadtest.scenario import traces
from loadtest.scenario.arrivals import (
    Arrivals,
    Constant,
    Floats,
    Gamma,
    Poisson,
    Process,
    Ramp,
    Sine,
    Spike,
    Steps,
    arrivals_of,
    draw_times_s,
    expected_requests,
    with_duration,
)
from loadtest.scenario.traces import HASH_BLOCK_TOKENS, Arrival, Schedule, Trace, read_trace

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

rates = st.floats(0.1, 50)
lengths_s = st.floats(0.5, 20)
processes = st.one_of(
    st.builds(Constant, rate_per_s=rates, duration_s=lengths_s),
    st.builds(Poisson, rate_per_s=rates, duration_s=lengths_s),
    st.builds(Gamma, rate_per_s=rates, burstiness=st.floats(0.05, 5), duration_s=lengths_s),
    st.builds(Steps, rates_per_s=st.lists(st.just(0.0) | rates, min_size=1, max_size=5), step_s=lengths_s),
    st.builds(Ramp, from_per_s=st.just(0.0) | rates, to_per_s=st.just(0.0) | rates, duration_s=lengths_s),
    st.builds(
        Spike,
        base_per_s=st.just(0.0) | rates,
        peak_per_s=rates,
        at_s=st.floats(0, 5),
        spike_s=st.floats(0.1, 5),
        duration_s=st.floats(10, 20),
    ),
    st.builds(Sine, mean_per_s=rates, swing_ratio=st.floats(0, 1), period_s=lengths_s, duration_s=lengths_s),
)


class Holder(Strict):
    """What a scenario will be to its arrivals."""

    arrivals: Arrivals


def _rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def _counts(process: Process, runs: int) -> Floats:
    return np.array([len(draw_times_s(process, _rng(seed))) for seed in range(runs)], dtype=np.float64)


def _read(tmp_path: Path, text: str | bytes, **keys: object) -> Schedule:
    (tmp_path / "trace").write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_trace(Trace.model_validate({"path": "trace", **keys}), folder=tmp_path)


def _times_s(schedule: Schedule) -> list[float]:
    return [arrival.at_s for arrival in schedule.arrivals]


@settings(max_examples=100, deadline=None)
@given(process=processes, seed=st.integers(0, 2**32))
def test_times_are_sorted_and_within_the_run(process: Process, seed: int) -> None:
    """Of any process, times ascend from zero and end before the duration does."""
    times_s = draw_times_s(process, _rng(seed))
    assert np.isfinite(times_s).all()
    assert (np.diff(times_s) >= 0).all()
    assert ((times_s >= 0) & (times_s < process.duration_s)).all()


@settings(max_examples=50, deadline=None)
@given(process=processes, seed=st.integers(0, 2**32))
def test_a_seed_names_the_times(process: Process, seed: int) -> None:
    """The same seed draws the same times."""
    assert np.array_equal(draw_times_s(process, _rng(seed)), draw_times_s(process, _rng(seed)))


def test_another_seed_draws_other_times() -> None:
    """Two seeds do not draw the same times."""
    process = Poisson(rate_per_s=10, duration_s=10)
    assert not np.array_equal(draw_times_s(process, _rng(0)), draw_times_s(process, _rng(1)))


def test_a_longer_run_begins_as_a_shorter_one() -> None:
    """A process drawn for longer has the shorter one's times first."""
    short_s = draw_times_s(Poisson(rate_per_s=100, duration_s=30), _rng())
    long_s = draw_times_s(Poisson(rate_per_s=100, duration_s=90), _rng())
    assert np.array_equal(short_s, long_s[: len(short_s)])


@pytest.mark.parametrize(
    ("rate_per_s", "duration_s", "requests"), [(1.1, 10, 11), (0.1, 30, 3), (3, 0.5, 2), (7, 1, 7)]
)
def test_constant_is_evenly_spaced_from_zero(rate_per_s: float, duration_s: float, requests: int) -> None:
    """A constant rate sends at 0, 1/rate, 2/rate and so on, and none at the end itself, however the product rounds."""
    times_s = draw_times_s(Constant(rate_per_s=rate_per_s, duration_s=duration_s), _rng())
    assert times_s == pytest.approx([number / rate_per_s for number in range(requests)])


@pytest.mark.parametrize("burstiness", [0.3, 1.0, 2.5])
def test_gamma_gaps_have_the_stated_mean_and_variation(burstiness: float) -> None:
    """Gaps of 200,000 arrivals vary as stated, to 2%, and their mean is the rate's inverse."""
    gaps_s = np.diff(draw_times_s(Gamma(rate_per_s=20, burstiness=burstiness, duration_s=10_000), _rng()))
    assert gaps_s.std() / gaps_s.mean() == pytest.approx(burstiness, rel=0.02)
    assert gaps_s.mean() == pytest.approx(1 / 20, abs=4 * burstiness / 20 / math.sqrt(len(gaps_s)))


def test_burstiness_one_is_poisson() -> None:
    """Gamma gaps of variation 1 are a Poisson process's, draw for draw."""
    gamma_s = draw_times_s(Gamma(rate_per_s=5, burstiness=1, duration_s=100), _rng())
    assert np.array_equal(gamma_s, draw_times_s(Poisson(rate_per_s=5, duration_s=100), _rng()))


def test_bursts_do_not_gather_at_zero() -> None:
    """A bursty process has its rate from the first second: one begun by a whole gap would have (3**2 - 1) / 2 more."""
    counts = _counts(Gamma(rate_per_s=2, burstiness=3, duration_s=5), 2000)
    assert counts.mean() == pytest.approx(10, abs=4 * counts.std() / math.sqrt(len(counts)))
    assert 4 * counts.std() / math.sqrt(len(counts)) < 1


@pytest.mark.parametrize(
    ("process", "integral"),
    [
        (Poisson(rate_per_s=4, duration_s=10), 40),
        (Steps(rates_per_s=(2, 0, 8), step_s=4), 40),
        (Ramp(from_per_s=1, to_per_s=7, duration_s=10), 40),
        (Ramp(from_per_s=8, to_per_s=0, duration_s=10), 40),
        (Spike(base_per_s=2, peak_per_s=12, at_s=5, spike_s=2, duration_s=10), 40),
        (Spike(base_per_s=0, peak_per_s=4, at_s=0, spike_s=10, duration_s=10), 40),
        (Sine(mean_per_s=4, swing_ratio=0.5, period_s=5, duration_s=10), 40),
        (Sine(mean_per_s=4, swing_ratio=1, period_s=20, duration_s=10), 40 * (1 + 2 / math.pi)),
    ],
    ids=lambda value: getattr(value, "process", ""),
)
def test_the_integral_of_the_rate_is_the_mean_count(process: Process, integral: float) -> None:
    """Five hundred runs' counts have the integrated rate as their mean, and as their variance, as Poisson counts do."""
    counts = _counts(process, 500)
    assert expected_requests(process) == pytest.approx(integral)
    assert counts.mean() == pytest.approx(integral, abs=4 * math.sqrt(integral / len(counts)))
    assert counts.var() == pytest.approx(integral, rel=4 * math.sqrt(2 / len(counts)))


def _steps_integral(t_s: Floats) -> Floats:
    return 200 * np.minimum(t_s, 10) + 900 * np.maximum(t_s - 30, 0)


def _spike_integral(t_s: Floats) -> Floats:
    return 100 * t_s + 1900 * np.clip(t_s - 20, 0, 5)


def _sine_integral(t_s: Floats) -> Floats:
    return 300 * (t_s + 0.9 * 8 / (2 * np.pi) * (1 - np.cos(2 * np.pi * t_s / 8)))


@pytest.mark.parametrize(
    ("process", "integral"),
    [
        (Poisson(rate_per_s=300, duration_s=40), lambda t_s: 300 * t_s),
        (Steps(rates_per_s=(200, 0, 0, 900), step_s=10), _steps_integral),
        (Ramp(from_per_s=0, to_per_s=600, duration_s=40), lambda t_s: 7.5 * t_s**2),
        (Ramp(from_per_s=600, to_per_s=0, duration_s=40), lambda t_s: 600 * t_s - 7.5 * t_s**2),
        (Spike(base_per_s=100, peak_per_s=2000, at_s=20, spike_s=5, duration_s=40), _spike_integral),
        (Sine(mean_per_s=300, swing_ratio=0.9, period_s=8, duration_s=40), _sine_integral),
    ],
    ids=lambda value: getattr(value, "process", ""),
)
def test_back_through_the_integrated_rate_gaps_are_exponential(
    process: Process, integral: Callable[[Floats], Floats]
) -> None:
    """By Kolmogorov and Smirnov at one in a thousand; the integrals are worked out by hand."""
    gaps = np.sort(np.diff(integral(draw_times_s(process, _rng()))))
    expected = 1 - np.exp(-gaps)
    ranks = np.arange(len(gaps) + 1) / len(gaps)
    furthest = max((ranks[1:] - expected).max(), (expected - ranks[:-1]).max())
    assert furthest < 1.95 / math.sqrt(len(gaps))


def test_a_pause_sends_nothing() -> None:
    """Between steps, a rate of zero is silence, and outside a spike on no base too."""
    times_s = draw_times_s(Steps(rates_per_s=(50, 0, 50), step_s=10), _rng())
    assert not ((times_s >= 10) & (times_s < 20)).any()
    times_s = draw_times_s(Spike(base_per_s=0, peak_per_s=50, at_s=3, spike_s=2, duration_s=10), _rng())
    assert times_s.min() >= 3
    assert times_s.max() < 5


def test_processes_say_nothing_of_lengths() -> None:
    """A drawn arrival is a time alone."""
    process = Poisson(rate_per_s=5, duration_s=10)
    schedule = arrivals_of(process, rng=_rng(), folder=Path("nowhere"))
    assert _times_s(schedule) == draw_times_s(process, _rng()).tolist()
    assert {arrival[1:] for arrival in schedule.arrivals} == {(None, None, (), None)}
    assert schedule.failed_rows == 0


def test_too_many_arrivals_are_refused() -> None:
    """A rate per second that was meant per hour is stopped before it fills the memory."""
    with pytest.raises(UserError, match=r"poisson: about 8.64e\+07 requests, more than 5,000,000"):
        arrivals_of(Poisson(rate_per_s=1000, duration_s=86_400), rng=_rng(), folder=Path())


def test_a_process_that_draws_nothing_is_refused() -> None:
    """A run without a request would measure nothing."""
    with pytest.raises(UserError, match="ramp: no request was drawn in 10 s; 0 were expected"):
        arrivals_of(Ramp(from_per_s=0, to_per_s=0, duration_s=10), rng=_rng(), folder=Path())


def test_the_key_process_says_which(tmp_path: Path) -> None:
    """YAML's `process` chooses among the schemas, and JSON gives the same back."""
    path = tmp_path / "scenario.yaml"
    path.write_text("arrivals: {process: sine, mean_per_s: 2, swing_ratio: 0.5, duration_s: 60}\n")
    holder = read_yaml(path, Holder)
    assert holder.arrivals == Sine(mean_per_s=2, swing_ratio=0.5, period_s=86_400, duration_s=60)
    assert Holder.model_validate_json(to_json(holder)) == holder


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"process": "poison"}, "arrivals"),
        (
            {"process": "poisson", "rate_per_s": 1, "duration_s": 1, "burstiness": 2},
            "unknown key 'arrivals.*burstiness'",
        ),
        ({"process": "poisson", "rate_per_s": 0, "duration_s": 1}, "rate_per_s.*greater than 0"),
        ({"process": "constant", "rate_per_s": math.inf, "duration_s": 1}, "rate_per_s.*finite"),
        ({"process": "gamma", "rate_per_s": 1, "duration_s": 1}, "missing key 'arrivals.*burstiness'"),
        ({"process": "steps", "rates_per_s": [], "step_s": 1}, "rates_per_s"),
        (
            {"process": "sine", "mean_per_s": 1, "swing_ratio": 1.1, "duration_s": 1},
            "swing_ratio.*less than or equal to 1",
        ),
        (
            {"process": "spike", "base_per_s": 1, "peak_per_s": 2, "at_s": 8, "spike_s": 3, "duration_s": 10},
            "the spike ends at 11 s, but the run ends at 10 s",
        ),
        ({"process": "trace", "path": "a.csv", "speed_up": 0}, "speed_up.*greater than 0"),
        ({"process": "trace", "path": "a.csv", "from_s": 5, "to_s": 5}, "to_s must be greater than from_s, which is 5"),
    ],
)
def test_a_process_that_cannot_be_is_refused(keys: dict[str, object], told: str) -> None:
    """Misspelled, missing and impossible values are named."""
    with pytest.raises(UserError, match=told):
        validate({"arrivals": keys}, Holder, where="scenario.yaml")


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
    relative = arrivals_of(Trace(path="trace.csv"), rng=_rng(0), folder=tmp_path)
    absolute = arrivals_of(Trace(path=str(tmp_path / "trace.csv")), rng=_rng(1), folder=Path("nowhere"))
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
    monkeypatch.setattr(traces, "MOST_ARRIVALS", 3)
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


@pytest.mark.parametrize(("text", "failed"), [("at_s,isl,osl\n", 0), ("at_s,isl,osl\n1,0,0\n", 1), (PLAIN, 0)])
def test_an_empty_slice_is_refused(tmp_path: Path, text: str, failed: int) -> None:
    """A slice without a request is refused, whether past the end, all failures, or of an empty table."""
    with pytest.raises(UserError, match=f"no request from [01]+ s to [0-9a-z.]+, and {failed} failed ones"):
        _read(tmp_path, text, **({"from_s": 10, "to_s": 20} if text == PLAIN else {}))


def test_a_trace_that_is_not_there_is_missing(tmp_path: Path) -> None:
    """A path to nothing, or to a folder, is said to be no trace."""
    for path in ("nothing.csv", "."):
        with pytest.raises(MissingError, match="no such trace"):
            read_trace(Trace(path=path), folder=tmp_path)


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


@pytest.mark.parametrize(
    "process",
    [
        Poisson(rate_per_s=2, duration_s=100),
        Steps(rates_per_s=(1, 3), step_s=50),
        Ramp(from_per_s=0, to_per_s=4, duration_s=100),
        Spike(base_per_s=1, peak_per_s=9, at_s=50, spike_s=10, duration_s=100),
        Sine(mean_per_s=2, swing_ratio=0.5, period_s=40, duration_s=100),
    ],
)
def test_a_shape_in_less_time_keeps_its_rates(process: Process) -> None:
    """A tenth of the time gives a tenth of the requests, at every part of the shape."""
    short = with_duration(process, 10.0)
    assert not isinstance(short, Trace)
    assert short.duration_s == pytest.approx(10.0)
    assert expected_requests(short) == pytest.approx(expected_requests(process) / 10)


def test_a_trace_in_less_time_is_its_beginning(tmp_path: Path) -> None:
    """A trace keeps its pace: twenty seconds of it, at double speed, are its first forty."""
    path = _long_trace(tmp_path, 2_000)
    short = with_duration(Trace(path=str(path), from_s=10, speed_up=2), 20.0)
    assert isinstance(short, Trace)
    assert len(read_trace(short, folder=Path()).arrivals) == 400
