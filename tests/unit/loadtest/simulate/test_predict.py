"""The virtual clock against arithmetic."""

from __future__ import annotations

from itertools import pairwise

import pytest

from engines.files import Document, MadeBy
from engines.manifest import EngineManifest
from engines.planning import emulated_manifest
from engines.planning.plan import make_plan
from engines.planning.recipe import resolve_recipe
from engines.steptime.shape import StepShape, attended_tokens
from engines.steptime.source import step_time_for
from loadtest.metrics.summarize import summarize
from loadtest.scenario.schema import Conversations, Lengths, Prefixes, Scenario, TrafficClass
from loadtest.simulate.predict import Prediction, at_once, bare, predict
from loadtest.traffic.conversations import ConversationSampler

HEAD = MadeBy(command="test", version="0")


@pytest.fixture(scope="module")
def manifest() -> EngineManifest:
    """Plan the default engine."""
    asked = resolve_recipe(None, {})
    return emulated_manifest(make_plan(asked, head=Document(made_by=HEAD)), asked.recipe)


def _predict(manifest: EngineManifest, *concurrency: int, requests: int = 16) -> Prediction:
    scenario = Scenario(concurrency=concurrency, lengths=Lengths(isl=128, osl=32), requests=requests)
    return predict(scenario, manifest, made_by=HEAD, made_from=[])


def test_one_user_waits_for_its_own_steps_alone(manifest: EngineManifest) -> None:
    """TTFT is the host's latency and the prompt's iteration; each gap is a decode step at its context."""
    record = next(record for record in _predict(manifest, 1).records if record.phase == "measure")
    step_time = step_time_for(manifest)
    prefill = StepShape(prefill_sequences=1, prefill_tokens=128, prefill_attended_tokens=attended_tokens(128, 0))
    assert manifest.step_time.host is not None
    first_s = manifest.step_time.host.latency_s + step_time.seconds(prefill)
    assert record.token_times_s[0] - record.sent_s == pytest.approx(first_s, rel=1e-9)
    gaps = [later - earlier for earlier, later in pairwise(record.token_times_s)]
    steps = [step_time.seconds(StepShape(1, 128 + index)) for index in range(31)]
    assert gaps == pytest.approx(steps, rel=1e-9)


def test_little_s_law_holds(manifest: EngineManifest) -> None:
    """Users = requests per second x seconds a request takes, up to the users' short turn-around."""
    prediction = _predict(manifest, 8, requests=200)
    (level,) = summarize(prediction.run, prediction.records, prediction.samples).levels
    assert level.e2e_s is not None
    assert level.requests_per_s is not None
    assert level.requests_per_s * level.e2e_s.mean == pytest.approx(8, rel=0.02)


def test_server_and_client_agree_on_the_batch(manifest: EngineManifest) -> None:
    """The sampled batch size and the one counted from the records are the same quantity."""
    prediction = _predict(manifest, 4, 32, requests=64)
    for level in summarize(prediction.run, prediction.records, prediction.samples).levels:
        assert level.batch_size is not None
        assert level.batch_size_client is not None
        assert level.batch_size.mean == pytest.approx(level.batch_size_client.mean, rel=0.05)


def test_same_scenario_same_records(manifest: EngineManifest) -> None:
    """A prediction has nothing random in it."""
    assert _predict(manifest, 1, 8).records == _predict(manifest, 1, 8).records


def test_throughput_saturates(manifest: EngineManifest) -> None:
    """More users give more tokens a second, and less and less more."""
    prediction = _predict(manifest, 1, 16, 64, 256, requests=256)
    rates = [
        level.output_tokens_per_s or 0.0
        for level in summarize(prediction.run, prediction.records, prediction.samples).levels
    ]
    assert rates == sorted(rates)
    assert rates[1] / rates[0] > 4 * rates[3] / rates[2]


def test_a_static_batch_is_one_prompt_iteration_and_its_decode_steps(manifest: EngineManifest) -> None:
    """All prompts in one iteration, then every step at the full batch: arithmetic on the step times, nothing else."""
    batch, isl, osl = 16, 128, 8
    scenario = at_once(Scenario(concurrency=(batch,), lengths=Lengths(isl=isl, osl=osl)))
    found = predict(scenario, bare(manifest, scenario), made_by=HEAD, made_from=[])
    (level,) = summarize(found.run, found.records, found.samples).levels
    step_time = step_time_for(bare(manifest, scenario))
    prompts = StepShape(0, 0, batch, batch * isl, batch * attended_tokens(isl, 0))
    steps = [step_time.seconds(StepShape(batch, batch * (isl + place))) for place in range(osl - 1)]
    assert level.requests == batch
    assert level.ttft_s is not None
    assert level.itl_s is not None
    assert level.ttft_s.mean == pytest.approx(step_time.seconds(prompts), rel=1e-9)
    assert level.itl_s.mean == pytest.approx(sum(steps) / len(steps), rel=1e-9)


def test_a_conversations_history_is_found_in_the_cache(manifest: EngineManifest) -> None:
    """A later turn computes only what is new: all full blocks of prompt and reply before it are found.

    The reply's last token is never computed, so the block it would have filled is not there.
    """
    scenario = Scenario(
        concurrency=(1,),
        requests=12,
        lengths=Lengths(isl=100, osl=21),
        prefixes=Prefixes(tokens=70),
        conversation=Conversations(turns=4),
        start="together",
    )
    block = manifest.kv_cache.tokens_per_block
    records = predict(scenario, manifest, made_by=HEAD, made_from=[]).records
    for record in records:
        if record.turn:
            assert record.cached_tokens == (record.prompt_tokens - 100 - 1) // block * block
        elif record.conversation:
            assert record.cached_tokens == 70 // block * block  # the beginning all share
        else:
            assert record.cached_tokens == 0


def test_a_shared_prefix_saves_its_computation(manifest: EngineManifest) -> None:
    """Prompts whose beginning is found come to their first token as fast as if they had only their own part."""

    def ttft_s(scenario: Scenario) -> float:
        found = predict(scenario, manifest, made_by=HEAD, made_from=[])
        (level,) = summarize(found.run, found.records, found.samples).levels
        assert level.ttft_s is not None
        return level.ttft_s.p50

    base = Scenario(concurrency=(1,), requests=8, lengths=Lengths(isl=64, osl=4))
    short, shared = ttft_s(base), ttft_s(base.model_copy(update={"prefixes": Prefixes(tokens=3200)}))
    whole = ttft_s(base.model_copy(update={"lengths": Lengths(isl=3264, osl=4)}))
    assert shared < 2 * short < whole / 2


def test_lengths_are_those_drawn(manifest: EngineManifest) -> None:
    """Records say what was drawn, class by class, and the level its means."""
    scenario = Scenario(
        rate_per_s=(20.0,),
        duration_s=20.0,
        classes=(
            TrafficClass(name="a", lengths=Lengths(isl="uniform(10, 20)", osl=3)),
            TrafficClass(name="b", weight=3, lengths=Lengths(isl="normal(200, 30)", osl=5), replies="free"),
        ),
    )
    found = predict(scenario, manifest, made_by=HEAD, made_from=[])
    mix = ConversationSampler(scenario)
    for record in found.records:
        talk = mix.begin(record.id)
        assert record.class_name == talk.kind.name
        assert record.prompt_tokens == talk.prompt_tokens
        assert record.output_tokens == (3 if record.class_name == "a" else 5)
        assert record.asked_tokens == (3 if record.class_name == "a" else None)
    mean = sum(record.prompt_tokens for record in found.records) / len(found.records)
    assert found.run.levels[0].isl == round(mean)
