"""Reading, quantizing, exporting and verifying checkpoints. May import `spec` and the shared modules only."""

from engines.checkpoint.calibration_text import (
    Corpus,
    WindowSizes,
    default_text_path,
    documents_of,
    json_records,
    load_corpus,
)
from engines.checkpoint.export_job import ExportJob
from engines.checkpoint.geometry import model_of
from engines.checkpoint.gguf import unpack
from engines.checkpoint.huggingface_export import quantize_huggingface
from engines.checkpoint.inspection import CheckpointFacts, inspect_checkpoint
from engines.checkpoint.loaded import BATCH_TOKENS, LoadedModel, inputs_of, loaded_memory_bytes
from engines.checkpoint.modelopt import require_modelopt
from engines.checkpoint.quantize import quantize, quantizing_memory_bytes
from engines.checkpoint.shards import read_shard_header
from engines.checkpoint.tokenizer import copy_tokenizer, find_tokenizer, load_tokenizer
from engines.checkpoint.verify import verify, verifying_memory_bytes

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
