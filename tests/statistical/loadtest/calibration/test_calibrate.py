"""Calibrating: a deployment made up by us is found again, and bad measurements are refused."""

from __future__ import annotations

import csv
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from engines.calibration import LoadGenerator, require_match
from engines.errors import UserError
from engines.files import Document, MadeBy
from engines.manifest import EngineManifest, StepTimeChoice
from engines.planning import emulated_manifest
from engines.planning.plan import make_plan
from engines.planning.recipe import resolve_recipe
from engines.spec import SPLIT, WIDE_PROMPTS, Kernels, Waves, engine_profile_named
from loadtest.calibration.calibrate import calibrate
from loadtest.calibration.fit import SIGMA, fit
from loadtest.calibration.measured_points import Deployment, Point, read_points
from loadtest.calibration.parameters import PARAMETERS, PLACE, PRIOR, factors_of
from loadtest.calibration.structures import (
    Request,
    Structure,
    fit_best,
    fit_context_of,
    kernels_of,
    predicted_logs,
    waves_of,
)
from loadtest.calibration.trial import FitContext, observe, observe_smoothed
from loadtest.cli.calibrate_engine import calibrate_engine
from loadtest.metrics.summarize import summarize
from loadtest.scenario.schema import Lengths, Scenario
from loadtest.simulate.intervals import with_intervals
from loadtest.simulate.predict import calibrated, like, predict

HEAD = Document(made_by=MadeBy(command="test", version="0"))
QUICK = LoadGenerator(window_s=0.0, rounds=3)
TRUTH = {
    "weights_ratio": 1.3,
    "gemm_ratio": 1.15,
    "kv_ratio": 1.3,
    "attention_ratio": 1.2,
    "iteration_s": 4e-4,
    "sequence_s": 3e-5,
    "prompt_s": 4e-4,
    "wave_tail": 0.5,
    "request_s": 2e-3,
    "latency_s": 3e-3,
    "stream_token_s": 2e-5,
    "measured_rounds": 12.0,
    "usable_kv_ratio": 1.0,
}
LOGS = np.log([TRUTH[parameter.name] for parameter in PARAMETERS])
SHAPES = ((200, 60), (1500, 60), (3000, 100))
USERS = (1, 4, 16, 64)


@pytest.fixture(scope="module")
def manifest() -> EngineManifest:
    """Plan an engine by the data sheet, of which no profile expects anything."""
    asked = resolve_recipe(
        None,
        {
            "model": "llama-3-8b",
            "limits.max_batch_size": 128,
            "limits.max_num_tokens": 16384,
            "limits.max_seq_len": 4096,
        },
    )
    made = emulated_manifest(make_plan(asked, head=HEAD), asked.recipe)
    return made.model_copy(update={"step_time": StepTimeChoice(source="roofline")})


@pytest.fixture(scope="module")
def request_of_truth(manifest: EngineManifest) -> Request:
    """Measure a deployment that is exactly what the model can say."""
    blank = Request(manifest, (), QUICK, max_num_tokens=16384)
    loads = [Point("made up", "concurrency", isl, osl, users, 1.0, 1.0, 1.0) for isl, osl in SHAPES for users in USERS]
    seen = predicted_logs(blank, Structure(16384, SPLIT), LOGS, loads)
    points = tuple(
        point._replace(tokens_per_s=math.exp(tokens), itl_s=math.exp(itl), ttft_s=math.exp(ttft))
        for point, (tokens, itl, ttft) in zip(loads, seen.tolist(), strict=True)
    )
    return Request(manifest, points, QUICK, max_num_tokens=16384)


def test_a_made_up_deployment_is_found_again(request_of_truth: Request) -> None:
    """Points that follow from known factors give those factors back, inside their confidence, and hardly an error."""
    found = calibrate(request_of_truth, head=HEAD, progress=lambda _: None)
    values = {each.name: each for each in found.parameters}
    for name in ("weights_ratio", "kv_ratio", "sequence_s"):
        assert values[name].value == pytest.approx(TRUTH[name], rel=0.15), name
    found_s = values["request_s"].value + values["latency_s"].value  # one by one or not, a lone user waits for both
    assert found_s == pytest.approx(TRUTH["request_s"] + TRUTH["latency_s"], rel=0.15)
    for name in ("weights_ratio", "kv_ratio", "sequence_s", "request_s", "latency_s"):
        assert values[name].low <= TRUTH[name] * 1.05
        assert values[name].high >= TRUTH[name] / 1.05
    assert all(abs(point.itl_s_error or 0.0) < 0.03 for point in found.points)
    assert {(shape.isl, shape.osl) for shape in found.held_out} == set(SHAPES)
    assert found.log_error_of == "held-out shapes"
    assert found.log_error["itl_s"] < 0.05
    assert any("stream_token_s" in warning for warning in found.warnings)


def test_a_limit_of_the_servers_output_is_found(manifest: EngineManifest) -> None:
    """A server that sends a token each 0.3 ms, which no figure shows below its limit, is found as such."""
    truth = LOGS.copy()
    truth[PLACE["stream_token_s"]] = math.log(3e-4)
    blank = Request(manifest, (), QUICK, max_num_tokens=16384)
    loads = [Point("made up", "concurrency", 200, 60, users, 1.0, 1.0, 1.0) for users in (1, 4, 16, 48, 64, 96)]
    seen = predicted_logs(blank, Structure(16384, SPLIT), truth, loads)
    points = tuple(
        point._replace(tokens_per_s=math.exp(tokens), itl_s=math.exp(itl), ttft_s=math.exp(ttft))
        for point, (tokens, itl, ttft) in zip(loads, seen.tolist(), strict=True)
    )
    _, found, _ = fit_best(Request(manifest, points, QUICK, max_num_tokens=16384), points)
    assert math.exp(found.logs[PLACE["stream_token_s"]]) == pytest.approx(3e-4, rel=0.05)
    assert np.abs(found.seen - seen)[:, :2].max() < 0.05


def _slopes(context: FitContext, point: Point, logs: np.ndarray) -> np.ndarray:
    """Return the derivatives of a point's logarithms by those of all parameters, as a step of the fit has them."""
    return observe_smoothed(context, point, logs).slopes


def test_slopes_are_those_of_the_figures(request_of_truth: Request) -> None:
    """What pricing the iterations part by part says of a factor is what moving it does, where nothing rebatches."""
    point = request_of_truth.points[0]
    rig = fit_context_of(request_of_truth, Structure(16384, SPLIT))
    slopes = _slopes(rig, point, LOGS)
    for place, parameter in enumerate(PARAMETERS[:3]):
        moved = LOGS.copy()
        moved[place] += 0.01
        measured = (observe(rig, point, moved) - observe(rig, point, LOGS)) / 0.01
        assert slopes[:, place] == pytest.approx(measured, abs=0.03), parameter.name


def test_a_prediction_carries_intervals(request_of_truth: Request, manifest: EngineManifest) -> None:
    """A calibrated prediction says between what its means lie, and the truth lies there; it keeps the kernels."""
    theirs = manifest.model_copy(update={"step_time": StepTimeChoice(source="roofline", kernels="vllm")})
    few = Request(theirs, request_of_truth.points[:8], QUICK, max_num_tokens=16384)
    known = calibrate(few, head=HEAD, progress=lambda _: None)
    assert calibrated(manifest, known, "0" * 64).step_time.kernels == "vllm"
    point = request_of_truth.points[-2]
    scenario = like(Scenario(concurrency=(point.concurrency,), lengths=Lengths(isl=point.isl, osl=point.osl)), QUICK)
    found = predict(scenario, calibrated(manifest, known, "0" * 64), made_by=HEAD.made_by, made_from=[])
    (level,) = with_intervals(summarize(found.run, found.records, found.samples), known).levels
    assert level.intervals is not None
    assert level.intervals["itl_s"].low <= (point.itl_s or 0.0) * 1.03
    assert level.intervals["itl_s"].high >= (point.itl_s or 0.0) / 1.03


def test_attention_may_come_in_waves(manifest: EngineManifest) -> None:
    """An H100's 132 multiprocessors hold the blocks of four sequences of 32 query heads, four to a KV head."""
    in_waves = (132 / 32, 4.0, 4)
    assert waves_of(manifest) == (SPLIT, in_waves)
    assert waves_of(manifest, engine_profile_named("nim-2024")) == (in_waves,)
    assert waves_of(manifest, engine_profile_named("vllm-v1")) == (SPLIT,)
    half = manifest.precision.model_copy(update={"kv_cache": "16bit"})
    assert waves_of(manifest.model_copy(update={"precision": half}))[1].blocks == 1  # its registers are not stated


def test_attention_of_prompts_may_have_16_bits_beside_an_fp8_cache(manifest: EngineManifest) -> None:
    """TensorRT-LLM may compute it in either format, unless the engine is named; data sheets do not tell them apart."""
    measured = manifest.model_copy(update={"step_time": StepTimeChoice(source="silicon")})
    assert kernels_of(measured) == ("trtllm", WIDE_PROMPTS)
    assert kernels_of(measured, engine_profile_named("nim-2024")) == (WIDE_PROMPTS,)
    assert kernels_of(measured, engine_profile_named("vllm-v1-async")) == ("vllm",)
    assert kernels_of(manifest) == ("trtllm",)
    half = manifest.precision.model_copy(update={"kv_cache": "16bit"})
    assert kernels_of(measured.model_copy(update={"precision": half})) == ("trtllm",)


@pytest.mark.parametrize("truth", ["trtllm", WIDE_PROMPTS])
def test_points_choose_the_format_of_prompts_attention(request_of_truth: Request, truth: Kernels) -> None:
    """Of two deployments that differ in nothing else, each is found to be what it is, by exact points."""
    pytest.importorskip("aiconfigurator_core", reason="aiconfigurator-core is not installed")
    manifest = request_of_truth.manifest.model_copy(update={"step_time": StepTimeChoice(source="silicon")})
    request = replace(request_of_truth, manifest=manifest)
    loads = [request.points[place] for place in (0, 2, 4, 6, 8, 10)]
    logs = LOGS.copy()
    for name in ("gemm_ratio", "attention_ratio"):
        logs[PLACE[name]] = PRIOR.expected[PLACE[name]]
    seen = predicted_logs(request, Structure(16384, SPLIT, truth), logs, loads)
    points = [
        point._replace(tokens_per_s=math.exp(tokens), itl_s=math.exp(itl), ttft_s=math.exp(ttft))
        for point, (tokens, itl, ttft) in zip(loads, seen.tolist(), strict=True)
    ]
    best, _, tried = fit_best(request, points)
    assert best.kernels == truth
    assert len(tried) == 3


@pytest.mark.parametrize("truth", [SPLIT, Waves(132 / 32, 4.0, 4)], ids=["split", "in waves"])
def test_six_points_tell_how_attention_fills_the_gpu(request_of_truth: Request, truth: Waves) -> None:
    """Of two deployments that differ in nothing else, each is found to be what it is; noise is that of a good table."""
    logs = LOGS.copy()
    logs[PLACE["kv_ratio"]] = math.log(0.9)
    loads = [request_of_truth.points[place] for place in (0, 2, 5, 7, 8, 11)]
    seen = predicted_logs(request_of_truth, Structure(16384, truth), logs, loads)
    seen += np.random.default_rng(20261129).normal(0.0, (0.01, 0.01, 0.05), seen.shape)
    points = [
        point._replace(tokens_per_s=math.exp(tokens), itl_s=math.exp(itl), ttft_s=math.exp(ttft))
        for point, (tokens, itl, ttft) in zip(loads, seen.tolist(), strict=True)
    ]
    best, found, tried = fit_best(request_of_truth, points)
    assert best.waves == truth
    assert math.exp(found.logs[PLACE["kv_ratio"]]) == pytest.approx(0.9, rel=0.3)
    assert len(tried) == 2


def test_slopes_by_the_last_wave_are_those_of_the_figures(request_of_truth: Request) -> None:
    """Where attention comes in waves, what pricing says of the last one and of the cache is what moving them does."""
    many = request_of_truth.points[3]
    rig = fit_context_of(request_of_truth, Structure(16384, waves_of(request_of_truth.manifest)[1]))
    short = LOGS.copy()
    short[PLACE["wave_tail"]] = math.log(0.2)
    few = many._replace(isl=2000, concurrency=2)
    for point, logs, name in (
        (many, LOGS, "kv_ratio"),
        (many, LOGS, "wave_tail"),
        (few, short, "kv_ratio"),
        (few, short, "wave_tail"),
    ):
        place = PLACE[name]
        slopes = _slopes(rig, point, logs)
        moved = logs.copy()
        moved[place] += 0.01
        measured = (observe(rig, point, moved) - observe(rig, point, logs)) / 0.01
        assert measured[1] > 0.002
        assert slopes[:2, place] == pytest.approx(measured[:2], rel=0.1)


def test_what_is_expected_is_that_of_the_engine_named(request_of_truth: Request) -> None:
    """A profile's host time is where a fit starts, and stands in the document; no profile is one's own default."""
    assert np.array_equal(fit_context_of(request_of_truth, Structure(16384, SPLIT)).prior.expected, PRIOR.expected)
    nim = engine_profile_named("nim-2024")
    few = replace(request_of_truth, points=request_of_truth.points[:6], profile=nim)
    found = calibrate(few, head=HEAD, progress=lambda _: None)
    expected = {each.name: each.expected for each in found.parameters}
    assert found.prior == "nim-2024"
    assert expected["request_s"] == pytest.approx(nim.host.request_s)
    assert expected["kv_ratio"] == pytest.approx(nim.factors.kv_ratio)


def test_too_few_points_are_refused(request_of_truth: Request) -> None:
    """Five points are no calibration."""
    few = Request(request_of_truth.manifest, request_of_truth.points[:5], QUICK)
    with pytest.raises(UserError, match="5 measured points; at least 6"):
        calibrate(few, head=HEAD, progress=lambda _: None)


def test_rows_of_others_are_left_out(tmp_path: Path) -> None:
    """A row that says it is of another model, GPU, precision or load is not read; the others are, in seconds."""
    path = tmp_path / "points.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(
            ("model", "gpu", "precision", "load_kind", "concurrency_or_batch", "isl", "osl", "ttft_ms", "itl_ms")
        )
        rows.writerow(("llama-3-8b-instruct", "H100-SXM-80GB", "fp8", "concurrency", 4, 200, 100, 20, 5))
        rows.writerow(("llama-3-8b-instruct", "A100-SXM-80GB", "fp16", "concurrency", 4, 200, 100, 20, 5))
        rows.writerow(("mistral-7b", "H100-SXM-80GB", "fp8", "concurrency", 4, 200, 100, 20, 5))
        rows.writerow(("llama-3-8b-instruct", "H100-SXM-80GB", "fp8", "offline", 4, 200, 100, 20, 5))
    points, others = read_points(path, Deployment("llama-3-8b", "h100-sxm-80gb", "fp8"))
    assert others == {"precision fp16": 1, "model mistral-7b": 1, "load that cannot be simulated: offline": 1}
    assert [(point.where, point.ttft_s, point.itl_s, point.tokens_per_s) for point in points] == [
        ("points.csv:2", 0.02, 0.005, None)
    ]


def test_an_open_loop_is_a_point_by_its_rate(tmp_path: Path) -> None:
    """Requests a second stand in a column or in the notes; tokens a second, decided by the load, are no figure."""
    path = tmp_path / "points.csv"
    path.write_text(
        "load_kind,concurrency_or_batch,rate_per_s,isl,osl,ttft_ms,itl_ms,throughput_out_tok_s,notes\n"
        "request_rate,,8,200,100,20,5,800,\n"
        "request_rate,,,200,100,20,5,1600,Triton; offered_qps=16; 500 requests\n",
        encoding="utf-8",
    )
    points, others = read_points(path, Deployment("llama-3-8b", "h100-sxm-80gb", "fp8"))
    assert [(point.load, point.rate_per_s) for point in points] == [("request_rate", 8.0), ("request_rate", 16.0)]
    assert all(math.isnan(point.logs[0]) for point in points)
    assert not others


def test_an_open_loop_is_fitted_like_a_closed_one(manifest: EngineManifest) -> None:
    """Rates made up from known factors are predicted to within the noise; the batch grows with the load."""
    blank = Request(manifest, (), QUICK, max_num_tokens=16384)
    loads = [
        Point("made up", "request_rate", 200, 60, 0, None, 1.0, 1.0, rate_per_s=rate) for rate in (2.0, 8.0, 16.0, 32.0)
    ]
    rig = fit_context_of(blank, Structure(16384, SPLIT))
    seen = np.array([observe(rig, point, LOGS) for point in loads])
    assert np.all(np.diff(seen[:, 1]) > 0)
    points = tuple(
        point._replace(itl_s=math.exp(itl), ttft_s=math.exp(ttft))
        for point, (_, itl, ttft) in zip(loads, seen.tolist(), strict=True)
    )
    found = fit(rig, points, trials=10)
    again = np.array([observe(rig, point, found.logs) for point in loads])
    assert np.all(np.abs(again - seen)[:, 1:] < SIGMA[1:])


@pytest.mark.parametrize(
    ("header", "complaint"),
    [
        ("concurrency_or_batch,isl,osl,ttft_s,itl_ms", "unknown column 'ttft_s'"),
        ("concurrency_or_batch,isl,osl,ttft,itl", "unknown column 'ttft'"),
        ("concurrency,isl,osl,ttft_ms,itl_ms", "unknown column 'concurrency'"),
        ("batch,isl,osl,ttft_ms,itl_ms", "no column with the load"),
        ("concurrency_or_batch,isl,osl,first,second", "no column with a measurement"),
        ("concurrency_or_batch;isl;osl;ttft_ms;itl_ms", "no column 'isl'"),
    ],
)
def test_a_wrong_header_is_refused(tmp_path: Path, header: str, complaint: str) -> None:
    """A column under another name, or in another unit, would be read as empty cells."""
    path = tmp_path / "points.csv"
    path.write_text(f"{header}\n4,200,100,20,5\n", encoding="utf-8")
    with pytest.raises(UserError, match=complaint) as caught:
        read_points(path, Deployment("llama-3-8b", "h100-sxm-80gb", "fp8"))
    assert "columns, separated by commas: concurrency_or_batch or rate_per_s, isl" in (caught.value.hint or "")


@pytest.mark.parametrize(("column", "value"), [("itl_ms", "fast"), ("ttft_ms", "-3"), ("isl", "0"), ("osl", "inf")])
def test_a_wrong_number_is_named(tmp_path: Path, column: str, value: str) -> None:
    """The line, the column and what stands there are in the error."""
    row = {"concurrency_or_batch": "4", "isl": "200", "osl": "100", "ttft_ms": "20", "itl_ms": "5", column: value}
    path = tmp_path / "points.csv"
    path.write_text(",".join(row) + "\n" + ",".join(row.values()) + "\n", encoding="utf-8")
    with pytest.raises(UserError, match=rf"points.csv:2: {column} is '{value}'"):
        read_points(path, Deployment("llama-3-8b", "h100-sxm-80gb", "fp8"))


def test_other_hardware_is_refused(request_of_truth: Request) -> None:
    """A calibration of one GPU is not used for another."""
    known = calibrate(
        Request(request_of_truth.manifest, request_of_truth.points[:6], QUICK, max_num_tokens=16384),
        head=HEAD,
        progress=lambda _: None,
    )
    with pytest.raises(UserError, match=", not for a100-sxm-80gb"):
        require_match(known, gpu="a100-sxm-80gb", precision="fp8", tensor_parallel=1, path=Path("c.json"))


def test_expected_values_are_neutral() -> None:
    """Before any point is seen, a deployment is taken to be near its parts."""
    factors = factors_of(PRIOR.expected, SPLIT)
    assert 1.0 <= factors.weights_ratio <= 1.1
    assert factors.wave_sequences == 1.0


def test_measurements_of_something_else_are_one_clear_error(tmp_path: Path) -> None:
    """A table without a row of what was asked for names what was looked for; nothing is written."""
    path = tmp_path / "points.csv"
    path.write_text("model,concurrency_or_batch,isl,osl,itl_ms\nmistral-7b,4,200,100,5\n", encoding="utf-8")
    asked = ["--measurements", str(path), "--model", "llama-3-8b", "--out", str(tmp_path / "c.json")]
    found = CliRunner().invoke(calibrate_engine, asked)
    assert found.exit_code == 2
    assert "0 measured points of llama-3-8b fp8 on h100-sxm-80gb" in found.output
    assert not (tmp_path / "c.json").exists()
