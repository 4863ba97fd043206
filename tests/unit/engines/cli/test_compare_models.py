"""The deployment table: what bandwidth allows at batch 1, what is predicted, and which claims cannot be true."""

from __future__ import annotations

import json
from typing import Any

import pytest
from click.testing import CliRunner, Result

from engines.cli.actions.compare_models import ModelComparison
from engines.cli.compare_models import DEFAULT_MODELS, compare_models
from engines.errors import UserError
from engines.spec.gpu import known_gpus
from engines.spec.model import known_models

DEEPSEEK = "deepseek-r1-0528-qwen3-8b"


def run(*arguments: str) -> Result:
    """Run compare-models in this process."""
    return CliRunner().invoke(compare_models, list(arguments))


def document(*arguments: str) -> dict[str, Any]:
    """Return what compare-models --json prints."""
    done = run(*arguments, "--json")
    assert done.exit_code == 0, done.output
    loaded: dict[str, Any] = json.loads(done.stdout)
    return loaded


def test_150_tokens_per_s_in_fp16_is_above_what_an_a100_can_read() -> None:
    """2.039 TB/s over some 15 GB of FP16 weights is 115 to 140 tokens/s, so 150 is judged impossible."""
    comparison = document(DEEPSEEK, "--precision", "fp16")
    (row,) = comparison["rows"]
    assert comparison["bandwidth_bytes_per_s"] == 2.039e12
    assert row["parameters"] == 8_190_735_360
    assert 115 < row["tokens_per_s_bound"] < 140
    assert row["claim"] == "impossible: above what memory bandwidth allows"
    assert not comparison["answers"][0]["possible_in_fp16"]


def test_the_bound_reads_every_weight_but_the_embedding_and_the_cache_once() -> None:
    """DeepSeek's FP16 step: 2 bytes of 8.19e9 less 151936 x 4096 parameters, and 144 KiB for each cached token."""
    (row,) = document(DEEPSEEK, "--precision", "fp16", "--isl", "1000")["rows"]
    assert row["read_bytes_per_step"] == 2 * (8_190_735_360 - 151_936 * 4096) + 1000 * 144 * 1024
    assert row["weights_fp16_bytes"] == 2 * 8_190_735_360


def test_fewer_bits_lift_the_bound_over_the_claim() -> None:
    """INT8 and INT4 weights read so much less that 150 tokens/s is within every default model's bound."""
    rows = [row for row in document()["rows"] if row["precision"].startswith("int")]
    assert {row["model"] for row in rows} == set(DEFAULT_MODELS)
    for row in rows:
        assert row["tokens_per_s_bound"] > 150
        assert row["claim"] in {"reached", "within the bound"}


@pytest.mark.parametrize("gpu", list(known_gpus()))
def test_no_prediction_passes_its_bound(gpu: str) -> None:
    """A predicted rate is below what bandwidth allows: every known model, every precision that is possible there."""
    rows = document(*known_models(), "--gpu", gpu)["rows"]
    assert {row["model"] for row in rows} == set(known_models())
    for row in rows:
        assert 0 < row["tokens_per_s_predicted"] < row["tokens_per_s_bound"]


def test_a_claim_below_the_prediction_is_reached() -> None:
    """Ten tokens a second are possible in FP16, and every precision is predicted to reach them."""
    comparison = document("mistral-7b", "--claim", "10")
    (answer,) = comparison["answers"]
    assert answer["possible_in_fp16"]
    assert answer["reached_by"] == [row["precision"] for row in comparison["rows"]]
    assert answer["only_allowed_for"] == []


def test_fp16_leads_and_what_the_gpu_cannot_run_is_left_out() -> None:
    """An A100 gets no FP8 or FP4 row; an H100 gets FP8."""
    on_a100 = [row["precision"] for row in document(DEEPSEEK)["rows"]]
    on_h100 = [row["precision"] for row in document(DEEPSEEK, "--gpu", "h100")["rows"]]
    assert on_a100 == ["fp16", "bf16", "int8_sq", "int8_wo", "int4_awq"]
    assert "fp8" in on_h100
    assert "nvfp4" not in on_h100


def test_precisions_are_listed_or_repeated() -> None:
    """A comma list and a repeated flag ask for the same rows, each once."""
    listed = document(DEEPSEEK, "--precision", "int8_sq, INT4_AWQ")["rows"]
    repeated = document(DEEPSEEK, "--precision", "int8_sq", "--precision", "int4_awq,int8_sq")["rows"]
    assert listed == repeated
    assert [row["precision"] for row in listed] == ["int8_sq", "int4_awq"]


def test_every_default_model_has_its_licence() -> None:
    """The licences of the four models are those their makers chose."""
    assert {row["model"]: row["licence"] for row in document()["rows"]} == {
        "deepseek-r1-0528-qwen3-8b": "MIT",
        "llama-3-8b": "Llama 3 Community License",
        "mistral-7b": "Apache-2.0",
        "qwen1.5-7b": "Tongyi Qianwen License",
    }


def test_the_document_says_what_kind_each_figure_is_and_where_it_is_from() -> None:
    """The bound is a floor, the rate a prediction, the window the model's own; each has a source."""
    comparison = document()
    assert ModelComparison.model_validate(comparison).made_by.command.startswith("compare-models")
    assert comparison["bandwidth"]["kind"] == "data sheet"
    for row in comparison["rows"]:
        kinds = {name: figure["kind"] for name, figure in row["sources"].items()}
        assert kinds["tokens_per_s_bound"] == "floor"
        assert kinds["tokens_per_s_predicted"] == "predicted"
        assert kinds["context_window_tokens"] == "data sheet"
        assert kinds.keys() <= row.keys()
        assert all(figure["source"] for figure in row["sources"].values())


def test_people_read_the_answer_and_the_sources_below_the_table() -> None:
    """The printed page says that the claim is impossible, what does reach it, and where each number is from."""
    done = run()
    assert done.exit_code == 0, done.output
    assert "150 tokens/s at batch 1 on a100-sxm-80gb in FP16 is physically impossible for deepseek" in done.stdout
    assert "llama-3-8b: predicted to reach it: int4_awq; allowed by the bound, not predicted to: int8_sq" in done.stdout
    assert "sources:" in done.stdout
    assert "config.json of mistralai/Mistral-7B-v0.1" in done.stdout
    assert max(map(len, done.stdout.splitlines()[:30])) <= 120
    assert "…" not in done.stdout


def test_a_claim_some_models_allow_is_told_apart() -> None:
    """140 tokens/s is above DeepSeek's FP16 bound and below Mistral 7B's."""
    done = run(DEEPSEEK, "mistral-7b", "--claim", "140", "--precision", "int8_sq")
    assert "physically impossible for deepseek-r1-0528-qwen3-8b (134.5 at most)" in done.stdout
    assert "; it is physically possible for mistral-7b (143.2 at most)." in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message", "hint"),
    [
        (["mistral-7c"], "unknown model 'mistral-7c'", "did you mean 'mistral-7b'?"),
        (["--gpu", "a100-sxm-80g"], "unknown GPU 'a100-sxm-80g'", "did you mean 'a100-sxm-80gb'?"),
        (["--precision", "int4_awk"], "unknown precision 'int4_awk'", "did you mean 'int4_awq'?"),
        (["--precision", "fp8"], "fp8 on a100-sxm-80gb: FP8 arithmetic needs", "int8_sq works there"),
        (["llama-3-8b", "--isl", "9000"], "llama-3-8b accepts at most 8192 tokens", "--isl 8192"),
        (["--claim", "0"], "--claim 0", "--claim 150"),
    ],
)
def test_what_cannot_be_compared_is_said_with_something_to_try(arguments: list[str], message: str, hint: str) -> None:
    """A misspelled name, an impossible precision, a context too long and a senseless claim each end as a UserError."""
    with pytest.raises(UserError) as raised:
        compare_models.invoke(compare_models.make_context("compare-models", list(arguments)))
    assert message in raised.value.message
    assert hint in (raised.value.hint or "")
    assert run(*arguments).exit_code == 2


def test_a_claim_that_is_no_number_is_a_usage_error() -> None:
    """A claim of nan is refused where flags are read, in one line that names the flag."""
    done = run("--claim", "nan")
    assert done.exit_code == 2
    assert "'--claim': nan is not a number" in done.stderr
    assert "Traceback" not in done.stderr
