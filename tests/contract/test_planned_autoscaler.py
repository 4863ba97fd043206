"""A plan's control law as an HPA and a ScaledObject: Kubernetes' schema, KEDA's fields, Prometheus' own evaluation."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any, get_args

import jsonschema
import kubernetes_validate
import pytest
import yaml
from pydantic import ValidationError

from engines.autoscaling import (
    VOCABULARY_RATIO,
    AutoscalingFile,
    ColdStart,
    ScalingLaw,
    Signal,
    SimulatedEngine,
    simulated_engine,
)
from engines.errors import UserError
from engines.files import Document, MadeBy, to_json, write_json
from engines.manifest import EngineManifest
from engines.planning import emulated_manifest
from engines.planning.plan import make_plan
from engines.planning.recipe import resolve_recipe
from engines.spec import known_models, precision_named
from tests.facts import read_facts
from tests.prometheus_adapter import adapter_query
from triton_repo.deploy.plan import Deployment, DeploymentPlan, plan_deployment
from triton_repo.deploy.render import render_deployment
from triton_repo.deploy.scaling import read_law, require_planned_engine
from triton_repo.repository.render import render_repository
from triton_repo.settings.repository_manifest import ServingSettings

HEAD = MadeBy(command="test", version="0")
FACTS: dict[str, Any] = read_facts(Path(__file__).parent / "deployment_facts.yaml")
KUBERNETES = "1.31"
TARGETS: dict[Signal, tuple[float, str, str]] = {
    "in_flight": (77.0, "77", "77"),
    "queue": (13.0, "13", "13"),
    "kv_used": (0.091, "91m", "0.091"),
    "ttft_p95": (0.45, "450m", "0.45"),
}
# Per server and over both: 100 requests in flight of which 40 are in the batch, and 30 of which 30 are; half and a
# quarter of the blocks; every first response between 0.25 and 0.5 s: the 95th percentile is 0.4875 s.
VALUES: dict[Signal, tuple[float, float, float]] = {
    "in_flight": (100, 30, 130),
    "queue": (60, 0, 60),
    "kv_used": (0.5, 0.25, 0.75),
    "ttft_p95": (0.4875, 0.4875, 0.4875),
}


def _file(signal: Signal, controller: str = "hpa") -> AutoscalingFile:
    law = ScalingLaw.model_validate(
        {"controller": controller, "signal": signal, "target": TARGETS[signal][0]}
        | {"min_replicas": 2, "max_replicas": 10}
    )
    cold = ColdStart(pending_s=120, loading_s=180, source="assumed")
    figures = {"simulated_minutes": 1440, "missed_minutes": 2, "gpu_hours": 74.1}
    engine = simulated_engine(_engine())
    return AutoscalingFile(made_by=HEAD, law=law, cold_start=cold, engine=engine, row="h100", seeds=(0,), **figures)


def _engine(**keys: Any) -> EngineManifest:
    asked = resolve_recipe(None, keys)
    return emulated_manifest(make_plan(asked, head=Document(made_by=HEAD)), asked.recipe)


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> DeploymentPlan:
    """Plan the deployment of an emulated engine."""
    base = tmp_path_factory.mktemp("planned")
    asked = resolve_recipe(None, {})
    write_json(base / "engine" / "manifest.json", emulated_manifest(make_plan(asked, head=Document(made_by=HEAD)),
               asked.recipe))  # fmt: skip
    (base / "tokenizer").mkdir()
    (base / "tokenizer" / "tokenizer.json").write_text(
        json.dumps({"version": "1.0", "model": {"type": "BPE", "vocab": {}, "merges": []}})
    )
    render_repository(
        base / "engine", base / "repository", settings=ServingSettings(), tokenizer=base / "tokenizer",
        served_at=Path("/models/repository"), force=False, made_by=HEAD,
    )  # fmt: skip
    return plan_deployment(base / "repository", None, Deployment(name="chat", replicas=2, max_replicas=10),
                           made_by=HEAD)  # fmt: skip


def _rendered(plan: DeploymentPlan, file: AutoscalingFile, folder: Path) -> Path:
    render_deployment(plan.model_copy(update={"scaling": file}), folder, force=False)
    return folder / "kubernetes"


def _load(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


@pytest.mark.parametrize("signal", get_args(Signal))
def test_both_controllers_take_the_law(plan: DeploymentPlan, tmp_path: Path, signal: Signal) -> None:
    """The HPA passes Kubernetes' schema and the ScaledObject has KEDA's fields; both have the law's numbers."""
    folder = _rendered(plan, _file(signal), tmp_path / "files")
    _, as_quantity, threshold = TARGETS[signal]
    hpa = _load(folder / "horizontalpodautoscaler.yaml")
    kubernetes_validate.validate(hpa, KUBERNETES, strict=True)
    [metric] = hpa["spec"]["metrics"]
    assert metric["pods"]["target"] == {"type": "AverageValue", "averageValue": as_quantity}
    scaled = _load(folder / "alternative/scaledobject.yaml")
    jsonschema.validate(scaled, FACTS["scaledobject"])
    [trigger] = scaled["spec"]["triggers"]
    assert trigger["metadata"]["threshold"] == threshold
    assert trigger["metricType"] == ("Value" if signal == "ttft_p95" else "AverageValue")
    limits = scaled["spec"]["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
    assert limits == hpa["spec"]["behavior"]
    assert limits["scaleDown"] == {
        "stabilizationWindowSeconds": 300,
        "selectPolicy": "Max",
        "policies": [{"type": "Percent", "value": 100, "periodSeconds": 15}],
    }
    sizes = [hpa["spec"]["minReplicas"], hpa["spec"]["maxReplicas"]]
    assert sizes == [scaled["spec"]["minReplicaCount"], scaled["spec"]["maxReplicaCount"]] == [2, 10]


def test_only_the_simulated_controller_is_applied(plan: DeploymentPlan, tmp_path: Path) -> None:
    """Two autoscalers of one deployment would work against each other."""
    applied = {path.name for path in _rendered(plan, _file("kv_used", "keda"), tmp_path / "files").glob("*.yaml")}
    assert "scaledobject.yaml" in applied
    assert "horizontalpodautoscaler.yaml" not in applied


@pytest.mark.skipif(not shutil.which("promtool"), reason="no promtool here: apt install prometheus")
def test_prometheus_evaluates_every_query(plan: DeploymentPlan, tmp_path: Path) -> None:
    """Known series of two servers: each pod's value for the HPA, the sum for KEDA, and nothing without servers."""
    tests = []
    for signal, (first, second, both) in VALUES.items():
        folder = _rendered(plan, _file(signal), tmp_path / signal)
        [rule] = _load(folder / "monitoring/prometheus-adapter.yaml")["rules"]["custom"]
        [trigger] = _load(folder / "alternative/scaledobject.yaml")["spec"]["triggers"]
        samples = [
            {"labels": f'{{instance="{name}"}}', "value": value} for name, value in (("a", first), ("b", second))
        ]
        query = adapter_query(rule, group="instance", matchers='job="chat"')
        tests.append({"expr": query, "eval_time": "10m", "exp_samples": samples})
        tests.append({"expr": trigger["metadata"]["query"], "eval_time": "10m",
                      "exp_samples": [{"labels": "{}", "value": both}]})  # fmt: skip
        gone = trigger["metadata"]["query"].replace('job="chat"', 'job="gone"')
        tests.append({"expr": gone, "eval_time": "10m", "exp_samples": []})
    (tmp_path / "rules.yml").write_text("groups: []\n")
    document = {"rule_files": ["rules.yml"], "tests": [{"interval": "15s", "input_series": _series(),
                "promql_expr_test": tests}]}  # fmt: skip
    (tmp_path / "tests.yml").write_text(yaml.safe_dump(document))
    done = subprocess.run(
        ["promtool", "test", "rules", str(tmp_path / "tests.yml")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def _series() -> list[dict[str, str]]:
    """Return two servers' series, in the names of Triton and of its TensorRT-LLM backend."""
    found = []
    for name, in_flight, active, blocks in (("a", 100, 40, 0.5), ("b", 30, 30, 0.25)):
        labels = f'job="chat",instance="{name}"'
        model = f'{labels},model="ensemble",version="1"'
        step_us = in_flight * 15_000_000
        found += [
            (f"up{{{labels}}}", "1x80"),
            (f"nv_inference_request_duration_us{{{model}}}", f"0+{step_us}x80"),
            (f'nv_trt_llm_request_metrics{{{labels},request_type="active"}}', f"{active}x80"),
            (f'nv_trt_llm_kv_cache_block_metrics{{{labels},kv_cache_block_type="fraction"}}', f"{blocks}x80"),
            *((f'nv_inference_first_response_histogram_ms_bucket{{{model},le="{le}"}}', values)
              for le, values in (("250", "0x80"), ("500", "0+10x80"), ("+Inf", "0+10x80"))),
        ]  # fmt: skip
    return [{"series": series, "values": values} for series, values in found]


def test_a_server_without_the_backends_metrics_is_refused(tmp_path: Path) -> None:
    """What trtllm-serve and the LLM API do not publish is not followed."""
    write_json(tmp_path / "autoscaling.json", _file("kv_used"))
    assert read_law(tmp_path / "autoscaling.json", variant="inflight_batcher_llm").law.target == TARGETS["kv_used"][0]
    with pytest.raises(UserError, match="this repository is llmapi"):
        read_law(tmp_path / "autoscaling.json", variant="llmapi")
    (tmp_path / "capacity.json").write_text('{"schema": 4, "demand": {}}')
    with pytest.raises(UserError, match=r"contains no control law; plan-capacity writes it to autoscaling\.json"):
        read_law(tmp_path / "capacity.json", variant="inflight_batcher_llm")


LIMITS = {"limits.max_batch_size": 384, "limits.max_num_tokens": 8192, "limits.max_seq_len": 4096}


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"model": "qwen3-8b"}, "qwen3-8b with layers 36, intermediate_size 12288, vocab_size 151936"),
        ({"precision": "int8_sq"}, "precision int8_sq, kv_cache 16bit"),
        ({"gpu": "a100-sxm-80gb", "precision": "bf16"}, "gpu a100-sxm-80gb, precision bf16, kv_cache 16bit"),
        ({"kv_cache.format": "16bit"}, "kv_cache 16bit"),
        ({"parallel.tensor": 2}, "tensor_parallel 2"),
        ({"limits.max_batch_size": 768}, "max_batch_size 768"),
        ({"limits.max_num_tokens": 4096}, "max_num_tokens 4096"),
        ({"limits.max_seq_len": 8192}, "max_seq_len 8192"),
    ],
)
def test_a_law_of_another_engine_is_refused(change: dict[str, Any], text: str) -> None:
    """A target belongs to the engine that it was simulated with; the error names what differs, and nothing else."""
    own = {"model": "llama-3-8b", "gpu": "h100-sxm-80gb", "precision": "fp8", **LIMITS}
    planned, path = _engine(**own), Path("autoscaling.json")
    file = _file("in_flight").model_copy(update={"engine": simulated_engine(planned)})
    require_planned_engine(file, planned, path=path)
    with pytest.raises(UserError, match="its law was simulated with ") as refused:
        require_planned_engine(file, _engine(**own | change), path=path)
    assert refused.value.message.endswith(f"; this repository's engine has {text}")


def test_what_differs_is_one_line() -> None:
    """Whatever the file has in the place of a name."""
    engine = _engine()
    other = simulated_engine(engine).model_copy(update={"gpu": "a\nb" + "x" * 2000})
    file = _file("in_flight").model_copy(update={"engine": other})
    with pytest.raises(UserError, match=r"^[^\n]{,250}$"):
        require_planned_engine(file, engine, path=Path("autoscaling.json"))


@pytest.mark.parametrize("count", [0, 2**31, 10**400])
def test_kubernetes_counts_are_int32(count: int) -> None:
    """What its API refuses is not written."""
    law = json.loads(to_json(_file("queue").law)) | {"max_replicas": count}
    with pytest.raises(ValidationError):
        ScalingLaw.model_validate(law)


def test_a_law_holds_for_other_weights_of_the_same_size() -> None:
    """A fine-tuned model, or the folder of its checkpoint, has the same steps under another name."""
    planned = _engine(model="llama-3-8b")
    tuned = planned.model_copy(update={"model": planned.model.model_copy(update={"name": "mine"})})
    file = _file("in_flight").model_copy(update={"engine": simulated_engine(planned)})
    require_planned_engine(file, tuned, path=Path("autoscaling.json"))


def test_a_vocabulary_that_no_model_has_is_refused() -> None:
    """Compared with another's, a number of 310 digits had been a traceback."""
    stated = simulated_engine(_engine()).model_dump()
    for size in (0, 2**31, 10**309):
        with pytest.raises(ValidationError, match="vocab_size"):
            SimulatedEngine.model_validate(stated | {"vocab_size": size})


@pytest.mark.parametrize(("added", "is_refused"), [(0, False), (2, False), (6_000, False), (-64, False), (7_000, True)])
def test_a_law_holds_for_a_vocabulary_with_a_few_more_tokens(added: int, is_refused: bool) -> None:
    """Fine-tuning adds tokens, and a step's time hardly changes; a vocabulary of another size is another model's."""
    planned = _engine(model="llama-3-8b")
    model = planned.model.model_copy(update={"name": "mine", "vocab_size": planned.model.vocab_size + added})
    tuned = planned.model_copy(update={"model": model})
    file = _file("in_flight").model_copy(update={"engine": simulated_engine(planned)})
    if is_refused:
        with pytest.raises(UserError, match=r"this repository's engine has mine with vocab_size 135256$"):
            require_planned_engine(file, tuned, path=Path("autoscaling.json"))
    else:
        require_planned_engine(file, tuned, path=Path("autoscaling.json"))


@pytest.mark.parametrize("precision", ["bf16", "fp8"])
def test_the_allowed_vocabulary_changes_a_step_by_two_percent_at_most(precision: str) -> None:
    """Of every known model: by the weights that a step reads, the output projection among them."""
    for model in known_models().values():
        own = model.weights_bytes(precision_named(precision)) - 2 * model.embedding_parameters
        added = 2 * VOCABULARY_RATIO * model.head_parameters
        assert added / own < 0.02, model.name


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"schema": 2}, "schema 2 is of another version; plan again: plan-capacity DEMAND --force"),
        ({"schema": 1, "engine": None}, "schema 1 is of another version; plan again: plan-capacity DEMAND --force"),
        ({"schema": "x"}, "schema x is of another version"),
        ({"schema": "\n" + "x" * 2000}, f"schema {'x' * 20} is of another version"),
        ({"engine": None}, "engine"),
        ({"engine": {}}, "missing key 'engine.model'"),
        ({"engine": ["a"]}, "engine"),
        ({"law": 5}, "law"),
        ({"seeds": "many"}, "seeds"),
    ],
)
def test_a_file_of_another_schema_or_type_is_refused(tmp_path: Path, change: dict[str, Any], text: str) -> None:
    """In one line, with the command that writes it anew where it is an older one."""
    path = tmp_path / "autoscaling.json"
    path.write_text(json.dumps(json.loads(to_json(_file("queue"))) | change))
    with pytest.raises(UserError) as refused:
        read_law(path, variant="inflight_batcher_llm")
    assert text in refused.value.message
    assert "\n" not in refused.value.message
