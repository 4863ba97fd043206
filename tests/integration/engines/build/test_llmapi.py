"""The PyTorch backend's inputs: a quantized Hugging Face checkpoint, read back, and the LLM API's arguments."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from engines.build.llmapi import llm_arguments, pytorch_refusal, serving_files
from engines.build.pipeline import exported_kv_format
from engines.errors import ToolError, UserError
from engines.files import Document, made_by
from engines.manifest import EngineManifest
from engines.planning import BuildPlan, emulated_manifest, make_plan
from engines.planning.recipe import resolve_recipe
from engines.spec.precision import PRECISIONS, KvFormat
from tests.tiny_checkpoints import WINDOWS, write_model

B200 = "b200-sxm-180gb"
GROUP = 64
ROPE = {
    "rope_theta": 1_000_000.0,
    "rope_type": "yarn",
    "factor": 4.0,
    "original_max_position_embeddings": 16,
    "attn_factor": 0.8782488562869419,
}


def plan_of(flags: dict[str, Any]) -> BuildPlan:
    """Plan the default model with some flags."""
    asked = resolve_recipe(None, {"backend": "pytorch", "gpu": "h100-sxm", **flags})
    return make_plan(asked, head=Document(made_by=made_by("test")))


def manifest_of(flags: dict[str, Any]) -> EngineManifest:
    """Return the manifest of the default model with some flags."""
    asked = resolve_recipe(None, {"backend": "pytorch", "gpu": "h100-sxm", **flags})
    return emulated_manifest(plan_of(flags), asked.recipe)


def dotted(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return all keys of nested mappings, joined by dots."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        found[prefix + key] = value
        if isinstance(value, dict):
            found |= dotted(value, f"{prefix}{key}.")
    return found


@pytest.mark.parametrize("precision", ["int8_sq", "int8_wo"])
def test_integer_precisions_are_refused(precision: str) -> None:
    """The PyTorch backend runs no INT8 weights, and the message says what it does run."""
    refused = pytorch_refusal(precision, "16bit")
    assert refused is not None
    assert precision in refused
    assert "fp8, int4_awq" in refused


def test_int8_cache_is_refused() -> None:
    """The PyTorch backend has no INT8 KV cache."""
    assert "INT8 KV cache" in (pytorch_refusal("bf16", "int8") or "")


def test_the_other_precisions_are_not_refused() -> None:
    """Every other precision goes, with either KV cache."""
    others = PRECISIONS.keys() - {"fp32", "int8_sq", "int8_wo"}
    kinds: tuple[KvFormat, ...] = ("16bit", "fp8")
    assert [pytorch_refusal(name, kv_cache) for name in sorted(others) for kv_cache in kinds] == [None] * 12


def test_the_files_of_an_engine_folder() -> None:
    """Triton's YAML and trtllm-serve's hold the same arguments; split servers add theirs and the router's."""
    files = serving_files(manifest_of({}), name="engine", checkpoint="/models/checkpoint")
    assert sorted(files) == ["commands.sh", "model.yaml", "trtllm-serve.yaml"]
    of_triton, served = yaml.safe_load(files["model.yaml"]), yaml.safe_load(files["trtllm-serve.yaml"])
    assert next(iter(of_triton)) == "model"
    assert of_triton.pop("model") == "/models/checkpoint"
    assert of_triton.pop("triton_config") == {"max_batch_size": 0, "decoupled": True}
    assert served == of_triton | {"return_perf_metrics": True, "enable_iter_perf_stats": True}
    split = {"disaggregation.context_servers": 1, "disaggregation.generation_servers": 1}
    assert set(serving_files(manifest_of(split), name="engine")) - set(files) == {
        "context.yaml",
        "generation.yaml",
        "disagg.yaml",
    }


@pytest.mark.parametrize(("asked", "release"), [({}, "1.2.1"), ({"trtllm_version": "1.3"}, "1.3.0rc29")])
def test_files_say_what_they_are_for(asked: dict[str, Any], release: str) -> None:
    """Each header names the engine, the release that loads the file, and how."""
    for name, text in serving_files(manifest_of(asked), name="the engine").items():
        header = [line for line in text.splitlines() if line.startswith("#")]
        assert any("the engine" in line for line in header), name
        assert any(f"TensorRT-LLM {release}" in line for line in header), name


def test_arguments_are_the_plans() -> None:
    """What was planned is what the LLM API is told."""
    flags = {"precision": "fp8", "limits.max_batch_size": 32, "limits.max_num_tokens": 4096}
    plan, found = plan_of(flags), dotted(llm_arguments(manifest_of(flags)))
    assert found["max_batch_size"] == found["cuda_graph_config.max_batch_size"] == 32
    assert found["max_num_tokens"] == 4096
    assert found["max_seq_len"] == plan.sizing.max_seq_len
    assert found["kv_cache_config.dtype"] == "fp8"
    assert found["kv_cache_config.free_gpu_memory_fraction"] == plan.sizing.kv_fraction
    assert found["scheduler_config.capacity_scheduler_policy"] == "GUARANTEED_NO_EVICT"
    assert found["enable_chunked_prefill"] is plan.runtime.chunked_context


def test_sixteen_bit_cache_is_left_to_the_checkpoint() -> None:
    """A 16-bit cache is `auto`: the checkpoint states no cache format, and the model's own is taken."""
    assert llm_arguments(manifest_of({"precision": "bf16"}))["kv_cache_config"]["dtype"] == "auto"


def test_nvfp4_cache_is_served_on_fp8_scales() -> None:
    """On Blackwell and 1.3: the checkpoint states FP8 scales, the server is told NVFP4, and the plan counts it so."""
    asked = {"gpu": B200, "kv_cache.format": "nvfp4", "trtllm_version": "1.3"}
    manifest = manifest_of(asked)
    assert llm_arguments(manifest)["kv_cache_config"]["dtype"] == "nvfp4"
    assert exported_kv_format("nvfp4") == "fp8"
    # 36 layers x 8 KV heads x 128 numbers, keys and values, at 4 bits and one FP8 scale for 16 numbers.
    assert manifest.kv_cache.bytes_per_token == 2 * 36 * 8 * 128 * 9 // 16
    assert manifest.kv_cache.blocks > manifest_of({**asked, "kv_cache.format": "fp8"}).kv_cache.blocks * 1.7


EAGLE = {"speculative.mode": "eagle3", "speculative.max_draft_len": 3, "speculative.draft_model": "head"}


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"kv_cache.format": "nvfp4", "trtllm_version": "1.3"}, "needs compute capability 10.0"),
        ({"kv_cache.format": "nvfp4", "gpu": B200}, "1.3, 1.4rc take it on FP8 scales"),
        (
            {"kv_cache.format": "nvfp4", "gpu": B200, "precision": "bf16", "trtllm_version": "1.3"},
            "FP8 or NVFP4",
        ),
        (
            {"kv_cache.format": "nvfp4", "gpu": B200, "backend": "tensorrt"},
            "engines have no NVFP4 KV cache",
        ),
        ({"trtllm_version": "1.3", "tensorrt_llm": "1.2.1"}, "different versions"),
        ({"tensorrt_llm": "2.0.0"}, "are not known"),
        ({"trtllm_version": "1.4rc", "backend": "tensorrt"}, "only the PyTorch backend has these"),
        ({"speculative.mode": "medusa", "speculative.max_draft_len": 3}, "built into a TensorRT engine"),
        ({**EAGLE, "backend": "tensorrt"}, "only the PyTorch backend has these"),
        ({**EAGLE, "speculative.draft_model": None}, "needs a draft model"),
        ({**EAGLE, "speculative.max_draft_len": 0}, "needs a draft length"),
        ({**EAGLE, "speculative.mode": "ngram"}, "takes no draft model"),
        ({**EAGLE, "speculative.mode": "none"}, "without speculative decoding"),
        ({**EAGLE, "limits.max_batch_size": 1024, "limits.max_num_tokens": 2048}, "4096 tokens of a full batch"),
        ({"disaggregation.context_servers": 2}, "needs prefill and decode servers"),
        ({"cuda_graphs.batch_sizes": (1, 4096)}, "from 1 to max_batch_size"),
        ({"lora.max_loras": 2}, "without lora.target_modules"),
    ],
)
def test_what_a_version_backend_or_gpu_lacks_is_refused(asked: dict[str, Any], told: str) -> None:
    """One clear error, with a hint, before any work begins."""
    with pytest.raises(UserError) as refused:
        plan_of(asked)
    assert told in refused.value.message
    assert refused.value.hint


def test_predictions_say_what_they_leave_out() -> None:
    """The step-time model is named; split servers, and speculation of unknown acceptance, are said to be left out."""
    split = {"disaggregation.context_servers": 1, "disaggregation.generation_servers": 1}
    ngram = {"speculative.mode": "ngram", "speculative.max_draft_len": 4}
    plan = plan_of({**ngram, **split, "step_time": "silicon"})
    notices = {notice.code: notice.text for notice in plan.notices}
    assert "silicon step-time model" in notices["pytorch-step-time"]
    assert {"speculative-not-predicted", "disaggregation-not-predicted"} <= notices.keys()
    assert "speculative-not-predicted" not in {notice.code for notice in plan_of({}).notices}
    accepted = {notice.code: notice.text for notice in plan_of(EAGLE).notices}
    assert "speculative-not-predicted" not in accepted
    assert "tokens per step" in accepted["acceptance"]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a tiny random Qwen3 whose rope is stretched with YaRN, in transformers 5's spelling."""
    pytest.importorskip("torch", reason="the quantize extra is not installed")
    pytest.importorskip("modelopt", reason="the quantize extra is not installed")
    folder = write_model(tmp_path_factory.mktemp("qwen3"), "qwen3", rope_parameters=dict(ROPE))
    (folder / "tokenizer_config.json").write_text('{"chat_template": "{{ messages }}"}')
    # Sampling defaults that transformers refuses to save, as published checkpoints have them.
    (folder / "generation_config.json").write_text('{"eos_token_id": 2, "temperature": 0.6, "top_p": 0.95}')
    return folder


def export(source: Path, out: Path, precision: str, kv_cache: KvFormat = "16bit") -> list[str]:
    """Quantize on a few made-up words; return the notices."""
    from engines.checkpoint.export_job import ExportJob  # noqa: PLC0415
    from engines.checkpoint.huggingface_export import quantize_huggingface  # noqa: PLC0415

    job = ExportJob(
        source=source,
        precision=precision,
        kv_cache=kv_cache,
        calibration=WINDOWS,
        seed=0,
    )
    notices = quantize_huggingface(job, out, progress=lambda _: None, log=out.with_suffix(".log"))
    return [f"{notice.code}: {notice.text}" for notice in notices]


def tensors_of(folder: Path) -> dict[str, Any]:
    """Load a checkpoint's tensors."""
    from safetensors.torch import load_file  # noqa: PLC0415

    return dict(load_file(folder / "model.safetensors"))


def stated(folder: Path, name: str) -> dict[str, Any]:
    """Load one of a checkpoint's JSON files."""
    loaded: dict[str, Any] = json.loads((folder / name).read_text())
    return loaded


def test_fp8_export_holds_the_source(source: Path, tmp_path: Path) -> None:
    """Each linear layer, multiplied by its scale, is the source's within FP8's half step; the rest is the source's."""
    out = tmp_path / "out"
    export(source, out, "fp8", "fp8")
    expected, found = tensors_of(source), tensors_of(out)
    for name, weight in expected.items():
        if not name.endswith("_proj.weight"):
            assert (found[name] == weight).all(), name
            continue
        layer = name.removesuffix(".weight")
        scale = found[f"{layer}.weight_scale"]
        assert found[f"{layer}.input_scale"] > 0
        wrong = (found[name].float() * scale - weight.float()).abs()
        # Three bits of mantissa: half a step is 1/16 of the number; below 2^-6 the steps stay at 2^-9 scales.
        assert (wrong <= weight.float().abs() / 16 + scale / 1024).all(), name
        assert scale == pytest.approx(float(weight.float().abs().max()) / 448, rel=0.01)
    quantization = stated(out, "hf_quant_config.json")["quantization"]
    assert (quantization["quant_algo"], quantization["kv_cache_quant_algo"]) == ("FP8", "FP8")
    assert found["model.layers.1.self_attn.k_proj.k_scale"] > 0
    assert found["model.layers.1.self_attn.v_proj.v_scale"] > 0
    assert (out / "model.safetensors").stat().st_mode & 0o044 == 0o044


def test_rope_scaling_survives(source: Path, tmp_path: Path) -> None:
    """YaRN is there for transformers 5 and, in the older spelling, for the transformers of TensorRT-LLM 1.x."""
    out = tmp_path / "out"
    notices = export(source, out, "fp8")
    config = stated(out, "config.json")
    assert config["rope_parameters"] == ROPE
    assert config["rope_theta"] == ROPE["rope_theta"]
    assert config["rope_scaling"] == {key: value for key, value in ROPE.items() if key != "rope_theta"}
    assert config["torch_dtype"] == config["dtype"] == "bfloat16"
    assert any(said.startswith("export-mended") and "rope_scaling" in said for said in notices)

    from transformers import AutoConfig  # noqa: PLC0415

    assert AutoConfig.from_pretrained(out).rope_parameters == AutoConfig.from_pretrained(source).rope_parameters


def test_older_spelling_of_rope_survives(source: Path, tmp_path: Path) -> None:
    """A source that spells rope as transformers 4 did gives the same export."""
    older = tmp_path / "source"
    older.mkdir()
    for path in source.iterdir():
        (older / path.name).symlink_to(path)
    config = stated(source, "config.json")
    scaling = config.pop("rope_parameters")
    config |= {"rope_theta": scaling.pop("rope_theta"), "rope_scaling": scaling}
    (older / "config.json").unlink()
    (older / "config.json").write_text(json.dumps(config))
    export(older, tmp_path / "out", "bf16")
    assert stated(tmp_path / "out", "config.json")["rope_parameters"] == ROPE
    assert stated(tmp_path / "out", "config.json")["rope_theta"] == ROPE["rope_theta"]


def test_lost_rope_is_mended(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the export drops a rope key it is put back, and said."""
    from engines.checkpoint import huggingface_export  # noqa: PLC0415

    def check_after_loss(config: dict[str, Any], job: Any) -> None:
        check(config, job)
        config["rope_parameters"] = {"rope_theta": 10_000.0, "rope_type": "default"}

    check = huggingface_export._check_huggingface_structure
    monkeypatch.setattr(huggingface_export, "_check_huggingface_structure", check_after_loss)
    notices = export(source, tmp_path / "out", "bf16")
    assert stated(tmp_path / "out", "config.json")["rope_parameters"] == ROPE
    assert any("attn_factor" in said and "mended" in said for said in notices)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_sixteen_bit_export_is_the_source(source: Path, tmp_path: Path, precision: str) -> None:
    """16-bit weights are the source's, no quantization is stated, and the tokenizer's files come along."""
    out = tmp_path / "out"
    export(source, out, precision)
    expected, found = tensors_of(source), tensors_of(out)
    assert expected.keys() == found.keys()
    assert all((found[name] == weight.to(found[name].dtype)).all() for name, weight in expected.items())
    assert {str(tensor.dtype) for tensor in found.values()} == {
        "torch.float16" if precision == "fp16" else "torch.bfloat16"
    }
    assert "quantization_config" not in stated(out, "config.json")
    assert not (out / "hf_quant_config.json").exists()
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        assert (out / name).read_bytes() == (source / name).read_bytes()


@pytest.mark.parametrize(
    ("precision", "kv_cache", "quant_algo"),
    [
        ("bf16", "fp8", None),
        ("int4_awq", "16bit", "W4A16_AWQ"),
        ("w4a8_awq", "fp8", "W4A8_AWQ"),
        ("nvfp4", "fp8", "NVFP4"),
    ],
)
def test_export_states_its_formats(
    source: Path, tmp_path: Path, precision: str, kv_cache: KvFormat, quant_algo: str | None
) -> None:
    """Every other format is exported, each tensor accounted for, and stated; 64 is the widest group that fits."""
    out = tmp_path / "out"
    notices = export(source, out, precision, kv_cache)
    quantization = stated(out, "hf_quant_config.json")["quantization"]
    assert quantization["quant_algo"] == quant_algo
    assert quantization["kv_cache_quant_algo"] == ("FP8" if kv_cache == "fp8" else None)
    if precision.endswith("awq"):
        assert quantization["group_size"] == GROUP
        assert any(said.startswith("group-size") for said in notices)
    found = tensors_of(out)
    assert ("model.layers.0.self_attn.k_proj.k_scale" in found) is (kv_cache == "fp8")
    assert ("model.layers.0.mlp.up_proj.weight_scale" in found) is (precision != "bf16")


@pytest.mark.parametrize("name", ["self_attn.v_proj.v_scale", "mlp.down_proj.weight_scale"])
@pytest.mark.parametrize(("damage", "told"), [("dropped", "missing"), ("zero", "not positive"), ("wide", "expected")])
def test_damaged_scale_is_told(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, damage: str, told: str
) -> None:
    """A scale that is missing, zero or misshapen is a failure of the tool, named."""
    from safetensors.torch import save_file  # noqa: PLC0415

    from engines.checkpoint import huggingface_export  # noqa: PLC0415

    full = f"model.layers.1.{name}"

    def damaged(out: Path, job: Any) -> list[Any]:
        tensors = tensors_of(out)
        kept = tensors.pop(full)
        if damage != "dropped":
            tensors[full] = 0 * kept if damage == "zero" else kept.reshape(1)
        save_file(tensors, out / "model.safetensors")
        return mend(out, job)

    mend = huggingface_export._mend_huggingface_config
    monkeypatch.setattr(huggingface_export, "_mend_huggingface_config", damaged)
    with pytest.raises(ToolError, match=f"{name}.*{told}"):
        export(source, tmp_path / "out", "fp8", "fp8")


def test_other_format_than_asked_is_told(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An export that states another KV format than was asked for is not taken."""
    from engines.checkpoint import huggingface_export  # noqa: PLC0415

    monkeypatch.setitem(huggingface_export.KV_ALGO, "16bit", "FP8")
    with pytest.raises(ToolError, match="kv_cache_quant_algo = None"):
        export(source, tmp_path / "out", "fp8", "16bit")


@pytest.mark.parametrize(("precision", "kv_cache"), [("int8_sq", "16bit"), ("bf16", "int8")])
def test_integer_formats_are_not_exported(source: Path, tmp_path: Path, precision: str, kv_cache: KvFormat) -> None:
    """What the PyTorch backend does not run is not written."""
    with pytest.raises(UserError, match="no Hugging Face export"):
        export(source, tmp_path / "out", precision, kv_cache)
    assert not (tmp_path / "out").exists()
