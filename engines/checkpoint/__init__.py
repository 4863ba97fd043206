"""Reading, quantizing, exporting and verifying checkpoints. May import `spec` and the shared modules only."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from engines.checkpoint.calibration_text import (
    Corpus,
    WindowSizes,
    default_text_path,
    documents_of,
    json_records,
    load_corpus,
)
from engines.checkpoint.tokenizer import copy_tokenizer, find_tokenizer, load_tokenizer

if TYPE_CHECKING:
    from engines.checkpoint.export_job import ExportJob, layout_of
    from engines.checkpoint.geometry import model_of
    from engines.checkpoint.gguf import unpack
    from engines.checkpoint.huggingface_export import quantize_huggingface
    from engines.checkpoint.inspection import CheckpointFacts, inspect_checkpoint
    from engines.checkpoint.loaded import BATCH_TOKENS, LoadedModel, inputs_of, loaded_memory_bytes
    from engines.checkpoint.modelopt import require_modelopt
    from engines.checkpoint.quantization import quantize, quantizing_memory_bytes
    from engines.checkpoint.shards import read_shard_header
    from engines.checkpoint.verification import verify, verifying_memory_bytes

__all__ = [
    "BATCH_TOKENS",
    "CheckpointFacts",
    "Corpus",
    "ExportJob",
    "LoadedModel",
    "WindowSizes",
    "copy_tokenizer",
    "default_text_path",
    "documents_of",
    "find_tokenizer",
    "inputs_of",
    "inspect_checkpoint",
    "json_records",
    "layout_of",
    "load_corpus",
    "load_tokenizer",
    "loaded_memory_bytes",
    "model_of",
    "quantize",
    "quantize_huggingface",
    "quantizing_memory_bytes",
    "read_shard_header",
    "require_modelopt",
    "unpack",
    "verify",
    "verifying_memory_bytes",
]

_MODULES = {
    "BATCH_TOKENS": "loaded",
    "CheckpointFacts": "inspection",
    "ExportJob": "export_job",
    "LoadedModel": "loaded",
    "inputs_of": "loaded",
    "inspect_checkpoint": "inspection",
    "layout_of": "export_job",
    "loaded_memory_bytes": "loaded",
    "model_of": "geometry",
    "quantize": "quantization",
    "quantize_huggingface": "huggingface_export",
    "quantizing_memory_bytes": "quantization",
    "read_shard_header": "shards",
    "require_modelopt": "modelopt",
    "unpack": "gguf",
    "verify": "verification",
    "verifying_memory_bytes": "verification",
}


def __getattr__(name: str) -> Any:
    """Return a name of a module imported at its first use: reading text and tokenizers needs no models of engines."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
