"""Accuracy in a plan: which result applies to which candidate, what is refused, and the frontier's third axis."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from engines.errors import UserError
from engines.files import write_json
from engines.manifest import MANIFEST_NAME, AccuracyResult
from loadtest.capacity.accuracy import CandidateAccuracy, evaluations_of
from loadtest.capacity.candidates import Candidate, candidates_of
from loadtest.capacity.decision import Row, recommended
from loadtest.capacity.inputs import Demand
from loadtest.capacity.output.accuracy import accuracy_rows, loss_text
from loadtest.capacity.output.files import measured_objectives
from loadtest.capacity.pareto import Point, on_frontier
from loadtest.capacity.schema import CapacityPlan
from loadtest.capacity.simulation import shape_of
from tests.unit.loadtest.capacity.made import HEAD, demand, engine

QUESTIONS = 1000
CHOSEN: dict[str, Any] = {"baseline": "bf16", "engines": ["fp8", "int4_awq"]}
PRECISIONS = ["bf16", "fp8", "int4_awq"]


def _result(wrong: int, *, task: str = "arc", questions: str = "0" * 64) -> AccuracyResult:
    """Return a task's result whose first `wrong` questions are wrong."""
    return AccuracyResult(
        task=task, metric="acc", is_main=True, value=1 - wrong / QUESTIONS, standard_error=0.01, questions=QUESTIONS,
        limit=None, few_shot=0, chat=False, versions={}, date="2026-11-29", measured_on="checkpoint",
        questions_sha256=questions, correct="0" * wrong + "1" * (QUESTIONS - wrong),
    )  # fmt: skip


def _write(folder: Path, precision: str, *results: AccuracyResult, **flags: Any) -> None:
    (folder / precision).mkdir(exist_ok=True)
    manifest = engine(precision=precision, **flags).model_copy(update={"accuracy": results})
    write_json(folder / precision / MANIFEST_NAME, manifest)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Write three engines that answered the same questions: of 1,000, FP8 loses 5 and INT4 60."""
    for precision, wrong in (("bf16", 100), ("fp8", 105), ("int4_awq", 160)):
        _write(tmp_path, precision, _result(wrong))
    return tmp_path


def _demand(limit: float | None = None, **changed: Any) -> Demand:
    values: dict[str, Any] = {
        "accuracy": CHOSEN,
        "objectives": {"ttft_s": {"p90": 0.5}, "max_accuracy_loss": limit},
        "limits": {"gpus": ["h100-sxm-80gb"], "precisions": PRECISIONS},
    }
    return demand(**(values | changed))


def _candidates(wanted: Demand, folder: Path) -> dict[str, Candidate]:
    found = candidates_of(wanted, folder, shape_of(wanted, folder), made_by=HEAD.made_by)
    return {each.precision: each for each in found}


def _row(name: str, accuracy: CandidateAccuracy | None, usd: float = 10.0) -> Row:
    return Row(
        name=name, basis="predicted", gpu="h100-sxm-80gb", precision=name, tensor_parallel=1, max_batch_size=1,
        max_num_tokens=1, kv_tokens=1, status="possible", replicas=2, usd_per_month=usd, accuracy=accuracy,
    )  # fmt: skip


def test_each_candidate_has_the_loss_of_its_precision(folder: Path) -> None:
    """A planned engine has the loss that an evaluated engine of its precision and KV cache format measured."""
    found = _candidates(_demand(), folder)
    assert {name: each.accuracy.loss for name, each in found.items() if each.accuracy} == pytest.approx(
        {"bf16": 0.0, "fp8": 0.005, "int4_awq": 0.06}
    )
    assert all(each.refused is None for each in found.values())
    assert all(len(each.sources) == len(PRECISIONS) for each in found.values())


@pytest.mark.parametrize(
    ("limit", "refused"),
    [
        (0.001, {"fp8": "loses more", "int4_awq": "loses more"}),
        (0.005, {"fp8": "may lose more", "int4_awq": "loses more"}),
        (0.01, {"int4_awq": "loses more"}),
        (0.06, {"int4_awq": "may lose more"}),
        (0.2, {}),
    ],
)
def test_a_loss_beyond_the_limit_is_refused(folder: Path, limit: float, refused: dict[str, str]) -> None:
    """A loss is accepted only if its upper end is within the limit: 5 of 1,000 is 0.001 to 0.009."""
    found = {name: each.refused for name, each in _candidates(_demand(limit), folder).items() if each.refused}
    assert set(found) == set(refused)
    assert all(found[name].startswith(text) for name, text in refused.items())


def test_an_engine_that_was_not_evaluated_is_refused_by_a_limit_alone(folder: Path) -> None:
    """Without a limit its accuracy is unknown; with one it cannot be planned."""
    limits = {"gpus": ["h100-sxm-80gb"], "precisions": ["int8_sq"]}
    assert _candidates(_demand(limits=limits), folder)["int8_sq"].refused is None
    assert "was evaluated" in (_candidates(_demand(0.1, limits=limits), folder)["int8_sq"].refused or "")


def test_a_result_of_another_kv_cache_format_does_not_apply(folder: Path) -> None:
    """FP8 weights with a 16-bit KV cache answer other questions right than with an FP8 cache."""
    _write(folder, "fp8", _result(105), **{"kv_cache.format": "16bit"})
    assert _candidates(_demand(), folder)["fp8"].accuracy is None


@pytest.mark.parametrize(
    ("results", "said"),
    [
        ((), "fp8 has no results"),
        ((_result(105, questions="1" * 64),), "has not answered bf16's questions in arc"),
        ((_result(105, task="other"),), "has not answered bf16's questions in arc"),
    ],
)
def test_results_that_cannot_be_compared_are_an_error(
    folder: Path, results: tuple[AccuracyResult, ...], said: str
) -> None:
    """Losses are only counted on the same questions."""
    _write(folder, "fp8", *results)
    with pytest.raises(UserError, match=said):
        evaluations_of(_demand(), folder)


def test_an_engine_of_another_model_is_an_error(folder: Path) -> None:
    """Models are compared by their sizes, not by the names of their folders."""
    _write(folder, "fp8", _result(105), model="qwen3-8b")
    with pytest.raises(UserError, match="fp8 is an engine of another model: its layers is 36"):
        evaluations_of(_demand(), folder)


def test_a_limit_needs_results() -> None:
    """Without an evaluated engine the limit could not be judged."""
    with pytest.raises(ValidationError, match=r"accuracy\.baseline"):
        _demand(0.01, accuracy=None)


def test_named_tasks_alone_count(folder: Path) -> None:
    """A task that only the baseline answered is left out if the demand names the others."""
    _write(folder, "bf16", _result(100), _result(0, task="extra"))
    with pytest.raises(UserError, match="questions in extra"):
        evaluations_of(_demand(), folder)
    found = _candidates(_demand(accuracy=CHOSEN | {"tasks": ["arc"]}), folder)
    assert found["fp8"].accuracy is not None
    assert [each.task for each in found["fp8"].accuracy.losses] == ["arc"]


def test_of_equal_costs_the_most_accurate_is_recommended() -> None:
    """An unknown loss counts as the largest."""
    exact = CandidateAccuracy(losses=(), engine="bf16")
    chosen = recommended([_row("a", None, 10.0), _row("b", exact, 10.0)])
    assert chosen is not None
    assert chosen.name == "b"
    cheaper = recommended([_row("a", None, 9.0), _row("b", exact, 10.0)])
    assert cheaper is not None
    assert cheaper.name == "a"


def test_the_frontier_has_three_axes() -> None:
    """A dearer and slower deployment is on it if it loses less accuracy."""

    def point(name: str, usd: float, ttft_s: float, loss: float | None) -> Point:
        return Point(
            name=name, basis="predicted", rate_per_s=1.0, replicas=1, usd_per_month=usd, ttft_p95_s=ttft_s,
            itl_mean_s=0.01, worst_ratio=0.5, accuracy_loss=loss, is_on_frontier=False,
        )  # fmt: skip

    exact, lossy = point("bf16", 20.0, 0.2, 0.0), point("int4", 10.0, 0.1, 0.05)
    unknown, worse = point("int8", 20.0, 0.2, None), point("bf16", 30.0, 0.2, 0.0)
    found = on_frontier([exact, lossy, unknown, worse])
    assert [each.is_on_frontier for each in found] == [True, True, False, False]
    plain = [each.model_copy(update={"accuracy_loss": None}) for each in (exact, lossy)]
    assert [each.is_on_frontier for each in on_frontier(plain)] == [False, True]


def test_a_plan_shows_losses_and_no_load_test_is_asked_for_them(folder: Path) -> None:
    """The table has each engine's tasks and verdicts; the scenario to verify has only what a load test measures."""
    wanted = _demand(0.01)
    rows = [_row(name, each.accuracy) for name, each in _candidates(wanted, folder).items()]
    plan = CapacityPlan.model_construct(demand=wanted, rows=rows, recommended=None)
    assert [loss_text(row) for row in rows] == ["baseline", "0.005", "0.060"]
    assert [cells[-1] for cells in accuracy_rows(plan)] == ["0.01: met", "0.01: missed"]
    assert measured_objectives(wanted) == {"ttft_s": {"p90": 0.5}}
