"""Writes a checkpoint in Hugging Face's layout, for the LLM API of TensorRT-LLM."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from engines.checkpoint.export_config import KV_ALGO, same
from engines.checkpoint.export_job import ExportJob, Layout, group_notices, layout_of
from engines.checkpoint.inspection import expected_shapes, library
from engines.checkpoint.modelopt import Progress
from engines.checkpoint.quantization import quantize_with
from engines.checkpoint.shards import TensorFacts, read_tensors, shard_paths, some
from engines.errors import ToolError, UserError
from engines.files import write_text
from engines.manifest import Notice
from engines.names import TOKENIZER_FILE
from engines.spec import precision_named

# Tensors that the PyTorch backend loads in addition to a quantized linear layer's weight.
_HUGGINGFACE_SCALES: dict[str, tuple[str, ...]] = {
    "bf16": (),
    "fp16": (),
    "fp8": ("weight_scale", "input_scale"),
    "int4_awq": ("weight_scale",),
    "w4a8_awq": ("weight_scale", "weight_scale_2", "input_scale"),
    "nvfp4": ("weight_scale", "weight_scale_2", "input_scale"),
}


_AWQ_SCALE = "pre_quant_scale"  # only if it could not be folded into the previous layer


_KV_SCALES = {"k_proj": "k_scale", "v_proj": "v_scale"}


# Files of the source other than weights, copied unchanged.
_HUGGINGFACE_FILES = (
    TOKENIZER_FILE,
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "generation_config.json",
)


def quantize_huggingface(job: ExportJob, out: Path, *, progress: Progress, log: Path | None = None) -> list[Notice]:
    """Quantize a Hugging Face checkpoint into a Hugging Face checkpoint for TensorRT-LLM's PyTorch backend.

    The checkpoint is not split, regardless of the number of GPUs: TensorRT-LLM splits it on loading. Layers, heads and
    groups must still divide by the job's tensor and pipeline parallel sizes.

    Args:
        out: Folder for config.json, hf_quant_config.json, safetensors and tokenizer; created if missing.
        log: File for the libraries' output; None: discarded.

    Returns:
        Notices: corrections of the export's config, an unusual group size.

    Raises:
        MissingError: ModelOpt, torch or transformers is not installed, or this ModelOpt is unsuitable.
        UserError: The model cannot be split or grouped as requested, or the PyTorch backend does not run the format.
        ToolError: ModelOpt failed, or its export cannot be corrected.
    """
    if precision_named(job.precision).name not in _HUGGINGFACE_SCALES or job.kv_cache == "int8":
        raise UserError(
            f"{job.precision} with a {job.kv_cache} KV cache has no Hugging Face export",
            hint=f"known: {', '.join(_HUGGINGFACE_SCALES)}, with a 16-bit or FP8 KV cache",
        )
    layout = layout_of(job, "pytorch")
    quantize_with(job, layout, out, lambda model: _export(model, layout, out), progress=progress, log=log)
    for name in _HUGGINGFACE_FILES:
        if (job.source / name).is_file():
            shutil.copyfile(job.source / name, out / name)
    for shard in out.glob("*.safetensors"):
        shard.chmod(0o644)  # written owner-only, but a server may run as another user
    notices = _mend_huggingface_config(out, layout)
    _check_huggingface_tensors(out, layout)
    return [*group_notices(layout), *notices]


def _export(model: Any, layout: Layout, out: Path) -> None:
    torch, export = library("torch"), library("modelopt.torch.export")
    with torch.inference_mode():
        export.export_hf_checkpoint(model, dtype=getattr(torch, layout.dtype), export_dir=out)


def _mend_huggingface_config(out: Path, layout: Layout) -> list[Notice]:
    """Compare a Hugging Face export's configs with the request and the source; correct rope and dtype.

    transformers 5 writes rope as `rope_parameters` and the dtype as `dtype`. The transformers 4 that TensorRT-LLM 1.x
    uses reads neither, and would run with a rotary base of 10,000 and no scaling: both spellings are written.
    """
    path = out / "config.json"
    config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    _check_huggingface_structure(config, layout)
    _check_huggingface_quantization(out, config, layout)
    rope = layout.facts.rope
    scaling = rope.scaling or {}
    parameters = {"rope_theta": rope.base, "rope_type": "default", **scaling}
    stated = config.get("rope_parameters") or {}
    changed = {key: value for key, value in parameters.items() if not same(stated.get(key), value)}
    notices = []
    if changed:
        text = (
            f"ModelOpt's export said rope_parameters = {json.dumps(stated)}; "
            f"mended with {json.dumps(changed)} as in the source checkpoint"
        )
        notices.append(Notice(code="export-mended", text=text))
    older = {"rope_theta": rope.base, "torch_dtype": layout.dtype} | ({"rope_scaling": scaling} if scaling else {})
    added = [key for key, value in older.items() if config.get(key) != value]
    if added:
        text = (
            f"ModelOpt's export left out {', '.join(added)}, which the transformers 4 of TensorRT-LLM 1.x reads; "
            "added as in the source checkpoint"
        )
        notices.append(Notice(code="export-mended", text=text))
    config |= {"rope_parameters": stated | parameters, **older}
    write_text(path, json.dumps(config, indent=2) + "\n")
    return notices


def _check_huggingface_structure(config: dict[str, Any], layout: Layout) -> None:
    facts = layout.facts
    expected: dict[str, Any] = {
        "architectures": [facts.architecture],
        "model_type": facts.model_type,
        "hidden_size": facts.hidden_size,
        "intermediate_size": facts.intermediate_size,
        "num_hidden_layers": facts.layers,
        "num_attention_heads": facts.attention_heads,
        "num_key_value_heads": facts.kv_heads,
        "head_dim": facts.head_size,
        "vocab_size": facts.vocab_size,
        "max_position_embeddings": facts.max_position_embeddings,
        "rms_norm_eps": facts.norm_epsilon,
        "hidden_act": facts.activation,
        "tie_word_embeddings": facts.tied_embeddings,
        "dtype": layout.dtype,
    }
    defaults = {
        "head_dim": facts.hidden_size // facts.attention_heads,
        "num_key_value_heads": facts.attention_heads,
        "tie_word_embeddings": False,
    }
    for key, value in expected.items():
        found = config.get(key)
        found = defaults.get(key) if found is None else found
        if not same(found, value):
            raise ToolError(f"ModelOpt's export states {key} = {found}, but the source requires {value}")


def _check_huggingface_quantization(out: Path, config: dict[str, Any], layout: Layout) -> None:
    """Check that both places a loader may read state the requested formats."""
    path = out / "hf_quant_config.json"
    required: dict[str, Any] = {
        "quant_algo": precision_named(layout.precision).quant_algo,
        "kv_cache_quant_algo": KV_ALGO[layout.kv_cache],
    }
    found = json.loads(path.read_text(encoding="utf-8")).get("quantization", {}) if path.is_file() else {}
    if layout.group_size:
        required["group_size"] = layout.group_size
    for key, value in required.items():
        if found.get(key) != value:
            raise ToolError(f"ModelOpt's export states {key} = {found.get(key)} in {path.name}, expected {value}")
    inline = config.get("quantization_config") or {}
    if inline.get("quant_algo") != required["quant_algo"]:
        raise ToolError(
            f"ModelOpt's export states quant_algo = {inline.get('quant_algo')} in config.json, "
            f"{required['quant_algo']} was asked for"
        )


def _check_huggingface_tensors(out: Path, layout: Layout) -> None:
    """Check that a Hugging Face export has all expected tensors and no others, and that its scales can be used."""
    try:
        found = read_tensors(out)
    except UserError as error:
        raise ToolError(f"ModelOpt's export cannot be read: {error}") from error
    expected = _huggingface_tensors(layout)
    missing = sorted(expected.keys() - found.keys())
    if missing:
        raise ToolError(f"ModelOpt's export: {some(missing)} missing")
    linears = {name.removesuffix(".weight") for name in expected if _is_linear(name)}
    optional = {f"{name}.{_AWQ_SCALE}" for name in linears} if layout.precision.endswith("awq") else set()
    if layout.facts.tied_embeddings:
        optional.add("lm_head.weight")
    unexpected = sorted(found.keys() - expected.keys() - optional)
    if unexpected:
        raise ToolError(f"ModelOpt's export: {some(unexpected)} unknown")
    for name, wanted in expected.items():
        if found[name] != wanted:
            stated = f"{found[name].dtype} {list(found[name].shape)}"
            raise ToolError(
                f"ModelOpt's export: tensor '{name}' is {stated}, expected {wanted.dtype} {list(wanted.shape)}"
            )
    _check_scales(out)


def _huggingface_tensors(layout: Layout) -> dict[str, TensorFacts]:
    """Return every tensor that a Hugging Face export must contain."""
    sixteen_bit = "F16" if layout.dtype == "float16" else "BF16"
    tensors: dict[str, TensorFacts] = {}
    for name, shape in expected_shapes(layout.facts).items():
        if not _is_linear(name):
            tensors[name] = TensorFacts(shape, sixteen_bit)
            continue
        layer = name.removesuffix(".weight")
        tensors[name] = _huggingface_weight(layout, shape, sixteen_bit)
        for scale in _HUGGINGFACE_SCALES[layout.precision]:
            tensors[f"{layer}.{scale}"] = _huggingface_scale(layout, scale, shape)
        kv_scale = _KV_SCALES.get(layer.rpartition(".")[2])
        if layout.kv_cache == "fp8" and kv_scale:
            tensors[f"{layer}.{kv_scale}"] = TensorFacts((), "F32")
    return tensors


def _is_linear(name: str) -> bool:
    """Return whether a tensor is the weight of a layer that a precision quantizes."""
    return name.endswith("_proj.weight")


def _huggingface_weight(layout: Layout, shape: tuple[int, ...], sixteen_bit: str) -> TensorFacts:
    rows, columns = shape
    if layout.precision == "fp8":
        return TensorFacts(shape, "F8_E4M3")
    if layout.precision == "nvfp4":  # two numbers per byte, along a row
        return TensorFacts((rows, columns // 2), "U8")
    if layout.precision.endswith("awq"):  # two numbers per byte, along a column
        return TensorFacts((rows // 2, columns), "U8")
    return TensorFacts(shape, sixteen_bit)


def _huggingface_scale(layout: Layout, scale: str, shape: tuple[int, ...]) -> TensorFacts:
    if scale == "weight_scale" and layout.group_size:
        rows, columns = shape
        return TensorFacts((rows, columns // layout.group_size), "F8_E4M3" if layout.precision == "nvfp4" else "F32")
    return TensorFacts((), "F32")


def _check_scales(out: Path) -> None:
    torch, safetensors = library("torch"), library("safetensors")
    for shard in shard_paths(out):
        with safetensors.safe_open(shard, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 (not a mapping)
                if "scale" not in name.rpartition(".")[2]:
                    continue
                values = file.get_tensor(name).float()
                if not (torch.isfinite(values).all() and (values >= 0).all() and (values > 0).any()):
                    raise ToolError(f"ModelOpt's export: tensor '{name}' contains scales that are not positive numbers")
