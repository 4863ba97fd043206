"""The ends of a long load are simulated over its beginning where that tells the same."""

from __future__ import annotations

from functools import partial

import pytest

from engines.files import Document, MadeBy
from engines.manifest import EngineManifest
from engines.planning import emulated_manifest, make_plan, resolve_recipe
from engines.steptime import NONE, Slowdown
from loadtest.metrics import Summary, summarize
from loadtest.scenario import Scenario
from loadtest.simulate import predict, profile_ends, with_ends
from loadtest.simulate.intervals import SAMPLED_REQUESTS, between, keeps_up, sample_of

HEAD = MadeBy(command="test", version="0")


@pytest.fixture(scope="module")
def manifest() -> EngineManifest:
    """Plan the default engine, for short requests."""
    asked = resolve_recipe(None, {"workload.isl": 200, "workload.osl": 40})
    return emulated_manifest(make_plan(asked, head=Document(made_by=HEAD)), asked.recipe)


def _load(rate_per_s: float, duration_s: float) -> Scenario:
    return Scenario(rate_per_s=(rate_per_s,), duration_s=duration_s, lengths={"isl": 200, "osl": 40})


def _simulated(manifest: EngineManifest, scenario: Scenario, slowdown: Slowdown = NONE) -> Summary:
    found = predict(scenario, manifest, made_by=HEAD, made_from=[], slowdown=slowdown)
    return summarize(found.run, found.columns, found.samples)


def test_sampled_ends_are_near_the_whole_ones(manifest: EngineManifest) -> None:
    """Of a steady load, intervals from its beginning are those of all of it, to a few percent."""
    scenario = _load(40.0, 4.5 * SAMPLED_REQUESTS / 40)
    summary, ends = _simulated(manifest, scenario), profile_ends(manifest)
    assert sample_of(scenario, summary) is not None
    sampled = with_ends(summary, scenario, ends, partial(_simulated, manifest)).levels[0].intervals
    fast, slow = (_simulated(manifest, scenario, end) for end in (ends.fast, ends.slow))
    whole = between(summary, fast, slow).levels[0].intervals
    assert sampled.keys() == whole.keys() == {"tokens_per_s", "itl_s", "ttft_s"}
    for name, interval in whole.items():
        assert sampled[name].mean == interval.mean
        assert sampled[name].low == pytest.approx(interval.low, rel=0.04), name
        assert sampled[name].high == pytest.approx(interval.high, rel=0.04), name


def test_short_and_unsteady_loads_are_simulated_whole(manifest: EngineManifest) -> None:
    """A load that is not long, has users instead of a rate, or whose requests take long is no sample of itself."""
    long = _load(40.0, 4.5 * SAMPLED_REQUESTS / 40)
    summary = _simulated(manifest, _load(40.0, 20.0))
    assert sample_of(_load(40.0, 3.0 * SAMPLED_REQUESTS / 40), summary) is None
    assert sample_of(Scenario(concurrency=(8,)), summary) is None
    (level,) = summary.levels
    assert level.e2e_s is not None
    slow = level.model_copy(update={"e2e_s": level.e2e_s.model_copy(update={"mean": 60.0})})
    assert sample_of(long, summary.model_copy(update={"levels": [slow]})) is None


def test_an_end_that_falls_behind_is_seen(manifest: EngineManifest) -> None:
    """Where the slow end makes fewer tokens than the fast one, or its queue grows, a sample does not do."""
    fast = _simulated(manifest, _load(20.0, 20.0))
    (level,) = fast.levels
    assert keeps_up(fast, fast)
    behind = level.model_copy(update={"output_tokens_per_s": 0.9 * (level.output_tokens_per_s or 0.0)})
    assert not keeps_up(fast.model_copy(update={"levels": [behind]}), fast)
