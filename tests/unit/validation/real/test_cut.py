"""A cut of a checkpoint holds its first layers' bytes, unchanged."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from validation.real.cut import _copy_tensors


def test_the_first_layers_are_kept_byte_for_byte(tmp_path: Path) -> None:
    """The safetensors library reads the cut, and finds what it wrote; deeper layers are gone."""
    rng = np.random.default_rng(0)
    names = ["lm_head.weight", "model.norm.weight", *(f"model.layers.{layer}.mlp.weight" for layer in (0, 1, 2, 10))]
    tensors = {name: rng.random((3, 5), dtype=np.float32) for name in names}
    save_file(tensors, tmp_path / "whole.safetensors")
    _copy_tensors(tmp_path / "whole.safetensors", tmp_path / "cut.safetensors", 2)
    found = load_file(tmp_path / "cut.safetensors")
    assert sorted(found) == sorted(set(names) - {"model.layers.2.mlp.weight", "model.layers.10.mlp.weight"})
    assert all(np.array_equal(found[name], tensors[name]) for name in found)
    raw = (tmp_path / "cut.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    assert "model.layers.2.mlp.weight" not in json.loads(raw[8 : 8 + length])
