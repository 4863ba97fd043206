"""Quantize a checkpoint and export it for TensorRT-LLM: the one file that knows ModelOpt.

ModelOpt's export is not taken at its word. What its config states is compared with the source and mended, and every
tensor is accounted for, before anything is built from it.
"""

from __future__ import annotations

import contextlib
import copy
import io
import json
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from engines.checkpoint.calibration_text import TextWindows
from engines.checkpoint.inspection import CheckpointFacts, inspect_checkpoint, library
from engines.checkpoint.trtllm_checkpoint import read_exported
from engines.errors import ToolError, UserError
from engines.files import write_text
from engines.manifest import Notice
from engines.spec import KvFormat, precision_named

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
KV_ALGO: dict[KvFormat, str | None] = {"16bit": None, "int8": "INT8", "fp8": "FP8"}
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


@dataclass(frozen=True, slots=True)
class Job:
    """What to make of a checkpoint."""

    facts: CheckpointFacts
    precision: str
    kv_cache: KvFormat
    group_size: int
    tensor_parallel: int
    pipeline_parallel: int

    @property
    def dtype(self) -> str:
        """Return the 16-bit type that the model is loaded in."""
        return "float16" if self.precision == "fp16" else "bfloat16"

    @property
    def needs_text(self) -> bool:
        """Return whether ModelOpt has to see calibration text."""
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
    job = checked_job(facts, precision_named(precision).name, kv_cache, tensor_parallel, pipeline_parallel)
    windows = calibration.token_windows(source / "tokenizer.json") if job.needs_text else []
    out.mkdir(parents=True, exist_ok=True)
    with as_tool_error(log), chatter_to(log):
        model = load(source, job)
        _calibrate(model, job, windows, seed=seed, progress=progress)
        progress("export ...")
        _export(model, job, out)
        del model
    notices = mend_config(out, job.facts, precision=job.precision, kv_cache=job.kv_cache)
    read_exported(out)
    return [*group_notices(job), *notices]


def quantizing_memory_bytes(facts: CheckpointFacts, precision: str, *, ranks: int = 1) -> int:
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


def checked_job(
    facts: CheckpointFacts, precision: str, kv_cache: KvFormat, tensor_parallel: int, pipeline_parallel: int
) -> Job:
    """Return the job; raise `UserError` where the checkpoint's geometry rules the precision out."""
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
    return Job(
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


def group_notices(job: Job) -> list[Notice]:
    """Return what there is to say of the quantization group's size."""
    usual = precision_named(job.precision).group_size
    if job.group_size == usual:
        return []
    text = (
        f"{job.precision} weights share a scale in groups of {job.group_size}, not {usual}: "
        f"this model's linear layers do not divide by {usual}"
    )
    return [Notice(code="group-size", text=text)]


def load(source: Path, job: Job) -> Any:
    """Load a checkpoint with transformers, in the job's 16-bit type."""
    torch, transformers = library("torch"), library("transformers")
    model = transformers.AutoModelForCausalLM.from_pretrained(
        source, dtype=getattr(torch, job.dtype), local_files_only=True, use_safetensors=True, trust_remote_code=False
    )
    return model.eval()


def _calibrate(model: Any, job: Job, windows: list[list[int]], *, seed: int, progress: Progress) -> None:
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


def _quantizer_config(job: Job) -> dict[str, Any] | None:
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


def _export(model: Any, job: Job, out: Path) -> None:
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
        if not same(stated, value):
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
        "kv_cache_quant_algo": KV_ALGO[kv_cache],
    }
    for key, value in expected.items():
        if found[key] != value:
            raise ToolError(f"ModelOpt's export states {key} = {found[key]}, the source calls for {value}")


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


def same(stated: Any, value: Any) -> bool:
    """Return whether a stated value is this value, floats within 1e-6 of it."""
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
def as_tool_error(log: Path | None) -> Iterator[None]:
    """Turn what ModelOpt raises for a model it cannot handle into a `ToolError` with the end of the log."""
    try:
        yield
    except (ValueError, RuntimeError, NotImplementedError, AssertionError, KeyError, AttributeError) as error:
        lines = [] if log is None else log.read_text(encoding="utf-8").splitlines()[-_LAST_LINES:]
        raise ToolError(f"ModelOpt failed: {error!r}", log_path=log, last_lines=lines) from error
