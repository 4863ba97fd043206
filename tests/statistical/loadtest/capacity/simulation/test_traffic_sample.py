"""A demand's peak, its lengths and the length of a simulation follow from what the demand states."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from engines.errors import UserError
from loadtest.capacity.inputs.demand import Demand
from loadtest.capacity.simulation.length_profile import shape_of
from loadtest.capacity.simulation.rate_curve import curve_of
from loadtest.capacity.simulation.traffic_sample import SampleSpec, requests_needed, window_of
from tests.unit.loadtest.capacity.made import HERE, demand, window


def test_the_peak_is_of_minutes_not_of_the_hour() -> None:
    """The planned peak lies above the busiest hour's mean, and a window's rate varies from minute to minute."""
    asked = demand()
    curve = curve_of(asked, HERE)
    assert curve.hour_per_s == 20.0
    assert 1.05 * 20.0 < curve.peak_per_s < 1.25 * 20.0
    counts = [
        sum(sample.measure_s <= ask.at_s < sample.end_s for ask in sample.requests)
        for sample in (window(200.0, number, is_varying=True) for number in range(12))
    ]
    assert np.std(counts) / np.mean(counts) > 2 / np.sqrt(np.mean(counts))  # more than chance
    even = [len(window(200.0, number).requests) for number in range(12)]
    assert np.std(even) / np.mean(even) < 2 / np.sqrt(np.mean(even))


def test_a_file_of_lengths_is_bounded_by_its_longest_row(tmp_path: Path) -> None:
    """A prompt that one row in ten thousand has is let through: the engine is planned for it."""
    rows = "".join(f"{10_000 if place == 9_999 else 100},8\n" for place in range(10_000))
    (tmp_path / "lengths.csv").write_text("isl,osl\n" + rows, encoding="utf-8")
    traffic = {"process": "described", "rate_per_s": 1.0, "lengths": {"pairs": "lengths.csv"}}
    assert shape_of(demand(traffic=traffic), tmp_path).longest_isl == 10_000


def test_percentiles_decide_how_long_a_simulation_is() -> None:
    """Fifty requests lie beyond the rarest limit, of the rarest class too; a full batch turns over ten times."""
    assert requests_needed(demand(objectives={"ttft_s": {"p99": 1.0}}), 16) == 5000
    assert requests_needed(demand(objectives={"ttft_s": {"p999": 1.0}}), 16) == 50_000
    assert requests_needed(demand(objectives={"ttft_s": {"p50": 1.0}}), 256) == 2560
    rare = demand(
        traffic={
            "process": "described",
            "rate_by_hour_per_s": [1.0],
            "classes": [
                {"name": "many", "weight": 9},
                {"name": "few", "weight": 1, "objectives": {"ttft_s": {"p95": 1.0}}},
            ],
        },
        objectives={"ttft_s": {"p95": 1.0}},
    )
    assert requests_needed(rare, 16) == 10_000


def traced(folder: Path, *, begin_s: float, length_s: float) -> Demand:
    """Return a demand of two requests a second, written down from a time on."""
    rows = "".join(f"{begin_s + place / 2:.1f},100,50\n" for place in range(int(2 * length_s) + 1))
    (folder / "trace.csv").write_text("at_s,isl,osl\n" + rows, encoding="utf-8")
    return demand(traffic={"process": "trace", "path": "trace.csv"})


@pytest.mark.parametrize("length_s", [30.0, 85.0, 600.0, 1800.0])
@pytest.mark.parametrize("begin_s", [0.0, 3000.0, 90_000.0])
def test_a_trace_is_the_same_by_any_clock(tmp_path: Path, begin_s: float, length_s: float) -> None:
    """Two requests a second are two on average and at the peak, however short the trace, whatever its clock shows."""
    curve = curve_of(traced(tmp_path, begin_s=begin_s, length_s=length_s), tmp_path)
    assert curve.peak_per_s == pytest.approx(2.0, rel=0.02)
    assert curve.mean_per_s == pytest.approx(2.0, rel=0.02)
    assert not curve.is_day


@pytest.mark.parametrize("times_s", [[3.0], [3.0] * 20, [0.0, 1.0, 2.0, 3.0]])
def test_a_trace_without_a_rate_is_refused(tmp_path: Path, times_s: list[float]) -> None:
    """Of one moment it had been a traceback, of two requests "no deployment meets the objectives"."""
    (tmp_path / "trace.csv").write_text("at_s,isl,osl\n" + "".join(f"{at_s},100,50\n" for at_s in times_s))
    asked = demand(traffic={"process": "trace", "path": "trace.csv"})
    with pytest.raises(UserError, match=rf"trace.csv: too few requests for a plan, {len(times_s)} in \d s"):
        curve_of(asked, tmp_path)


@pytest.mark.parametrize("lead_s", [10.0, 60.0, 180.0, 400.0])
@pytest.mark.parametrize("rate_per_s", [1.0, 2.0])
def test_what_is_measured_of_a_short_trace_has_its_rate(tmp_path: Path, rate_per_s: float, lead_s: float) -> None:
    """Ten minutes of a trace in which a request lasts minutes: no part that is measured lies behind the trace's end."""
    asked = traced(tmp_path, begin_s=0.0, length_s=600.0)
    spec = SampleSpec(rate_per_s, 600.0, lead_s, 4 * lead_s, windows=4)
    found = [window_of(asked, tmp_path, replace(spec, window=number)) for number in range(4)]
    sent = sum(one.measure_s <= each.at_s < one.end_s for one in found for each in one.requests)
    assert sent / sum(one.end_s - one.measure_s for one in found) == pytest.approx(rate_per_s, rel=0.05)
    assert all(one.requests[0].at_s < one.measure_s for one in found)


@pytest.mark.parametrize("windows", [2, 3, 4])
def test_windows_of_a_trace_miss_none_of_its_bursts(tmp_path: Path, windows: int) -> None:
    """The busiest ten minutes begin and end with a burst: short windows together have every request of theirs once."""
    times_s = [place + each / 9 for place in range(600) for each in range(9 if place < 30 or place >= 570 else 1)]
    rows = "".join(f"{at_s:.3f},100,50\n" for at_s in times_s)
    (tmp_path / "trace.csv").write_text("at_s,isl,osl\n" + rows, encoding="utf-8")
    asked = demand(traffic={"process": "trace", "path": "trace.csv"})
    peak_per_s = curve_of(asked, tmp_path).peak_per_s
    spec = SampleSpec(peak_per_s, 20.0, 0.0, 20.0, windows=windows)
    found = [window_of(asked, tmp_path, replace(spec, window=number)) for number in range(windows)]
    sent = sum(one.measure_s <= each.at_s < one.end_s for one in found for each in one.requests)
    assert sent == pytest.approx(len(times_s), abs=2)


@pytest.mark.parametrize("length_s", [30.0, 85.0, 600.0, 1800.0])
@pytest.mark.parametrize("growth", [2.0, 3.1])
def test_a_trace_grows_to_the_rate_asked(tmp_path: Path, growth: float, length_s: float) -> None:
    """Copies near an end of the trace stay within it, as evenly spread as what they are copies of."""
    asked = traced(tmp_path, begin_s=0.0, length_s=length_s)
    spec = SampleSpec(2.0 * growth, 600.0, 10.0, 10.0, windows=8)
    found = [window_of(asked, tmp_path, replace(spec, window=number)) for number in range(8)]
    places = [
        (each.at_s - one.measure_s) / (one.end_s - one.measure_s)
        for one in found
        for each in one.requests
        if one.measure_s <= each.at_s < one.end_s
    ]
    chance = 3 / np.sqrt(len(places))
    assert len(places) / sum(one.end_s - one.measure_s for one in found) == pytest.approx(2.0 * growth, rel=chance)
    tenths = np.histogram(places, bins=10, range=(0.0, 1.0))[0] / len(places)
    assert tenths == pytest.approx(0.1, rel=chance * np.sqrt(10))
