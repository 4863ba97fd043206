"""Quantizes a checkpoint and exports it for TensorRT-LLM.

ModelOpt's export is checked before anything is built from it: its config is compared with the source and corrected, and
all tensors must be present.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from engines.checkpoint.export_config import mend_config, weight_only_quantization
from engines.checkpoint.export_job import ExportJob, Layout, group_notices, layout_of
from engines.checkpoint.inspection import CheckpointFacts, library
from engines.checkpoint.library_output import as_tool_error, library_output_to
from engines.checkpoint.modelopt import BATCH_TOKENS, Progress, calibrate, require_modelopt
from engines.checkpoint.trtllm_checkpoint import read_exported
from engines.files import write_text
from engines.manifest import Notice
from engines.names import TOKENIZER_FILE
from engines.spec import precision_named

_LIBRARIES_BYTES = 650_000_000  # torch, transformers and ModelOpt after import
# Freed tensors of up to 32 MiB stay with the threads that freed them; measured with two: 0.7 GB.
_KEPT_BYTES = 1_000_000_000
_OLDER_TRANSFORMERS = 4  # reads rope_theta and rope_scaling, not transformers 5's rope_parameters
# ModelOpt's name for a decoder layer with a gated MLP and RMSNorm. Newer versions also know "qwen" and export the same
# tensors for it; up to 0.43 they refuse to export a TensorRT-LLM checkpoint under that name.
_DECODER = "llama"
# ModelOpt writes these beside kv_cache_scaling_factor; TensorRT-LLM has no parameter for them and warns on each load.
_UNREAD = (".k_cache_scaling_factor", ".v_cache_scaling_factor")


def quantize(job: ExportJob, out: Path, *, progress: Progress, log: Path | None = None) -> list[Notice]:
    """Quantize a Hugging Face checkpoint into a TensorRT-LLM checkpoint, one safetensors file per rank.

    Args:
        out: Folder for config.json and rank*.safetensors; created if missing.
        log: File for the libraries' output; None: discarded.

    Returns:
        Notices: corrections of the export's config, an unusual group size.

    Raises:
        MissingError: ModelOpt, torch or transformers is not installed, or this ModelOpt is unsuitable.
        UserError: The model cannot be split or grouped as requested.
        ToolError: ModelOpt failed, or its export cannot be corrected.
    """
    layout = layout_of(job, "tensorrt")
    quantize_with(job, layout, out, lambda model: _export(model, layout, out), progress=progress, log=log)
    notices = mend_config(out, layout.facts, precision=layout.precision, kv_cache=layout.kv_cache)
    read_exported(out)
    return [*group_notices(layout), *notices]


def quantize_with(
    job: ExportJob, layout: Layout, out: Path, export: Callable[[Any], None], *, progress: Progress, log: Path | None
) -> None:
    """Load a checkpoint, calibrate it on the job's text and export it. Raises as `quantize` does.

    Args:
        export: Writes the quantized model that it is given to `out`.
    """
    windows = job.calibration.token_windows(job.source / TOKENIZER_FILE) if layout.needs_text else []
    with as_tool_error(log), library_output_to(log):
        require_modelopt(layout.precision)
        out.mkdir(parents=True, exist_ok=True)
        model = load(job.source, layout)
        calibrate(model, layout, windows, seed=job.seed, progress=progress)
        progress("export ...")
        export(model)


def quantizing_memory_bytes(facts: CheckpointFacts, precision: str, *, ranks: int = 1) -> int:
    """Return the approximate peak memory of `quantize` in bytes; an upper estimate.

    Includes the 16-bit model; its export, which is copied once more for several GPUs; one calibration batch; freed
    tensors that the C library keeps; the libraries. Measured in FP8 for one GPU: 5.3 and 8.5 GiB for Qwen3-8B's
    geometry with 2 and 8 of its layers, where this returns 9.8 and 13.0; 2.2 GiB for SmolLM2-135M (1.1 with one
    thread), where this returns 2.3; for a Llama of 509 million parameters 1.9 GB in bf16, 2.3 GB in fp8, and 3.0 GB in
    fp8 for two GPUs.
    """
    head_bytes = 2 * facts.vocab_size * facts.hidden_size
    embeddings = facts.vocab_size * facts.hidden_size * (1 if facts.tied_embeddings else 2)
    exported_bytes = precision_named(precision).stored_bytes(facts.parameters - embeddings) + 2 * head_bytes
    copies = 1 if ranks == 1 else 2
    batch_bytes = BATCH_TOKENS * 4 * (4 * facts.intermediate_size + 8 * facts.hidden_size)
    return _LIBRARIES_BYTES + _KEPT_BYTES + 2 * facts.parameters + copies * exported_bytes + batch_bytes


def load(source: Path, layout: Layout) -> Any:
    """Load a checkpoint with transformers in the layout's 16-bit type, with the checkpoint's own rope."""
    torch, transformers = library("torch"), library("transformers")
    config = transformers.AutoConfig.from_pretrained(source, local_files_only=True, trust_remote_code=False)
    if int(transformers.__version__.split(".")[0]) <= _OLDER_TRANSFORMERS:
        config.rope_theta, config.rope_scaling = layout.facts.rope.base, layout.facts.rope.scaling
    model = transformers.AutoModelForCausalLM.from_pretrained(
        source,
        config=config,
        dtype=getattr(torch, layout.dtype),
        local_files_only=True,
        use_safetensors=True,
        trust_remote_code=False,
    )
    return model.eval()


def _export(model: Any, layout: Layout, out: Path) -> None:
    """Write config.json and each rank's tensors, without those that TensorRT-LLM does not read."""
    torch, export = library("torch"), library("modelopt.torch.export")
    safetensors = library("safetensors.torch")
    with torch.inference_mode():
        ranks = export.torch_to_tensorrt_llm_checkpoint(
            model,
            _DECODER,
            getattr(torch, layout.dtype),
            inference_tensor_parallel=layout.tensor_parallel,
            inference_pipeline_parallel=layout.pipeline_parallel,
        )
        for config, tensors, _ in ranks:
            kept = {name: tensor for name, tensor in tensors.items() if not name.endswith(_UNREAD)}
            safetensors.save_file(kept, out / f"rank{config['rank']}.safetensors")
            write_text(out / "config.json", json.dumps(_stated(config, layout), indent=2) + "\n")


def _stated(config: dict[str, Any], layout: Layout) -> dict[str, Any]:
    """Return an export's config as JSON values; the ranks' configs differ only in the rank's number."""
    quantization = dict(config["quantization"])
    if quantization.pop("quantized_layers", None) is not None:  # only the KV cache is quantized: no layer has a format
        quantization = {key: quantization.get(key) for key in ("quant_algo", "kv_cache_quant_algo")}
    if quantization.get("exclude_modules"):
        quantization["exclude_modules"] = sorted(quantization["exclude_modules"])
    if layout.precision == "int8_wo":
        quantization = weight_only_quantization(quantization)
    return {**config, "quantization": quantization}
