"""The search for a knee, played in virtual time."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from engines.files import Document, MadeBy, write_json
from engines.manifest import MANIFEST_NAME, EngineManifest
from engines.planning import emulated_manifest
from engines.planning.plan import make_plan
from engines.planning.recipe import resolve_recipe
from loadtest.cli.find_knee import find_knee
from loadtest.cli.tables import show_knee
from loadtest.knee.search import (
    LIVES,
    KneeResult,
    KneeSearch,
    ProbeRun,
    ProbeRunner,
    Range,
    Span,
    at_load,
    predicting,
    search,
)
from loadtest.metrics.summarize import summarize
from loadtest.results import ValidityIssue
from loadtest.run import Enough
from loadtest.scenario.arrivals import Gamma, Ramp
from loadtest.scenario.schema import Lengths, Scenario
from loadtest.scenario.slo import Objectives, ObjectiveScope
from loadtest.simulate.predict import predict

HEAD = MadeBy(command="test", version="0")
SCENARIO = Scenario(lengths=Lengths(isl=64, osl=16))


@pytest.fixture(scope="module")
def manifest() -> EngineManifest:
    """Plan the default engine."""
    asked = resolve_recipe(None, {})
    return emulated_manifest(make_plan(asked, head=Document(made_by=HEAD)), asked.recipe)


def _found(manifest: EngineManifest, asked: KneeSearch) -> KneeResult:
    player = predicting(manifest, made_by=HEAD, made_from=[])
    return search(asked, player, made_by=HEAD, made_from=[], progress=lambda _: None)


def test_the_knee_is_where_a_long_prediction_says(manifest: EngineManifest) -> None:
    """A long run a tenth below the knee keeps the objective, one a tenth above what missed does not."""
    wanted = Objectives(itl_s={"p95": 0.012})
    found = _found(manifest, KneeSearch(SCENARIO, (ObjectiveScope(wanted),), within=Range(tolerance=0.1)))
    assert found.kind == "predicted"
    assert found.load is not None
    assert found.above is not None

    def itl_p95_s(rate_per_s: float) -> float:
        asked = Scenario(lengths=SCENARIO.lengths, rate_per_s=(rate_per_s,), duration_s=10_000 / rate_per_s, seed=9)
        run = predict(asked, manifest, made_by=HEAD, made_from=[])
        (level,) = summarize(run.run, run.records, run.samples).levels
        assert level.itl_s is not None
        return level.itl_s.p95

    assert itl_p95_s(0.9 * found.load) < 0.012 < itl_p95_s(1.1 * found.above)


def test_looser_objectives_carry_more_load(manifest: EngineManifest) -> None:
    """The knee moves up with the limit, and what binds is named."""
    knees = [
        _found(manifest, KneeSearch(SCENARIO, (ObjectiveScope(Objectives(itl_s={"p95": limit})),), "concurrency"))
        for limit in (0.008, 0.02)
    ]
    loads = [found.load for found in knees]
    assert loads[0] is not None
    assert loads[1] is not None
    assert loads[0] < loads[1]
    assert knees[0].binding == ("itl_s p95",)


def test_a_probe_is_long_enough_for_the_batch_to_fill() -> None:
    """However high the rate, a probe lasts some lives of a request; however low, it has its requests."""
    fast = at_load(SCENARIO, "rate", 1000.0, requests=100, lone_s=2.0)
    assert fast.duration_s * (1 - fast.warmup_ratio) >= LIVES * 2.0
    slow = at_load(SCENARIO, "rate", 1.0, requests=100, lone_s=2.0)
    assert slow.duration_s * (1 - slow.warmup_ratio) >= 100


def test_burstiness_is_kept_while_the_rate_is_searched() -> None:
    """Gamma arrivals stay gamma at every load; a a ramp has no constant mean rate."""
    bursty = SCENARIO.model_copy(update={"arrivals": Gamma(rate_per_s=1, burstiness=3, duration_s=1)})
    tried = at_load(bursty, "rate", 7.0, requests=70, lone_s=0.1)
    assert isinstance(tried.arrivals, Gamma)
    assert (tried.arrivals.rate_per_s, tried.arrivals.burstiness) == (7.0, 3)
    ramp = SCENARIO.model_copy(update={"arrivals": Ramp(from_per_s=1, to_per_s=2, duration_s=1)})
    with pytest.raises(Exception, match="a ramp has no constant mean rate"):
        at_load(ramp, "rate", 7.0, requests=70, lone_s=0.1)


def test_few_requests_leave_a_verdict_open(manifest: EngineManifest) -> None:
    """What the allowed requests cannot decide goes by the figures, and says so."""
    asked = KneeSearch(
        SCENARIO, (ObjectiveScope(Objectives(ttft_s={"p999": 10.0})),), within=Range(1, 2, 0.5), span=Span(40, 40)
    )
    found = _found(manifest, asked)
    assert all(tried.met and "ttft_s p999" in tried.open for tried in found.tried)


def test_a_probe_that_is_not_valid_is_marked_and_warned_of(
    manifest: EngineManifest, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its figures decide the knee like any other's, so the last line says that they may be wrong."""
    player = predicting(manifest, made_by=HEAD, made_from=[])
    issue = ValidityIssue(code="emulator-late", text="late by 60% of a step")

    def play(scenario: Scenario, enough: Enough) -> ProbeRun:
        played = player.play(scenario, enough)
        is_late = scenario.concurrency == (16,)
        return played._replace(run=played.run.model_copy(update={"validity_issues": (issue,) if is_late else ()}))

    wanted = (ObjectiveScope(Objectives(itl_s={"p50": 0.0062})),)
    asked = KneeSearch(SCENARIO, wanted, "concurrency", within=Range(tolerance=0.4, highest=64))
    found = search(asked, ProbeRunner(play, stops_early=False), made_by=HEAD, made_from=[], progress=lambda _: None)
    assert [each.load for each in found.tried if each.validity_issues] == [16]
    assert next(each for each in found.tried if each.load == 16).validity_issues == (issue,)
    show_knee(found)
    said = capsys.readouterr()
    assert [line.count("not valid") for line in said.out.splitlines() if "│" in line].count(1) == 1
    assert said.err == (
        f"warning: the figures of 1 of {len(found.tried)} loads tried are not valid (emulator-late): "
        "the knee may be elsewhere\n"
    )


def test_the_command_writes_what_it_found(
    manifest: EngineManifest, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """knee.json names what it is made from; an objective that nothing keeps ends with status 3."""
    engine = tmp_path / "engine"
    engine.mkdir()
    write_json(engine / MANIFEST_NAME, manifest)

    def run(*arguments: object) -> int:
        with pytest.raises(SystemExit) as ended:
            find_knee.main([str(each) for each in (engine, "--isl", 64, "--osl", 8, *arguments)])
        return int(ended.value.code or 0)

    bounds = ("--from", 1, "--to", 4, "--max-requests", 64)
    assert run("--objective", "ttft_s.p95=5", *bounds, "--out", tmp_path / "knee") == 0
    assert "(predicted)" in capsys.readouterr().out
    written = json.loads((tmp_path / "knee" / "knee.json").read_text())
    assert (written["load"], written["above"], written["kind"]) == (4, None, "predicted")
    assert written["made_from"][0]["path"].endswith(MANIFEST_NAME)
    assert run("--objective", "ttft_s.p95=1e-6", *bounds, "--out", tmp_path / "none") == 3
    assert "even 1 requests/s misses ttft_s p95" in capsys.readouterr().err
    assert run("--objective", "ttft=1", *bounds) == 2
    assert run(*bounds, "--out", tmp_path / "unsaid") == 2
