"""One evaluation of objectives: everything that says met or missed says the same of the same records."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import loadtest
from engines.files import made_by
from loadtest.capacity.from_run import _tried
from loadtest.capacity.inputs.demand import Demand
from loadtest.capacity.verify import verdicts_in as verified
from loadtest.generator.progress import LiveStats
from loadtest.knee.search import KneeSearch, ProbeRun, result_of
from loadtest.knee.sequential_test import weigh
from loadtest.metrics.slo_results import knee_of, scopes_of
from loadtest.metrics.summarize import summarize
from loadtest.report.gate import Gate, cases_of
from loadtest.results.columns import columns_of
from loadtest.results.records import Level, RequestRecord, RunManifest, ServerFacts
from loadtest.scenario.schema import Lengths, Scenario
from loadtest.scenario.slo import Goodput, Objectives, ObjectiveScope

SERVER = ServerFacts(
    url="-", protocol="-", model="m", triton_version="-", emulated=False, time_scale=1.0, engine="an engine"
)
TRAFFIC = {
    "process": "described",
    "rate_by_hour_per_s": [1.0],
    "classes": [{"name": "a", "lengths": {"isl": 8, "osl": 8}}],
}


def requests(*, ttft_s: float, late_s: float, gap_s: float = 0.01, count: int = 400) -> list[RequestRecord]:
    """Return requests of three tokens, one due every tenth of a second, each sent so much later."""
    found = []
    for place in range(count):
        due_s = place / 10
        times = tuple(due_s + late_s + ttft_s + gap_s * token for token in range(3))
        record = RequestRecord(
            id=place, level=0, phase="measure", scheduled_s=due_s, sent_s=due_s + late_s, token_times_s=times,
            done_s=times[-1], prompt_tokens=8, output_tokens=3, outcome="ok",
        )  # fmt: skip
        found.append(record)
    return found


def verdicts(records: list[RequestRecord], objectives: Objectives, *, is_open: bool) -> dict[str, bool]:
    """Return whether every objective is met, by each of those who say so."""
    load: dict[str, object] = {"rate_per_s": (10.0,)} if is_open else {"concurrency": (4,), "requests": 1}
    scenario = Scenario(lengths=Lengths(isl=8, osl=3), objectives=objectives, **load)  # type: ignore[arg-type]
    level = Level(
        concurrency=None if is_open else 4, rate_per_s=10.0 if is_open else None, isl=8, osl=3, begin_s=0.0,
        measure_s=0.0, end_s=records[-1].done_s, complete=True, sufficed=True,
    )  # fmt: skip
    run = RunManifest(
        made_by=made_by("test"), kind="measured", time_scale=1.0, server=SERVER, scenario=scenario, levels=[level]
    )
    summary = summarize(run, records, [], objectives=objectives)
    (of_level,) = summary.levels
    demand = Demand.model_validate(
        {"name": "n", "model": "llama-3-8b", "traffic": TRAFFIC, "objectives": objectives.model_dump()}
    )
    asked = KneeSearch(scenario, scopes_of(scenario), "rate" if is_open else "concurrency")
    found = {
        "gate": all(case.met for case in cases_of(summary, Gate.model_validate(objectives.model_dump()))),
        "report's knee": (knee := knee_of(summary.levels, objectives)) is not None and knee.level == 0,
        "capacity from a run": _tried(of_level, demand, 1).met,
        "verification": all(each.met for each in verified(demand.scopes, of_level)),
        "live page": live(records, objectives, is_open=is_open),
    }
    for how, kept in (("find-knee on the wall clock", records), ("find-knee in virtual time", columns_of(records))):
        decision = weigh(asked.promises, kept, is_open=is_open)
        result = result_of(asked, 10.0, ProbeRun(run, kept, []), decision)
        assert result.open or result.met == decision.met
        found[how] = result.met
    return found


def live(records: list[RequestRecord], objectives: Objectives, *, is_open: bool) -> bool:
    """Return what the live page says once the records of its last seconds are those of the whole level."""
    stats = LiveStats(1.0, objectives)
    stats.begin("load", 0.0, is_open=is_open)
    for record in records:
        stats.note(record)
    recent = stats.statistics(records[-1].done_s, 0)
    assert recent.missed is not None
    return not recent.missed


@pytest.mark.parametrize(("is_open", "met"), [(True, False), (False, True)])
def test_lateness_counts_in_an_open_loop_for_everyone(is_open: bool, met: bool) -> None:
    """400 requests sent a second late: TTFT counts from when each was due in an open loop, from sending in a closed."""
    records = requests(ttft_s=0.05, late_s=1.0)
    for objectives in (
        Objectives(ttft_s={"p95": 0.1}),
        Objectives(e2e_s={"mean": 0.2}),
        Objectives(goodput=Goodput(share=0.9, ttft_s=0.1)),
        Objectives(goodput=Goodput(share=0.9, e2e_s=0.1)),
    ):
        found = verdicts(records, objectives, is_open=is_open)
        assert set(found.values()) == {met}, found


@settings(max_examples=60, deadline=None)
@given(
    ttft_s=st.floats(0.01, 1.0),
    late_s=st.floats(0.0, 2.0),
    limit_s=st.floats(0.01, 2.0),
    quantity=st.sampled_from(["ttft_s", "itl_s", "tpot_s", "e2e_s"]),
    statistic=st.sampled_from(["mean", "p50", "p90", "p95", "p99", "p999", "max"]),
    is_open=st.booleans(),
)
def test_all_say_the_same(
    ttft_s: float, late_s: float, limit_s: float, quantity: str, statistic: str, is_open: bool
) -> None:
    """Of any records and any limit, in open and in closed loops; a limit within the live page's 1 % is left out."""
    begun_s = ttft_s + (late_s if is_open else 0.0)
    value_s = {"ttft_s": begun_s, "itl_s": 0.01, "tpot_s": 0.01, "e2e_s": begun_s + 0.02}[quantity]
    assume(abs(limit_s / value_s - 1) > 0.03)
    objectives = Objectives.model_validate({quantity: {statistic: limit_s}})
    if statistic == "max":  # a demand takes no maxima: no simulation proves one
        assume(False)
    found = verdicts(requests(ttft_s=ttft_s, late_s=late_s, count=120), objectives, is_open=is_open)
    assert set(found.values()) == {value_s <= limit_s}, found


def test_a_percentile_between_two_requests_is_one_figure() -> None:
    """Where a share of requests and an interpolated percentile would differ, find-knee goes by the percentile."""
    slow = np.array([0.05] * 380 + [0.5] * 20)  # 95 % are within 0.1 s; p95, interpolated, is 0.0725 s and not 0.05
    records = [
        one.model_copy(update={"token_times_s": tuple(one.scheduled_s + ttft + gap for gap in (0.0, 0.01, 0.02))})
        for one, ttft in zip(requests(ttft_s=0.05, late_s=0.0), slow, strict=True)
    ]
    for limit_s, met in ((0.06, False), (0.08, True)):
        scenario = Scenario(
            lengths=Lengths(isl=8, osl=3), rate_per_s=(10.0,), objectives=Objectives(ttft_s={"p95": limit_s})
        )
        found = verdicts(records, Objectives(ttft_s={"p95": limit_s}), is_open=True)
        assert {name: value for name, value in found.items() if name != "live page"} == dict.fromkeys(
            (name for name in found if name != "live page"), met
        )
        assert scopes_of(scenario) == (ObjectiveScope(Objectives(ttft_s={"p95": limit_s})),)


def test_latencies_are_computed_from_times_in_one_place() -> None:
    """No module but metrics/latency.py takes a time to first token or an end to end from records' times."""
    pattern = re.compile(r"(first_s|done_s|token_times_s\[0\]|times_s\[:1\])\)? - \w*\.?(sent_s|scheduled_s)")
    folder = Path(loadtest.__path__[0])
    found = {
        str(path.relative_to(folder))
        for path in sorted(folder.rglob("*.py"))
        if any(pattern.search(line) for line in path.read_text(encoding="utf-8").splitlines())
    }
    # A request's share of a window and what Locust's own pages are fed are no reported latencies; a simulation, whose
    # requests are sent when they are due, has spans of iterations instead of records.
    exceptions = {"metrics/throughput.py", "generator/locustfile.py", "capacity/simulation/request_table.py"}
    assert found <= exceptions, found
