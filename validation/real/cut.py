"""A cut of a checkpoint: its first layers, in a checkpoint of their own. No tensor is changed."""

from __future__ import annotations

import json
import re
import shutil
import struct
from pathlib import Path

from engines.checkpoint import CheckpointFacts, inspect_checkpoint

WEIGHTS, CONFIG = "model.safetensors", "config.json"
_LAYER = re.compile(r"^model\.layers\.(\d+)\.")


def cut(source: Path, target: Path, *, layers: int) -> CheckpointFacts:
    """Write the first layers of a checkpoint, its embedding, its last norm and its head; and prove the result whole.

    The safetensors format is eight bytes of the header's length, a JSON header with each tensor's type, shape and
    place, and the tensors' bytes (https://huggingface.co/docs/safetensors); those are copied as they are.
    """
    target.mkdir(parents=True)
    for path in source.iterdir():
        if path.suffix in {".json", ".jinja"} and path.name not in {CONFIG, "model.safetensors.index.json"}:
            shutil.copy(path, target)
    config = json.loads((source / CONFIG).read_text(encoding="utf-8"))
    changed = {**config, "num_hidden_layers": layers, "_name_or_path": target.name}
    (target / CONFIG).write_text(json.dumps(changed, indent=2) + "\n", encoding="utf-8")
    _copy_tensors(source / WEIGHTS, target / WEIGHTS, layers)
    return inspect_checkpoint(target)


def is_kept(tensor: str, layers: int) -> bool:
    """Return whether a tensor is in the first layers, or in none.

    >>> is_kept("model.layers.3.mlp.up_proj.weight", 4), is_kept("model.layers.4.mlp.up_proj.weight", 4)
    (True, False)
    """
    found = _LAYER.match(tensor)
    return found is None or int(found[1]) < layers


def _copy_tensors(source: Path, target: Path, layers: int) -> None:
    with source.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
        begin = 8 + length
        kept = {name: facts for name, facts in header.items() if name != "__metadata__" and is_kept(name, layers)}
        ordered = sorted(kept.items(), key=lambda pair: pair[1]["data_offsets"][0])
        at, moved = 0, {}
        for name, facts in ordered:
            first, last = facts["data_offsets"]
            moved[name] = {**facts, "data_offsets": [at, at + last - first]}
            at += last - first
        text = json.dumps({"__metadata__": header.get("__metadata__", {}), **moved}).encode()
        text += b" " * (-len(text) % 8)
        with target.open("wb") as written:
            written.write(struct.pack("<Q", len(text)) + text)
            for _, facts in ordered:
                first, last = facts["data_offsets"]
                file.seek(begin + first)
                written.write(file.read(last - first))
