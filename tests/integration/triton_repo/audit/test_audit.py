"""check-repo on repositories that somebody else made or edited: each trap is found, named, and comes with its fix."""

from __future__ import annotations

import json
import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models

from engines.build import trtllm
from engines.errors import MissingError, UserError
from engines.files import Document, MadeBy, read_json, write_json
from engines.planning import emulated_manifest
from engines.planning.plan import make_plan
from engines.planning.recipe import resolve_recipe
from triton_repo.audit.audit import audit_repository
from triton_repo.audit.findings import Finding, read_model
from triton_repo.audit.known_issues import engine_issues
from triton_repo.cli import check_repo
from triton_repo.repository.render import render_repository
from triton_repo.settings.repository_manifest import MODELS, RepositoryManifest, ServingSettings

HEAD = MadeBy(command="test", version="0")
BUILD = {
    "version": "1.2.1",
    "pretrained_config": {"logits_dtype": "float32", "mapping": {"world_size": 1}},
    "build_config": {
        "max_batch_size": 384, "max_num_tokens": 8192, "max_seq_len": 8192, "max_input_len": 4096, "max_beam_width": 1,
        "gather_context_logits": False, "gather_generation_logits": False, "weight_streaming": False,
        "plugin_config": {"use_paged_context_fmha": True, "tokens_per_block": 32},
    },
}  # fmt: skip


def _make(folder: Path, *, backend: str) -> Path:
    """Render a built engine's repository, engine and all, and forget who made it."""
    asked = resolve_recipe(None, {"backend": backend})
    plan = make_plan(asked, head=Document(made_by=HEAD))
    kind = {"kind": "built", "engine": "engine"} if backend == "tensorrt" else {"kind": "checkpoint"}
    (folder / "engine" / "engine").mkdir(parents=True)
    (folder / "engine" / "checkpoint").mkdir()
    (folder / "engine" / "engine" / "config.json").write_text(json.dumps(BUILD))
    (folder / "engine" / "engine" / "rank0.engine").touch()
    (folder / "tokenizer").mkdir()
    Tokenizer(models.BPE({"a": 0}, [])).save(str(folder / "tokenizer" / "tokenizer.json"))
    write_json(folder / "engine" / "manifest.json", emulated_manifest(plan, asked.recipe).model_copy(update=kind))
    render_repository(
        folder / "engine",
        folder / "repository",
        settings=ServingSettings.model_validate({"queue": {"max_queue_size": 512}}),
        tokenizer=folder / "tokenizer",
        served_at=None,
        force=False,
        made_by=HEAD,
    )
    (folder / "repository" / "manifest.json").rename(folder / "kept.json")
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of an in-flight-batching repository and its engine."""
    return _make(tmp_path_factory.mktemp("made"), backend="tensorrt")


@pytest.fixture(scope="module")
def made_llmapi(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of an LLM API repository and its checkpoint."""
    return _make(tmp_path_factory.mktemp("llmapi"), backend="pytorch")


def _copy(made: Path, target: Path) -> Path:
    """Copy a repository and its engine, each path in it led to the copy."""
    shutil.copytree(made, target)
    for path in (target / "repository").rglob("*"):
        if path.suffix in {".pbtxt", ".yaml"}:
            path.write_text(path.read_text().replace(str(made), str(target)))
    return target


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """Return a copy to damage."""
    return _copy(made, tmp_path / "copy")


def _edit(path: Path, pattern: str, replacement: str) -> None:
    text = path.read_text()
    damaged = re.sub(pattern, replacement, text, count=1)
    assert damaged != text, pattern
    path.write_text(damaged)


def _parameter(model: str, key: str, value: str | None) -> Callable[[Path], None]:
    """Return what sets a parameter, or takes it out."""

    def damage(folder: Path) -> None:
        path = folder / "repository" / model / "config.pbtxt"
        pattern = rf'parameters: \{{\s*key: "{key}"\s*value: \{{ string_value: "[^"]*" \}}\s*\}}'
        text = re.sub(pattern, "", path.read_text())
        if value is not None:
            text += f'parameters: {{ key: "{key}" value: {{ string_value: "{value}" }} }}\n'
        path.write_text(text)

    return damage


def _text(model: str, pattern: str, replacement: str) -> Callable[[Path], None]:
    return lambda folder: _edit(folder / "repository" / model / "config.pbtxt", pattern, replacement)


def _built(**changes: Any) -> Callable[[Path], None]:
    """Return what changes the engine's own build_config; `plugins` and `pretrained` change those tables."""

    def damage(folder: Path) -> None:
        path = folder / "engine" / "engine" / "config.json"
        config = json.loads(path.read_text())
        config["build_config"]["plugin_config"] |= changes.pop("plugins", {})
        config["pretrained_config"] |= changes.pop("pretrained", {})
        config["build_config"] |= changes
        path.write_text(json.dumps(config))

    return damage


def _all(*damages: Callable[[Path], None]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        for one in damages:
            one(folder)

    return damage


ENGINE, BLS = "tensorrt_llm", "tensorrt_llm_bls"
TRAPS: dict[str, tuple[Callable[[Path], None], str, str]] = {
    "model missing": (lambda folder: shutil.rmtree(folder / "repository" / ENGINE), "error", "missing-model"),
    "step of a missing model": (
        lambda folder: shutil.rmtree(folder / "repository" / "postprocessing"), "error", "wiring"),
    "no version folder": (
        lambda folder: shutil.rmtree(folder / "repository" / "preprocessing" / "1"), "error", "no-version"),
    "no model.py": (
        lambda folder: (folder / "repository" / BLS / "1" / "model.py").unlink(), "error", "missing-file"),
    "misspelled key": (_text("ensemble", "max_batch_size", "max_batch_sise"), "error", "not-a-config"),
    "number too large": (_text("ensemble", "max_batch_size: ", "max_batch_size: 99999999999"), "error", "not-a-config"),
    "bare placeholder": (_text(ENGINE, "decoupled: true", "decoupled: ${decoupled_mode}"), "error", "bare-placeholder"),
    "quoted placeholder": (
        _parameter(ENGINE, "sink_token_length", "${sink_token_length}"), "advice", "placeholder"),
    "wrong name": (_text(BLS, 'name: "tensorrt_llm_bls"', 'name: "bls"'), "error", "name"),
    "wrong dims": (
        _text(ENGINE, r'("input_ids"\s+data_type: TYPE_INT32\s+dims: )\[ -1 \]', r"\1[ 1 ]"), "error", "tensor"),
    "wrong type": (_text("postprocessing", "TYPE_STRING", "TYPE_INT32"), "error", "tensor"),
    "unknown tensor": (_text(ENGINE, 'name: "end_id"', 'name: "eos_id"'), "error", "unknown-tensor"),
    "older template": (_text(ENGINE, 'name: "end_id"', 'name: "eos_id"'), "warning", "other-version"),
    "streaming in one model alone": (_text(BLS, "decoupled: true", "decoupled: false"), "error", "decoupled"),
    "no streaming": (_text(ENGINE, "decoupled: true", "decoupled: false"), "advice", "no-streaming"),
    "unlimited queue": (_text(ENGINE, "max_queue_size: 512", "max_queue_size: 0"), "advice", "queue-unlimited"),
    "batch sizes": (_text("preprocessing", "max_batch_size: 384", "max_batch_size: 8"), "error", "batch-sizes"),
    "one text process": (_text(BLS, r"count: \d+", "count: 1"), "warning", "bls-instances"),
    "engine twice on a GPU": (_text(ENGINE, "count: 1", "count: 2"), "warning", "instances"),
    "another backend": (_text(ENGINE, '"tensorrtllm"', '"tensorrt"'), "error", "backend"),
    "python backend": (
        _all(_text(ENGINE, '"tensorrtllm"', '"python"'),
             lambda folder: (folder / "repository" / ENGINE / "1" / "model.py").touch()), "advice", "python-backend"),
    "required key missing": (_parameter(ENGINE, "tokenizer_dir", None), "error", "missing-parameter"),
    "misspelled parameter": (
        _parameter(ENGINE, "kv_cache_free_gpu_memory_fraction", "0.5"), "warning", "unknown-parameter"),
    "batching type": (_parameter(ENGINE, "gpt_model_type", "inflight"), "error", "invalid-value"),
    "static batching": (_parameter(ENGINE, "gpt_model_type", "V1"), "advice", "static-batching"),
    "policy": (_parameter(ENGINE, "batch_scheduler_policy", "no_evict"), "warning", "invalid-value"),
    "switch": (_parameter(ENGINE, "enable_kv_cache_reuse", "yes"), "warning", "invalid-value"),
    "number": (_parameter(ENGINE, "kv_cache_host_memory_bytes", "1G"), "warning", "not-a-number"),
    "removed parameter": (_parameter(ENGINE, "enable_trt_overlap", "true"), "warning", "removed-parameter"),
    "fraction of 1": (_parameter(ENGINE, "kv_cache_free_gpu_mem_fraction", "1.0"), "error", "kv-fraction"),
    "fraction near 1": (_parameter(ENGINE, "kv_cache_free_gpu_mem_fraction", "0.97"), "warning", "kv-fraction"),
    "host cache": (
        _all(_parameter(ENGINE, "kv_cache_host_memory_bytes", "1000000"),
             _parameter(ENGINE, "enable_kv_cache_reuse", "false")), "error", "host-cache"),
    "guided decoding": (_parameter(ENGINE, "guided_decoding_backend", "xgrammar"), "error", "guided-decoding"),
    "lookahead": (_parameter(ENGINE, "decoding_mode", "lookahead"), "error", "lookahead"),
    "speculation of another engine": (_parameter(ENGINE, "decoding_mode", "medusa"), "error", "decoding-mode"),
    "weights": (_parameter(ENGINE, "gpu_weights_percent", "0.5"), "error", "weight-streaming"),
    "cache below a sequence": (
        _parameter(ENGINE, "max_tokens_in_paged_kv_cache", "2560"), "error", "kv-too-small"),
    "no engine path": (_parameter(ENGINE, "gpt_model_path", None), "error", "engine-path"),
    "engine elsewhere": (_parameter(ENGINE, "gpt_model_path", "/nowhere"), "warning", "engine-not-here"),
    "no engine in its folder": (
        lambda folder: (folder / "engine" / "engine" / "config.json").unlink(), "error", "engine-config"),
    "a rank missing": (
        lambda folder: (folder / "engine" / "engine" / "rank0.engine").unlink(), "error", "ranks"),
    "GPUs for other ranks": (_parameter(ENGINE, "gpu_device_ids", "0,1"), "error", "ranks"),
    "chunks without paged attention": (
        _built(plugins={"use_paged_context_fmha": False}), "error", "paged-context"),
    "prompts past an iteration": (
        _all(_parameter(ENGINE, "enable_chunked_context", "false"), _built(max_num_tokens=2048)), "warning",
        "whole-prompts"),
    "batch past the engine's": (_built(max_batch_size=64), "warning", "batch-size"),
    "beams past the engine's": (_parameter(ENGINE, "max_beam_width", "4"), "error", "beam-width"),
    "logits of another type": (_built(pretrained={"logits_dtype": "float16"}), "error", "logits-type"),
    "logits not gathered": (_built(), "advice", "logits-not-gathered"),
    "prompt limit past the engine's": (_built(max_input_len=1024), "warning", "prompt-limit"),
    "adapters": (
        _all(_parameter(ENGINE, "lora_prefetch_dir", "/a"), _built(plugins={"lora_plugin": None})), "error", "lora"),
    "tokenizer not given": (_parameter("postprocessing", "tokenizer_dir", None), "error", "tokenizer"),
    "tokenizer elsewhere": (_parameter("preprocessing", "tokenizer_dir", "/nowhere"), "warning", "tokenizer"),
    "two tokenizers": (_parameter("preprocessing", "tokenizer_dir", "/nowhere"), "warning", "two-tokenizers"),
    "model of another name": (_parameter(BLS, "tensorrt_llm_model_name", "llm"), "error", "model-name"),
    "model outside": (_parameter(BLS, "tensorrt_llm_model_name", "../llm"), "error", "model-name"),
    "wiring": (_text("ensemble", 'value: "_INPUT_ID"', 'value: "_INPUT_IDS"'), "error", "wiring"),
}  # fmt: skip


def _found(folder: Path) -> list[Finding]:
    return audit_repository(folder / "repository")


def test_a_whole_repository_has_nothing_wrong(folder: Path) -> None:
    """Rendered, engine in place, no manifest: nothing but advice."""
    assert {finding.severity for finding in _found(folder)} <= {"advice"}


@pytest.mark.parametrize("trap", TRAPS)
def test_each_trap_is_found(folder: Path, trap: str) -> None:
    """One thing wrong is found as what it is, in a file that is named, and with a fix."""
    damage, severity, code = TRAPS[trap]
    before = {(finding.severity, finding.code) for finding in _found(folder)}
    damage(folder)
    found = [finding for finding in _found(folder) if (finding.severity, finding.code) == (severity, code)]
    assert found, [finding.code for finding in _found(folder)]
    assert all(finding.fix and finding.what and finding.file for finding in found)
    assert (severity, code) not in before or trap == "logits not gathered"


def _yaml(pattern: str, replacement: str) -> Callable[[Path], None]:
    return lambda folder: _edit(folder / "repository" / ENGINE / "1" / "model.yaml", pattern, replacement)


LLMAPI_TRAPS: dict[str, tuple[Callable[[Path], None], str, str]] = {
    "batching": (_yaml("max_batch_size: 0", "max_batch_size: 8"), "error", "llmapi-batch"),
    "two answers to streaming": (_yaml("decoupled: true", "decoupled: false"), "error", "decoupled"),
    "another backend": (_yaml("backend: pytorch", "backend: tensorrt"), "error", "llmapi-backend"),
    "no triton_config": (_yaml("triton_config:", "triton:"), "error", "model-yaml"),
    "aliases": (_yaml("model: ", "x: &a [1]\ny: *a\nmodel: "), "error", "model-yaml"),
    "instances without GPUs": (_text(ENGINE, "count: 1", "count: 2"), "error", "instances"),
    "checkpoint elsewhere": (_yaml("model: .*", "model: /nowhere"), "warning", "checkpoint-not-here"),
    "dims": (_text(ENGINE, r'("text_input"\s+data_type: TYPE_STRING\s+dims: )\[ -1 \]', r"\1[ 1 ]"), "error", "tensor"),
}  # fmt: skip


@pytest.mark.parametrize("trap", LLMAPI_TRAPS)
def test_each_trap_of_the_llm_api_is_found(made_llmapi: Path, tmp_path: Path, trap: str) -> None:
    """The LLM API's one model is looked through by rules of its own."""
    damage, severity, code = LLMAPI_TRAPS[trap]
    folder = _copy(made_llmapi, tmp_path / "copy")
    assert not _found(folder)
    damage(folder)
    assert (severity, code) in {(finding.severity, finding.code) for finding in _found(folder)}


def test_another_tensorrt_llm_is_found(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where TensorRT-LLM is installed, an engine of another version is an error; where it is not, nothing is said."""
    monkeypatch.setattr(trtllm, "installed_version", lambda: "1.1.0")
    [found] = [finding for finding in _found(folder) if finding.severity == "error"]
    assert found.code == "engine-version"
    assert "1.2.1, 1.1.0 is installed here" in found.what
    monkeypatch.setattr(trtllm, "installed_version", lambda: "1.2.1")
    assert not [finding for finding in _found(folder) if finding.severity == "error"]


def test_gpus_of_another_kind_are_found(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A repository of ours knows what its engine was built for; GPUs that are none of that are an error."""
    manifest = read_json(made / "kept.json", RepositoryManifest)
    monkeypatch.setattr(trtllm, "visible_compute_capabilities", lambda: ["8.0", "8.0"])
    file, _ = read_model(made / "repository", ENGINE)
    assert file is not None
    found = {finding.code: finding for finding in engine_issues(made / "repository", {ENGINE: file}, manifest)}
    assert "9.0, GPUs here have 8.0" in found["compute-capability"].what


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(model=st.sampled_from(MODELS), seed=st.integers(0, 1 << 30))
def test_no_damage_ends_an_audit(folder: Path, model: str, seed: int) -> None:
    """Lines lost, doubled, cut or filled with noise: whatever became of a config.pbtxt, findings come out."""
    path = folder / "repository" / model / "config.pbtxt"
    before, rng = path.read_text(), random.Random(seed)
    lines = before.splitlines()
    for _ in range(rng.randint(1, 6)):
        at = rng.randrange(len(lines))
        kind = rng.randrange(4)
        lines[at] = (
            "",
            lines[at] * 2,
            lines[at][: rng.randrange(1 + len(lines[at]))],
            "".join(rng.choice('{}[]:"$ \n-9éx') for _ in range(rng.randrange(20))),
        )[kind]
    path.write_text("\n".join(lines))
    try:
        assert all(finding.fix for finding in audit_repository(folder / "repository"))
    finally:
        path.write_text(before)


def test_a_folder_that_is_no_repository_is_said(tmp_path: Path) -> None:
    """The folder above, or any other, is one clear error."""
    with pytest.raises(UserError, match="none of preprocessing"):
        audit_repository(tmp_path)
    with pytest.raises(MissingError, match="no such folder"):
        audit_repository(tmp_path / "nowhere")


def test_a_damaged_manifest_is_an_error_like_another(folder: Path) -> None:
    """A manifest.json cut short does not keep the rest from being looked through."""
    (folder / "repository" / "manifest.json").write_text("{")
    _parameter(ENGINE, "gpt_model_type", "x")(folder)
    assert {"manifest", "invalid-value"} <= {finding.code for finding in _found(folder)}


def _check(*arguments: object) -> int:
    with pytest.raises(SystemExit) as ended:
        check_repo.check_repo.main([str(argument) for argument in arguments])
    return int(ended.value.code or 0)


def test_the_command_says_no_by_its_status(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """0 without errors, 3 with an error; --json gives every finding."""
    assert _check(folder / "repository") == 0
    assert "no errors, no warnings" in capsys.readouterr().out
    _parameter(ENGINE, "gpt_model_type", "x")(folder)
    assert _check(folder / "repository") == 3
    said = capsys.readouterr().out
    assert "error: tensorrt_llm/config.pbtxt: gpt_model_type is 'x'" in said
    assert "fix: inflight_fused_batching" in said
    assert _check(folder / "repository", "--json") == 3
    document = json.loads(capsys.readouterr().out)
    assert document["errors"] == 1
    assert document["findings"][0]["code"] == "invalid-value"
