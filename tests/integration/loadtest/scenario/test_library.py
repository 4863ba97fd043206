"""Scenarios: what is refused, what flags lay over them, and the ready-made ones."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from engines.errors import MissingError, UserError
from engines.files import Document, MadeBy, read_yaml, to_json
from engines.manifest import EngineManifest
from engines.planning import emulated_manifest
from engines.planning.plan import make_plan
from engines.planning.recipe import resolve_recipe
from loadtest.cli.options import LoadOptions, outlook, scenario_of
from loadtest.metrics.summarize import summarize
from loadtest.scenario.arrivals import Sine, Spike
from loadtest.scenario.reading import inputs_of, read_scenario, scenario_folder, scenario_names
from loadtest.scenario.schema import Conversations, Lengths, Scenario
from loadtest.scenario.traces import Trace
from loadtest.simulate.predict import predict
from loadtest.traffic.conversations import ConversationSampler
from loadtest.traffic.levels import plans_of

HEAD = MadeBy(command="test", version="0")


def _asked(**flags: Any) -> Scenario:
    return scenario_of(LoadOptions(**flags))


@pytest.fixture(scope="module")
def manifest() -> EngineManifest:
    """Plan an engine that takes every ready-made scenario's prompts."""
    asked = resolve_recipe(None, {"workload.longest_isl": 17_000, "workload.longest_osl": 16_000})
    return emulated_manifest(make_plan(asked, head=Document(made_by=HEAD)), asked.recipe)


def test_the_ready_made_are_there() -> None:
    """Each kind of traffic people ask about has a scenario."""
    assert set(scenario_names()) == {
        "quick", "sweep", "chat", "code", "summarize", "reasoning", "rag", "agent", "spike", "day", "soak",
    }  # fmt: skip


@pytest.mark.parametrize("name", scenario_names())
def test_a_ready_made_scenario_asks_a_question_and_makes_a_promise(name: str) -> None:
    """Its file begins with what it answers, it is called as its file is, and it states objectives."""
    text = (scenario_folder() / f"{name}.yaml").read_text()
    first = text.splitlines()[0]
    assert first.startswith("# ")
    assert "?" in first
    scenario = read_scenario(name)
    assert scenario.name == name
    assert scenario.objectives is not None
    assert Scenario.model_validate_json(to_json(scenario)) == scenario


@pytest.mark.parametrize("name", scenario_names())
def test_a_ready_made_scenario_can_be_tried_out_in_a_moment(name: str, manifest: EngineManifest) -> None:
    """Shortened, each is predicted without a request refused, and measures what it promised."""
    base = read_scenario(name)
    short = {"duration": 5.0} if base.is_open else {"requests": 6, "concurrency": (4,)}
    scenario = _asked(scenario_name=name, **short)
    found = predict(scenario, manifest, made_by=HEAD, made_from=[])
    for level in summarize(found.run, found.records, found.samples).levels:
        assert level.requests > 0
        assert level.errors == 0
        assert level.ttft_s is not None


def test_a_shortened_day_has_the_days_peak() -> None:
    """--duration keeps rates and shrinks time: a minute of `day` still swings once, from its quiet to its peak."""
    whole, short = read_scenario("day").arrivals, _asked(scenario_name="day", duration=60.0).arrivals
    assert isinstance(whole, Sine)
    assert isinstance(short, Sine)
    assert (short.mean_per_s, short.swing_ratio) == (whole.mean_per_s, whole.swing_ratio)
    assert short.period_s == pytest.approx(60.0 * whole.period_s / whole.duration_s)
    spike = _asked(scenario_name="spike", duration=24.0).arrivals
    assert isinstance(spike, Spike)
    assert (spike.at_s, spike.spike_s, spike.peak_per_s) == pytest.approx((6.0, 3.0, 80))


def test_flags_lay_over_a_scenario() -> None:
    """A flag takes the place of what it names, and one kind of load that of another."""
    assert _asked(isl="normal(10, 2)", osl="7").lengths == Lengths(isl="normal(10, 2)", osl=7)
    assert _asked(scenario_name="spike", rate=(3.0,)).rate_per_s == (3.0,)
    assert _asked(scenario_name="spike", rate=(3.0,)).arrivals is None
    assert _asked(scenario_name="chat", concurrency=(2, 3)).concurrency == (2, 3)
    assert not _asked(scenario_name="chat", concurrency=(2,)).is_open
    assert _asked(rate=(2.0,), duration=5.0).duration_s == 5.0


@pytest.mark.parametrize(
    ("flags", "wrong"),
    [
        ({"duration": 5.0}, "does not apply to a closed loop"),
        ({"concurrency": (4,), "duration": 5.0}, "does not apply to a closed loop"),
        ({"rate": (1.0,), "duration": 0.0}, "above 0"),
        ({"scenario_name": "day", "isl": "5"}, "classes with their own lengths"),
        ({"scenario_name": "day", "concurrency": (4,), "duration": 5.0}, "does not apply to a closed loop"),
        ({"scenario_name": "chat", "requests": 5}, "does not apply to an open loop"),
        ({"rate": (2.0,), "requests": 5}, "does not apply to an open loop"),
        ({"prompts": "poems"}, "chat, random, or a .json"),
        ({"isl": "normal(5"}, "--isl: expected a number or a distribution"),
        ({"seed": -1}, "greater than or equal to 0"),
        ({"scenario_name": "chatt"}, "no scenario 'chatt'"),
    ],
)
def test_a_flag_that_cannot_be_is_refused(flags: dict[str, Any], wrong: str) -> None:
    """What contradicts itself, or would change nothing, is one error."""
    with pytest.raises(UserError, match=wrong):
        _asked(**flags)


@pytest.mark.parametrize(
    ("values", "wrong"),
    [
        ({"lengths": {"isl": 5, "pairs": "x.csv"}}, "pairs state both lengths"),
        ({"conversation": {"think_s": 5}}, "turns is required"),
        ({"classes": [{"name": "a", "conversation": {}}]}, "class a: conversation: turns is required"),
        ({"classes": [{"name": "a"}, {"name": "a"}]}, "two classes have the name 'a'"),
        ({"classes": [{"name": "a b"}]}, "pattern"),
        ({"arrivals": {"process": "trace", "path": "x"}, "prefixes": {"tokens": 5}}, "states its own requests"),
        ({"prefixes": {"count": 0, "tokens": 5}}, "greater than or equal to 1"),
        ({"prefixes": {"tokens": 5, "share": 1.5}}, "less than or equal to 1"),
        ({"conversation": {"turns": "uniform(3, 1)"}}, "min 3 is above max 1"),
        ({"conversation": {"turns": 3, "think_s": -1}}, "from 0 to 16,777,216"),
        ({"replies": "maybe"}, "'exact' or 'free'"),
        ({"concurrency": [0]}, "greater than or equal to 1"),
    ],
)
def test_a_scenario_that_cannot_be_is_refused(values: dict[str, Any], wrong: str) -> None:
    """What contradicts itself is refused when it is read, not when it is run."""
    with pytest.raises(ValidationError, match=wrong):
        Scenario.model_validate(values)


def test_paths_begin_at_the_scenarios_folder(tmp_path: Path) -> None:
    """A file beside the scenario is found from anywhere; one that is not there is named."""
    (tmp_path / "lengths.csv").write_text("isl,osl\n5,6\n")
    path = tmp_path / "x.yaml"
    path.write_text(
        "classes:\n"
        "  - {name: a, lengths: {pairs: lengths.csv}}\n"
        "  - {name: b, lengths: {isl: 'empirical(lengths.csv, isl)', osl: 3}}\n"
        "  - {name: c, prompts: ours.jsonl, lengths: {isl: 4, osl: 3}}\n"
    )
    scenario = read_scenario(str(path))
    assert scenario.files() == [tmp_path / "lengths.csv", tmp_path / "ours.jsonl"]
    assert scenario.files(prompts=False) == [tmp_path / "lengths.csv"]
    assert {exchange for n in range(50) for exchange in [ConversationSampler(scenario).draw(n).exchanges[0][:2]]} == {
        (5, 6), (5, 3), (4, 3),
    }  # fmt: skip
    with pytest.raises(MissingError, match=r"ours\.jsonl: no such file"):
        inputs_of(scenario)
    (tmp_path / "ours.jsonl").write_text("{}")
    assert [Path(source.path).name for source in inputs_of(scenario)] == ["lengths.csv", "ours.jsonl"]
    path.write_text("arrivals: {process: trace, path: t.csv}\n")
    moved = read_scenario(str(path)).arrivals
    assert isinstance(moved, Trace)
    assert moved.path == str(tmp_path / "t.csv")


def test_a_misspelled_key_deep_inside_is_suggested(tmp_path: Path) -> None:
    """The key that was meant is found in a class's prefixes too."""
    path = tmp_path / "x.yaml"
    path.write_text("classes:\n  - name: a\n    prefixes: {tokens: 5, shares: 0.5}\n")
    with pytest.raises(UserError, match=r"unknown key .classes\.0\.prefixes\.shares.") as refused:
        read_yaml(path, Scenario)
    assert refused.value.hint == "did you mean 'share'?"


def test_an_open_loop_has_time_for_its_requests() -> None:
    """A level's limit counts from when its last request is sent, on the wall."""
    scenario = Scenario(arrivals=Spike(base_per_s=1, peak_per_s=9, at_s=500, spike_s=90, duration_s=900))
    (plan,) = plans_of(scenario)
    assert plan.limit_s(scenario, 2.0) == 2 * plan.arrivals[-1].at_s + scenario.level_timeout_s
    assert plans_of(Scenario())[0].limit_s(Scenario(), 2.0) == Scenario().level_timeout_s


def test_conversations_multiply_requests(manifest: EngineManifest) -> None:
    """Four turns to a conversation: an open loop sends four requests for each arrival, in order and in one piece."""
    scenario = Scenario(
        rate_per_s=(2.0,),
        duration_s=30.0,
        lengths=Lengths(isl=50, osl=8),
        conversation=Conversations(turns=4, think_s="exponential(0.5)"),
    )
    found = predict(scenario, manifest, made_by=HEAD, made_from=[])
    assert found.run.levels[0].load == "2 conversations/s"
    records = found.records
    by_talk: dict[int, list[Any]] = {}
    for record in records:
        by_talk.setdefault(record.conversation or 0, []).append(record)
    assert len(by_talk) == len(plans_of(scenario)[0].arrivals)
    for turns in by_talk.values():
        ordered = sorted(turns, key=lambda record: record.turn)
        assert [record.turn for record in ordered] == list(range(len(ordered)))
        assert [record.prompt_tokens for record in ordered] == [50 + 58 * place for place in range(len(ordered))]
        assert all(later.sent_s >= one.done_s for one, later in pairwise(ordered))
    assert len({record.id for record in records}) == len(records)


@pytest.mark.parametrize(
    ("values", "uniform"),
    [
        ({}, True),
        ({"lengths": {"isl": 1024, "osl": 128}}, True),
        ({"classes": [{"name": "a"}]}, True),
        ({"lengths": {"isl": "uniform(1, 5)"}}, False),
        ({"classes": [{"name": "a"}, {"name": "b"}]}, False),
        ({"prefixes": {"tokens": 5}}, False),
        ({"conversation": {"turns": 2}}, False),
        ({"prompts": "ours.jsonl"}, False),
        ({"arrivals": {"process": "trace", "path": "x"}}, False),
    ],
)
def test_only_runs_of_one_length_are_uniform(values: dict[str, Any], uniform: bool) -> None:
    """What a calibration may stand on: every request as long as any other, none helped by another's cache."""
    assert Scenario.model_validate(values).is_uniform is uniform


def test_a_dry_run_says_what_a_scenario_comes_to() -> None:
    """Each level's requests and lengths in words, before anything is sent; without those only a tokenizer can tell."""
    lines = list(outlook(Scenario(concurrency=(2, 40), requests_per_user=1, lengths=Lengths(isl=100, osl=7))))
    assert lines == [
        "2 users: 32 requests measured, prompts: mean 100 tokens, max 100, replies: mean 7, max 7",
        "40 users: 40 requests measured, prompts: mean 100 tokens, max 100, replies: mean 7, max 7",
    ]
    talk = Scenario(rate_per_s=(2.0,), duration_s=50, prompts="ours.jsonl", conversation=Conversations())
    (line,) = outlook(talk)
    assert line == f"2/s: {len(plans_of(talk)[0].arrivals)} conversations"
