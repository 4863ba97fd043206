"""What `inspect_checkpoint` reads of a checkpoint, and each way one is found not whole."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engines.checkpoint.inspection import expected_shapes, inspect_checkpoint
from engines.errors import MissingError, UserError

CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": 4,
    "max_position_embeddings": 32,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10_000.0,
    "dtype": "bfloat16",
    "eos_token_id": 2,
    "tie_word_embeddings": True,
}
SHAPES: dict[str, tuple[int, ...]] = {
    "model.embed_tokens.weight": (4, 8),
    "model.norm.weight": (8,),
    "model.layers.0.self_attn.q_proj.weight": (8, 8),
    "model.layers.0.self_attn.k_proj.weight": (4, 8),
    "model.layers.0.self_attn.v_proj.weight": (4, 8),
    "model.layers.0.self_attn.o_proj.weight": (8, 8),
    "model.layers.0.mlp.gate_proj.weight": (16, 8),
    "model.layers.0.mlp.up_proj.weight": (16, 8),
    "model.layers.0.mlp.down_proj.weight": (8, 16),
    "model.layers.0.input_layernorm.weight": (8,),
    "model.layers.0.post_attention_layernorm.weight": (8,),
}
PARAMETERS = 32 + 8 + 64 + 32 + 32 + 64 + 128 + 128 + 128 + 8 + 8


def write_checkpoint(folder: Path, *, shapes: dict[str, tuple[int, ...]], shards: int = 1, **changes: Any) -> Path:
    """Write a checkpoint of zeros; with several shards, an index too."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG | changes))
    (folder / "tokenizer_config.json").write_text("{}")
    write_tokenizer(folder, words=4)
    names = sorted(shapes)
    if shards == 1:
        write_shard(folder / "model.safetensors", shapes)
        return folder
    weight_map = {name: f"model-{index % shards}.safetensors" for index, name in enumerate(names)}
    for shard in set(weight_map.values()):
        write_shard(folder / shard, {name: shapes[name] for name in names if weight_map[name] == shard})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


def write_shard(path: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    """Write a safetensors file of bfloat16 zeros, by the format's own description."""
    header, end = {}, 0
    for name, shape in shapes.items():
        size_bytes = 2
        for length in shape:
            size_bytes *= length
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [end, end + size_bytes]}
        end += size_bytes
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(end))


def write_tokenizer(folder: Path, *, words: int) -> None:
    """Write a word-level tokenizer of so many words."""
    model = {"type": "WordLevel", "vocab": {f"w{word}": word for word in range(words)}, "unk_token": "w0"}
    tokenizer = {"version": "1.0", "added_tokens": [], "model": model}
    rest = dict.fromkeys(["truncation", "padding", "normalizer", "pre_tokenizer", "post_processor", "decoder"])
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer | rest))


@pytest.mark.parametrize("shards", [1, 3])
def test_whole_checkpoint(tmp_path: Path, shards: int) -> None:
    """A whole checkpoint gives its geometry, counts its parameters and hashes its files, in one shard or several."""
    facts = inspect_checkpoint(write_checkpoint(tmp_path / "model", shapes=SHAPES, shards=shards))
    assert facts.parameters == PARAMETERS
    assert facts.weights_bytes == 2 * PARAMETERS
    assert (facts.head_size, facts.kv_heads, facts.rope.base) == (4, 1, 10_000.0)
    assert expected_shapes(facts) == SHAPES
    assert len(facts.files) == 3 + shards


def test_transformers_5_rope_spelling(tmp_path: Path) -> None:
    """`rope_parameters` of transformers 5 reads as `rope_theta` with `rope_scaling` does."""
    scaling = {"factor": 4.0, "original_max_position_embeddings": 8}
    old = write_checkpoint(tmp_path / "old", shapes=SHAPES, rope_scaling={"type": "yarn", **scaling})
    new = write_checkpoint(
        tmp_path / "new",
        shapes=SHAPES,
        rope_theta=None,
        rope_parameters={"rope_type": "yarn", "rope_theta": 10_000.0, **scaling},
    )
    assert inspect_checkpoint(old).rope == inspect_checkpoint(new).rope
    assert inspect_checkpoint(old).rope.scaling == {"rope_type": "yarn", **scaling}


def cut_shard(folder: Path) -> None:
    """Drop a shard's last ten bytes."""
    shard = folder / "model-1.safetensors"
    shard.write_bytes(shard.read_bytes()[:-10])


def extend_shard(folder: Path) -> None:
    """Append bytes that no header speaks of."""
    with (folder / "model-1.safetensors").open("ab") as shard:
        shard.write(b"\0" * 4)


LFS_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 4976698672\n"


def name_shard(folder: Path, shard: str) -> None:
    """Let the index name this shard for all tensors."""
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": dict.fromkeys(SHAPES, shard)}))


@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [
        (cut_shard, UserError, r"model-1.safetensors: the file has .* bytes, but its header states"),
        (extend_shard, UserError, r"model-1.safetensors: the file has .* bytes, but its header states"),
        (lambda f: (f / "model-0.safetensors").unlink(), MissingError, r"model-0.safetensors: no such file"),
        (lambda f: (f / "model-0.safetensors").write_bytes(b"<html>"), UserError, "not a safetensors file"),
        (
            lambda f: (f / "model-0.safetensors").write_bytes(LFS_POINTER),
            UserError,
            "a Git LFS pointer, not the weights",
        ),
        (lambda f: name_shard(f, "../model/model-0.safetensors"), UserError, "names a shard outside of its folder"),
        (lambda f: name_shard(f, "/etc/passwd"), UserError, "names a shard outside of its folder"),
        (lambda f: (f / "model.safetensors.index.json").write_text("[]"), UserError, "not a safetensors index"),
        (lambda f: (f / "tokenizer.json").unlink(), MissingError, "tokenizer.json: no such file"),
        (lambda f: (f / "tokenizer_config.json").unlink(), MissingError, "tokenizer_config.json: no such file"),
        (lambda f: (f / "tokenizer.json").write_text("{}"), UserError, "not a tokenizer"),
        (lambda f: write_tokenizer(f, words=6), UserError, "contains token id 5, but the model's vocabulary ends at 3"),
        (lambda f: (f / "config.json").unlink(), UserError, "not a checkpoint: it has no config.json"),
        (lambda f: (f / "config.json").write_text("{"), UserError, "not valid JSON"),
    ],
)
def test_spoiled_checkpoint_is_refused(
    tmp_path: Path, spoil: Callable[[Path], Any], error: type[Exception], message: str
) -> None:
    """A file cut short, lost or damaged is named."""
    folder = write_checkpoint(tmp_path / "model", shapes=SHAPES, shards=2)
    spoil(folder)
    with pytest.raises(error, match=message):
        inspect_checkpoint(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model.layers.0.adapter.weight": (2, 2)}, "tensor 'model.layers.0.adapter.weight' not known"),
        ({"model.layers.1.mlp.up_proj.weight": (16, 8)}, "layers.1.mlp.up_proj.weight' not known"),
        ({"model.norm.weight": (9,)}, r"'model.norm.weight' has shape \[9\], config.json implies \[8\]"),
    ],
)
def test_tensors_must_fit_the_config(tmp_path: Path, change: dict[str, tuple[int, ...]], message: str) -> None:
    """A tensor the geometry does not call for, or of another shape, is named."""
    folder = write_checkpoint(tmp_path / "model", shapes=SHAPES | change)
    with pytest.raises(UserError, match=message):
        inspect_checkpoint(folder)


def test_what_is_not_a_checkpoint_folder_is_told_where_one_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A published model's name, a file of weights and Hugging Face's cache are each met with the next step."""
    monkeypatch.chdir(tmp_path)
    write_checkpoint(tmp_path / "models--a--b", shapes=SHAPES).rename(tmp_path / "whole")
    (tmp_path / "models--a--b" / "snapshots").mkdir(parents=True)
    (tmp_path / "whole").rename(tmp_path / "models--a--b" / "snapshots" / "0f3c")
    for path, error, message, hint in (
        ("Qwen/Qwen3-8B", MissingError, "no such checkpoint folder", "hf download Qwen/Qwen3-8B --local-dir DIR"),
        ("/Qwen/Qwen3-8B", MissingError, "no such checkpoint folder", "check the path"),
        ("models--a--b", UserError, "it has no config.json", "try models--a--b/snapshots/0f3c"),
        ("models--a--b/snapshots/0f3c/config.json", UserError, "is a file", "try models--a--b/snapshots/0f3c"),
    ):
        with pytest.raises(error, match=message) as caught:
            inspect_checkpoint(Path(path))
        assert hint in str(caught.value.hint)


def test_missing_tensor_is_refused(tmp_path: Path) -> None:
    """A tensor that the geometry calls for is missed by name, the output projection too where it is not tied."""
    lost = {name: shape for name, shape in SHAPES.items() if "k_proj" not in name}
    with pytest.raises(UserError, match=r"k_proj.weight' missing"):
        inspect_checkpoint(write_checkpoint(tmp_path / "lost", shapes=lost))
    with pytest.raises(UserError, match=r"'lm_head.weight' missing"):
        inspect_checkpoint(write_checkpoint(tmp_path / "untied", shapes=SHAPES, tie_word_embeddings=False))


def test_index_and_shard_must_agree(tmp_path: Path) -> None:
    """A tensor that the index promises and no shard holds is named."""
    folder = write_checkpoint(tmp_path / "model", shapes=SHAPES, shards=2)
    index = folder / "model.safetensors.index.json"
    weight_map = json.loads(index.read_text())["weight_map"] | {"lm_head.weight": "model-0.safetensors"}
    index.write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(UserError, match=r"lm_head.weight' not in the shard"):
        inspect_checkpoint(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, "architecture GPT2LMHeadModel is not supported"),
        ({"quantization_config": {"quant_method": "awq"}}, "already quantized"),
        ({"sliding_window": 16}, "sliding-window"),
        ({"hidden_size": 0}, "hidden_size: must be a positive number"),
        ({"dtype": "float8"}, "dtype float8"),
        ({"eos_token_id": None}, "missing key 'eos_token_id'"),
        ({"rope_theta": None}, "missing key 'rope_theta'"),
        ({"rope_theta": [1e4, ""]}, "rope_theta: must be a positive number"),
        ({"rope_parameters": [1]}, "rope_parameters: expected keys and values"),
        ({"sliding_window": "x"}, "sliding_window: must be a positive number"),
    ],
)
def test_config_we_cannot_use_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    """A config of a model we cannot build says which key is why."""
    folder = write_checkpoint(tmp_path / "model", shapes=SHAPES, **changes)
    with pytest.raises(UserError, match=message):
        inspect_checkpoint(folder)
