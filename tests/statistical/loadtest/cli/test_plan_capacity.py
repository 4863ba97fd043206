"""plan-capacity as a user has it: the folder, the refusals, what if, and whether a plan held."""

from __future__ import annotations

import json
import re
from datetime import UTC, date, datetime
from functools import cache
from pathlib import Path
from typing import Any

import click
import pytest
import yaml
from click.testing import CliRunner

from engines.calibration import read_calibration
from engines.errors import TargetMissedError, UserError
from engines.files import MadeBy, read_json
from engines.planning.recipe import resolve_recipe
from engines.spec import engine_profile_named, gpu_named
from engines.steptime import uncertainty
from loadtest.capacity.candidates import candidates_of
from loadtest.capacity.day import REPORT_SLOTS
from loadtest.capacity.inputs.demand import PriceChoices, read_demand
from loadtest.capacity.inputs.prices import prices_for
from loadtest.capacity.schema import CapacityPlan
from loadtest.capacity.simulation import shape_of
from loadtest.capacity.verify import verify
from loadtest.capacity.what_if import what_if
from loadtest.cli.plan_capacity import plan_capacity
from loadtest.results.records import REQUESTS_NAME, RUN_NAME
from loadtest.scenario.reading import read_scenario
from loadtest.simulate.predict import Prediction, predict, write_prediction
from tests.unit.loadtest.capacity.made import HERE, demand
from triton_repo.settings.repository_manifest import ServingSettings

SMALL = {
    "name": "small",
    "model": "llama-3-8b",
    "traffic": {
        "process": "described",
        "rate_by_hour_per_s": [85.0],
        "lengths": {"isl": 256, "osl": 16, "max_tokens": 16},
    },
    "objectives": {"ttft_s": {"p90": 0.5}},
    "limits": {"gpus": ["h100-sxm-80gb", "a100-sxm-80gb"], "precisions": ["fp8"]},
    "candidates": {"max_batch_size": [16], "max_num_tokens": [2048]},
    "autoscaling": {"sync_s": 60.0},  # a quarter of the evaluations of laws
}


def written(folder: Path, **changed: Any) -> Path:
    """Write a demand."""
    path = folder / "demand.yaml"
    path.write_text(yaml.safe_dump(SMALL | changed), encoding="utf-8")
    return path


def run(*arguments: str) -> Any:
    """Run the command, its errors as they are raised."""
    plain = click.Command(plan_capacity.name, params=plan_capacity.params, callback=plan_capacity.callback)
    return CliRunner().invoke(plain, list(arguments), standalone_mode=False)


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Plan the small demand once."""
    folder = tmp_path_factory.mktemp("capacity")
    out = folder / "out"
    asked = ("--out", str(out), "--workers", "1", "--what-if", "traffic*=2,n_plus=0")
    CliRunner().invoke(plan_capacity, [str(written(folder)), *asked])
    return out


def test_a_plan_leads_back_to_its_demand(planned: Path) -> None:
    """The document has who made it and from what; every row says what it rests on; refused rows say why."""
    plan = read_json(planned / "capacity.json", CapacityPlan)
    assert [Path(source.path).name for source in plan.made_from] == ["demand.yaml"]
    assert plan.recommended is not None
    assert plan.chosen is not None
    assert plan.chosen.basis == "predicted"
    refused = [row for row in plan.rows if row.status == "refused"]
    assert [row.gpu for row in refused] == ["a100-sxm-80gb"]
    assert "FP8" in (refused[0].reason or "")
    assert plan.day is not None
    assert plan.scaling is not None
    assert len(plan.day.points) * REPORT_SLOTS == len(plan.scaling.up) == plan.scaling.minutes
    assert {each.routing for each in plan.fleets} >= {"round_robin", "least_outstanding", "least_kv", "prefix_aware"}
    assert plan.chosen.usd_per_month == pytest.approx((plan.chosen.replicas or 0) * 3.20 * 730)


def test_the_page_stands_alone(planned: Path) -> None:
    """It names what is recommended and loads nothing."""
    page = (planned / "capacity.html").read_text(encoding="utf-8")
    assert "llama-3-8b" in page
    assert page.count("<svg") == 6
    assert "Which signal should scale the replicas" in page
    assert "src=" not in page
    assert "url(" not in page
    assert "@import" not in page


def test_a_plan_of_another_version_is_refused(planned: Path, tmp_path: Path) -> None:
    """Its keys have other meanings; the error names the command that plans again."""
    text = (planned / "capacity.json").read_text(encoding="utf-8")
    (tmp_path / "capacity.json").write_text(text.replace('"schema": 4', '"schema": 2', 1), encoding="utf-8")
    with pytest.raises(UserError, match="schema 2 is of another version; plan again: plan-capacity DEMAND"):
        read_json(tmp_path / "capacity.json", CapacityPlan)


def test_what_if_is_side_by_side(planned: Path) -> None:
    """Twice the traffic with nothing spare: twice the peak, what a replica carries unchanged."""
    sides = json.loads((planned / "what-if.json").read_text(encoding="utf-8"))["sides"]
    assert [side["change"] for side in sides] == ["original", "traffic*=2,n_plus=0"]
    assert sides[1]["peak_per_s"] == pytest.approx(2 * sides[0]["peak_per_s"])
    assert sides[1]["rate_per_s"] == sides[0]["rate_per_s"]


def test_what_is_handed_over_is_taken(planned: Path) -> None:
    """The other commands' own schemas read the recipe, the settings and the scenario."""
    asked = resolve_recipe(str(planned / "recipe.yaml"), {})
    assert asked.recipe.limits.max_batch_size == 16
    settings = ServingSettings.model_validate(yaml.safe_load((planned / "serving.yaml").read_text(encoding="utf-8")))
    assert settings.queue.max_queue_size > 0
    scenario = read_scenario(str(planned / "verify.yaml"))
    assert scenario.is_open
    assert scenario.objectives is not None
    assert scenario.lengths.max_tokens is None  # random prompts would run to it


@cache
def _predicted(planned: Path) -> Prediction:
    """Return the prediction of the plan's scenario, made once."""
    plan = read_json(planned / "capacity.json", CapacityPlan)
    assert plan.engine is not None
    scenario = read_scenario(str(planned / "verify.yaml"))
    return predict(scenario, plan.engine, made_by=MadeBy(command="test", version="0"), made_from=[])


def _measured(planned: Path, folder: Path, *, slower: float) -> Path:
    """Return a run of the plan's scenario: predicted here, its times stretched, and marked as measured."""
    found = _predicted(planned)
    out = folder / "run"
    write_prediction(found, out, force=False)
    lines = []
    for record in found.records:
        late = [record.sent_s + (at_s - record.sent_s) * slower for at_s in record.token_times_s]
        changed = {"token_times_s": tuple(late), "done_s": late[-1]}
        lines.append(record.model_copy(update=changed).model_dump_json() + "\n")
    (out / REQUESTS_NAME).write_text("".join(lines), encoding="utf-8")
    text = (out / RUN_NAME).read_text(encoding="utf-8").replace('"kind": "predicted"', '"kind": "measured"')
    (out / RUN_NAME).write_text(text, encoding="utf-8")
    return out


@pytest.mark.parametrize(("slower", "held"), [(1.2, True), (60.0, False), (1000.0, False)])
def test_a_plan_holds_or_it_does_not(planned: Path, tmp_path: Path, slower: float, held: bool) -> None:
    """A deployment a little slower than predicted keeps the plan; one far slower does not, and that is said."""
    folder = _measured(planned, tmp_path, slower=slower)
    made_by = MadeBy(command="test", version="0")
    found = verify(planned / "capacity.json", folder, made_by=made_by)
    assert found.held is held, (found.missed, found.validity_issues)
    assert bool(found.missed) is not held
    assert not any("replies had" in each for each in found.validity_issues)
    result = run("--verify", str(folder), "--plan", str(planned / "capacity.json"))
    assert isinstance(result.exception, TargetMissedError) is not held


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--verify", "RUN"), "--plan is required"),
        (("--plan", "capacity.json"), "does nothing"),
        (("demand.yaml", "--verify", "RUN", "--plan", "capacity.json"), "take the demand from the plan"),
    ],
)
def test_an_error_asks_for_what_is_missing_alone(arguments: tuple[str, ...], said: str) -> None:
    """What the user gave is never asked for again."""
    result = run(*arguments)
    assert isinstance(result.exception, UserError)
    assert said in result.exception.message
    for given in arguments:
        assert f"{given} is required" not in result.exception.message


def test_a_run_with_longer_replies_verifies_nothing(planned: Path, tmp_path: Path) -> None:
    """Replies twice as long as the plan's are another traffic, even where every objective is met."""
    folder = _measured(planned, tmp_path, slower=1.0)
    lines = []
    for line in (folder / REQUESTS_NAME).read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        record |= {"output_tokens": 2 * record["output_tokens"]}
        record["token_times_s"] = [at_s for at_s in record["token_times_s"] for _ in range(2)]
        lines.append(json.dumps(record) + "\n")
    (folder / REQUESTS_NAME).write_text("".join(lines), encoding="utf-8")
    found = verify(planned / "capacity.json", folder, made_by=MadeBy(command="test", version="0"))
    assert not found.held
    assert "replies had 32 tokens on average, the plan's have 16" in found.validity_issues[-1]


def test_a_prediction_verifies_nothing(planned: Path, tmp_path: Path) -> None:
    """A predicted run is refused: it would hold the plan to itself."""
    folder = _measured(planned, tmp_path, slower=1.0)
    text = (folder / RUN_NAME).read_text(encoding="utf-8").replace('"kind": "measured"', '"kind": "predicted"')
    (folder / RUN_NAME).write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match="a prediction cannot verify a plan"):
        verify(planned / "capacity.json", folder, made_by=MadeBy(command="test", version="0"))


def test_the_impossible_is_refused_with_the_nearest_possible(tmp_path: Path) -> None:
    """A first token in a millisecond: no; who comes closest, with its latency. Too small a budget: what it carries."""
    few = {"limits": {"gpus": ["h100-sxm-80gb"], "precisions": ["fp8"], "budget_usd_per_month": 5000}}
    for changed, said in (
        ({"objectives": {"ttft_s": {"p90": 0.001}}}, "objectives are in seconds"),
        (few, "within the limits, h100-sxm-80gb fp8"),
        ({"limits": {**few["limits"], "budget_usd_per_month": 1}}, "no candidate carries any of the demand; all of it"),
        ({"limits": {"gpus": ["a100-sxm-80gb"], "precisions": ["fp8"]}}, "a100-sxm-80gb fp8, refused: "),
    ):
        folder = tmp_path / said[:20].replace(" ", "-")
        folder.mkdir()
        traffic = SMALL["traffic"] | {"rate_by_hour_per_s": [400.0]}  # type: ignore[operator]
        path = written(folder, **({"traffic": traffic} | changed))
        result = run(str(path), "--out", str(folder / "out"), "--workers", "1")
        assert isinstance(result.exception, TargetMissedError)
        assert said in (result.exception.hint or "")
        assert ("nearest possible: " in (result.exception.hint or "")) == ("refused" not in said)
        page = (folder / "out" / "capacity.html").read_text(encoding="utf-8")
        assert "What limits a replica" not in page, "of a deployment that is not recommended nothing is limited"
        assert ("idle (TTFT p95 " in (result.exception.hint or "")) == ("objectives" in changed)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"objectives": {"ttft_s": {"max": 1.0}}}, "maximum grows"),
        ({"traffic": {"process": "described", "rate_by_hour_per_s": [1.0, 2.0]}}, "give 24"),
        ({"availabilty": {}}, "unknown key"),
        ({"name": "../elsewhere"}, "the plan's folder gets this name"),
        ({"name": ".."}, "the plan's folder gets this name"),
    ],
)
def test_a_wrong_demand_is_one_clear_error(tmp_path: Path, changed: dict[str, Any], said: str) -> None:
    """What is asked wrongly is said with its key."""
    with pytest.raises(UserError, match=said):
        read_demand(written(tmp_path, **changed))


def test_every_shipped_price_has_a_source_and_a_day() -> None:
    """Each vendor's rows are of known GPUs; the user's own price wins and is marked."""
    day = date(2026, 11, 24)
    for vendor in ("hyperstack", "lambda", "runpod-secure", "aws-us-east-1"):
        for name, price in prices_for(PriceChoices(vendor=vendor), Path(), today=day).items():
            assert gpu_named(name).name == name
            assert price.source
            assert price.read_on < day
    own = prices_for(PriceChoices(usd_per_gpu_h={"H100": 1.5}), Path(), today=day)["h100-sxm-80gb"]
    assert (own.vendor, own.usd_per_gpu_h) == ("own", 1.5)


def test_what_if_refuses_what_it_does_not_know() -> None:
    """A key nobody knows, and one that cannot be multiplied, are refused with what can be changed."""
    assert what_if(demand(), "osl*=1.5").demand.scale.osl == 1.5
    for asked in ("colour=red", "gpu*=2", "osl"):
        with pytest.raises(UserError, match="what-if"):
            what_if(demand(), asked)


def test_an_uncalibrated_interval_is_the_spread_between_deployments(planned: Path) -> None:
    """A prediction's ends are its engine profile's own, on step and host times; its row says where they come from."""
    plan = read_json(planned / "capacity.json", CapacityPlan)
    assert plan.chosen is not None
    assert plan.engine is not None
    profile = engine_profile_named(plan.engine.step_time.profile or "")
    interval = uncertainty(profile, precision="fp8")
    assert plan.chosen.interval_source == interval.provenance
    (made, *_) = candidates_of(demand(), HERE, shape_of(demand(), HERE), made_by=MadeBy(command="test", version="0"))
    assert (made.interval.slow, made.interval.fast) == (interval.slow, interval.fast)


def test_three_sizes_are_in_order(planned: Path) -> None:
    """Promised is no smaller than the middle, the middle no smaller than optimistic; each was simulated as a fleet."""
    plan = read_json(planned / "capacity.json", CapacityPlan)
    assert plan.chosen is not None
    sizes = plan.chosen.sizes
    assert len(sizes) == 3
    replicas = [each.replicas or 0 for each in sizes]
    assert replicas == sorted(replicas, reverse=True)
    for each in sizes:
        assert each.verdict is not None
        assert each.verdict.met
        assert each.verdict.windows >= 3


def test_the_queue_is_deployed_as_it_was_simulated(planned: Path) -> None:
    """The serving settings' queue limit is the one the fleets were simulated with, and refused nobody."""
    plan = read_json(planned / "capacity.json", CapacityPlan)
    settings = ServingSettings.model_validate(yaml.safe_load((planned / "serving.yaml").read_text(encoding="utf-8")))
    assert settings.queue.max_queue_size == plan.max_queue_size > 0
    assert settings.limits.max_output_tokens == plan.traffic.max_tokens == 16
    assert plan.fleets[0].refused == 0.0


def test_a_tiny_demand_takes_one_replica_and_names_a_cheaper_gpu(tmp_path: Path) -> None:
    """A request every ten seconds: one replica; a GPU outside the limits that holds it for less is named."""
    traffic = {"process": "described", "rate_per_s": 0.1, "lengths": {"isl": 256, "osl": 16}}
    changed = {"traffic": traffic, "availability": {"n_plus": 0}, "prices": {"vendor": "aws-us-east-1"}}
    run(str(written(tmp_path, **changed)), "--out", str(tmp_path / "out"), "--workers", "1")
    plan = read_json(tmp_path / "out" / "capacity.json", CapacityPlan)
    assert plan.chosen is not None
    assert plan.chosen.replicas == 1
    assert "l4-24gb" in (plan.smaller_gpu or "")
    assert "tokens" in (plan.smaller_gpu or "")
    (of_slice,) = (each for each in plan.warnings if "mig-2g.20gb" in each)
    assert "not tried: 3 fit on one h100-sxm-80gb, which is rented whole" in of_slice


def test_a_rate_that_was_not_searched_further_is_no_limit(tmp_path: Path) -> None:
    """Of a tiny demand only a lower bound of the rate is known: it sets no queue of one and scales nothing out."""
    traffic = {"process": "described", "rate_per_s": 0.1, "lengths": {"isl": 256, "osl": 16}}
    path = written(tmp_path, traffic=traffic, availability={"n_plus": 0})
    result = run(str(path), "--out", str(tmp_path / "out"), "--workers", "1")
    plan = read_json(tmp_path / "out" / "capacity.json", CapacityPlan)
    assert plan.chosen is not None
    assert plan.day is not None
    assert plan.scaling is None
    assert "autoscaler: none simulated: one replica carries the whole demand" in result.output
    assert [each.is_lower_bound for each in plan.chosen.sizes] == [True, True, True]
    assert {each.limited_by for each in plan.chosen.sizes} == {
        "growing queue"
    }  # it grows before a tenth wait half a second
    assert plan.max_queue_size > 4
    assert {each.needed for each in plan.day.points} == {1}
    assert f"≥{plan.chosen.rate_per_s:.3g}" in result.output
    for title in ("ends of the prediction interval", "simulated together", "what would change the answer"):
        assert f"{title} (predicted)" in " ".join(result.output.split())
    page = (tmp_path / "out" / "capacity.html").read_text(encoding="utf-8")
    assert "At far higher loads, growing queue fails first" in page
    assert re.search(r"operating: 0\.0\d+ in flight", page)
    assert any("not tried" in each and "l4-24gb" in each for each in plan.warnings)


def test_what_a_lower_max_tokens_buys_is_said_where_evictions_win(tmp_path: Path) -> None:
    """Reservations for replies that never come lose to evictions; the note tells what reservations of less would do."""
    changed = {
        "traffic": {"process": "described", "rate_per_s": 8.0, "lengths": {"isl": 256, "osl": 64, "max_tokens": 7900}},
        "limits": {"gpus": ["l4-24gb"], "precisions": ["fp8"]},
        "candidates": {"max_batch_size": [128], "max_num_tokens": [2048]},
        "prices": {"vendor": "aws-us-east-1"},
    }
    path = written(tmp_path, **changed)
    run(str(path), "--out", str(tmp_path / "out"), "--workers", "1")
    plan = read_json(tmp_path / "out" / "capacity.json", CapacityPlan)
    assert plan.chosen is not None
    assert plan.chosen.scheduler_policy == "max_utilization"
    assert "reserves no KV cache for max_tokens (7,900)" in (plan.max_tokens_note or "")
    assert "No reply is longer than 64 tokens" in (plan.max_tokens_note or "")


def test_a_lower_max_tokens_saves_the_replicas_that_it_is_said_to_save(tmp_path: Path) -> None:
    """Where reservations bind and nothing is evicted, the note has the replicas of a plan with that max_tokens."""
    lengths = {"isl": 256, "osl": 64}
    changed = {
        "limits": {"gpus": ["l4-24gb"], "precisions": ["fp8"]},
        "candidates": {
            "max_batch_size": [128],
            "max_num_tokens": [2048],
            "scheduler_policy": "guaranteed_no_evict",
        },
        "prices": {"vendor": "aws-us-east-1"},
    }
    plans = []
    for name, largest in (("high", {"max_tokens": 7900}), ("low", {})):
        folder = tmp_path / name
        folder.mkdir()
        traffic = {"process": "described", "rate_per_s": 8.0, "lengths": lengths | largest}
        run(str(written(folder, traffic=traffic, **changed)), "--out", str(folder / "out"), "--workers", "1")
        plans.append(read_json(folder / "out" / "capacity.json", CapacityPlan))
    high, low = plans
    assert high.chosen is not None
    assert low.chosen is not None
    assert (low.chosen.replicas or 0) < (high.chosen.replicas or 0)
    assert low.max_tokens_note is None
    found = re.fullmatch(
        r"Every request reserves KV cache for 7,900 reply tokens \(max_tokens\); no reply is longer than 64\. "
        r"Lowering max_tokens to that needs (\d+) replicas?, ([\d,]+) USD a month\.",
        high.max_tokens_note or "",
    )
    assert found is not None, high.max_tokens_note
    assert (
        abs(int(found[1]) - (low.chosen.replicas or 0)) <= 1
    )  # the note is of one replica's rate, the plan of a fleet
    assert int(found[2].replace(",", "")) < (high.chosen.usd_per_month or 0)


def test_old_prices_are_said_to_be_old(planned: Path) -> None:
    """A price read more than sixty days ago is warned of, with its age."""
    plan = read_json(planned / "capacity.json", CapacityPlan)
    assert plan.chosen is not None
    assert plan.chosen.price is not None
    planned_on = datetime.fromtimestamp((planned / "capacity.json").stat().st_mtime, tz=UTC).date()
    age_days = (planned_on - plan.chosen.price.read_on).days
    assert any(f"{age_days} days old" in warning for warning in plan.warnings) == (age_days > 60)


def test_a_measurement_puts_a_prediction_out_of_the_ranking(planned: Path, tmp_path: Path) -> None:
    """A run of the same hardware, precision and lengths is recommended, however much more a prediction promises."""
    folder = _measured(planned, tmp_path, slower=1.2)
    runs = [{"path": str(folder), "gpu": "H100", "precision": "fp8"}]
    path = written(tmp_path, candidates={"max_batch_size": [16], "max_num_tokens": [2048], "runs": runs})
    run(str(path), "--out", str(tmp_path / "out"), "--workers", "1")
    plan = read_json(tmp_path / "out" / "capacity.json", CapacityPlan)
    assert plan.chosen is not None
    assert (plan.chosen.basis, plan.chosen.middle_rate_per_s) == ("measured", plan.chosen.rate_per_s)
    beaten = [row for row in plan.rows if row.beaten_by == plan.recommended]
    assert [row.basis for row in beaten] == ["predicted"]
    assert plan.fleets == ()
    assert {each.lever for each in plan.sensitivity} == {
        "traffic",
        "price of the recommended GPU",
        "prediction error",
    }
    assert all(each.recommended is not None for each in plan.sensitivity)
    assert any(Path(source.path).name == RUN_NAME for source in plan.made_from)


def test_a_run_of_other_lengths_tells_nothing(planned: Path, tmp_path: Path) -> None:
    """What a replica carried of short prompts is refused as evidence for long ones."""
    folder = _measured(planned, tmp_path, slower=1.0)
    traffic = SMALL["traffic"] | {"lengths": {"isl": 900, "osl": 16}}  # type: ignore[operator]
    runs = [{"path": str(folder), "gpu": "H100", "precision": "fp8"}]
    path = written(tmp_path, traffic=traffic, candidates={"planned": False, "runs": runs})
    result = run(str(path), "--out", str(tmp_path / "out"), "--workers", "1")
    assert isinstance(result.exception, TargetMissedError)
    plan = read_json(tmp_path / "out" / "capacity.json", CapacityPlan)
    assert [row.status for row in plan.rows] == ["refused"]
    assert "mean is 900" in (plan.rows[0].reason or "")


def test_a_plan_is_made_again_from_what_was_measured(planned: Path, tmp_path: Path) -> None:
    """A run of the plan's own scenario for it calibrates the recommended engine, and the new plan rests on that."""
    plan = read_json(planned / "capacity.json", CapacityPlan)
    assert plan.engine is not None
    scenario = read_scenario(str(planned / "calibrate.yaml"))
    found = predict(scenario, plan.engine, made_by=MadeBy(command="test", version="0"), made_from=[])
    folder = tmp_path / "run"
    write_prediction(found, folder, force=False)
    text = (folder / RUN_NAME).read_text(encoding="utf-8").replace('"kind": "predicted"', '"kind": "measured"')
    (folder / RUN_NAME).write_text(text, encoding="utf-8")
    arguments = ("--plan", str(planned / "capacity.json"), "--calibrate-from", str(folder), "--workers", "1")
    run(*arguments, "--out", str(tmp_path / "again"))
    known = read_calibration(tmp_path / "again.calibration.json")
    assert known.prior == plan.engine.step_time.profile
    assert known.generator.start == "staggered"
    again = read_json(tmp_path / "again" / "capacity.json", CapacityPlan)
    assert again.chosen is not None
    assert again.chosen.basis == "calibrated"
    assert again.chosen.middle is not None
    assert plan.chosen is not None
    assert plan.chosen.middle is not None
    assert again.chosen.middle.rate_per_s == pytest.approx(plan.chosen.middle.rate_per_s, rel=0.15)
