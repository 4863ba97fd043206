"""Quantize a checkpoint and export it for TensorRT-LLM: the one file that knows ModelOpt.

ModelOpt's export is not taken at its word. What its config states is compared with the source and mended, and every
tensor is accounted for, before anything is built from it.
"""

from __future__ import annotations

import contextlib
import copy
import io
import json
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from engines.checkpoint import CheckpointFacts, expected_shapes, inspect_checkpoint, library
from engines.corpus import TextWindows
from engines.errors import ToolError, UserError
from engines.exported import read_exported
from engines.files import write_text
from engines.manifest import Notice
from engines.shards import TensorFacts, read_tensors, shard_paths, some
from engines.spec.precision import KvFormat, precision_named

Progress = Callable[[str], None]

# ModelOpt's preset of each precision; the 16-bit ones have none.
_PRESETS = {
    "fp8": "FP8_DEFAULT_CFG",
    "int8_sq": "INT8_SMOOTHQUANT_CFG",
    "int8_wo": "INT8_WEIGHT_ONLY_CFG",
    "int4_awq": "INT4_AWQ_CFG",
    "w4a8_awq": "W4A8_AWQ_BETA_CFG",
    "nvfp4": "NVFP4_DEFAULT_CFG",
}
_KV_BITS: dict[KvFormat, Any] = {"int8": 8, "fp8": (4, 3)}
_KV_ALGO: dict[KvFormat, str | None] = {"16bit": None, "int8": "INT8", "fp8": "FP8"}
_AWQ_GROUPS = (128, 64)  # the group sizes TensorRT-LLM has kernels for
_NVFP4_GROUP = 16
_AWQ_VOCAB_MULTIPLE = 64  # ModelOpt pads embedding and output projection to this
_BATCH_TOKENS = 8192  # AWQ rounds every weight eleven times a batch: few large batches are several times faster
_LAST_LINES = 12
_LIBRARIES_BYTES = 650_000_000  # torch, transformers and ModelOpt once imported

# What TensorRT-LLM 1.2 takes where config.json does not say; a key that is absent and defaults right is not a fault.
_LLAMA_DEFAULTS = {"rotary_base": 10000.0, "rotary_scaling": None, "attn_bias": False, "mlp_bias": False}
_QWEN_DEFAULTS = {**_LLAMA_DEFAULTS, "attn_bias": True}
# Keys the weights' shapes follow from: if one of these is wrong, the tensors are too.
_STRUCTURE = ("architecture", "hidden_size", "intermediate_size", "num_hidden_layers", "hidden_act", "dtype")

# What the PyTorch backend loads besides a quantized linear layer's weight.
_HUGGINGFACE_SCALES: dict[str, tuple[str, ...]] = {
    "bf16": (),
    "fp16": (),
    "fp8": ("weight_scale", "input_scale"),
    "int4_awq": ("weight_scale",),
    "w4a8_awq": ("weight_scale", "weight_scale_2", "input_scale"),
    "nvfp4": ("weight_scale", "weight_scale_2", "input_scale"),
}
_AWQ_SCALE = "pre_quant_scale"  # only where it could not be folded into the layer before
_KV_SCALES = {"k_proj": "k_scale", "v_proj": "v_scale"}
# Files of the source that are not weights: copied as they are.
_HUGGINGFACE_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "generation_config.json",
)


@dataclass(frozen=True, slots=True)
class _Job:
    """What to make of a checkpoint."""

    facts: CheckpointFacts
    precision: str
    kv_cache: KvFormat
    group_size: int
    tensor_parallel: int
    pipeline_parallel: int

    @property
    def dtype(self) -> str:
        return "float16" if self.precision == "fp16" else "bfloat16"

    @property
    def needs_text(self) -> bool:
        return self.kv_cache != "16bit" or self.precision not in {"bf16", "fp16", "int8_wo"}


def quantize(  # noqa: PLR0913 (the choices of one export)
    source: Path,
    out: Path,
    *,
    precision: str,
    kv_cache: KvFormat,
    calibration: TextWindows,
    seed: int,
    tensor_parallel: int = 1,
    pipeline_parallel: int = 1,
    progress: Progress,
    log: Path | None = None,
) -> list[Notice]:
    """Quantize a Hugging Face checkpoint and write a TensorRT-LLM checkpoint, one safetensors file a rank.

    Args:
        out: Folder for config.json and rank*.safetensors; created where it is not there.
        calibration: Text that activation ranges are measured on; not read for weight-only precisions.
        seed: Of torch's generator; the caller's generator is left as it was.
        log: What the libraries print is appended here; without it, it is dropped.

    Returns:
        What a reader must know: what was mended in the export's config, a group size other than the precision's own.

    Raises:
        MissingError: ModelOpt, torch or transformers is not installed.
        UserError: The model cannot be split or grouped as asked.
        ToolError: ModelOpt failed, or its export cannot be mended.
    """
    facts = inspect_checkpoint(source, hash_files=False)
    job = _checked_job(facts, precision_named(precision).name, kv_cache, tensor_parallel, pipeline_parallel)
    windows = calibration.token_windows(source / "tokenizer.json") if job.needs_text else []
    out.mkdir(parents=True, exist_ok=True)
    with _as_tool_error(log), chatter_to(log):
        model = _load(source, job)
        _calibrate(model, job, windows, seed=seed, progress=progress)
        progress("export ...")
        _export(model, job, out)
        del model
    notices = mend_config(out, job.facts, precision=job.precision, kv_cache=job.kv_cache)
    read_exported(out)
    return [*_group_notices(job), *notices]


def quantize_huggingface(  # noqa: PLR0913 (the choices of one export)
    source: Path,
    out: Path,
    *,
    precision: str,
    kv_cache: KvFormat,
    calibration: TextWindows,
    seed: int,
    tensor_parallel: int = 1,
    pipeline_parallel: int = 1,
    progress: Progress,
    log: Path | None = None,
) -> list[Notice]:
    """Quantize a Hugging Face checkpoint and write a Hugging Face checkpoint, for TensorRT-LLM's PyTorch backend.

    The checkpoint is not split, whatever the number of GPUs: TensorRT-LLM splits it as it loads.

    Args:
        out: Folder for config.json, hf_quant_config.json, safetensors and tokenizer; created where it is not there.
        tensor_parallel: GPUs the layers must divide over, their groups too.
        pipeline_parallel: GPUs the number of layers must divide over.

    Returns:
        What a reader must know: what was mended in the export's config, a group size other than the precision's own.

    Raises:
        MissingError: ModelOpt, torch or transformers is not installed.
        UserError: The model cannot be split or grouped as asked, or the PyTorch backend does not run the format.
        ToolError: ModelOpt failed, or its export cannot be mended.
    """
    facts = inspect_checkpoint(source, hash_files=False)
    if precision_named(precision).name not in _HUGGINGFACE_SCALES or kv_cache == "int8":
        raise UserError(
            f"{precision} with a {kv_cache} KV cache has no Hugging Face export",
            hint=f"known: {', '.join(_HUGGINGFACE_SCALES)}, with a 16-bit or FP8 KV cache",
        )
    job = _checked_job(facts, precision_named(precision).name, kv_cache, tensor_parallel, pipeline_parallel)
    windows = calibration.token_windows(source / "tokenizer.json") if job.needs_text else []
    out.mkdir(parents=True, exist_ok=True)
    with _as_tool_error(log), chatter_to(log):
        model = _load(source, job)
        _calibrate(model, job, windows, seed=seed, progress=progress)
        progress("export ...")
        torch, export = library("torch"), library("modelopt.torch.export")
        with torch.inference_mode():
            export.export_hf_checkpoint(model, dtype=getattr(torch, job.dtype), export_dir=out)
        del model
    for name in _HUGGINGFACE_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, out / name)
    for shard in out.glob("*.safetensors"):
        shard.chmod(0o644)  # written for the owner alone, and a server may run as somebody else
    notices = _mend_huggingface_config(out, job)
    _check_huggingface_tensors(out, job)
    return [*_group_notices(job), *notices]


def peak_memory_bytes(facts: CheckpointFacts, precision: str, *, ranks: int = 1) -> int:
    """Return about how much memory `quantize` takes at its peak, in bytes; rather too much than too little.

    The model at 16 bit; its export beside it, which for more than one GPU is copied once more; what calibration holds
    of one batch; and the libraries. Measured in FP8 for one GPU: 5.3 and 8.5 GiB for Qwen3-8B's geometry with 2 and 8
    of its layers, where this gives 8.8 and 12.1; a Llama of 509 million parameters 1.9 GB in bf16, 2.3 GB in fp8, and
    3.0 GB in fp8 for two GPUs.
    """
    head_bytes = 2 * facts.vocab_size * facts.hidden_size
    embeddings = facts.vocab_size * facts.hidden_size * (1 if facts.tied_embeddings else 2)
    exported_bytes = precision_named(precision).linear_bytes(facts.parameters - embeddings) + 2 * head_bytes
    copies = 1 if ranks == 1 else 2
    batch_bytes = _BATCH_TOKENS * 4 * (4 * facts.intermediate_size + 8 * facts.hidden_size)
    return _LIBRARIES_BYTES + 2 * facts.parameters + copies * exported_bytes + batch_bytes


def _checked_job(
    facts: CheckpointFacts, precision: str, kv_cache: KvFormat, tensor_parallel: int, pipeline_parallel: int
) -> _Job:
    if facts.activation != "silu":
        raise UserError(f"{facts.name}: activation {facts.activation} is not supported", hint="known: silu")
    divided = {
        "attention heads": (facts.attention_heads, tensor_parallel),
        "KV heads": (facts.kv_heads, tensor_parallel),
        "intermediate size": (facts.intermediate_size, tensor_parallel),
        "layers": (facts.layers, pipeline_parallel),
    }
    for what, (count, ranks) in divided.items():
        if count % ranks:
            raise UserError(
                f"{facts.name}: {count} {what} do not divide over {ranks} GPUs", hint="lower --tp or --pp to a divisor"
            )
    return _Job(
        facts=facts,
        precision=precision,
        kv_cache=kv_cache,
        group_size=_group_size(facts, precision, tensor_parallel),
        tensor_parallel=tensor_parallel,
        pipeline_parallel=pipeline_parallel,
    )


def _group_size(facts: CheckpointFacts, precision: str, tensor_parallel: int) -> int:
    """Return the largest group that divides every linear layer's input on every rank; 0 where there are no groups."""
    candidates = {"int4_awq": _AWQ_GROUPS, "w4a8_awq": _AWQ_GROUPS, "nvfp4": (_NVFP4_GROUP,)}.get(precision, ())
    if not candidates:
        return 0
    inputs = (
        facts.hidden_size,
        facts.attention_heads * facts.head_size // tensor_parallel,
        facts.intermediate_size // tensor_parallel,
    )
    for group in candidates:
        if all(size % group == 0 for size in inputs):
            return group
    raise UserError(
        f"{facts.name}: {precision} needs linear layers whose inputs divide by {candidates[-1]}; they are "
        f"{', '.join(str(size) for size in inputs)} wide on each of {tensor_parallel} GPUs",
        hint="choose fp8 or int8_wo, or a lower --tp",
    )


def _group_notices(job: _Job) -> list[Notice]:
    usual = precision_named(job.precision).group_size
    if job.group_size == usual:
        return []
    text = (
        f"{job.precision} weights share a scale in groups of {job.group_size}, not {usual}: "
        f"this model's linear layers do not divide by {usual}"
    )
    return [Notice(code="group-size", text=text)]


def _load(source: Path, job: _Job) -> Any:
    torch, transformers = library("torch"), library("transformers")
    model = transformers.AutoModelForCausalLM.from_pretrained(
        source, dtype=getattr(torch, job.dtype), local_files_only=True, use_safetensors=True, trust_remote_code=False
    )
    return model.eval()


def _calibrate(model: Any, job: _Job, windows: list[list[int]], *, seed: int, progress: Progress) -> None:
    """Insert quantizers and set their ranges; does nothing for 16 bit throughout."""
    config = _quantizer_config(job)
    if config is None:
        return
    torch, mtq = library("torch"), library("modelopt.torch.quantization")
    progress(f"calibrate on {len(windows)} windows ..." if windows else "scale weights ...")

    def run_text(calibrated: Any) -> None:
        size = max(_BATCH_TOKENS // len(windows[0]), 1)
        with torch.inference_mode():
            for begin in range(0, len(windows), size):
                # The decoder alone: the output projection is not quantized, and its logits would be the largest tensor.
                calibrated.model(torch.tensor(windows[begin : begin + size]), use_cache=False)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        mtq.quantize(model, config, forward_loop=run_text if windows else None)


def _quantizer_config(job: _Job) -> dict[str, Any] | None:
    mtq = library("modelopt.torch.quantization")
    if job.precision in _PRESETS:
        config: dict[str, Any] = copy.deepcopy(getattr(mtq, _PRESETS[job.precision]))
    else:
        config = {"quant_cfg": [{"quantizer_name": "*", "enable": False}], "algorithm": "max"}
    for entry in config["quant_cfg"]:
        _set_group_size(entry.get("cfg"), job.group_size)
    if job.kv_cache != "16bit":
        cache = {"num_bits": _KV_BITS[job.kv_cache], "axis": None}
        config["quant_cfg"].append({"quantizer_name": "*[kv]_bmm_quantizer", "cfg": cache})
    elif job.precision not in _PRESETS:
        return None
    return config


def _set_group_size(config: Any, group_size: int) -> None:
    for quantizer in config if isinstance(config, list) else [config]:
        blocks = (quantizer or {}).get("block_sizes")
        if blocks and group_size:
            blocks[-1] = group_size


def _export(model: Any, job: _Job, out: Path) -> None:
    torch, export = library("torch"), library("modelopt.torch.export")
    decoder = "qwen" if job.facts.architecture.startswith("Qwen") else "llama"
    with torch.inference_mode():
        export.export_tensorrt_llm_checkpoint(
            model,
            decoder,
            getattr(torch, job.dtype),
            out,
            inference_tensor_parallel=job.tensor_parallel,
            inference_pipeline_parallel=job.pipeline_parallel,
        )


def mend_config(out: Path, facts: CheckpointFacts, *, precision: str, kv_cache: KvFormat) -> list[Notice]:
    """Compare an export's config.json with its source, write right what is wrong, and say what it was.

    Raises:
        ToolError: Something is wrong that a config cannot mend, because the weights follow from it.
    """
    path = out / "config.json"
    config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    _check_structure(config, facts, precision=precision, kv_cache=kv_cache)
    defaults = _QWEN_DEFAULTS if facts.architecture.startswith("Qwen") else _LLAMA_DEFAULTS
    expected = _expected_config(facts, config)
    notices = []
    for key, value in expected.items():
        stated = config.get(key, defaults.get(key))
        found = f"said {key} = {stated}" if key in config else f"left out {key}"
        config[key] = value
        if not _same(stated, value):
            text = f"ModelOpt's export {found}; mended to {json.dumps(value)} as in the source checkpoint"
            notices.append(Notice(code="export-mended", text=text))
    write_text(path, json.dumps(config, indent=2) + "\n")
    return notices


def _check_structure(config: dict[str, Any], facts: CheckpointFacts, *, precision: str, kv_cache: KvFormat) -> None:
    quantization = config.get("quantization", {})
    found = {key: config.get(key) for key in _STRUCTURE}
    found |= {key: quantization.get(key) for key in ("quant_algo", "kv_cache_quant_algo")}
    expected = {
        "architecture": facts.architecture,
        "hidden_size": facts.hidden_size,
        "intermediate_size": facts.intermediate_size,
        "num_hidden_layers": facts.layers,
        "hidden_act": facts.activation,
        "dtype": "float16" if precision == "fp16" else "bfloat16",
        "quant_algo": precision_named(precision).quant_algo,
        "kv_cache_quant_algo": _KV_ALGO[kv_cache],
    }
    for key, value in expected.items():
        if found[key] != value:
            raise ToolError(f"ModelOpt's export states {key} = {found[key]}, the source calls for {value}")


def _mend_huggingface_config(out: Path, job: _Job) -> list[Notice]:
    """Compare a Hugging Face export's configs with what was asked and with the source; mend rope and dtype.

    transformers 5 writes rope as `rope_parameters` and the dtype as `dtype`. The transformers 4 that TensorRT-LLM 1.x
    comes with reads neither, and would run with a rotary base of 10,000 and no scaling: both spellings are written.
    """
    path = out / "config.json"
    config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    _check_huggingface_structure(config, job)
    _check_huggingface_quantization(out, config, job)
    rope = job.facts.rope
    scaling = rope.scaling or {}
    parameters = {"rope_theta": rope.base, "rope_type": "default", **scaling}
    stated = config.get("rope_parameters") or {}
    changed = {key: value for key, value in parameters.items() if not _same(stated.get(key), value)}
    notices = []
    if changed:
        text = (
            f"ModelOpt's export said rope_parameters = {json.dumps(stated)}; "
            f"mended with {json.dumps(changed)} as in the source checkpoint"
        )
        notices.append(Notice(code="export-mended", text=text))
    older = {"rope_theta": rope.base, "torch_dtype": job.dtype} | ({"rope_scaling": scaling} if scaling else {})
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


def _check_huggingface_structure(config: dict[str, Any], job: _Job) -> None:
    facts = job.facts
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
        "dtype": job.dtype,
    }
    defaults = {
        "head_dim": facts.hidden_size // facts.attention_heads,
        "num_key_value_heads": facts.attention_heads,
        "tie_word_embeddings": False,
    }
    for key, value in expected.items():
        found = config.get(key)
        found = defaults.get(key) if found is None else found
        if not _same(found, value):
            raise ToolError(f"ModelOpt's export states {key} = {found}, the source calls for {value}")


def _check_huggingface_quantization(out: Path, config: dict[str, Any], job: _Job) -> None:
    """Prove that both places a loader may look state the formats asked for."""
    path = out / "hf_quant_config.json"
    asked: dict[str, Any] = {
        "quant_algo": precision_named(job.precision).quant_algo,
        "kv_cache_quant_algo": _KV_ALGO[job.kv_cache],
    }
    found = json.loads(path.read_text(encoding="utf-8")).get("quantization", {}) if path.is_file() else {}
    if job.group_size:
        asked["group_size"] = job.group_size
    for key, value in asked.items():
        if found.get(key) != value:
            raise ToolError(f"ModelOpt's export states {key} = {found.get(key)} in {path.name}, {value} was asked for")
    inline = config.get("quantization_config") or {}
    if inline.get("quant_algo") != asked["quant_algo"]:
        raise ToolError(
            f"ModelOpt's export states quant_algo = {inline.get('quant_algo')} in config.json, "
            f"{asked['quant_algo']} was asked for"
        )


def _check_huggingface_tensors(out: Path, job: _Job) -> None:
    """Account for every tensor of a Hugging Face export, and prove its scales numbers to multiply with."""
    try:
        found = read_tensors(out)
    except UserError as error:
        raise ToolError(f"ModelOpt's export cannot be read: {error}") from error
    expected = _huggingface_tensors(job)
    missing = sorted(expected.keys() - found.keys())
    if missing:
        raise ToolError(f"ModelOpt's export: {some(missing)} missing")
    linears = {name.removesuffix(".weight") for name in expected if _is_linear(name)}
    optional = {f"{name}.{_AWQ_SCALE}" for name in linears} if job.precision.endswith("awq") else set()
    if job.facts.tied_embeddings:
        optional.add("lm_head.weight")
    unexpected = sorted(found.keys() - expected.keys() - optional)
    if unexpected:
        raise ToolError(f"ModelOpt's export: {some(unexpected)} not known")
    for name, wanted in expected.items():
        if found[name] != wanted:
            stated = f"{found[name].dtype} {list(found[name].shape)}"
            raise ToolError(
                f"ModelOpt's export: tensor '{name}' is {stated}, expected {wanted.dtype} {list(wanted.shape)}"
            )
    _check_scales(out)


def _huggingface_tensors(job: _Job) -> dict[str, TensorFacts]:
    """Return every tensor that a Hugging Face export must hold."""
    sixteen_bit = "F16" if job.dtype == "float16" else "BF16"
    tensors: dict[str, TensorFacts] = {}
    for name, shape in expected_shapes(job.facts).items():
        if not _is_linear(name):
            tensors[name] = TensorFacts(shape, sixteen_bit)
            continue
        layer = name.removesuffix(".weight")
        tensors[name] = _huggingface_weight(job, shape, sixteen_bit)
        for scale in _HUGGINGFACE_SCALES[job.precision]:
            tensors[f"{layer}.{scale}"] = _huggingface_scale(job, scale, shape)
        kv_scale = _KV_SCALES.get(layer.rpartition(".")[2])
        if job.kv_cache == "fp8" and kv_scale:
            tensors[f"{layer}.{kv_scale}"] = TensorFacts((), "F32")
    return tensors


def _is_linear(name: str) -> bool:
    """Return whether a tensor is the weight of a layer that is quantized."""
    return name.endswith("_proj.weight")


def _huggingface_weight(job: _Job, shape: tuple[int, ...], sixteen_bit: str) -> TensorFacts:
    rows, columns = shape
    if job.precision == "fp8":
        return TensorFacts(shape, "F8_E4M3")
    if job.precision == "nvfp4":  # two numbers a byte, along a row
        return TensorFacts((rows, columns // 2), "U8")
    if job.precision.endswith("awq"):  # two numbers a byte, along a column
        return TensorFacts((rows // 2, columns), "U8")
    return TensorFacts(shape, sixteen_bit)


def _huggingface_scale(job: _Job, scale: str, shape: tuple[int, ...]) -> TensorFacts:
    if scale == "weight_scale" and job.group_size:
        rows, columns = shape
        return TensorFacts((rows, columns // job.group_size), "F8_E4M3" if job.precision == "nvfp4" else "F32")
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
                    raise ToolError(f"ModelOpt's export: tensor '{name}' holds scales that are not positive numbers")


def _expected_config(facts: CheckpointFacts, config: dict[str, Any]) -> dict[str, Any]:
    """Return the config keys that the source decides and the tensors do not show."""
    scaling = facts.rope.scaling
    expected: dict[str, Any] = {
        "num_attention_heads": facts.attention_heads,
        "num_key_value_heads": facts.kv_heads,
        "head_size": facts.head_size,
        "vocab_size": _expected_vocab(facts, config),
        "max_position_embeddings": facts.max_position_embeddings,
        "norm_epsilon": facts.norm_epsilon,
        "position_embedding_type": "rope_gpt_neox",
        "rotary_base": facts.rope.base,
        "rotary_scaling": None if scaling is None else {"type": scaling["rope_type"], **scaling},
        "attn_bias": facts.qkv_bias,
        "mlp_bias": False,
    }
    if facts.architecture.startswith("Qwen"):
        expected["qwen_type"] = facts.model_type
    if facts.qk_norm:
        expected["qk_layernorm"] = True
    return expected


def _expected_vocab(facts: CheckpointFacts, config: dict[str, Any]) -> int:
    """Return the source's vocabulary, or that padded where the exported tensors are padded with it (AWQ)."""
    padded = -(-facts.vocab_size // _AWQ_VOCAB_MULTIPLE) * _AWQ_VOCAB_MULTIPLE
    awq = str(config.get("quantization", {}).get("quant_algo")).endswith("AWQ")
    return padded if awq else facts.vocab_size


def _same(stated: Any, value: Any) -> bool:
    if isinstance(stated, float | int) and isinstance(value, float) and not isinstance(stated, bool):
        return abs(stated - value) <= 1e-6 * abs(value)
    if isinstance(stated, dict) and isinstance(value, dict):
        return all(stated.get(key) == wanted for key, wanted in value.items() if key not in {"type", "rope_type"})
    return bool(stated == value)


class _Chatter(io.TextIOBase):
    """A stream that libraries may keep hold of: it writes to `file` while that is set, and drops text after."""

    def __init__(self, file: TextIO | None) -> None:
        self.file = file

    def writable(self) -> bool:
        """Return that text may be written."""
        return True

    def write(self, text: str) -> int:
        """Write, or drop."""
        if self.file is not None:
            self.file.write(text)
        return len(text)

    def flush(self) -> None:
        """Flush the file behind."""
        if self.file is not None:
            self.file.flush()


@contextmanager
def chatter_to(log: Path | None) -> Iterator[None]:
    """Send what libraries print, warn and log within the block to a file, or nowhere.

    A logging handler that a library sets up within the block keeps its stream: what it logs later is dropped.
    """
    with contextlib.ExitStack() as stack:
        file = None if log is None else stack.enter_context(log.open("a", encoding="utf-8"))
        chatter = _Chatter(file)
        stack.callback(setattr, chatter, "file", None)
        stack.enter_context(contextlib.redirect_stdout(chatter))
        stack.enter_context(contextlib.redirect_stderr(chatter))
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("default")
        warnings.showwarning = _show_warning
        yield


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Write a warning to the redirected stream, also where a test runner would have collected it."""
    (file or sys.stderr).write(warnings.formatwarning(message, category, filename, lineno, line))


@contextmanager
def _as_tool_error(log: Path | None) -> Iterator[None]:
    """Turn what ModelOpt raises for a model it cannot handle into a `ToolError` with the end of the log."""
    try:
        yield
    except (ValueError, RuntimeError, NotImplementedError, AssertionError, KeyError, AttributeError) as error:
        lines = [] if log is None else log.read_text(encoding="utf-8").splitlines()[-_LAST_LINES:]
        raise ToolError(f"ModelOpt failed: {error!r}", log_path=log, last_lines=lines) from error
