"""Safetensors shards: lists a folder's tensors from the headers alone, and checks that all bytes are present."""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from pathlib import Path

from engines.errors import MissingError, UserError
from engines.files import load_json

BYTES_PER_ELEMENT = {"F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "I8": 1, "U8": 1, "I32": 4, "I64": 8, "F64": 8}
_HEADER_LIMIT_BYTES = 100_000_000
_LFS_POINTER = b"version https://git-lfs.github.com/spec/"  # how one begins


@dataclass(frozen=True, slots=True)
class TensorFacts:
    """One tensor as a safetensors header states it."""

    shape: tuple[int, ...]
    dtype: str

    @property
    def elements(self) -> int:
        """Return the number of elements."""
        count = 1
        for size in self.shape:
            count *= size
        return count


def read_tensors(folder: Path) -> dict[str, TensorFacts]:
    """Return every tensor of a checkpoint folder by name, from the shards' headers alone.

    Raises:
        MissingError: There are no safetensors, or the index names a missing shard.
        UserError: A shard is corrupt, a Git LFS pointer or elsewhere, or contradicts the index.
    """
    tensors: dict[str, TensorFacts] = {}
    for shard in shard_paths(folder):
        for name, facts in read_shard_header(shard).items():
            if name in tensors:
                raise UserError(f"{shard}: tensor '{name}' is also in another shard", hint="download it again")
            tensors[name] = facts
    _check_index(folder, tensors)
    return tensors


def shard_paths(folder: Path) -> list[Path]:
    """Return the paths of a checkpoint's shards, in order. Raises as `read_tensors` does."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        shards = [folder / name for name in sorted(set(_weight_map(index).values()))]
    else:
        shards = [folder / "model.safetensors"]
    for shard in shards:
        if shard.parent != folder:
            raise UserError(f"{index}: names a shard outside of its folder: {shard.name}", hint="download it again")
        if not shard.is_file():
            raise MissingError(f"{shard}: no such file", hint=_missing_shard_hint(folder, index))
    return shards


def read_shard_header(path: Path) -> dict[str, TensorFacts]:
    """Return the tensors in a safetensors file, after checking that it contains all their bytes.

    Raises:
        UserError: It is not safetensors, a Git LFS pointer, or truncated.
    """
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            start = file.read(len(_LFS_POINTER))
            if start == _LFS_POINTER:
                raise UserError(
                    f"{path}: a Git LFS pointer, not the weights themselves",
                    hint="fetch them: git lfs pull, or hf download OWNER/MODEL --local-dir DIR",
                )
            (header_bytes,) = struct.unpack("<Q", start[:8])
            file.seek(8)
            if header_bytes > min(size, _HEADER_LIMIT_BYTES):
                raise ValueError("the header is longer than the file")
            header = json.loads(file.read(header_bytes))
        header.pop("__metadata__", None)
        tensors = {name: TensorFacts(tuple(entry["shape"]), entry["dtype"]) for name, entry in header.items()}
        end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
        for name, entry in header.items():
            _check_span(name, tensors[name], *entry["data_offsets"])
    except (struct.error, ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(
            f"{path}: not a safetensors file: {error}", hint="download or export this shard again"
        ) from error
    if size != 8 + header_bytes + end:
        raise UserError(
            f"{path}: the file has {size:,} bytes, but its header states {8 + header_bytes + end:,}",
            hint="the shard is truncated or damaged; download it again",
        )
    return tensors


def _check_span(name: str, tensor: TensorFacts, begin: int, end: int) -> None:
    width = BYTES_PER_ELEMENT.get(tensor.dtype)
    if width is None:
        raise ValueError(f"tensor '{name}' has dtype {tensor.dtype}")
    if end - begin != tensor.elements * width:
        raise ValueError(f"tensor '{name}' spans {end - begin} bytes, its shape needs {tensor.elements * width}")


def _check_index(folder: Path, tensors: dict[str, TensorFacts]) -> None:
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return
    lost = sorted(_weight_map(index).keys() - tensors.keys())
    if lost:
        raise UserError(f"{index}: {some(lost)} not in the shard it names", hint="download the checkpoint again")


def _weight_map(index: Path) -> dict[str, str]:
    try:
        weight_map = load_json(index)["weight_map"]
        return {str(name): str(shard) for name, shard in weight_map.items()}
    except (KeyError, AttributeError, TypeError) as error:
        raise UserError(f"{index}: not a safetensors index", hint="download it again") from error


def _missing_shard_hint(folder: Path, index: Path) -> str:
    if index.is_file():
        return "the index names this shard; download it"
    if any(folder.glob("*.bin")):
        return "only .bin weights found: save the model again as safetensors"
    if any(folder.glob("*.gguf")):
        return "the folder contains a GGUF file: convert it with unpack-checkpoint"
    return "a checkpoint's weights are in model.safetensors, or in shards with model.safetensors.index.json"


def some(names: list[str]) -> str:
    """Return the first tensor names and the number of further ones, for a message."""
    shown = ", ".join(f"'{name}'" for name in names[:3])
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""  # noqa: PLR2004 (three names are enough to see)
    return f"tensor{'s' if len(names) > 1 else ''} {shown}{more}"
