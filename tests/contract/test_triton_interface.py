"""The rendered repositories against facts of upstream's templates, tensor by tensor and parameter by parameter."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from tokenizers import Tokenizer, models
from tritonclient.grpc import model_config_pb2

from engines.build.llmapi import llm_arguments
from engines.files import Document, MadeBy, write_json
from engines.manifest import EngineManifest
from engines.planning import BuildPlan, emulated_manifest, make_plan
from engines.planning.recipe import resolve_recipe
from tests.facts import read_facts
from triton_repo.audit.audit import audit_repository
from triton_repo.audit.require_valid import read_config
from triton_repo.interface.parameters import MUST_BE_THERE, NEVER_WRITTEN
from triton_repo.repository.render import render_repository
from triton_repo.settings import ServingSettings, all_settings
from triton_repo.settings.repository_manifest import MODELS

FACTS: dict[str, Any] = read_facts(Path(__file__).parent / "triton_interface.yaml")
HEAD = MadeBy(command="test", version="0")
# Every setting at a value of its own; those that exclude each other stand in MODES below.
EVERYTHING = {
    "scheduling": {"policy": "max_utilization", "exclude_input_in_output": True},
    "queue": {
        "max_queue_size": 9, "delay_us": 11, "priority_levels": 3, "default_priority": 2, "timeout_us": 12_000,
        "timeout_action": "delay", "allow_timeout_override": True,
    },
    "kv_cache": {
        "free_gpu_mem_fraction": 0.8, "max_tokens": 100_000, "host_bytes": 1 << 30, "onboard_blocks": False,
        "max_attention_window": [2048, 8192], "sink_tokens": 4, "cross_fraction": 0.4,
    },
    "decoding": {
        "mode": "top_p", "normalize_log_probs": False, "guided_backend": "xgrammar", "tokenizer_info": "/info.json",
        "fast_logits": True,
    },
    "types": {"logits": "fp16", "prompt_embedding": "bf16", "encoder_features": "fp32"},
    "runtime": {
        "cuda_graphs": True, "cuda_graph_cache_size": 33, "multi_block_mode": False, "context_fmha_fp32_acc": True,
        "gpu_weights_percent": 0.5, "cancellation_check_period_ms": 7, "stats_check_period_ms": 13,
        "recv_poll_period_ms": 1, "iter_stats_max_iterations": 5, "request_stats_max_iterations": 6,
    },
    "lora": {
        "optimal_adapter_size": 16, "max_adapter_size": 32, "gpu_memory_fraction": 0.1, "host_memory_bytes": 77,
        "prefetch_dir": "/adapters",
    },
    "processes": {
        "mode": "orchestrator", "spawn_processes": False, "gpu_device_ids": "0;1", "participant_ids": "1;2",
        "worker_path": "/worker",
    },
    "text": {
        "preprocessing_instances": 3, "bls_instances": 5, "add_special_tokens": False, "skip_special_tokens": False,
        "accumulate_tokens": True, "draft_model": "draft",
    },
}  # fmt: skip
MODES: dict[str, dict[str, Any]] = {
    "medusa": {"mode": "medusa", "medusa_choices": "{0},{0,0},{1}"},
    "eagle": {"mode": "eagle", "eagle_choices": "{0},{0,0},{1}"},
    "lookahead": {
        "mode": "lookahead", "lookahead": {"window_size": 7, "ngram_size": 6, "verification_set_size": 5},
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def plan() -> BuildPlan:
    """Plan the default engine."""
    return make_plan(resolve_recipe(None, {}), head=Document(made_by=HEAD))


@pytest.fixture(scope="module")
def built(plan: BuildPlan) -> EngineManifest:
    """Return its manifest, as if it had been compiled."""
    return emulated_manifest(plan, resolve_recipe(None, {}).recipe).model_copy(
        update={"kind": "built", "engine": "engine"}
    )


def _render(folder: Path, manifest: EngineManifest, settings: dict[str, Any]) -> Path:
    (folder / "engine" / "engine").mkdir(parents=True)
    (folder / "tokenizer").mkdir()
    Tokenizer(models.BPE({"a": 0}, [])).save(str(folder / "tokenizer" / "tokenizer.json"))
    write_json(folder / "engine" / "manifest.json", manifest)
    render_repository(
        folder / "engine",
        folder / "repository",
        settings=ServingSettings.model_validate(settings),
        tokenizer=folder / "tokenizer",
        served_at=None,
        force=False,
        made_by=HEAD,
    )
    return folder / "repository"


@pytest.fixture(scope="module")
def default(built: EngineManifest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Render a built engine's repository without asking for anything."""
    return _render(tmp_path_factory.mktemp("default"), built, {})


@pytest.fixture(scope="module")
def full(built: EngineManifest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Render it with every setting away from its default."""
    return _render(tmp_path_factory.mktemp("full"), built, EVERYTHING)


def _said(tensor: Any, kind: str) -> str:
    """Return a tensor of a configuration in the facts' words."""
    words = [
        model_config_pb2.DataType.Name(tensor.data_type).removeprefix("TYPE_"),
        f"[{','.join(map(str, tensor.dims))}]",
        "scalar" if tensor.HasField("reshape") and not tensor.reshape.shape else "",
        "ragged" if kind == "input" and tensor.allow_ragged_batch else "",
        "optional" if kind == "input" and tensor.optional else "",
    ]
    return " ".join(word for word in words if word)


def _tensors(config: Any, kind: str) -> dict[str, str]:
    return {tensor.name: _said(tensor, kind) for tensor in getattr(config, kind)}


def _parameters(repository: Path, model: str) -> dict[str, str]:
    config = read_config(repository / model / "config.pbtxt")
    return {key: value.string_value for key, value in config.parameters.items()}


@pytest.mark.parametrize("kind", ["input", "output"])
@pytest.mark.parametrize("model", MODELS)
def test_every_tensor_is_upstreams(default: Path, model: str, kind: str) -> None:
    """Names, types, dims, scalar shapes, ragged batches and what is optional: all of upstream's, and no other."""
    assert _tensors(read_config(default / model / "config.pbtxt"), kind) == FACTS[model][f"{kind}s"]


@pytest.mark.parametrize("step", range(3))
def test_the_ensemble_is_wired_as_upstreams(default: Path, step: int) -> None:
    """Each step gets and gives the tensors that upstream's gets and gives."""
    model = ("preprocessing", "tensorrt_llm", "postprocessing")[step]
    found = read_config(default / "ensemble" / "config.pbtxt").ensemble_scheduling.step[step]
    assert found.model_name == model
    assert dict(found.input_map) == FACTS["wiring"][model]["from"]
    assert dict(found.output_map) == FACTS["wiring"][model]["to"]


@pytest.mark.parametrize("model", FACTS["parameters"])
def test_no_parameter_is_upstreams_unknown(full: Path, model: str) -> None:
    """Apart from a few of our own, every parameter is one that upstream reads."""
    ours = {"engine_name", "max_prompt_tokens", "max_output_tokens", "tokenizer_dir"}
    assert _parameters(full, model).keys() - ours <= FACTS["parameters"][model].keys()


@pytest.mark.parametrize("model", FACTS["parameters"])
def test_what_upstream_needs_is_always_there(default: Path, model: str) -> None:
    """A key that a model does not load without is written even where nothing was asked for."""
    needed = {key for key, fact in FACTS["parameters"][model].items() if fact.get("required") or "fixed" in fact}
    found = _parameters(default, model)
    assert needed <= found.keys()
    for key, fact in FACTS["parameters"][model].items():
        assert found.get(key, fact.get("fixed")) == fact.get("fixed", found.get(key))
    assert {key for key in needed if model == "tensorrt_llm"} >= set(MUST_BE_THERE if model == "tensorrt_llm" else ())


def test_every_engine_parameter_can_be_set(
    full: Path, built: EngineManifest, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """One serving.yaml reaches every parameter of upstream's engine model; what is never written is on a list."""
    reached = set(_parameters(full, "tensorrt_llm"))
    for name, decoding in MODES.items():
        repository = _render(tmp_path_factory.mktemp(name), built, {"decoding": decoding})
        reached |= set(_parameters(repository, "tensorrt_llm"))
        assert _parameters(repository, "tensorrt_llm")["decoding_mode"] == name
    assert set(FACTS["parameters"]["tensorrt_llm"]) - reached == set(NEVER_WRITTEN)


def test_every_setting_arrives_where_it_goes(full: Path) -> None:
    """What was asked for is what the parameter says."""
    values = _parameters(full, "tensorrt_llm")
    expected = {
        "batch_scheduler_policy": "max_utilization", "exclude_input_in_output": "true",
        "kv_cache_free_gpu_mem_fraction": "0.8", "max_tokens_in_paged_kv_cache": "100000",
        "kv_cache_host_memory_bytes": str(1 << 30), "kv_cache_onboard_blocks": "false",
        "max_attention_window_size": "2048,8192", "sink_token_length": "4", "cross_kv_cache_fraction": "0.4",
        "decoding_mode": "top_p", "normalize_log_probs": "false", "guided_decoding_backend": "xgrammar",
        "xgrammar_tokenizer_info_path": "/info.json", "speculative_decoding_fast_logits": "true",
        "cuda_graph_mode": "true", "cuda_graph_cache_size": "33", "multi_block_mode": "false",
        "enable_context_fmha_fp32_acc": "true", "gpu_weights_percent": "0.5", "cancellation_check_period_ms": "7",
        "stats_check_period_ms": "13", "recv_poll_period_ms": "1", "iter_stats_max_iterations": "5",
        "request_stats_max_iterations": "6", "lora_cache_optimal_adapter_size": "16",
        "lora_cache_max_adapter_size": "32", "lora_cache_gpu_memory_fraction": "0.1",
        "lora_cache_host_memory_bytes": "77", "lora_prefetch_dir": "/adapters", "gpu_device_ids": "0;1",
        "participant_ids": "1;2", "executor_worker_path": "/worker",
    }  # fmt: skip
    assert {key: values[key] for key in expected} == expected
    policy = read_config(full / "preprocessing" / "config.pbtxt").dynamic_batching
    assert policy == read_config(full / "tensorrt_llm" / "config.pbtxt").dynamic_batching
    assert (policy.priority_levels, policy.default_priority_level, policy.max_queue_delay_microseconds) == (3, 2, 11)
    queue = policy.default_queue_policy
    assert (queue.max_queue_size, queue.default_timeout_microseconds, queue.allow_timeout_override) == (9, 12_000, True)
    assert queue.timeout_action == model_config_pb2.ModelQueuePolicy.DELAY
    counts = {model: read_config(full / model / "config.pbtxt").instance_group[0].count for model in MODELS[:3]}
    assert counts == {"preprocessing": 3, "tensorrt_llm": 1, "postprocessing": 1}
    assert read_config(full / "tensorrt_llm_bls" / "config.pbtxt").instance_group[0].count == 5
    assert _parameters(full, "preprocessing")["add_special_tokens"] == "false"
    assert _parameters(full, "postprocessing")["skip_special_tokens"] == "false"
    assert _parameters(full, "tensorrt_llm_bls")["accumulate_tokens"] == "true"
    assert _parameters(full, "tensorrt_llm_bls")["tensorrt_llm_draft_model_name"] == "draft"


@pytest.mark.parametrize("model", ["tensorrt_llm", "ensemble", "tensorrt_llm_bls"])
def test_chosen_number_formats_reach_every_model(full: Path, model: str) -> None:
    """Logits and embeddings have the asked-for type in each model that names them: an ensemble accepts no other."""
    config = read_config(full / model / "config.pbtxt")
    assert _tensors(config, "output")["context_logits"].startswith("FP16")
    assert _tensors(config, "input")["prompt_embedding_table"].startswith("BF16")


def test_what_is_left_out_is_upstreams_default(default: Path) -> None:
    """A parameter that is written without being asked for says what upstream would do, or what the plan says."""
    planned = {"enable_chunked_context"}  # the plan's engine has paged context attention, which upstream cannot know
    values = _parameters(default, "tensorrt_llm")
    for key, fact in FACTS["parameters"]["tensorrt_llm"].items():
        if "unset" in fact and key in values and key not in planned:
            assert values[key] == fact["unset"], key
        if "values" in fact:
            assert values[key] in fact["values"]


def test_the_schema_knows_upstreams_defaults() -> None:
    """The default that --explain shows beside each setting is upstream's."""
    facts = FACTS["parameters"]["tensorrt_llm"]
    shown = {
        setting.target.place.removeprefix("tensorrt_llm: "): setting.target.upstream_default
        for setting in all_settings(ServingSettings())
        if re.fullmatch(r"tensorrt_llm: \w+", setting.target.place)
    }
    assert shown.keys() <= facts.keys()
    same = {
        key: fact["unset"] for key, fact in facts.items() if re.fullmatch(r"true|false|[\d.]+", fact.get("unset", ""))
    }
    same |= {"lora_cache_host_memory_bytes": "1 GiB", "cross_kv_cache_fraction": shown["cross_kv_cache_fraction"]}
    assert {key: shown[key] for key in same if key in shown} == {
        key: value for key, value in same.items() if key in shown
    }
    assert shown["cross_kv_cache_fraction"].startswith(facts["cross_kv_cache_fraction"]["unset"])


@pytest.mark.parametrize("model", MODELS)
def test_no_bare_placeholder_of_upstreams_is_left(default: Path, model: str) -> None:
    """Each field that upstream leaves to be filled outside quotes has a value, and no placeholder is anywhere."""
    text = (default / model / "config.pbtxt").read_text()
    assert "${" not in text
    config = read_config(default / model / "config.pbtxt")
    filled = {
        "triton_backend": config.backend == "tensorrtllm",
        "triton_max_batch_size": config.max_batch_size > 0,
        "decoupled_mode": config.model_transaction_policy.decoupled,
        "max_queue_delay_microseconds": config.HasField("dynamic_batching"),
        "max_queue_size": config.dynamic_batching.HasField("default_queue_policy"),
        **{
            f"{name}_instance_count": bool(config.instance_group) for name in ("preprocessing", "postprocessing", "bls")
        },
        "encoder_input_features_data_type": _tensors(config, "input")
        .get("encoder_input_features", "")
        .startswith("FP"),
        "prompt_embedding_table_data_type": _tensors(config, "input")
        .get("prompt_embedding_table", "")
        .startswith("FP"),
        "logits_datatype": _tensors(config, "output").get("context_logits", "").startswith("FP"),
    }
    assert all(filled[name] for name in FACTS["bare_placeholders"][model])


def test_the_llm_apis_model_is_upstreams(plan: BuildPlan, tmp_path: Path) -> None:
    """Its tensors are upstream's, and its model.yaml is what the engine's own plan says."""
    asked = resolve_recipe(None, {"backend": "pytorch"})
    pytorch = make_plan(asked, head=Document(made_by=HEAD))
    manifest = emulated_manifest(pytorch, asked.recipe)
    manifest = manifest.model_copy(update={"kind": "checkpoint", "checkpoint": "checkpoint"})
    repository = _render(tmp_path, manifest, {})
    config = read_config(repository / "tensorrt_llm" / "config.pbtxt")
    assert _tensors(config, "input") == FACTS["llmapi"]["inputs"]
    assert _tensors(config, "output") == FACTS["llmapi"]["outputs"]
    document = yaml.safe_load((repository / "tensorrt_llm" / "1" / "model.yaml").read_text())
    asked_of_triton, tokenizer = document.pop("triton_config"), document.pop("tokenizer")
    assert document.pop("model") == str(tmp_path / "engine" / "checkpoint")
    assert document == llm_arguments(manifest)
    assert asked_of_triton == {"max_batch_size": 0, "decoupled": True, "cancellation_check_period_ms": 100}
    assert Path(tokenizer).is_dir()
    assert plan.backend == "tensorrt"


def test_what_is_rendered_passes_the_audit(default: Path, full: Path) -> None:
    """Our own repositories have no error in the eyes of the audit that looks through anybody's."""
    for repository in (default, full):
        errors = {finding.code for finding in audit_repository(repository) if finding.severity == "error"}
        assert errors == {"engine-config"}  # there is no engine in its folder


def test_every_finding_is_explained() -> None:
    """Each code that an audit may give stands in the how-to, and no other."""
    root = Path(__file__).parents[2]
    source = "".join(
        (root / "triton_repo" / "audit" / f"{name}.py").read_text()
        for name in ("engine_match", "audit", "findings", "known_issues")
    )
    given = set(re.findall(r'finding_of\(\s*"\w+"[^,]*,\s*"([\w-]+)"', source))
    given |= set(re.findall(r'_error\(\s*"([\w-]+)"', source)) | set(re.findall(r'code="([\w-]+)"', source))
    given |= set(re.findall(r'finding_of\(\s*(?:severity|"\w+" if [^,]+),\s*"([\w-]+)"', source))
    table = (root / "docs" / "how-to" / "audit-a-repository.md").read_text().partition("## Findings")[2]
    told = {
        code
        for line in table.splitlines()
        if line.startswith("| `")
        for code in re.findall(r"`([\w-]+)`", line.split("|")[1])
    }
    assert given == told


# What fill_template.py is given for each placeholder, as upstream's README gives it.
FILLED = {
    "triton_max_batch_size": "64", "preprocessing_instance_count": "1", "postprocessing_instance_count": "1",
    "bls_instance_count": "64", "decoupled_mode": "True", "max_queue_delay_microseconds": "0", "max_queue_size": "128",
    "triton_backend": "tensorrtllm", "logits_datatype": "TYPE_FP32", "encoder_input_features_data_type": "TYPE_FP16",
    "prompt_embedding_table_data_type": "TYPE_FP16", "gpt_model_type": "inflight_fused_batching",
}  # fmt: skip
TYPED = {
    "encoder_input_features": "encoder_input_features_data_type", "draft_logits": "logits_datatype",
    "context_logits": "logits_datatype", "generation_logits": "logits_datatype",
    "prompt_embedding_table": "prompt_embedding_table_data_type",
}  # fmt: skip


def _template(model: str) -> str:
    """Return a model's config.pbtxt as upstream's template has it, placeholders and all, from the facts alone."""
    bare = FACTS["bare_placeholders"][model]
    kind = {"ensemble": 'platform: "ensemble"', "tensorrt_llm": 'backend: "${triton_backend}"'}
    parts = [f'name: "{model}"', kind.get(model, 'backend: "python"'), "max_batch_size: ${triton_max_batch_size}"]
    if "decoupled_mode" in bare:
        parts.append("model_transaction_policy { decoupled: ${decoupled_mode} }")
    if "max_queue_size" in bare:
        parts.append(
            "dynamic_batching { max_queue_delay_microseconds: ${max_queue_delay_microseconds}\n"
            "  default_queue_policy: { max_queue_size: ${max_queue_size} } }"
        )
    for direction in ("input", "output"):
        rows = (_row(name, said, bare) for name, said in FACTS[model][f"{direction}s"].items())
        parts.append(f"{direction} [\n" + ",\n".join(rows) + "\n]")
    for key, fact in FACTS["parameters"].get(model, {}).items():
        value = fact.get("fixed", f"${{{key}}}")
        parts.append(f'parameters: {{ key: "{key}" value: {{ string_value: "{value}" }} }}')
    count = next((name for name in bare if name.endswith("_instance_count")), None)
    parts.append(f"instance_group [ {{ count: {'1' if count is None else f'${{{count}}}'} kind: KIND_CPU }} ]")
    return "\n".join([*parts[:-1], *([_steps()] if model == "ensemble" else [parts[-1]])]) + "\n"


def _row(name: str, said: str, bare: list[str]) -> str:
    kind, dims, *flags = said.split()
    placeholder = TYPED.get(name)
    data_type = f"${{{placeholder}}}" if placeholder in bare else f"TYPE_{kind}"
    more = {"scalar": "reshape: { shape: [ ] }", "ragged": "allow_ragged_batch: true", "optional": "optional: true"}
    return f'  {{ name: "{name}" data_type: {data_type} dims: {dims} {" ".join(more[flag] for flag in flags)} }}'


def _steps() -> str:
    steps = []
    for model, wiring in FACTS["wiring"].items():
        maps = [f'input_map {{ key: "{key}" value: "{value}" }}' for key, value in wiring["from"].items()]
        maps += [f'output_map {{ key: "{key}" value: "{value}" }}' for key, value in wiring["to"].items()]
        steps.append(f'{{ model_name: "{model}" model_version: -1 {" ".join(maps)} }}')
    return "ensemble_scheduling { step [ " + ", ".join(steps) + " ] }"


def _upstreams(folder: Path, values: dict[str, str]) -> Path:
    """Write upstream's repository, its placeholders filled as far as values are given."""
    for model in MODELS:
        (folder / model / "1").mkdir(parents=True)
        (folder / model / "1" / "model.py").touch()
        text = re.sub(r"\$\{(\w+)\}", lambda found: values.get(found[1], found[0]), _template(model))
        (folder / model / "config.pbtxt").write_text(text)
    return folder


def test_an_audit_of_upstreams_bare_template_names_every_placeholder(tmp_path: Path) -> None:
    """Each placeholder that keeps Triton from reading a file is an error of that file, with what belongs there."""
    found = [finding for finding in audit_repository(_upstreams(tmp_path, {})) if finding.code == "bare-placeholder"]
    named = {(finding.file.partition("/")[0], finding.what.split("${")[1].split("}")[0]) for finding in found}
    assert named == {(model, name) for model, names in FACTS["bare_placeholders"].items() for name in names}


def test_an_audit_of_upstreams_filled_template_finds_no_fault(tmp_path: Path) -> None:
    """A repository that fill_template made as upstream's README says has no error but the paths it was not given."""
    (tmp_path / "tokenizer").mkdir()
    Tokenizer(models.BPE({"a": 0}, [])).save(str(tmp_path / "tokenizer" / "tokenizer.json"))
    values = FILLED | {"tokenizer_dir": str(tmp_path / "tokenizer"), "gpt_model_path": "/engines/elsewhere"}
    findings = audit_repository(_upstreams(tmp_path / "repository", values))
    assert [finding for finding in findings if finding.severity == "error"] == []
    assert {finding.code for finding in findings if finding.severity == "warning"} == {"engine-not-here"}


@pytest.mark.parametrize("name", ["decoupled_mode", "prompt_embedding_table_data_type", "max_queue_size"])
def test_one_placeholder_left_is_enough(tmp_path: Path, name: str) -> None:
    """The one that a README forgets is the one that is named."""
    values = {key: value for key, value in FILLED.items() if key != name}
    errors = [finding for finding in audit_repository(_upstreams(tmp_path, values)) if finding.severity == "error"]
    assert {finding.code for finding in errors} <= {"bare-placeholder", "tokenizer", "engine-path"}
    assert any(f"${{{name}}}" in finding.what for finding in errors)
