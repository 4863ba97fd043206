"""Why a run is not to be believed."""

from __future__ import annotations

from pathlib import Path

import pytest

from loadtest.results import records
from loadtest.results.columns import columns_of
from loadtest.results.records import SAMPLES_NAME, Level, RequestRecord, Sample, ServerFacts, WorkerClock
from loadtest.run.validity import observations_of, validity_issues_of
from loadtest.scenario.schema import Scenario
from tests.unit.loadtest.generator.test_journal import record


def _level(**changed: object) -> Level:
    values = {
        "concurrency": 4,
        "isl": 5,
        "osl": 2,
        "begin_s": 0.0,
        "measure_s": 1.0,
        "end_s": 10.0,
        "complete": True,
    }
    return Level.model_validate(values | changed)


def _facts(**changed: object) -> ServerFacts:
    values = {
        "url": "http://x:1",
        "protocol": "triton-http",
        "model": "m",
        "triton_version": "1",
        "emulated": False,
        "time_scale": 1.0,
    }
    return ServerFacts.model_validate(values | changed)


def _codes(
    out: Path,
    of_run: list[RequestRecord],
    *levels: Level,
    facts: ServerFacts | None = None,
    clocks: tuple[WorkerClock, ...] = (),
    samples: tuple[Sample, ...] = (),
) -> list[tuple[str, int | None]]:
    (out / SAMPLES_NAME).write_text("".join(each.model_dump_json() + "\n" for each in samples))
    observations = observations_of(columns_of(of_run))
    found = validity_issues_of(Scenario(), facts or _facts(), levels, observations, clocks, out)
    return [(issue.code, issue.level) for issue in found]


def test_a_sound_run_leaves_no_validity_issue(tmp_path: Path) -> None:
    """On time, complete, nothing lost."""
    assert _codes(tmp_path, [record(number) for number in range(9)], _level()) == []


def test_a_late_generator_is_a_validity_issue_against_the_gaps_it_measures(tmp_path: Path) -> None:
    """60 ms late invalidates gaps of 100 ms, 40 ms does not; warm-up's gaps are not what counts."""
    measured = [record(number, token_times_s=(1.1, 1.2)) for number in range(9)]
    warmup = [record(9, phase="warmup", token_times_s=(1.1, 9.1))]
    assert _codes(tmp_path, measured + warmup, _level(generator_late_p99_s=0.06)) == [("generator-late", 0)]
    assert _codes(tmp_path, measured + warmup, _level(generator_late_p99_s=0.04)) == []
    kernel = _level(generator_late_p99_s=0.06, read_late_p99_s=0.04, clock="kernel")
    assert _codes(tmp_path, measured + warmup, kernel) == []
    late = kernel.model_copy(update={"read_late_p99_s": 0.06})
    assert _codes(tmp_path, measured + warmup, late) == [("read-late", 0)]


def test_arrivals_that_were_sent_late_are_not_the_load_asked_for(tmp_path: Path) -> None:
    """50 ms late is beyond 20 ms of engine time, and within them where the engine is slowed three times."""
    late = [record(number, scheduled_s=0.95) for number in range(9)]
    open_level = _level(concurrency=None, rate_per_s=2.0)
    assert _codes(tmp_path, late, open_level) == [("arrivals-late", 0)]
    assert _codes(tmp_path, late, open_level, facts=_facts(emulated=True, time_scale=3.0)) == []
    assert _codes(tmp_path, late, _level()) == []  # users of a closed loop are free when they are free


def test_validity_issues_name_their_level(tmp_path: Path) -> None:
    """Incomplete, without a server for a while, with lost requests: each said of the level it befell."""
    of_run = [record(0), record(1, level=1), record(2, level=1, outcome="lost", token_times_s=(), output_tokens=0)]
    levels = (_level(away_s=2.0), _level(complete=False))
    assert _codes(tmp_path, of_run, *levels) == [("server-away", 0), ("incomplete", 1), ("requests-lost", 1)]


@pytest.mark.parametrize(
    ("uncertainty_s", "drift_s", "with_issues"), [(0.001, 0.001, False), (0.006, 0, True), (0, -0.02, True)]
)
def test_clocks_known_too_loosely_are_a_validity_issue(
    tmp_path: Path, uncertainty_s: float, drift_s: float, with_issues: bool
) -> None:
    """Uncertainty and drift together have a limit; how far apart the clocks are does not matter."""
    clock = WorkerClock(worker=1, host="b", level=0, offset_s=1e6, uncertainty_s=uncertainty_s, drift_s=drift_s)
    assert _codes(tmp_path, [record(0)], _level(), clocks=(clock,)) == [("clocks-apart", 0)] * with_issues


def test_an_emulator_behind_its_clock_is_a_validity_issue_where_it_was(tmp_path: Path) -> None:
    """Steps of 10 ms that end 8 ms late in the second level's window say nothing of the first's."""
    samples = [
        Sample(
            t_s=float(t_s),
            values={
                'emulator_lateness_seconds{model="m",statistic="p99"}': 0.008 if t_s > 10 else 0.001,
                'emulator_steps_total{model="m"}': 100.0 * t_s,
                'emulator_step_seconds_total{model="m"}': 1.0 * t_s,
            },
        )
        for t_s in range(25)
    ]
    levels = (_level(), _level(begin_s=11, measure_s=12, end_s=20))
    of_run = [record(0), record(1, level=1)]
    facts = _facts(emulated=True, time_scale=2.0)
    assert _codes(tmp_path, of_run, *levels, facts=facts, samples=tuple(samples)) == [("emulator-late", 1)]


def test_samples_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many levels a run has."""
    opened = []

    def counting(path: Path):  # type: ignore[no-untyped-def]
        opened.append(path.name)
        return original(path)

    original = records._lines
    monkeypatch.setattr(records, "_lines", counting)
    of_run = [record(number, level=number % 5) for number in range(20)]
    sample = (Sample(t_s=2.0, values={}),)
    _codes(tmp_path, of_run, *[_level()] * 5, facts=_facts(emulated=True), samples=sample)
    assert opened == [SAMPLES_NAME]


def test_a_replaced_version_of_the_emulator_does_not_count(tmp_path: Path) -> None:
    """It stays on Triton's page with its last lateness and counters that stand still: the first level is on time."""
    samples = [
        Sample(
            t_s=float(t_s),
            values={
                'emulator_lateness_seconds{model="m",statistic="p99",version="1"}': 9.0,
                'emulator_steps_total{model="m",version="1"}': 5000.0,
                'emulator_step_seconds_total{model="m",version="1"}': 1.0,
                'emulator_lateness_seconds{model="m",statistic="p99",version="2"}': late_s,
                'emulator_steps_total{model="m",version="2"}': 100.0 * t_s,
                'emulator_step_seconds_total{model="m",version="2"}': 1.0 * t_s,
            },
        )
        for t_s in range(25)
        for late_s in [0.001 if t_s < 11 else 0.008]
    ]
    levels = (_level(), _level(begin_s=11, measure_s=12, end_s=20))
    of_run = [record(0), record(1, level=1)]
    facts = _facts(emulated=True, time_scale=2.0)
    assert _codes(tmp_path, of_run, *levels, facts=facts, samples=tuple(samples)) == [("emulator-late", 1)]
