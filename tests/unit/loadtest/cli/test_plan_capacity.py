"""plan-capacity as a user has it: the folder, the refusals, what if, and whether a plan held."""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
import yaml
from click.testing import CliRunner

from engines.calibration import LoadGenerator
from engines.emulator.settings import settings_of
from engines.errors import TargetMissedError, UserError
from engines.files import MadeBy, read_json
from engines.planning.recipe import ask
from engines.spec.gpu import gpu_named
from engines.steptime.source import step_time_for
from loadtest.calibration.fit import FitContext, observe
from loadtest.calibration.measured_points import Deployment, read_points
from loadtest.capacity.candidates import UNCALIBRATED
from loadtest.capacity.inputs.demand import PriceChoices, read_demand
from loadtest.capacity.inputs.prices import prices_for
from loadtest.capacity.plan import CapacityPlan
from loadtest.capacity.verify import verify
from loadtest.capacity.what_if import what_if
from loadtest.cli.plan_capacity import plan_capacity
from loadtest.results.records import REQUESTS_NAME, RUN_NAME
from loadtest.scenario.schema import read_scenario
from loadtest.simulate.predict import predict, write_prediction
from tests.unit.loadtest.capacity.made import demand, engine
from triton_repo.settings.repository_manifest import ServingSettings

PUBLISHED = Path(__file__).parents[3] / "fidelity" / "published.csv"
NO_FIT = np.log([1.0, 1.0, 1.0, 1.0, 1e-12, 1e-12, 1e-12, 1e-12, 1.0])  # factors of 1 and no host
SMALL = {
    "name": "small",
    "model": "llama-3-8b",
    "traffic": {"process": "described", "rate_by_hour_per_s": [20.0], "lengths": {"isl": 256, "osl": 16}},
    "objectives": {"ttft_s": {"p90": 0.5}},
    "limits": {"gpus": ["h100-sxm-80gb", "a100-sxm-80gb"], "precisions": ["fp8"]},
    "candidates": {"max_batch_size": [16], "max_num_tokens": [2048]},
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
    assert {each.routing for each in plan.fleets} >= {"round_robin", "least_outstanding", "least_kv", "prefix_aware"}
    assert plan.chosen.usd_per_month == pytest.approx((plan.chosen.replicas or 0) * 3.20 * 730)


def test_the_page_stands_alone(planned: Path) -> None:
    """It names what is recommended and loads nothing."""
    page = (planned / "capacity.html").read_text(encoding="utf-8")
    assert "llama-3-8b" in page
    assert page.count("<svg") == 5
    assert "src=" not in page
    assert "url(" not in page
    assert "@import" not in page


def test_what_if_is_side_by_side(planned: Path) -> None:
    """Twice the traffic with nothing spare: twice the peak, what a replica carries unchanged."""
    sides = json.loads((planned / "what-if.json").read_text(encoding="utf-8"))["sides"]
    assert [side["asked"] for side in sides] == ["as asked", "traffic*=2,n_plus=0"]
    assert sides[1]["peak_per_s"] == pytest.approx(2 * sides[0]["peak_per_s"])
    assert sides[1]["rate_per_s"] == sides[0]["rate_per_s"]


def test_what_is_handed_over_is_taken(planned: Path) -> None:
    """The other commands' own schemas read the recipe, the settings and the scenario."""
    asked = ask(str(planned / "recipe.yaml"), {})
    assert asked.recipe.limits.max_batch_size == 16
    settings = ServingSettings.model_validate(yaml.safe_load((planned / "serving.yaml").read_text(encoding="utf-8")))
    assert settings.queue.max_queue_size > 0
    scenario = read_scenario(str(planned / "verify.yaml"))
    assert scenario.is_open
    assert scenario.objectives is not None


def _measured(planned: Path, folder: Path, *, slower: float) -> Path:
    """Return a run of the plan's scenario: predicted here, its times stretched, and marked as measured."""
    plan = read_json(planned / "capacity.json", CapacityPlan)
    assert plan.engine is not None
    scenario = read_scenario(str(planned / "verify.yaml"))
    found = predict(scenario, plan.engine, made_by=MadeBy(command="test", version="0"), made_from=[])
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


@pytest.mark.parametrize(("slower", "held"), [(1.2, True), (60.0, False)])
def test_a_plan_holds_or_it_does_not(planned: Path, tmp_path: Path, slower: float, held: bool) -> None:
    """A deployment a little slower than predicted keeps the plan; one sixty times slower does not, and that is said."""
    folder = _measured(planned, tmp_path, slower=slower)
    made_by = MadeBy(command="test", version="0")
    found = verify(planned / "capacity.json", folder, made_by=made_by)
    assert found.held is held, (found.missed, found.doubts)
    assert bool(found.missed) is not held
    result = run("--verify", str(folder), "--plan", str(planned / "capacity.json"))
    assert isinstance(result.exception, TargetMissedError) is not held


def test_a_prediction_verifies_nothing(planned: Path, tmp_path: Path) -> None:
    """A predicted run is refused: it would hold the plan to itself."""
    folder = _measured(planned, tmp_path, slower=1.0)
    text = (folder / RUN_NAME).read_text(encoding="utf-8").replace('"kind": "measured"', '"kind": "predicted"')
    (folder / RUN_NAME).write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match="verifies no plan"):
        verify(planned / "capacity.json", folder, made_by=MadeBy(command="test", version="0"))


def test_the_impossible_is_refused_with_the_nearest_possible(tmp_path: Path) -> None:
    """A first token in a millisecond: no, and who comes closest. Too small a budget: no, and what it would carry."""
    few = {"limits": {"gpus": ["h100-sxm-80gb"], "precisions": ["fp8"], "budget_usd_per_month": 5000}}
    for changed, said in (({"objectives": {"ttft_s": {"p90": 0.001}}}, "closest is"), (few, "within the limits")):
        folder = tmp_path / said.replace(" ", "-")
        folder.mkdir()
        traffic = SMALL["traffic"] | {"rate_by_hour_per_s": [400.0]}  # type: ignore[operator]
        path = written(folder, **({"traffic": traffic} | changed))
        result = run(str(path), "--out", str(folder / "out"), "--workers", "1")
        assert isinstance(result.exception, TargetMissedError)
        assert said in (result.exception.hint or "")


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"objectives": {"ttft_s": {"max": 1.0}}}, "maximum grows"),
        ({"traffic": {"process": "described", "rate_by_hour_per_s": [1.0, 2.0]}}, "give 24"),
        ({"availabilty": {}}, "unknown key"),
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


def test_uncalibrated_predictions_are_believed_no_more_than_they_deserve() -> None:
    """The factors that one published point in twenty exceeds, worked out again for the data-sheet source."""
    errors = []
    for gpu, precision in (("h100-sxm-80gb", "fp8"), ("a100-sxm-80gb", "fp16")):
        points, _ = read_points(PUBLISHED, Deployment("llama-3-8b", gpu, precision))
        points = [point for point in points if point.load == "concurrency"]
        manifest = engine(
            **{
                "gpu": gpu,
                "precision": precision,
                "limits.max_batch_size": 512,
                "limits.max_num_tokens": 8192,
                "limits.max_seq_len": max(point.isl + point.osl for point in points),
                "workload.longest_input_tokens": max(point.isl for point in points),
                "workload.longest_output_tokens": max(point.osl for point in points),
            }
        )
        rig = FitContext(settings_of(manifest), step_time_for(manifest), LoadGenerator())
        errors += [np.array(observe(rig, point, NO_FIT)) - np.array(point.logs) for point in points]
    tokens, itl, ttft = np.array(errors).T
    found = {
        "tokens_per_s": np.nanpercentile(tokens, 95),
        "itl_s": -np.nanpercentile(itl, 5),
        "ttft_s": -np.nanpercentile(ttft, 5),
    }
    for name, value in UNCALIBRATED["roofline"].items():
        assert found[name] == pytest.approx(value, abs=0.02)


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
